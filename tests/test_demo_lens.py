"""The demo of lens: visits never mix, figures are what they are called, the page shows names as text."""

import json
from pathlib import Path

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
for module in ("PIL", "sklearn", "jinja2", "matplotlib", "pywt"): pytest.importorskip(module)

from ai_suite.suite.demo_lens import demo_lens, examples, message, plot_ways, refused_rows, said, sheet  # noqa: E402
from ai_suite.suite.demo_museum import SCALES, SEEN, nearest, photographed, plain_looks, shares, simple_row  # noqa: E402

PLAN = {"places": 2, "items": 2, "photos": 8, "visits": 1}


@pytest.fixture(scope="module")
def museum(tmp_path_factory):
    folder = tmp_path_factory.mktemp("museum")
    return folder, *photographed(folder, PLAN, 0)


def sessions(folder: Path) -> dict[str, str]:
    told = json.loads((folder / "metadata.json").read_text("utf-8"))["photos"]
    files = {str(p.relative_to(folder)) for p in folder.rglob("*.jpg")}
    assert set(told) == files
    return {name: p["session"] for name, p in told.items()}


def test_later_visits_are_kept_out_of_training(museum):
    folder, new, five = museum
    for part in ("data", "ood"):
        early, late = sessions(folder / "train" / part), sessions(folder / "test" / part)
        assert set(early.values()).isdisjoint(late.values()) and set(early.values()) | set(late.values()) == {"방문 1", "방문 2"}
    assert not (folder / "train/data" / new).exists() and len(list((folder / "test/data" / new).iterdir())) == 4
    assert {p.parent.name for p in (folder / "train/ood").rglob("*.jpg")} == set(SEEN)
    assert len({p.parent.name for p in (folder / "test/ood").rglob("*.jpg")}) == 4
    assert all(p.is_file() and new in str(p) for p in five)


