"""A folder of photos checked: copies, near-duplicates, sessions, what photos tell, the cleaned copy, the page, the settings."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("imagehash")
from PIL import Image  # noqa: E402

from ai_suite.core.cache import Store  # noqa: E402
from ai_suite.core.cli import parser_of  # noqa: E402
from ai_suite.core.config import load_yaml  # noqa: E402
from ai_suite.core.errors import SuiteError  # noqa: E402
from ai_suite.image.read import look  # noqa: E402
from ai_suite.lens import clean, data, twins  # noqa: E402
from ai_suite.lens import validate as room  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(scene, shift=0, noise=3.0, size=(320, 250)):
    blobs = np.random.default_rng(scene).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(blobs).resize((size[0] + 80, size[1] + 80), Image.Resampling.BICUBIC)).astype(float)
    rough = np.random.default_rng(scene + 1000 * shift).normal(0, noise, (size[1], size[0], 3))
    return Image.fromarray((wide[20 + shift:20 + shift + size[1], 20:20 + size[0]] + rough).clip(0, 255).astype(np.uint8))


def put(path, im, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    im.save(path, **options)
    return path


def told(orientation=1, day="2026:05:01", gps=True):
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x9003] = f"{day} 10:11:12"
    if gps:
        exif.get_ifd(0x8825)[2] = (37.0, 30.0, 0.0)
    return exif


@pytest.fixture
def root(tmp_path):
    for k, item in enumerate(("청자", "탈", "vase")):
        for i in range(4):
            put(tmp_path / "data/홀" / item / f"{i}.jpg", picture(10 * k + i), quality=85)
    return tmp_path / "data"


def check(root, **options):
    out = StringIO()
    with redirect_stderr(out), redirect_stdout(sys.stderr):
        answer = room.validate(data_root=str(root), **options)
    return answer, out.getvalue()


def texts(answer, kind="warnings"):
    return [f"{f['code']} {f['what']}" for f in answer[kind]]


def whole(folder):
    return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def refused(code, f, *args, **kwargs):
    with pytest.raises(SuiteError) as e:
        f(*args, **kwargs)
    assert e.value.code == code, e.value
    return str(e.value)


# ---- what is found


def test_a_good_set_and_nothing_is_changed(root):
    before = whole(root)
    answer, said = check(root, min_images=4)
    assert answer["errors"] == [] and answer["warnings"] == []
    assert answer["places"] == {"홀": {"청자": 4, "탈": 4, "vase": 4}} and (answer["items"], answer["images"]) == (3, 12)
    assert answer["near"] == {"within": 0, "across": 0, "against": 0}
    assert answer["balance"] == {"least": 4, "median": 4, "most": 4}
    assert answer["groups"] == {"kind": "near-duplicates", "number": 12} and answer["shorter_side"]["p50"] == 250
    assert whole(root) == before and "홀" in said
    json.dumps(answer)


def test_every_finding(root):
    (root / "홀/탈/0.jpg").write_bytes((root / "홀/vase/0.jpg").read_bytes())
    (root / "홀/vase/2copy.jpg").write_bytes((root / "홀/vase/2.jpg").read_bytes())
    put(root / "홀/vase/near.jpg", picture(21, 3))
    put(root / "홀/탈/near.jpg", picture(0, 3))
    put(root / "홀/청자/gps.jpg", picture(70), exif=told(6))
    put(root / "홀/청자/tiny.jpg", picture(71, size=(150, 150)))
    put(root / "홀/청자/dot.png", Image.new("RGB", (1, 1)))
    put(root / "홀/청자/moving.gif", picture(72), save_all=True, append_images=[picture(73)])
    put(root / "홀/청자/scan.tif", picture(74))
    put(root / "홀/청자/bomb.png", Image.new("1", (20_000, 20_000)))
    (root / "홀/청자/words.jpg").write_text("no photo")
    (root / "홀/lone").mkdir()
    (root / "high.jpg").write_bytes(b"x")
    answer, said = check(root)
    errors, warnings = texts(answer, "errors"), texts(answer)
    wanted = [("E100", "high.jpg"), ("E110", "홀/lone has 0"), ("E105", "홀/vase/0.jpg"), ("E103", "dot.png"),
              ("E102", "bomb.png"), ("E102", "words.jpg")]
    for code, part in wanted:
        assert sum(e.startswith(code) and part in e for e in errors) == 1, (part, errors)
    assert len(errors) == len(wanted)
    for code, part in [("E110", "홀/vase has 6"), ("E105", "holds 1 photos twice: 홀/vase/2.jpg"), ("E103", "tiny.jpg"),
                       ("E103", "moving.gif"), ("E102", "gps.jpg"), ("E102", "scan.tif"),
                       ("E105", "홀/vase/1.jpg ~ 홀/vase/near.jpg"), ("E105", "홀/청자/0.jpg ~ 홀/탈/near.jpg")]:
        assert sum(w.startswith(code) and part in w for w in warnings) == 1, (part, warnings)
    assert (answer["rotated"], answer["gps"]) == (1, 1) and answer["near"] == {"within": 2, "across": 2, "against": 0}
    assert "1 × error E100" in said and "E601" not in said


def test_imbalance(root):
    for i in range(41):
        put(root / "홀/many" / f"{i}.jpg", picture(200 + i, size=(60, 60)))
    assert any(w.startswith("E110 exhibits have from 4 to 41") for w in texts(check(root)[0]))


def test_heic_without_its_part_is_an_error_and_not_remembered(root, monkeypatch):
    import pillow_heif

    from ai_suite.image import read

    pillow_heif.register_heif_opener()
    path = put(root / "홀/vase/a.heic", picture(50), format="HEIF")
    os.utime(path, (1e9, 1e9))
    read._formats.cache_clear()
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "pillow_heif", None)
        assert [e[:4] for e in texts(check(root)[0], "errors")] == ["E601"]
        read._formats.cache_clear()
    answer = check(root)[0]
    assert answer["errors"] == [] and answer["places"]["홀"]["vase"] == 5


# ---- against another folder


def test_against(root, tmp_path):
    test = tmp_path / "test"
    put(test / "deep/er/near.jpg", picture(3, 4))
    put(test / "new.jpg", picture(99))
    answer, _ = check(root, min_images=4, against=str(test))
    assert answer["errors"] == [] and answer["near"]["against"] == 1
    assert texts(answer) == ["E105 1 pairs of photos of the two folders look nearly alike: 홀/청자/3.jpg ~ test/deep/er/near.jpg"]
    (test / "same.jpg").write_bytes((root / "홀/탈/1.jpg").read_bytes())
    answer, _ = check(root, min_images=4, against=str(test))
    assert texts(answer, "errors") == ["E105 1 photos lie in both folders: 홀/탈/1.jpg ~ test/same.jpg"]


@pytest.mark.parametrize("code, other", [("E101", "../no"), ("E104", "../empty"), ("E301", "."), ("E301", "홀")])
def test_against_nothing(root, code, other):
    (root.parent / "empty").mkdir()
    refused(code, room.validate, data_root=str(root), against=str(root / other))


# ---- near-duplicates


def test_pairs_are_all_and_only_those():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2 ** 64, 700, dtype=np.uint64) & np.uint64(0xFFFF00000000)
    b = rng.integers(0, 2 ** 64, 300, dtype=np.uint64) & np.uint64(0xFFFF00000000)
    for bits in (0, 1, 3):
        slow = sorted((bin(int(x) ^ int(y)).count("1"), i, j) for i, x in enumerate(a) for j, y in enumerate(a)
                      if i < j and bin(int(x) ^ int(y)).count("1") <= bits)
        assert twins.near_pairs(a, bits=bits).tolist() == [[i, j, d] for d, i, j in slow]
        assert len(twins.near_pairs(a, b, bits)) == sum(bin(int(x) ^ int(y)).count("1") <= bits for x in a for y in b)
    assert twins.near_pairs([]).shape == (0, 3) and twins.near_pairs([2 ** 64 - 1]).shape == (0, 3)
    refused("E301", twins.near_pairs, [1], bits=65)


def test_pairs_over_many_chunks():
    codes = np.random.default_rng(1).integers(0, 2 ** 64, 5000, dtype=np.uint64)
    codes[4000:4100] = codes[:100] ^ np.uint64(1 << 63)
    assert twins.near_pairs(codes, bits=3).tolist() == [[i, 4000 + i, 1] for i in range(100)]


def test_blank_photos_do_not_fill_memory():
    assert len(twins.near_pairs(np.zeros(3000, np.uint64))) == twins.MOST
    assert set(twins.clusters(np.zeros(3000, np.uint64)).tolist()) == {0}


def test_clusters_chain_and_count_from_zero():
    assert twins.clusters([0b1111 << 40, 0, 0b1, 0b111], bits=2).tolist() == [0, 1, 1, 1]


def test_hash_finds_the_same_photo_again(root):
    photo = picture(5, size=(640, 480))
    code = look(saved(photo, quality=95))["phash"]
    for other in (saved(photo, quality=30), saved(photo.resize((320, 240)), quality=80),
                  saved(Image.eval(photo, lambda v: min(255, int(v * 1.1 + 9))), quality=80)):
        assert (code ^ look(other)["phash"]).bit_count() <= 6
    assert min((code ^ look(saved(picture(s)))["phash"]).bit_count() for s in range(30, 60)) > twins.NEAR


def saved(im, **options):
    im.save(out := BytesIO(), "JPEG", **options)
    return out.getvalue()


# ---- sessions


def paths_of(root):
    return [f for items in data.layout(root).values() for fs in items.values() for f in fs]


ITEMS = "청자", "탈", "vase"


@pytest.mark.parametrize("where, what", [
    ("metadata.json", {"photos": {f"홀/{i}/{n}.jpg": {"session": f"s{n % 2}"} for i in ITEMS for n in range(4)}}),
    ("metadata.json", {"홀": {i: {f"{n}.jpg": {"date": f"2026-05-0{n % 2 + 1}"} for n in range(4)} for i in ITEMS}}),
    ("홀/metadata.json", {"date": "2026.5.1", **{i: {"3.jpg": {"date": "2026-05-02"}} for i in ITEMS}}),
    ("metadata.json", [{"file": f"홀/{i}/{n}.jpg", "session": n % 2} for i in ITEMS for n in range(4)])])
def test_metadata_in_many_shapes(root, where, what):
    (root / where).write_text(unicodedata.normalize("NFD", json.dumps(what, ensure_ascii=False)))
    metadata, warnings = twins.metadata_of(root)
    groups, kind = twins.groups_of(paths_of(root), metadata)
    assert warnings == [] and kind == "session" and len(set(groups)) == 2
    by_name = {(p.name, g) for p, g in zip(paths_of(root), groups, strict=True)}
    assert len(by_name) == 4
    assert np.array_equal(twins.sessions(paths_of(root), root), groups)


@pytest.mark.parametrize("content", [b"", b"{", b"3", b'"text"', b"[" * 50_000, b"\xff\xfe\x00", b"\x00\x01", b'{"a": NaN',
                                     b"null"])
def test_malformed_metadata_is_a_warning(root, content):
    (root / "홀/metadata.json").write_bytes(content)
    answer, _ = check(root, min_images=4)
    assert answer["errors"] == [] and len(answer["warnings"]) == 1
    assert answer["warnings"][0]["what"].startswith("홀/metadata.json is left aside") and answer["warnings"][0]["code"] == "E102"


def test_metadata_that_says_odd_things(root):
    odd = {"홀": {"date": "someday", "9.jpg": {"session": "x"}}, "../../etc": {"session": "y"}, "a\0b": {"session": "z"},
           "tags": [1, "a", None], "session": {"deep": 1}}
    (root / "metadata.json").write_text(json.dumps(odd))
    answer, _ = check(root, min_images=4)
    assert sorted(w.split(":")[0] for w in texts(answer)) == ["E102 metadata.json holds dates that cannot be read",
                                                             "E102 metadata.json names photos that are not there"]
    assert answer["groups"]["kind"] == "near-duplicates"


def test_days_of_exif_and_their_rank_below_metadata(root):
    for n in range(4):
        put(root / f"홀/vase/{n}.jpg", picture(20 + n), exif=told(day=f"2026:05:0{n % 2 + 1}"))
    vase = [p for p in paths_of(root) if p.parent.name == "vase"]
    assert twins.groups_of(vase)[0].tolist() == ["2026-05-01", "2026-05-02"] * 2 and twins.groups_of(vase)[1] == "session"
    assert twins.groups_of(paths_of(root))[1] == "near-duplicates"
    (root / "홀/vase/metadata.json").write_text('{"0.jpg": {"session": "first"}}')
    assert twins.sessions(vase, root).tolist() == ["first", "2026-05-02", "2026-05-01", "2026-05-02"]


def test_one_day_divides_nothing(root):
    (root / "metadata.json").write_text('{"date": "2026-05-01"}')
    groups, kind = twins.groups_of(paths_of(root), twins.metadata_of(root)[0])
    assert kind == "near-duplicates" and len(set(groups)) == 12


def test_near_duplicates_are_never_separated(root):
    put(root / "홀/vase/1b.jpg", picture(21, 3), exif=told(day="2026:06:01"))
    put(root / "홀/vase/3.jpg", picture(23), exif=told(day="2026:07:01"))
    (root / "홀/vase/bad.jpg").write_bytes(b"")
    paths = paths_of(root)
    named = zip(paths, twins.groups_of(paths)[0].tolist(), strict=True)
    groups = {p.name: g for p, g in named if p.parent.name == "vase"}
    assert groups == {"0.jpg": "홀/vase/0.jpg", "1.jpg": "2026-06-01", "1b.jpg": "2026-06-01", "2.jpg": "홀/vase/2.jpg",
                      "3.jpg": "2026-07-01", "bad.jpg": "홀/vase/bad.jpg"}


def test_groups_of_nothing():
    groups, kind = twins.groups_of([])
    assert groups.shape == (0,) and kind == "near-duplicates"


@pytest.mark.parametrize("text, day", [
    ("2026-05-01T10:00:00+09:00", "2026-05-01"), ("2026/5/1", "2026-05-01"), (20260501, "2026-05-01"),
    ("2026년 5월 1일", "2026-05-01"),
    ("2026-13-01", ""), ("2026-05-321", ""), ("1.5.2026", ""), (True, ""), (1e300, ""), ("٢٠٢٦-٠٥-٠١", "")])
def test_days_as_people_write_them(text, day):
    assert twins.day_of(text) == day


# ---- remembering


def test_a_photo_is_opened_once(root, monkeypatch):
    for p in root.rglob("*.jpg"):
        os.utime(p, (1e9, 1e9))
    first, opened = data.looks(paths_of(root)), []
    monkeypatch.setattr(data, "look", lambda p: opened.append(p) or look(p))
    assert data.looks(paths_of(root)) == first and opened == []
    changed = put(root / "홀/vase/0.jpg", picture(77))
    assert data.looks(paths_of(root)) != first and opened == [changed]
    for file in Store().root.rglob("*.json"):
        file.write_bytes(b"{damaged")
    assert len(data.looks(paths_of(root))) == 12 and len(opened) == 13


def test_a_cache_that_cannot_be_written_stops_nothing(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path / "file/cache"))
    assert check(root, min_images=4)[0]["errors"] == []


# ---- the cleaned copy


@pytest.fixture
def mixed(root):
    put(root / "홀/vase/turned.jpg", picture(60), exif=told(6))
    put(root / "홀/vase/huge.jpg", picture(61, size=(1500, 1200)), exif=told())
    put(root / "홀/vase/moving.gif", picture(62), save_all=True, append_images=[picture(63)])
    put(root / "홀/vase/0.png", picture(64))
    put(root / "홀/vase/drawn.bmp", picture(65))
    put(root / "홀/vase/DRAWN.jpg", picture(66))
    (root / "홀/vase/1copy.jpg").write_bytes((root / "홀/vase/1.jpg").read_bytes())
    (root / "홀/탈/0.jpg").write_bytes((root / "홀/청자/0.jpg").read_bytes())
    (root / "홀/탈/bad.jpg").write_bytes(b"\xff\xd8")
    (root / "홀/metadata.json").write_text('{"device": "phone"}')
    return root


@pytest.mark.parametrize("strip", [False, True])
def test_fix(mixed, tmp_path, strip):
    before, to = whole(mixed), tmp_path / "out/clean"
    answer, _ = check(mixed, fix=str(to), strip_exif=strip)
    assert whole(mixed) == before and os.listdir(tmp_path / "out") == ["clean"]
    done = answer["fixed"]
    assert set(done["left_out"]) == {"홀/vase/1copy.jpg", "홀/탈/0.jpg", "홀/청자/0.jpg", "홀/탈/bad.jpg"}
    copied = whole(to)
    assert len(copied) == 17 and done["photos"] == 16 and copied["홀/metadata.json"][0] == b'{"device": "phone"}'
    seen = {name: look(to / name) for name in copied if not name.endswith("json")}
    assert {s["orientation"] for s in seen.values()} == {1} and max(max(s["width"], s["height"]) for s in seen.values()) == 1024
    assert not any(s["animated"] for s in seen.values()) and seen["홀/vase/turned.jpg"]["height"] == 320
    names = {n.rpartition("/")[2] for n in seen}
    assert {"moving.jpg", "0.png", "0.jpg", "huge.jpg"} <= names and sum(n.lower().startswith("drawn") for n in names) == 2
    gps = {s["gps"] for s in seen.values()}
    assert gps == ({False} if strip else {False, True})
    assert (copied["홀/vase/2.jpg"][0] == before["홀/vase/2.jpg"][0]) != strip
    again, _ = check(to, min_images=3)
    assert again["errors"] == [] and again["rotated"] == 0 and again["images"] == 16


def test_fix_needs_its_own_room(root, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    (tmp_path / "void").mkdir()
    (tmp_path / "link").symlink_to(root)
    before = whole(root)
    for where in (root, root / "copy", tmp_path, tmp_path / "link/copy", root / "홀/../copy"):
        refused("E301", room.validate, data_root=str(root), fix=str(where))
    refused("E120", room.validate, data_root=str(root), fix=str(tmp_path / "full"))
    refused("E120", room.validate, data_root=str(root), fix=str(tmp_path / "full/x"))
    refused("E301", room.validate, data_root=str(root), strip_exif=True)
    assert whole(root) == before and not (root / "copy").exists()
    assert check(root, fix=str(tmp_path / "void"))[0]["fixed"]["photos"] == 12


def test_fix_is_whole_or_absent(root, tmp_path, monkeypatch):
    calls = []

    def fail(*args, **kwargs):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(clean, "copy_upright", fail)
    with pytest.raises(KeyboardInterrupt):
        room.validate(data_root=str(root), fix=str(tmp_path / "clean"), strip_exif=True)
    assert calls and sorted(os.listdir(tmp_path)) == ["data"]


def test_fix_into_a_full_disk(root, monkeypatch):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clean.shutil, "copyfile", full)
    refused("E120", room.validate, data_root=str(root), fix=str(root.parent / "clean"))
    assert os.listdir(root.parent) == ["data"]


# ---- page, JSON, settings


class Loads(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, k, v) for k, v in attrs if k in ("src", "href", "srcset", "onerror", "onload")]


def test_page(mixed, tmp_path):
    os.rename(mixed / "홀/탈", mixed / "홀/<img src=x onerror=alert(1)>")
    answer, _ = check(mixed, report=str(tmp_path / "r.html"), output=str(tmp_path / "r.json"))
    html = (tmp_path / "r.html").read_text()
    page = Loads()
    page.feed(html)
    images = [v for tag, k, v in page.found if tag == "img"]
    assert len(images) >= 3 + 2 and all(v.startswith("data:image/jpeg;base64,") for v in images)
    assert all(k in ("src", "href") and v.startswith(("data:", "#")) for _, k, v in page.found)
    assert "청자" in html and "<img src=x" not in html and "&lt;img src=x onerror" in html
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(answer))
    small = [look(base64.b64decode(v.partition(",")[2])) for v in images]
    assert not any(s["gps"] for s in small) and max(max(s["width"], s["height"]) for s in small) <= 160


@pytest.mark.parametrize("option", ["report", "output", "config_out"])
def test_no_photo_is_written_over(root, option):
    before = whole(root)
    refused("E301", room.validate, data_root=str(root), **{option: str(root / "홀/vase/0.jpg")})
    assert whole(root) == before


def test_settings_are_known_keys(mixed, tmp_path):
    check(mixed, config_out=str(tmp_path / "t.yaml"), fix=str(tmp_path / "a #: b"))
    settings, text = load_yaml(tmp_path / "t.yaml"), (tmp_path / "t.yaml").read_text()
    known = pytest.importorskip("ai_suite.lens.learn").SETTINGS | {"embedding_dim": 0}
    assert settings.keys() <= known.keys() and settings["augment"].keys() <= known["augment"].keys()
    assert settings["augment"]["horizontal_flip"] is False and settings["balance"] is True
    assert "1 photos cannot be read" in text and "from 4 to 11" in text


def test_settings_of_an_ugly_name(tmp_path):
    root = tmp_path / "a\nseed: 9\n\x1b[2J"
    put(root / "A/b/0.jpg", picture(0))
    check(root, config_out=str(tmp_path / "t.yaml"))
    assert load_yaml(tmp_path / "t.yaml")["seed"] == 42


# ---- names, threads, speed


def test_names_that_are_no_utf8(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    item = Path(os.fsdecode(os.fsencode(root) + b"/A/\xb3\xb2"))
    for i in range(3):
        put(item / f"{i}.jpg", picture(i))
    Path(os.fsdecode(os.fsencode(item) + b"/\xfe.jpg")).write_bytes((item / "0.jpg").read_bytes())
    Path(os.fsdecode(os.fsencode(item) + b"/\xfd.jpg")).write_bytes(b"no")
    code = "import sys; from ai_suite.core.cli import run; from ai_suite.lens.validate import validate; sys.exit(run(validate))"
    words = ["--data-root", os.fsencode(root), "--report", tmp_path / "r.html", "--output", tmp_path / "r.json",
             "--fix", tmp_path / "c", "--config-out", tmp_path / "t.yaml"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr.decode()
    answer = json.loads(done.stdout.decode("utf-8"))
    assert answer["places"] == {"A": {"\\xb3\\xb2": 4}} and "\\xfd.jpg" in answer["errors"][0]["what"]
    assert answer["fixed"]["photos"] == 3 and "\\xfe.jpg" in (tmp_path / "r.json").read_text()
    assert (tmp_path / "r.html").read_text("utf-8") and load_yaml(tmp_path / "t.yaml")


def test_names_on_the_terminal_are_harmless(root):
    os.rename(root / "홀", root / "a\x1b[31mb")
    assert "\x1b" not in check(root)[1]


def test_two_at_once(root):
    for p in root.rglob("*.jpg"):
        os.utime(p, (1e9, 1e9))
    answers = []
    work = [threading.Thread(target=lambda: answers.append(data.looks(paths_of(root)))) for _ in range(4)]
    for t in work: t.start()
    for t in work: t.join()
    assert len(answers) == 4 and all(a == answers[0] for a in answers)


def test_help_names_every_flag():
    flags = {"--data-root", "--min-images", "--against", "--report", "--output", "--fix", "--strip-exif", "--config-out"}
    assert flags <= set(re.findall(r"--[a-z-]+", parser_of(room.validate).format_help()))
