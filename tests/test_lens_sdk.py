"""Answers of a loaded model, one by one and by the folder: the same on every road, whole after every interruption."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")
import small_lens  # noqa: E402
from PIL import Image  # noqa: E402
from support import code_of  # noqa: E402

from ai_suite.core.cache import locked  # noqa: E402
from ai_suite.core.errors import SuiteError  # noqa: E402
from ai_suite.image.read import read_rgb  # noqa: E402
from ai_suite.lens import batch, sdk  # noqa: E402
from ai_suite.lens.batch import captures, in_order, infer_batch  # noqa: E402
from ai_suite.lens.bundle import load_bundle  # noqa: E402
from ai_suite.lens.sdk import Lens, Remembered, infer  # noqa: E402

RUN = "import sys; from ai_suite.core.cli import run; from ai_suite.lens.batch import infer_batch; sys.exit(run(infer_batch))"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Photos by place and item, and a model of all of them."
    home = tmp_path_factory.mktemp("museum")
    places = small_lens.museum(home / "data")
    return home, places, small_lens.small_onnx(home / "best.onnx", places)


@pytest.fixture
def lens(world):
    return Lens(world[2])


def photo(world, place="1층", item=0, k=5):
    return list(world[1][place].values())[item][k]


def counted(monkeypatch, lens):
    "How often a picture was decoded, and how often embedded."
    calls = {"decoded": 0, "embedded": 0}
    embed = lens.model.bundle.embed

    def reading(*args):
        calls["decoded"] += 1
        return read_rgb(*args)

    def embedding(pixels):
        calls["embedded"] += 1
        return embed(pixels)

    monkeypatch.setattr(sdk, "read_rgb", reading)
    lens.model = lens.model._replace(bundle=lens.model.bundle._replace(embed=embedding))
    return calls


# ---- one photo


def test_the_small_model_is_right_often_enough_to_test_with(world, lens):
    asked = [(p, i, f) for p, items in world[1].items() for i, fs in items.items() for f in fs[4:]]
    said = [lens.infer(place=p, image_path=f) for p, _, f in asked]
    assert np.mean([r.selected_item == i for r, (_, i, _) in zip(said, asked, strict=True)]) > 0.7
    away = [lens.infer(place=q, image_path=f) for p, _, f in asked for q in lens.places() if q != p]
    assert np.mean([r.decision == "recollect" for r in away]) > 0.8


def test_json_of_both_decisions(world, lens):
    yes = lens.infer(place="1층", image_path=photo(world))
    no = lens.infer(place="2층", image_path=photo(world))
    assert list(yes.as_dict()) == ["place", "predictions", "decision", "selected_item", "confidence"]
    assert list(no.as_dict()) == ["place", "predictions", "decision", "message", "hints"]
    assert (yes.decision, no.decision) == ("accept", "recollect") and no.selected_item is None
    for r in (yes, no):
        scores = [p["score"] for p in r.predictions]
        assert r.confidence == scores[0] and scores == sorted(scores, reverse=True) and json.dumps(r.as_dict())
    assert "재촬영" in no.message and all(isinstance(h, str) for h in no.hints)
    assert any("1층" in h for h in no.hints)


def test_language(world):
    said = Lens(world[2], lang="en").infer(place="2층", image_path=photo(world))
    assert said.message.isascii() and any("1층" in h and "place" in h for h in said.hints)
    assert code_of(Lens, world[2], lang="fr") == "E301"


def test_path_bytes_and_pixels_agree(world, lens, tmp_path):
    Image.fromarray(read_rgb(photo(world))).save(tmp_path / "a.png")
    rgb = read_rgb(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes(), rgb, np.asfortranarray(rgb)]
    said = [Lens(world[2]).infer(place="1층", image_path=f) for f in forms]
    assert all(r == said[0] for r in said)


@pytest.mark.parametrize("pixels", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 4), np.uint8), np.zeros((64, 64, 3)),
                                    np.zeros((64, 3, 3), np.uint8), np.zeros((0, 64, 3), np.uint8)])
def test_pixels_of_another_kind(lens, pixels):
    assert code_of(lens.infer, place="1층", image_path=pixels) == "E103"


def test_a_file_that_was_overwritten_is_another_photo(world, lens, tmp_path):
    shutil.copy(photo(world), tmp_path / "a.jpg")
    first = lens.infer(place="1층", image_path=tmp_path / "a.jpg")
    shutil.copy(photo(world, item=1), tmp_path / "a.jpg")
    second = lens.infer(place="1층", image_path=tmp_path / "a.jpg")
    assert first.predictions[0]["item"] != second.predictions[0]["item"]


def test_question_is_checked_before_the_photo_is_read(world, lens, tmp_path):
    none = tmp_path / "none.jpg"
    assert code_of(lens.infer, place="4층", image_path=none) == "E301"
    assert code_of(lens.infer, place="1층", image_path=none, topk=0) == "E301"
    assert code_of(lens.infer, place="1층", image_path=none, reject_threshold=1.5) == "E301"
    assert code_of(lens.infer, place="1층", image_path=none, reject_threshold=float("nan")) == "E301"
    assert code_of(lens.infer, place="1층", image_path=none) == "E101"


def test_either_unicode_form(world, lens):
    a = lens.infer(place=normalize("NFD", "1층"), image_path=photo(world))
    assert a == lens.infer(place="1층", image_path=photo(world)) and a.place == normalize("NFC", a.place)


def test_threshold_that_is_given_wins(world, lens):
    always = lens.infer(place="1층", image_path=photo(world), reject_threshold=0)
    assert always.decision == "accept" and len(lens.infer(place="1층", image_path=photo(world), topk=1).predictions) == 1


def test_without_thresholds(world, tmp_path):
    untuned = Lens(small_lens.small_onnx(tmp_path / "u.onnx", world[1], limits={}))
    assert code_of(untuned.infer, place="1층", image_path=photo(world)) == "E310"
    assert untuned.infer(place="1층", image_path=photo(world), reject_threshold=0.5).decision in ("accept", "recollect")
    assert untuned.warm() is untuned


def test_command_prints_what_the_object_says(world, lens, capsys):
    from ai_suite.core.cli import run

    words = ["--model", str(world[2]), "--image", str(photo(world)), "--topk", "2", "--place"]
    for place in ("1층", "2층"):
        assert run(infer, [*words, place]) == 0
        assert json.loads(capsys.readouterr().out) == lens.infer(place=place, image_path=photo(world), topk=2).as_dict()
    assert run(infer, [*words, "9층"]) == 2 and "E301" in capsys.readouterr().err


def test_no_torch(world, tmp_path):
    "Neither a question nor a folder of them loads PyTorch, OpenCV or a plotting library."
    shutil.copy(photo(world), tmp_path / "a.jpg")
    code = """