def test_a_second_run_leaves_nothing_of_the_first(museum, tmp_path):
    (tmp_path / "test/data/3층/old").mkdir(parents=True)
    photographed(tmp_path, PLAN, 0)
    first = {str(p.relative_to(museum[0])): p.read_bytes() for p in museum[0].rglob("*") if p.is_file()}
    assert first == {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_the_nearest_photo_names(museum):
    photos = sorted((museum[0] / "train/data").rglob("*.jpg"))
    keys = sorted({p.parent for p in photos})
    item, places = np.array([keys.index(p.parent) for p in photos]), np.array([k.parent.name for k in keys], object)
    for looks in plain_looks(photos).values():
        assert np.allclose((looks**2).sum(1), 1, atol=1e-5)
        row = simple_row("x", nearest(looks, item, looks), item, places, np.arange(len(item)))
        assert row["top1_place"] == row["top1"] == row["new"] == 1 and .5 < row["low"] < row["high"] == 1


def test_wrong_names_and_strangers_count():
    near = np.array([[.9, .1, .0], [.2, .8, .0], [.8, .2, .1], [.1, .3, .9], [.5, .5, 0]])
    truth, places = np.array([0, 1, 1, 2, -1]), np.array(["A", "A", "A"], object)
    row = simple_row("x", near, truth, places, np.array(["v"] * 5))
    assert row["top1_place"] == row["top1"] == 2 / 3 and row["new"] == 1 and row["reject_auroc"] == 1
    assert row["low"] != row["low"]
    near[4] = .99
    assert simple_row("x", near, truth, places, np.array(["v"] * 5))["reject_auroc"] == 0
    apart = simple_row("x", near, truth, np.array(["A", "B", "B"], object), np.array(["v"] * 5))
    assert apart["top1_place"] == 1 and apart["top1"] == 2 / 3


def test_intervals_need_six_visits():
    assert shares(np.array([True] * 5), np.arange(5))[0] == 1 and np.isnan(shares(np.array([True] * 5), np.arange(5))[1])
    value, low, high = shares(np.ones(24, bool), np.repeat(np.arange(6), 4))
    assert (value, high) == (1, 1) and low == pytest.approx(.025 ** (1 / 6))
    value, low, high = shares(np.arange(24) % 4 > 0, np.repeat(np.arange(6), 4))
    assert value == low == high == .75


def answers():
    rows = [("data", "known", "A", "ㄱ", "ㄱ", .9, True, 1), ("data", "known", "A", "ㄴ", "ㄱ", .8, True, 2),
            ("data", "known", "A", "ㄴ", "ㄴ", .3, False, 1), ("벽", "ood", "A", "", "ㄱ", .2, False, 0),
            ("관람객", "ood", "A", "", "ㄱ", .7, True, 0), ("data", "other_place", "B", "ㄱ", "ㄷ", .1, False, 0),
            ("data", "held_out", "A", "ㄱ", "ㄴ", .6, True, 0), ("data", "held_out", "A", "ㄴ", "ㄱ", .2, False, 0)]
    table = pd.DataFrame(rows, columns=["home", "kind", "place", "truth", "answer", "p", "accepted", "rank"])
    return table.assign(image=[f"{h}/{i}.jpg" for i, h in enumerate(table.home)], group=[f"v{i % 3}" for i in range(len(rows))])


def test_let_in_is_counted_by_kind():
    rows = {r["asked about"]: r for r in refused_rows(answers())}
    first = next(iter(rows.values()))
    assert first["questions"] == 5 and first["let in"] == pytest.approx((.5 + .5 + 0) / 3)
    assert first["low"] < 1 / 3 < first["high"]
    found = {name.split(",")[0]: r["let in"] for name, r in rows.items()}
    assert found["· walls"] == found["an exhibit of another place"] == 0 and found["· visitors"] == 1
    assert found["an exhibit that was taken out of the catalogue"] == .5


def test_examples_show_mistakes_too():
    shown = examples(answers())
    assert [(about.split(":")[0], image) for about, _, image, _ in shown] == [
        ("Right, and sure of it", "data/0.jpg"), ("To be taken again", "data/2.jpg"), ("No exhibit", "벽/3.jpg"),
        ("Right exhibit, wrong place", "data/5.jpg"), ("Wrong", "data/1.jpg"), ("Wrong", "관람객/4.jpg")]
    assert [part for _, part, *_ in shown] == ["data", "data", "ood", "data", "data", "ood"]
    calm = answers()
    calm["accepted"] = (calm.kind == "known") & (calm["rank"] == 1)
    assert not any(about.startswith("Wrong") for about, *_ in examples(calm))


def test_names_stay_text(museum):
    from ai_suite.lens.sdk import Result

    evil = "<script>alert(1)</script>"
    told = Result(evil, [{"item": evil, "score": .5}], "recollect", None, .5, "다시", (evil,))
    assert json.loads(message(told.as_dict())) == told.as_dict()
    html = str(said([(evil, museum[2][0], told, told)])) + str(sheet(museum[0]))
    assert "<script" not in html and "&lt;script&gt;" in html and html.count("data:image/jpeg;base64,") == 1 + 2 * 3


def test_ways_without_an_interval_are_drawn():
    fig = plot_ways([{"way": "trained model", "top1_place": .9, "low": .8, "high": 1}, {"way": "guessing", "top1_place": .25}])
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["trained model", "guessing"]


@pytest.mark.slow
def test_the_demo_beats_simpler_ways(tmp_path):
    told = demo_lens(tmp_path, "full", seed=1)
    model, *others, guessing = (r["top1_place"] for r in told["models"])
    assert model > max(others) and guessing < min(others) and told["refused"][0]["low"] <= .05 <= told["refused"][0]["high"]
    page = Path(told["report"]).read_text("utf-8")
    assert "The photos are made" in page and told["new"]["exhibit"] in page and told["onnx"]["flipped"] == 0
    assert set(SCALES) == {"full", "small"}
