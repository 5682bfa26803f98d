"""The generated museum: its folders, its visits, and how hard it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ai_suite.image import pictures
from ai_suite.lens import samples as s
from ai_suite.lens.faults import flawed
from support import code_of


@pytest.fixture(scope="module")
def museum(tmp_path_factory):
    return s.write_samples(tmp_path_factory.mktemp("museum"), places=2, items=4, photos=6, size=160)


def told(museum, folder="data"):
    return json.loads((Path(museum[folder]) / "metadata.json").read_text(encoding="utf-8"))


def test_layout_and_counts(museum):
    from ai_suite.lens.data import layout

    found = layout(museum["data"])
    assert list(found) == ["1층", "2층"] and all(len(items) == 4 for items in found.values())
    assert {len(files) for items in found.values() for files in items.values()} == {6}
    assert museum["photos"] == 48 and museum["items"] == 8 and museum["outside"] == 24
    assert {p.parent.name for p in Path(museum["ood"]).glob("*/*.jpg")} == set(s.OUTSIDE)


def test_metadata_tells_the_visit_of_every_photo(museum):
    for folder in ("data", "ood"):
        root = Path(museum[folder])
        files = {p.relative_to(root).as_posix() for p in root.rglob("*.jpg")}
        assert set(told(museum, folder)["photos"]) == files
    days = [v["session"] for v in told(museum)["photos"].values()]
    assert len(set(days)) == museum["sessions"] == 2
    assert set(told(museum)["items"]) == {n.rsplit("/", 1)[0] for n in told(museum)["photos"]}


def test_photos_have_the_size_and_no_exif(museum):
    for path in list(Path(museum["data"]).rglob("*.jpg"))[:12]:
        with Image.open(path) as image:
            assert max(image.size) == 160 and min(image.size) == 120 and not image.getexif()


def test_same_seed_same_bytes(tmp_path):
    read = lambda m: [p.read_bytes() for k in ("data", "ood") for p in sorted(Path(m[k]).rglob("*.*"))]
    args = dict(places=1, items=3, photos=2, size=96)
    one, two, other = (s.write_samples(tmp_path / n, seed=k, **args) for n, k in (("a", 3), ("b", 3), ("c", 4)))
    assert read(one) == read(two) != read(other)


def test_the_two_of_a_pair_differ_but_share_their_source():
    for seed in range(3):
        found = s.exhibits(3, 4, seed)
        assert len({(e.place, e.item) for e in found}) == 12
        for a, b in zip(found[::2], found[1::2], strict=True):
            assert a.source == b.source and a.place == b.place and a.frame == b.frame
            assert a.art.shape != b.art.shape or np.abs(a.art.astype(int) - b.art).mean() > 4


def test_names_stay_apart_when_there_are_many():
    names = {(e.place, e.item) for e in s.exhibits(1, 80, 1)}
    assert len(names) == 80


def test_raw_pixels_are_not_enough(museum):
    photos = told(museum)["photos"]
    items, days = np.array([n.rsplit("/", 1)[0] for n in photos]), np.array([v["session"] for v in photos.values()])
    small = np.stack([np.asarray(Image.open(Path(museum["data"]) / n).resize((32, 32)), float).ravel() for n in photos])
    small -= small.mean(1, keepdims=True)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    right = items[np.where(days[:, None] == days, -9, small @ small.T).argmax(1)] == items
    assert 0.1 < right.mean() < 0.8


@pytest.mark.slow
def test_a_network_sees_more_than_pixels(tmp_path):
    pytest.importorskip("timm")
    from ai_suite.image.encoder import build, encoder

    museum = s.write_samples(tmp_path, size=320, seed=5)
    photos = told(museum)["photos"]
    items, days = np.array([n.rsplit("/", 1)[0] for n in photos]), np.array([v["session"] for v in photos.values()])
    encode, right = encoder(*build("efficientnet_lite0")), {}
    seen = np.stack([np.asarray(Image.open(Path(museum["data"]) / n).resize((224, 224))) for n in photos])
    network = np.concatenate([encode(seen[k : k + 16]) for k in range(0, len(seen), 16)])
    pixels = seen[:, ::7, ::7].reshape(len(seen), -1).astype(float)
    for name, f in (("pixels", pixels), ("network", network)):
        f = f - f.mean(1, keepdims=True)
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        right[name] = float((items[np.where(days[:, None] == days, -9, f @ f.T).argmax(1)] == items).mean())
    assert right["network"] > 0.7 and right["network"] > right["pixels"] + 0.25, right


def test_bad_numbers_write_nothing(tmp_path):
    for wrong in ({"photos": 0}, {"items": 0}, {"places": 0}, {"size": 8}):
        assert code_of(s.write_samples, tmp_path / "no", **wrong) == "E301"
    assert not (tmp_path / "no").exists()


def test_one_photo_each_is_possible(tmp_path):
    made = s.write_samples(tmp_path, places=1, items=1, photos=1, size=64)
    assert made["photos"] == 1 and made["sessions"] == 1


def test_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(pictures.PACKAGES, "none.jpg", ("no_such_package", "x"))
    assert code_of(s.picture, "none.jpg") == "E601"


def test_unknown_fault():
    scene, box = s.hang(s.exhibits(1, 1)[0], "plaster")
    assert code_of(flawed, scene, box, "rain", np.random.default_rng(0)) == "E301"


def test_walls_are_not_drawn_on():
    before = s.wall("brick", 1).copy()
    s.hang(s.exhibits(1, 1)[0], "brick", 1)
    for k in range(8):
        s.outside("안내문", s.visits(1)[0], np.random.default_rng(k), 64)
    np.testing.assert_array_equal(s.wall("brick", 1), before)