import sys
from ai_suite.lens.sdk import Lens
from ai_suite.lens.batch import infer_batch
lens = Lens(sys.argv[1]).warm()
said = {lens.infer(place=p, image_path=sys.argv[2] + "/a.jpg").decision for p in lens.places()}
assert said == {"accept", "recollect"}, said
infer_batch(model=sys.argv[1], place="1층", input_dir=sys.argv[2], output=sys.argv[2] + "/x.jsonl")
print(sorted({"torch", "timm", "cv2", "fastai", "pandas", "matplotlib", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(world[2]), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# ---- many


def test_many_is_one_by_one(world, lens):
    asked = [(p, f) for items in world[1].values() for fs in items.values() for f in fs[3:] for p in lens.places()]
    assert lens.infer_many(asked) == [Lens(world[2]).infer(place=p, image_path=f) for p, f in asked]
    assert lens.infer_many([]) == []


@pytest.mark.parametrize("workers", [1, 4])
def test_a_photo_at_many_places_is_decoded_and_embedded_once(world, lens, monkeypatch, workers):
    calls, files = counted(monkeypatch, lens), [photo(world, item=i, k=k) for i in (0, 1) for k in (4, 5)]
    said = lens.infer_many([(p, f) for p in lens.places() for f in files], workers=workers)
    assert {r.decision for r in said} == {"accept", "recollect"}
    assert calls == {"decoded": len(files), "embedded": len(files)}
    lens.infer_many([("1층", f.read_bytes()) for f in files], workers=workers)
    assert calls["embedded"] == len(files)


def test_many_goes_on_after_errors(world, lens, tmp_path):
    (tmp_path / "text.jpg").write_text("no photo")
    good = photo(world)
    said = lens.infer_many([("1층", good), ("없음", good), ("1층", tmp_path / "text.jpg"), ("1층", tmp_path / "none.jpg"),
                            ("1층", b""), ("1층", np.zeros((2, 2))), ("2층", good)])
    assert [getattr(r, "code", "fine") for r in said] == ["fine", "E301", "E102", "E101", "E102", "E103", "fine"]
    assert "text.jpg" in said[2].what


def test_threads_share_one_object(world, lens):
    asked = [(p, f) for items in world[1].values() for fs in items.values() for f in fs for p in lens.places()] * 2
    alone = [Lens(world[2]).infer(place=p, image_path=f) for p, f in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda a: lens.infer(place=a[0], image_path=a[1]), asked)) == alone


def test_one_core_while_it_computes_and_as_before_afterwards(world, lens):
    from threadpoolctl import threadpool_info

    blas = lambda: [p["num_threads"] for p in threadpool_info() if "numpy" in p["filepath"]]
    before, inside, embed = blas(), [], lens.model.bundle.embed

    def watched(pixels):
        inside.append(blas())
        time.sleep(0.01)
        return embed(pixels)

    lens.model = lens.model._replace(bundle=lens.model.bundle._replace(embed=watched))
    files = [f for items in world[1].values() for fs in items.values() for f in fs]
    assert not any(isinstance(r, SuiteError) for r in lens.infer_many([("1층", f) for f in files], workers=4))
    assert len(inside) == len(files) and all(n == 1 for pools in inside for n in pools)
    assert blas() == before
    assert code_of(lens.infer, place="1층", image_path=b"") == "E102" and blas() == before


def test_pytorch_computes_on_one_thread_and_gets_its_threads_back(world, tmp_path):
    torch = pytest.importorskip("torch")
    from ai_suite.image.encoder import build
    from ai_suite.lens.bundle import save_model
    from ai_suite.lens.model import LensNet

    torch.manual_seed(0)
    net = LensNet(*build("test_efficientnet", pretrained=False, img_size=64), n_items=6, embedding=small_lens.WIDTH)
    lens = Lens(save_model(tmp_path / "best.ckpt", net, load_bundle(world[2]).gallery, {}))
    inside, embed, before = [], lens.model.bundle.embed, torch.get_num_threads()

    def watched(pixels):
        inside.append(torch.get_num_threads())
        return embed(pixels)

    lens.model = lens.model._replace(bundle=lens.model.bundle._replace(embed=watched))
    try:
        torch.set_num_threads(2)
        one = lens.infer(place="1층", image_path=photo(world))
        assert torch.get_num_threads() == 2
        lens.seen = Remembered()
        assert lens.infer_many([("1층", photo(world))] * 3) == [one] * 3
    finally:
        torch.set_num_threads(before)
    assert inside == [1, 1]


# ---- what is remembered


def test_remembered_is_bounded_and_forgets_the_least_used():
    kept, made = Remembered(3), []
    for key in [1, 2, 3, 1, 4, 1, 2]:
        assert kept.get(key, lambda key=key: made.append(key) or key) == key
    assert made == [1, 2, 3, 4, 2] and len(kept) == 3


def test_remembered_computes_once_among_threads_and_keeps_no_error():
    kept, made, go = Remembered(), [], threading.Barrier(8)

    def make():
        made.append(1)
        time.sleep(0.05)
        if len(made) == 1:
            raise SuiteError("E102", "the first one fails")
        return "fine"

    def ask(_):
        go.wait()
        try:
            return kept.get("a", make)
        except SuiteError as e:
            return e.code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == ["E102"] * 8 and len(made) == 1
        assert list(pool.map(ask, range(8))) == ["fine"] * 8 and len(made) == 2


# ---- an index, and a gallery that changes


def test_an_index_changes_no_answer_and_must_be_current(world, tmp_path):
    pytest.importorskip("faiss")
    from ai_suite.lens.shortlist import build_index

    model = shutil.copy(world[2], tmp_path / "best.onnx")
    build_index(model=str(model), data_root=str(world[0] / "data"), place="1층", save=str(tmp_path / "1.index"))
    with_index = Lens(model, index=tmp_path / "1.index")
    assert list(with_index.model.scorers) == ["1층"]
    for f in [photo(world, place=p, item=i) for p in world[1] for i in (0, 1)]:
        for place in (normalize("NFD", "1층"), "2층"):
            a, b = with_index.infer(place=place, image_path=f), Lens(model).infer(place=place, image_path=f)
            assert a.decision == b.decision and a.selected_item == b.selected_item and abs(a.confidence - b.confidence) < 2e-3
    with_index.enroll(place="1층", item="새것", images=[photo(world, place="2층", k=k) for k in (0, 1, 2)])
    assert with_index.infer(place="1층", image_path=photo(world, place="2층", k=1)).selected_item == "새것"
    with pytest.raises(SuiteError) as e:
        Lens(model, index=[tmp_path / "1.index"])
    assert e.value.code == "E200" and "stale" in e.value.what
    assert code_of(Lens, model, index=tmp_path / "none.index") == "E200"


def test_enroll_and_remove_are_seen_at_once_and_in_the_file(world, tmp_path):
    model = Path(shutil.copy(world[2], tmp_path / "best.onnx"))
    lens, new = Lens(model), photo(world, place="3층", k=0)
    assert lens.infer(place="1층", image_path=new).decision == "recollect"
    told = lens.enroll(place="1층", item="손님", images=[photo(world, place="3층", k=k) for k in (0, 1, 2)])
    assert told["action"] == "enrolled"
    for one in (lens, Lens(model)):
        assert one.infer(place="1층", image_path=new).selected_item == "손님"
    lens.remove(place="1층", item="손님")
    assert lens.infer(place="1층", image_path=new).decision == "recollect"
    assert code_of(lens.remove, place="1층", item="손님") == "E301"


def test_questions_are_answered_while_the_gallery_changes(world, tmp_path):
    lens = Lens(shutil.copy(world[2], tmp_path / "best.onnx"))
    stop, said = threading.Event(), []

    def keep_asking():
        while not stop.is_set():
            said.append(lens.infer(place="2층", image_path=photo(world, place="2층")))

    threads = [threading.Thread(target=keep_asking) for _ in range(2)]
    for t in threads:
        t.start()
    try:
        for n in range(2):
            lens.enroll(place="1층", item=f"새 {n}", images=[photo(world, place="3층", k=k) for k in (2 * n, 2 * n + 1)])
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert said and all(r.selected_item == said[0].selected_item and r.decision == "accept" for r in said)


# ---- a folder


@pytest.fixture
def day(world, tmp_path):
    "A day of captures: photos in folders, a wall, and much that is no photo."
    home = tmp_path / "captures"
    for k, (items, visitor) in enumerate([(i, v) for i in world[1].values() for v in (4, 5)]):
        (home / f"visitor {k % 3}").mkdir(parents=True, exist_ok=True)
        for n, fs in enumerate(items.values()):
            shutil.copy(fs[visitor], home / f"visitor {k % 3}" / f"{k}_{n}.JPG")
    shutil.copy(photo(world), home / normalize("NFD", "달항아리.jpg"))
    (home / "text.jpg").write_text("no photo")
    (home / "folder.jpg").mkdir()
    (home / "readme.txt").write_text("nor this")
    (home / ".hidden").mkdir()
    shutil.copy(photo(world), home / ".hidden" / "a.jpg")
    shutil.copy(photo(world), home / "._a.jpg")
    (home / "round").symlink_to(home)
    (home / "gone.jpg").symlink_to(home / "nowhere.jpg")
    shutil.copy(photo(world), os.fsencode(home) + b"/\xff\xb0.jpg")
    return home


def ask(world, day, **change):
    return {"model": str(world[2]), "place": "1층", "input_dir": str(day), "output": str(day.parent / "x.jsonl")} | change


def lines(path):
    data = Path(path).read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def test_lines_in_order_with_one_error_each(world, day, lens):
    told, said = infer_batch(**ask(world, day, workers=4)), lines(day.parent / "x.jsonl")
    names = [s["image"] for s in said]
    assert names == sorted(names) == [name for name, _ in captures(day)]
    assert "달항아리.jpg" in names and r"\xff\xb0.jpg" in names and "visitor 0/0_0.JPG" in names
    assert not any(word in name for name in names for word in ("hidden", "._a", "round", "readme", "folder"))
    errors = {s["image"]: s["error"] for s in said if "error" in s}
    assert {k: e["code"] for k, e in errors.items()} == {"text.jpg": "E102", "gone.jpg": "E101"}
    assert all(set(e) == {"code", "what", "fix"} for e in errors.values())
    one = next(s for s in said if s["image"] == "visitor 0/0_0.JPG")
    assert one == {"image": one["image"], **lens.infer(place="1층", image_path=day / one["image"]).as_dict()}
    counts = [sum(s.get("decision") == d for s in said) for d in ("accept", "recollect")]
    expected = {"images": len(said), "accepted": counts[0], "recollect": counts[1], "errors": 2}
    assert told == expected | {"output": str(day.parent / "x.jsonl")}
    assert min(counts) > 0


@pytest.mark.parametrize("keep", [0, 1, 7])
@pytest.mark.parametrize("torn", [b"", b'{"image": "vis', b"\0" * 50])
def test_resume_ends_with_the_same_file(world, day, keep, torn):
    told, out = infer_batch(**ask(world, day)), day.parent / "x.jsonl"
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:keep]) + torn)
    assert infer_batch(**ask(world, day, workers=3)) == told
    assert out.read_bytes() == whole


