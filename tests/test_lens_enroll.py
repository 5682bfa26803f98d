"""Enrolling: an exhibit joins from a few photos, moves with more of them, and leaves; what a curator is told; the command."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from small_lens import SIDE, small_onnx
from small_lens import museum as photos_of_a_museum

from ai_suite.core.errors import SuiteError
from ai_suite.image.read import read_rgb
from ai_suite.lens import enroll as rooms
from ai_suite.lens.bundle import load_bundle
from ai_suite.lens.data import layout
from ai_suite.lens.enroll import concerns, enroll, enroll_photos, enrolled, fellows, removed
from ai_suite.lens.gallery import as_text, from_text, gallery_of, score, unit

ITEMS = [("홀", "종"), ("홀", "탑"), ("방", "불"), ("방", "등")]


@pytest.fixture
def known():
    "A gallery of four exhibits, directions of six, and a maker of photos."
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(6, 64)))
    shoot = lambda of, n=5: unit(centres[[of] * n] + 0.07 * rng.normal(size=(n, 64)))
    photos = np.concatenate([shoot(i, 8) for i in range(4)])
    gallery = replace(gallery_of(photos, np.repeat(np.arange(4), 8), ITEMS), background=unit(rng.normal(size=(3, 64))),
                      thresholds={"*": {"T": 0.6, "M": 0.1, "D": 0.7}, "홀": {"T": 0.5, "M": 0.1, "D": 0.7}}, revision=4)
    return gallery, shoot


def same(a, b) -> bool:
    return all((x == y).all() if isinstance(x, np.ndarray) else x == y for x, y in zip(a, b, strict=True))


def test_in_and_out_scores_as_before(known):
    gallery, shoot = known
    new = np.concatenate([shoot(i, 2) for i in range(6)])
    for place, item in (("홀", "새것"), ("마당", "새것"), ("방", "ㄱ")):
        larger = enrolled(gallery, shoot(4), place, item)
        assert not same(score(larger, new, "홀"), score(gallery, new, "홀"))
        again = removed(larger, place, item)
        assert (larger.revision, again.revision) == (5, 6)
        assert all(same(score(again, new, place), score(gallery, new, place)) for place in ("홀", "방"))
        assert replace(again, revision=4).enrolled == gallery.enrolled and again.thresholds == gallery.thresholds
        assert as_text(replace(again, revision=4)) == as_text(gallery)


def test_the_new_one_is_found_and_the_old_ones_stay(known):
    gallery, shoot = known
    larger = enrolled(gallery, shoot(4), "홀", "새것")
    said = score(larger, np.r_[shoot(4, 3), shoot(0, 3), shoot(5, 3)], "홀")
    assert [said.items[i] for i in said.p.argmax(1)[:6]] == ["새것"] * 3 + ["종"] * 3
    assert (said.p_reject[6:] > 0.5).all() and (said.p[:6].max(1) > 0.5).all()
    assert gallery.items == tuple(ITEMS) and gallery.revision == 4
    assert same(pack_of(from_text(as_text(larger))), pack_of(larger))


def pack_of(gallery):
    return gallery.prototypes, gallery.owner, gallery.items, gallery.enrolled


def test_a_place_begins_with_its_first_exhibit(known):
    gallery, shoot = known
    larger = enrolled(gallery, shoot(4), normalize("NFD", "마당"), normalize("NFD", "돌"))
    assert larger.items[-1] == ("마당", "돌") and "마당" in larger.places()
    said = score(larger, np.r_[shoot(4, 2), shoot(5, 2)], "마당")
    assert (said.p[:2, 0] > 0.5).all() and (said.p[2:, 0] < 0.5).all()
    with pytest.raises(SuiteError, match="E301"):
        removed(larger, "마당", "돌").of("마당")


def test_photos_count_one_each(known):
    gallery, shoot = known
    first, second, third = shoot(4, 3), shoot(4, 6), shoot(4, 1)
    step = gallery
    for part in (first, second, third):
        step = enrolled(step, part, "홀", "새것")
    whole = enrolled(gallery, np.r_[first, second, third], "홀", "새것")
    assert step.enrolled["홀/새것"]["photos"] == whole.enrolled["홀/새것"]["photos"] == 10
    assert float(step.prototypes[-1] @ whole.prototypes[-1]) > 0.999
    trained = {n: enrolled(gallery, shoot(4), "홀", "종", trained=n).prototypes[0] @ gallery.prototypes[0] for n in (1, 10, 1000)}
    assert trained[1] < trained[10] < trained[1000] and trained[1000] > 0.999
    moved = enrolled(gallery, shoot(4), "홀", "종")
    assert moved.items == gallery.items and (moved.owner == gallery.owner).all()
    assert (moved.prototypes[1:] == gallery.prototypes[1:]).all()
    assert moved.enrolled["홀/종"]["photos"] == rooms.TRAINED + 5 and moved.enrolled["홀/종"]["trained"]


def test_an_exhibit_with_several_directions_becomes_one(known):
    gallery, shoot = known
    double = replace(gallery, prototypes=np.r_[gallery.prototypes, shoot(0, 1)], owner=np.r_[gallery.owner, 0])
    moved = enrolled(double, shoot(0), "홀", "종")
    assert moved.owner.tolist() == [0, 1, 2, 3]
    assert removed(double, "홀", "종").owner.tolist() == [0, 1, 2]


def test_bad_questions_of_the_gallery(known):
    gallery, shoot = known
    five = shoot(4)
    strange = ("", " 종", "a/b", "a\\b", "..", "줄\n", "\ud800")
    bad = [(lambda name=name: enrolled(gallery, five, "홀", name), "E301") for name in strange]
    bad += [(lambda: enrolled(gallery, five, "", "종"), "E301"), (lambda: enrolled(gallery, five[:, :5], "홀", "새것"), "E203"),
            (lambda: enrolled(gallery, five[:0], "홀", "새것"), "E104"),
            (lambda: enrolled(gallery, five * np.nan, "홀", "새것"), "E104"),
            (lambda: enrolled(gallery, np.r_[five[:1], -five[:1]], "홀", "새것"), "E105"),
            (lambda: removed(gallery, "홀", "조"), "E301"),
            (lambda: removed(gallery, "없다", "종"), "E301")]
    for ask, code in bad:
        with pytest.raises(SuiteError) as e:
            ask()
        assert e.value.code == code
    last = removed(removed(removed(gallery, "홀", "종"), "홀", "탑"), "방", "불")
    assert last.thresholds == {"*": gallery.thresholds["*"]}
    with pytest.raises(SuiteError, match="E110"):
        removed(last, "방", "등")


def test_what_a_curator_is_told(known):
    gallery, shoot = known
    names = [f"{i}.jpg" for i in range(9)]
    told = lambda e, item="새것", **k: [w["what"] for w in concerns(gallery, e, "홀", item, names[:len(e)], **k)]
    five = shoot(4)
    assert told(five) == []
    assert ["4.jpg" in w for w in told(np.r_[five[:4], shoot(0, 1)])] == [True]
    assert ["4.jpg" in w for w in told(np.r_[five[:4], shoot(5, 1)])] == [True]
    assert ["2 view" in w for w in told(five[:2])] == [True] and ["1 view" in w for w in told(five[:1])] == [True]
    assert ["'탑'" in w for w in told(shoot(1))] == [True]
    assert told(shoot(2)) == [], "an exhibit of another place is no double here"
    far = [0, 2**20 - 1, (2**20 - 1) << 20, (2**20 - 1) << 40, (2**60 - 1)]
    assert told(five, hashes=far) == []
    near = told(five, hashes=[far[0], far[1], far[1] ^ 5, far[2], far[3]])
    assert len(near) == 1 and "2.jpg" in near[0]
    assert len(told(five, hashes=[0] * 5)) == 2
    assert told(shoot(0, 1), "종") == [] and ["0.jpg" in w for w in told(shoot(4, 1), "종")] == [True]
    assert np.isnan(fellows(five[:1])).all() and (fellows(five) > 0.5).all()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A museum of two places with three exhibits each, and a model that knows two of each place."
    folder = tmp_path_factory.mktemp("museum")
    places = photos_of_a_museum(folder / "data", places=2, items=3, photos=6)
    few = {place: dict(list(items.items())[:2]) for place, items in places.items()}
    small_onnx(folder / "m.onnx", few)
    return folder


@pytest.fixture
def site(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    "A copy of the model, the photos by place and exhibit, the first place, and its exhibit that the model does not know."
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path / "cache"))
    model = shutil.copy(home / "m.onnx", tmp_path / "m.onnx")
    found = layout(home / "data")
    place = next(iter(found))
    known = {i for p, i in load_bundle(model).gallery.items if p == place}
    return Path(model), found, place, next(i for i in found[place] if i not in known)


def words(paths) -> list[str]:
    return [str(p) for p in paths]


def test_the_command_adds_updates_and_removes(site):
    model, found, place, new = site
    before, photos = load_bundle(model), found[place][new]
    said = enroll(model=str(model), place=place, item=new, images=words(photos[:4]))
    json.dumps(said, allow_nan=False)
    assert said["action"] == "enrolled" and said["added"] == said["photos"] == 4 and said["items"] == 3 and said["retune"]
    assert said["nearest"]["item"] in found[place] and "retuning" in said["thresholds"] and said["revision"] == 1
    after = load_bundle(model)
    assert after.model_id == before.model_id and after.gallery.revision == 1 and (place, new) in after.gallery.items
    q = np.concatenate([after.embed(read_rgb(p, SIDE)[None])[0] for p in photos[:4]])
    there = score(after.gallery, q, place)
    assert there.items[there.similarity.mean(0).argmax()] == new, "no direction is nearer to the photos than their own mean"
    more = enroll(model=str(model), place=place, item=new, images=words(photos[4:]))
    assert more["action"] == "updated" and more["photos"] == 6 and not more["retune"]
    gone = enroll(model=str(model), place=normalize("NFD", place), item=normalize("NFD", new), remove=True)
    assert gone["action"] == "removed" and gone["items"] == 2 and gone["revision"] == 3
    back = load_bundle(model).gallery
    assert same(score(back, q, place), score(before.gallery, q, place)) and back.items == before.gallery.items


def test_photos_that_cannot_be_used_are_named(site, tmp_path: Path):
    model, found, place, new = site
    photos = found[place][new]
    (tmp_path / "broken.jpg").write_bytes(photos[0].read_bytes()[:300])
    (tmp_path / "same.jpg").write_bytes(photos[1].read_bytes())
    given = words([*photos[:4], tmp_path / "broken.jpg", tmp_path / "none.jpg", tmp_path / "same.jpg"])
    said = enroll(model=str(model), place=place, item=new, images=given)
    assert said["added"] == 4
    whats = " ".join(w["what"] for w in said["warnings"])
    assert all(name in whats for name in ("broken.jpg", "none.jpg", "same.jpg")) and str(tmp_path) not in whats
    again = enroll(model=str(model), place=place, item=new, images=words(photos[2:6]))
    assert again["added"] == 2 and again["photos"] == 6 and "passed over" in " ".join(w["what"] for w in again["warnings"])


def test_questions_that_are_refused_change_nothing(site, tmp_path: Path):
    model, found, place, new = site
    photos, other = words(found[place][new]), next(i for i in found[place] if i != new)
    enroll(model=str(model), place=place, item=new, images=photos[:3])
    data = model.read_bytes()
    cases = [({"images": photos[:3]}, "E105", new), ({"images": photos[:3]}, "E105", "다른 이름"),
             ({"images": photos[2:5]}, "E105", other), ({}, "E301", new), ({"images": photos, "remove": True}, "E301", new),
             ({"images": [str(tmp_path / "no.jpg")]}, "E101", "또"), ({"remove": True}, "E301", "또"),
             ({"images": photos[3:]}, "E301", "a/b")]
    for given, code, item in cases:
        with pytest.raises(SuiteError) as e:
            enroll(model=str(model), place=place, item=item, **given)
        assert e.value.code == code, (given, item)
    with pytest.raises(SuiteError) as e:
        enroll(model=str(tmp_path / "none"), place=place, item=new, images=photos)
    assert e.value.code == "E200" and model.read_bytes() == data


def test_a_photo_from_training_is_known_again(site):
    model, found, place, new = site
    bundle = load_bundle(model)
    names = [i for p, i in bundle.gallery.items if p == place]
    photos = found[place][names[0]][:3]
    from ai_suite.core.cache import sha256_of

    column = bundle.gallery.items.index((place, names[0]))
    sure = np.eye(len(bundle.gallery.items))[[column]]
    told = {"train_hashes": [sha256_of(p)[:16] for p in photos], "items": bundle.gallery.items}
    trained = bundle._replace(config=bundle.config | told, embed=lambda pixels: (bundle.embed(pixels)[0], sure))
    with pytest.raises(SuiteError, match=f"E105.*{names[0]}"):
        enroll_photos(trained, place, "다른 이름", photos)
    gone = trained._replace(gallery=removed(trained.gallery, place, names[0]))
    assert enroll_photos(gone, place, names[0], photos)[1]["added"] == 3, "what was removed may come back"
    elsewhere = next(p for p in found if p != place)
    assert "also photos of" in " ".join(w["what"] for w in enroll_photos(trained, elsewhere, "옮긴 것", photos)[1]["warnings"])


def test_the_same_photos_under_a_second_name_are_noticed(site):
    model, found, place, new = site
    bundle = load_bundle(model)
    old = next(i for p, i in bundle.gallery.items if p == place)
    said = enroll(model=str(model), place=place, item="두 번째 이름", images=words(found[place][old][:4]))
    assert any(w["code"] == "E105" and old in w["what"] for w in said["warnings"]) and said["nearest"]["item"] == old


def test_two_curators_at_once_both_get_in(site):
    model, found, place, new = site
    photos, errors = words(found[place][new]), []

    def work(item: str, images: list[str]) -> None:
        try:
            enroll(model=str(model), place=place, item=item, images=images)
        except SuiteError as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(f"새것 {k}", photos[2 * k:2 * k + 2])) for k in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    after = load_bundle(model).gallery
    assert not errors and after.revision == 3 and {f"새것 {k}" for k in range(3)} <= {i for _, i in after.items}
