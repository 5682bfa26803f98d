"Evaluation and report on a small museum with a small model."

import csv
import json
import re
import shutil

import numpy as np
import pytest
from small_lens import small_onnx

from ai_suite.core.cache import file_hash
from ai_suite.core.errors import SuiteError
from ai_suite.lens.answers import KINDS, left_out, question, without
from ai_suite.lens.bundle import load_bundle
from ai_suite.lens.collect import exhibits_of, strangers_of
from ai_suite.lens.crossval import Learned, crossval, new_place
from ai_suite.lens.data import layout
from ai_suite.lens.evaluate import evaluate, examine, figures_of
from ai_suite.lens.gallery import score
from ai_suite.lens.mistakes import matrix, worst
from ai_suite.lens.report import report
from ai_suite.lens.samples import write_samples
from ai_suite.lens.shots import shots_of
from ai_suite.lens.twins import finer

ASKED = {"top1_place", "top3_place", "top1", "top3", "map", "reject_auroc", "eer", "fpr_at_95tpr", "ece"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("museum")
    write_samples(folder, places=3, items=2, photos=6, size=160)
    places = layout(folder / "data")
    small_onnx(folder / "m.onnx", places)
    return folder


@pytest.fixture(scope="module")
def seen(place):
    bundle = load_bundle(place / "m.onnx")
    return bundle, examine(bundle, place / "data", place / "ood")


def test_metrics_json_holds_what_was_promised(place, tmp_path, capsys):
    found = evaluate(model=str(place / "m.onnx"), data_root=str(place / "data"), ood=str(place / "ood"), output=str(tmp_path))
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told == found and ASKED <= set(told) and set(told["intervals"]) >= ASKED
    assert all(0 <= told[k] <= 1 for k in ASKED) and told["reject_kind"] == "ood" and told["how"] == "model"
    assert [sum(r["photos"] for r in told[k]) for k in ("per_place", "per_item")] == [36, 36] == 2 * [told["counts"]["photos"]]
    rows = list(csv.DictReader((tmp_path / "answers.csv").open()))
    assert len(rows) == sum(told["counts"]["questions"].values())
    assert np.mean([float(r["rank"]) == 1 for r in rows if r["kind"] == "known"]) == pytest.approx(told["top1_place"])
    assert str(place) not in (tmp_path / "answers.csv").read_text()
    assert capsys.readouterr().out == ""


def test_figures_are_those_of_the_gallery(seen):
    bundle, e = seen
    hits = []
    for p in set(e.photos.places):
        rows = np.flatnonzero(e.photos.places == p)
        s = score(bundle.gallery, e.photos.embeddings[rows], p)
        hits += [s.items[k] == item for k, item in zip(s.p.argmax(1), e.photos.items[rows], strict=True)]
    assert figures_of(e, bundle)["top1_place"] == pytest.approx(np.mean(hits))


def test_the_same_seed_gives_the_same_figures(seen):
    bundle, e = seen
    assert json.dumps(figures_of(e, bundle), default=float) == json.dumps(figures_of(e, bundle), default=float)


def test_every_kind_is_asked_where_it_does_not_belong(seen):
    a = seen[1].asked.answers
    assert (a[a.kind == "held_out"].answer != a[a.kind == "held_out"].truth).all()
    away = a[a.kind == "other_place"]
    assert (away.place.to_numpy() != seen[1].photos.places[away.photo.to_numpy(int)]).all()
    assert set(a.kind) == {"known", "ood", "other_place", "held_out"} <= {"known", *KINDS}


def test_a_place_with_one_item_is_not_emptied(seen):
    bundle, e = seen
    g, first = bundle.gallery, bundle.gallery.items[0]
    alone = without(g, [i for i, k in enumerate(g.items) if k[0] == first[0] and k != first][0])
    own = e.photos.places == first[0]
    assert left_out(alone, e.photos.embeddings[own], e.photos.places[own], e.photos.items[own], e.photos.groups[own]) is None


def test_items_outside_the_model_are_to_be_refused(seen):
    bundle, e = seen
    g = without(bundle.gallery, 0)
    a = question(g, e.photos.embeddings, e.photos.places, e.photos.items, e.photos.groups)
    new = a[a.kind == "new"]
    assert set(zip(new.place, new.truth, strict=True)) == {bundle.gallery.items[0]} and (new["rank"] == 0).all()


def test_bad_and_trained_photos_are_named(place, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(place / "data", root)
    photos = sorted(root.glob("*/*/*.jpg"))
    photos[0].write_bytes(b"")
    photos[1].write_bytes(photos[1].read_bytes()[:900])
    (root / "elsewhere" / "x").mkdir(parents=True)
    shutil.copy(photos[2], root / "elsewhere/x/1.jpg")
    bundle = load_bundle(place / "m.onnx")
    bundle = bundle._replace(config=bundle.config | {"train_hashes": [file_hash(photos[2])[:16]]})
    e = examine(bundle, root)
    found = figures_of(e, bundle)
    assert len(found["errors"]) == 2 and {x["error"]["code"] for x in found["errors"]} == {"E102"}
    assert found["counts"]["trained_on"] == 1 and found["unseen"]["photos"] == 33
    text = " ".join(found["warnings"])
    assert "1 of 34 photos" in text and "2 photos could not be read" in text and "elsewhere" in text


def test_groups_are_those_of_training(place, seen):
    bundle, e = seen
    shots = shots_of(place / "data")
    assert dict(zip(shots.paths, shots.groups, strict=True)) == dict(zip(e.photos.paths, e.photos.groups, strict=True))
    assert e.photos.visits and all(" · 방문 " in g for g in e.photos.groups) and len(set(e.photos.groups)) == 12


def test_metadata_of_a_place_counts_too(place, seen, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(place / "data", root)
    told = json.loads((root / "metadata.json").read_text())["photos"]
    (root / "metadata.json").unlink()
    for home in root.iterdir():
        own = {k.partition("/")[2]: v for k, v in told.items() if k.startswith(home.name + "/")}
        (home / "metadata.json").write_text(json.dumps({"photos": own}))
    photos, _ = exhibits_of(seen[0], root)
    assert photos.visits and photos.groups.tolist() == seen[1].photos.groups.tolist()


def test_six_visits_are_enough():
    days = np.array([f"d{i % 6}" for i in range(12)])
    assert finer(days, ["a", "b"] * 6).tolist() == days.tolist()
    assert len(set(finer(np.array(["d0", "d1"] * 4), ["a"] * 4 + ["b"] * 4))) == 4


def test_photos_that_cannot_be_read_are_listed(place, seen, tmp_path):
    shutil.copytree(place / "ood", tmp_path / "ood")
    files = sorted((tmp_path / "ood").rglob("*.jpg"))
    files[3].write_bytes(b"no photo")
    photos = strangers_of(seen[0], tmp_path / "ood")
    assert [e["image"] for e in photos.errors] == [files[3].relative_to(tmp_path / "ood").as_posix()]
    assert photos.paths == [f for f in files if f != files[3]] and np.isfinite(photos.embeddings).all()
    for f in files:
        f.write_bytes(b"")
    photos = strangers_of(seen[0], tmp_path / "ood")
    assert not photos.paths and len(photos.errors) == len(files)
    assert photos.embeddings.shape == (0, seen[1].photos.embeddings.shape[1])


def learner(bundle):
    def fit(photos):
        from dataclasses import replace

        from ai_suite.lens.gallery import gallery_of
        keys = sorted(set(zip(photos.places, photos.items, strict=True)))
        own = [keys.index(k) for k in zip(photos.places, photos.items, strict=True)]
        g = gallery_of(photos.embeddings, own, keys)
        g = replace(g, calibration=bundle.gallery.calibration, thresholds=bundle.gallery.thresholds)
        return Learned(g, lambda p: p.embeddings)
    return fit


def test_folds_never_see_their_visits(seen):
    bundle, e = seen
    taught = []
    fit = learner(bundle)

    def spy(photos):
        taught.append(set(photos.groups))
        return fit(photos)

    found = crossval(e.photos, 3, spy, e.ood)
    known = found.answers[found.answers.kind == "known"]
    assert sorted(known.photo) == list(range(36)) and len(taught) == 3
    for fold, own in known.groupby("fold"):
        assert not set(own.group) & taught[fold - 1]
    assert (e.photos.items[known.photo.to_numpy(int)] == known.truth.to_numpy()).all() and len(found.p_open) == 36


def test_a_new_place_is_not_trained_on(seen):
    bundle, e = seen
    fit, taught = learner(bundle), []

    def spy(photos):
        taught.extend(photos.places)
        return fit(photos)

    name = e.photos.places[0]
    found = new_place(e.photos, name, spy, e.ood)
    known = found.answers[found.answers.kind == "known"]
    assert name not in taught and set(known.place) == {name} and len(known)
    assert set(found.answers[found.answers.kind == "ood"].place) == {name}
    with pytest.raises(SuiteError, match="E301"):
        new_place(e.photos, "nowhere", spy)


@pytest.mark.parametrize("given, code", [({"kfold": 1}, "E301"), ({"kfold": -2}, "E301"), ({"data_root": "/nowhere"}, "E101"),
                                         ({"model": "/nowhere.onnx"}, "E200"), ({"ood": "/nowhere"}, "E101"),
                                         ({"reject_threshold": 2.0}, "E301"), ({"kfold": 2}, "E203")])
def test_bad_arguments(place, given, code):
    with pytest.raises(SuiteError, match=code):
        evaluate(**({"model": str(place / "m.onnx"), "data_root": str(place / "data")} | given))


def test_a_model_without_thresholds(place, tmp_path):
    bare = small_onnx(tmp_path / "bare.onnx", layout(place / "data"), limits={})
    with pytest.raises(SuiteError, match="E310"):
        evaluate(model=str(bare), data_root=str(place / "data"))
    assert evaluate(model=str(bare), data_root=str(place / "data"), reject_threshold=0.5)["top1_place"] > 0


def test_the_matrix_counts_each_photo_once(seen):
    a = seen[1].asked.answers
    for p in set(a.place):
        counts, names = matrix(a, p)
        assert counts[:-1].sum() == ((a.kind == "known") & (a.place == p)).sum() and len(names) == 2
        assert counts[-1].sum() == ((a.kind == "ood") & (a.place == p)).sum()
    assert not worst(a).duplicated(["kind", "photo"]).any()


def test_the_page_stands_alone(place, tmp_path):
    data, ood = str(place / "data"), str(place / "ood")
    made = report(model=str(place / "m.onnx"), data_root=data, ood=ood, output=str(tmp_path / "p.html"))
    page = (tmp_path / "p.html").read_text()
    assert made["report"].endswith("p.html") and json.loads((tmp_path / "p.json").read_text())["top1_place"] == made["top1_place"]
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "<script" not in page and str(place) not in page
    assert "재촬영" in page and "suite-hangul" in page and page.count("<figure") >= 8
    for word in ("Confusions", "Refusing", "The threshold", "How sure", "Map of the embeddings", "Places and exhibits"):
        assert word in page


def test_names_cannot_write_into_the_page(place, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(place / "data", root)
    one = next(p for p in sorted(root.glob("*/*")) if p.is_dir())
    shutil.move(str(sorted(one.glob("*.jpg"))[0]), str(one / "<img src=x onerror=alert(1)>.jpg"))
    bad = sorted(one.glob("[0-9]*.jpg"))[0]
    bad.rename(one / "<script>.jpg")
    (one / "<script>.jpg").write_bytes(b"no photo")
    report(model=str(place / "m.onnx"), data_root=str(root), output=str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page and "<script>" not in page and "&lt;script&gt;.jpg" in page


def test_nothing_to_report_on(place, tmp_path):
    with pytest.raises(SuiteError, match="E301"):
        report(model=str(place / "m.onnx"), ood=str(place / "ood"), output=str(tmp_path))
    made = report(model=str(place / "m.onnx"), output=str(tmp_path))
    assert set(made) == {"report", "json"} and "No photos were given" in (tmp_path / "report.html").read_text()


def test_all_photos_are_read_once(place):
    bundle = load_bundle(place / "m.onnx")
    photos, unknown = exhibits_of(bundle, place / "data")
    assert len(photos.paths) == len(set(photos.names)) == 36 and unknown == []