def test_a_finished_batch_asks_nothing_and_takes_new_photos(world, day, monkeypatch):
    told, out = infer_batch(**ask(world, day)), day.parent / "x.jsonl"
    whole = out.read_bytes()
    asked = []
    original = batch.line_of
    monkeypatch.setattr(batch, "line_of", lambda lens, name, path, **q: asked.append(name) or original(lens, name, path, **q))
    assert infer_batch(**ask(world, day)) == told and not asked and out.read_bytes() == whole
    shutil.copy(photo(world), day / "0.jpg")
    assert infer_batch(**ask(world, day))["images"] == told["images"] + 1
    assert asked == ["0.jpg"] and out.read_bytes().startswith(whole)


def test_two_files_with_one_name(world, tmp_path):
    day = tmp_path / "c"
    day.mkdir()
    for k, form in enumerate(("NFC", "NFD")):
        shutil.copy(photo(world, item=k), day / normalize(form, "각.jpg"))
    if len(list(day.iterdir())) < 2:
        pytest.skip("this disk knows one form only")
    infer_batch(**ask(world, day))
    whole = (tmp_path / "x.jsonl").read_bytes()
    assert [s["image"] for s in lines(tmp_path / "x.jsonl")] == ["각.jpg"] * 2
    (tmp_path / "x.jsonl").write_bytes(whole.splitlines(keepends=True)[0])
    infer_batch(**ask(world, day))
    assert (tmp_path / "x.jsonl").read_bytes() == whole


def test_answers_to_another_question_are_not_mixed(world, day, tmp_path):
    infer_batch(**ask(world, day))
    out = day.parent / "x.jsonl"
    whole = out.read_bytes()
    other = small_lens.small_onnx(tmp_path / "other.onnx", world[1], seed=1)
    for change in ({"place": "2층"}, {"reject_threshold": 0.9}, {"topk": 1}, {"lang": "en"}, {"model": str(other)}):
        with pytest.raises(SuiteError) as e:
            infer_batch(**ask(world, day, **change))
        assert e.value.code == "E120" and "--no-resume" in e.value.fix and out.read_bytes() == whole
    infer_batch(**ask(world, day, reject_threshold=0.62))  # the same threshold, given by hand
    assert out.read_bytes() == whole
    infer_batch(**ask(world, day, place="2층", resume=False))
    assert {s["place"] for s in lines(out) if "place" in s} == {"2층"}
    infer_batch(**ask(world, day, place="2층"))


def test_an_exhibit_that_joined_makes_it_another_question(world, day, tmp_path):
    model = shutil.copy(world[2], tmp_path / "m.onnx")
    infer_batch(**ask(world, day, model=str(model)))
    Lens(model).enroll(place="1층", item="새것", images=[photo(world, place="2층", k=k) for k in (0, 1, 2)])
    assert code_of(infer_batch, **ask(world, day, model=str(model))) == "E120"


@pytest.mark.parametrize("text", ["dear diary", "dear diary\n", '{"image": 3}\n', "\n"])
def test_a_file_of_somebody_else_is_left_alone(world, day, text):
    out = day.parent / "x.jsonl"
    out.write_text(text)
    assert code_of(infer_batch, **ask(world, day)) == "E120" and out.read_text() == text
    out.unlink()
    infer_batch(**ask(world, day))
    data = text.encode() + b"\n" + out.read_bytes()
    out.write_bytes(data)
    assert code_of(infer_batch, **ask(world, day)) == "E102" and out.read_bytes() == data


def test_two_runs_into_one_file(world, day):
    with locked(day.parent / ".x.jsonl.lock"):
        assert code_of(infer_batch, **ask(world, day)) == "E120"
    assert not (day.parent / "x.jsonl").exists()
    infer_batch(**ask(world, day))


def test_nothing_is_written_for_a_wrong_question(world, day, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for code, change in {"E301": {"place": "9층"}, "E200": {"model": "none.onnx"}, "E104": {"input_dir": str(empty)},
                         "E101": {"input_dir": str(tmp_path / "none")}}.items():
        assert code_of(infer_batch, **ask(world, day, **change)) == code
    for change in ({"topk": 0}, {"workers": -1}, {"lang": "fr"}, {"reject_threshold": 2.0}):
        assert code_of(infer_batch, **ask(world, day, **change)) == "E301"
    assert code_of(infer_batch, **ask(world, day, output=str(empty))) == "E120"
    assert not [p for p in day.parent.glob("*.jsonl*") if p.suffix != ".lock"]


def test_a_full_disk_leaves_whole_lines(world, day):
    infer_batch(**ask(world, day))
    out = day.parent / "x.jsonl"
    whole = out.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, before[1]))
        assert code_of(infer_batch, **ask(world, day, resume=False)) == "E120"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert whole.startswith(out.read_bytes()) and 0 < len(lines(out)) < len(whole.splitlines())
    infer_batch(**ask(world, day))
    assert out.read_bytes() == whole


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_gone_on(world, tmp_path, stop):
    day, out = tmp_path / "c", tmp_path / "x.jsonl"
    day.mkdir()
    data = photo(world).read_bytes()
    for n in range(600):
        (day / f"{n:04d}.jpg").write_bytes(data + bytes([n // 256, n % 256]))
    words = [f"--{k.replace('_', '-')}={v}" for k, v in ask(world, day).items()]
    running = subprocess.Popen([sys.executable, "-c", RUN, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not (out.exists() and out.stat().st_size > 1000):
        time.sleep(0.002)
    running.send_signal(stop)
    said, err = running.communicate(timeout=60)
    done = out.read_bytes().count(b"\n")
    assert 0 < done < 600 and not said
    if stop == signal.SIGINT:
        assert running.returncode == 130 and f"E130 interrupted; {done} answers" in err and out.read_bytes().endswith(b"\n")
    told = infer_batch(**ask(world, day))
    assert told["images"] == 600 and [s["image"] for s in lines(out)] == [f"{n:04d}.jpg" for n in range(600)]


def test_in_order_runs_a_few_ahead_and_stops_when_asked():
    taken, done = [], []

    def source():
        for n in range(1000):
            taken.append(n)
            yield n

    def work(n):
        time.sleep(0.02 if n % 5 == 0 else 0.001)
        done.append(n)
        return -n

    some = in_order(work, source(), workers=3)
    assert [next(some) for _ in range(20)] == [-n for n in range(20)]
    some.close()
    assert len(taken) <= 20 + 3 * 4 and threading.active_count() < 20
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // (3 - n), range(10), workers=2))
