"""Photos of every kind become the same array; what is broken, hostile or a trap is refused in words."""

import io
import os
import random
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("imagehash")
from PIL import Image  # noqa: E402

from ai_suite.core.errors import SuiteError  # noqa: E402
from ai_suite.image import read  # noqa: E402

TURN = Image.Transpose


def scene(w=96, h=64):
    "Four corners of four colours, smooth enough for JPEG."
    y, x = np.mgrid[0:1:h * 1j, 0:1:w * 1j]
    return Image.fromarray(np.stack([230 * x, 230 * y, 60 + 150 * (1 - x) * (1 - y)], 2).astype(np.uint8))


def saved(im, kind, **options):
    im.save(out := io.BytesIO(), kind, **options)
    return out.getvalue()


def refused(source, code, **options):
    with pytest.raises(SuiteError) as e:
        read.read_rgb(source, **options)
    assert e.value.code == code and "\n" not in str(e.value) and len(str(e.value)) < 300
    return str(e.value)


def away(a, b):
    return float(np.abs(np.asarray(a, int) - np.asarray(b, int)).mean())


# ---- every mode


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "HEIF"])
def test_kinds_and_paths_and_bytes_agree(tmp_path, kind):
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = saved(scene(), kind)
    (tmp_path / "a.jpg").write_bytes(data)
    rgb = read.read_rgb(tmp_path / "a.jpg")
    assert rgb.shape == (64, 96, 3) and rgb.dtype == np.uint8 and rgb.flags.c_contiguous and rgb.flags.writeable
    assert np.array_equal(rgb, read.read_rgb(data)) and np.array_equal(rgb, read.read_rgb(str(tmp_path / "a.jpg")))
    assert away(rgb, scene()) < 8


@pytest.mark.parametrize("tag, turn", [(2, TURN.FLIP_LEFT_RIGHT), (3, TURN.ROTATE_180), (4, TURN.FLIP_TOP_BOTTOM),
                                       (5, TURN.TRANSPOSE), (6, TURN.ROTATE_90), (7, TURN.TRANSVERSE), (8, TURN.ROTATE_270)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation(tag, turn, kind):
    exif = Image.Exif()
    exif[0x0112] = tag
    rgb = read.read_rgb(saved(scene().transpose(turn), kind, exif=exif), side=32)
    assert rgb.shape == ((32, 48, 3) if kind == "JPEG" else (64, 96, 3))
    assert away(rgb, scene().resize(rgb.shape[1::-1])) < 6


@pytest.mark.parametrize("value", [0, 9, 65535, (1, 2)])
def test_orientation_nonsense_is_none(value):
    exif = Image.Exif()
    exif[0x0112] = value
    with warnings.catch_warnings(action="ignore"):
        data = saved(scene(), "JPEG", exif=exif)
    assert away(read.read_rgb(data), scene()) < 6


def test_transparency_is_white():
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    grey = Image.new("LA", (20, 20), (0, 128))
    palette = clear.convert("P")
    palette.putpalette([0] * 768)
    tagged = saved(Image.new("L", (20, 20), 5), "PNG", transparency=5)
    colour = saved(Image.new("RGB", (20, 20), (5, 6, 7)), "PNG", transparency=(5, 6, 7))
    for data in (saved(clear, "PNG"), saved(clear, "WEBP", lossless=True), saved(palette, "PNG", transparency=b"\0" * 256),
                 saved(palette, "GIF", transparency=0), tagged, colour):
        assert (read.read_rgb(data) == 255).all()
    assert read.read_rgb(saved(grey, "PNG")).max() == read.read_rgb(saved(grey, "PNG")).min() == 127


def test_deep_grey():
    ramp = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)
    rgb = read.read_rgb(saved(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(rgb[..., 0], np.floor(ramp / 257 + 0.5)) and (rgb == rgb[..., :1]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "La", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV",
                                  "I", "F", "I;16", "I;16B", "I;16L"])
def test_every_mode_of_pillow_becomes_rgb(mode):
    out = read.to_rgb(Image.new(mode, (20, 20)))
    assert out.mode == "RGB" and out.size == (20, 20)


def test_float_and_long_grey_keep_their_range():
    for mode, ramp in (("F", np.linspace(0, 1, 400)), ("F", np.linspace(0, 255, 400)), ("I", np.linspace(0, 65535, 400))):
        im = Image.fromarray(ramp.reshape(20, 20).astype(np.float32 if mode == "F" else np.int32))
        grey = np.asarray(read.to_rgb(im))[..., 0]
        assert (grey.min(), grey.max()) == (0, 255) and (np.diff(grey.ravel().astype(int)) >= 0).all()
    broken = Image.fromarray(np.full((20, 20), np.nan, np.float32))
    assert (np.asarray(read.to_rgb(broken)) == 0).all()


def test_four_inks_with_and_without_the_mark():
    marked = saved(scene().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in marked and away(read.read_rgb(marked), scene()) < 6
    plain = saved(Image.eval(scene().convert("CMYK"), lambda v: 255 - v), "JPEG", quality=95)
    at = plain.index(b"\xff\xee")
    plain = plain[:at] + plain[at + 2 + int.from_bytes(plain[at + 2:at + 4], "big"):]
    assert b"Adobe" not in plain and away(read.read_rgb(plain), scene()) < 6


def test_animated_gives_the_first_frame():
    frames = [Image.new("RGB", (40, 30), c) for c in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        assert read.look(data)["animated"] and away(read.read_rgb(data), frames[0]) < 4
    assert not read.look(saved(frames[0], "GIF"))["animated"]


def test_two_pictures_in_one_jpeg():
    data = saved(scene(), "MPO", save_all=True, append_images=[scene().transpose(TURN.ROTATE_180)])
    seen = read.look(data)
    assert (seen["format"], seen["animated"]) == ("MPO", False) and away(read.read_rgb(data), scene()) < 6


# ---- size


@pytest.mark.parametrize("size", [(3000, 2000), (2000, 3000), (4100, 300), (640, 640)])
@pytest.mark.parametrize("side", [None, 1, 100, 224, 320, 5000])
def test_side_and_cap(size, side):
    rgb = read.read_rgb(saved(scene(*size), "JPEG"), side)
    h, w = rgb.shape[:2]
    assert max(h, w) <= read.LONGEST and abs(w / h - size[0] / size[1]) < 0.05 * size[0] / size[1]
    whole = max(h, w) == min(max(size), read.LONGEST)
    assert whole or (side is not None and min(h, w) >= side)
    if side is not None and min(size) >= 16 * side:
        assert min(h, w) == -(-min(size) // 8)


def test_scaled_decoding_is_close_to_resizing():
    big = scene(2048, 1536)
    rgb = read.read_rgb(saved(big, "JPEG", quality=92), side=300)
    assert rgb.shape == (384, 512, 3) and away(rgb, big.resize((512, 384), Image.Resampling.BOX)) < 1.5


def test_a_large_jpeg_is_scaled_while_decoding(monkeypatch):
    from PIL.JpegImagePlugin import JpegImageFile

    decoded, load = [], JpegImageFile.load
    monkeypatch.setattr(JpegImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1])
    data = saved(Image.effect_noise((4000, 3000), 60).convert("RGB"), "JPEG", quality=50)
    assert read.read_rgb(data, side=320).shape == (375, 500, 3) and set(decoded) == {(500, 375)}


def test_side_must_be_a_size():
    refused(saved(scene(), "JPEG"), "E301", side=0)


# ---- traps


def png(width, height, *chunks):
    "A PNG whose header says anything."
    def chunk(name, body):
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunk(*c) for c in chunks) + body + chunk(b"IEND", b"")


def claims(width, height):
    "A JPEG whose header says anything."
    data = bytearray(saved(scene(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5:at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


@pytest.mark.parametrize("make", [
    lambda: b"", lambda: b"GIF89a", lambda: b"just words", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n",
    lambda: b"\xff\xd8\xff\xe0" + b"\0" * 99,
    lambda: saved(scene(), "JPEG")[:700], lambda: saved(scene(), "PNG")[:-400], lambda: saved(scene(), "WEBP")[:-200],
    lambda: saved(scene(), "BMP")[:-999], lambda: saved(scene(), "TIFF"), lambda: saved(scene(), "ICO"),
    lambda: saved(scene(), "PPM"),
    lambda: png(20_000, 20_000), lambda: png(2 ** 31 - 1, 2 ** 31 - 1), lambda: png(0, 5), lambda: claims(60_000, 60_000),
    lambda: png(300, 300), lambda: png(100, 100, (b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (1 << 27)))),
    lambda: b"\0\0\0\x18ftypheic" + b"\0" * 40, lambda: b"\0\0\0\x18ftypavif" + b"\0" * 40, lambda: b"<svg xmlns='x'/>",
    lambda: b"\0" * (read.MAX_BYTES + 1)])
def test_damaged(make, tmp_path, capfd):
    data = make()
    (tmp_path / "x.jpg").write_bytes(data)
    assert "x.jpg" in refused(tmp_path / "x.jpg", "E102")
    refused(data, "E102")
    with pytest.raises(SuiteError, match="E102"):
        read.look(data)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (15, 900)])
def test_too_small(size, tmp_path):
    for f in (read.read_rgb, read.look):
        with pytest.raises(SuiteError, match="E103"):
            f(saved(Image.new("RGB", size), "PNG"))
    assert read.read_rgb(saved(Image.new("RGB", (16, 5000)), "PNG")).shape == (1024, 3, 3)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), os.mkfifo, lambda p: p.symlink_to("/dev/zero"),
                                  lambda p: p.symlink_to(p)])
def test_no_file(make, tmp_path):
    make(tmp_path / "x.jpg")
    refused(tmp_path / "x.jpg", "E101")
    refused("a\0b.jpg", "E101")


def test_a_bomb_costs_no_memory(tmp_path):
    (tmp_path / "bomb.png").write_bytes(saved(Image.new("1", (20_000, 20_000)), "PNG"))
    code = ("import resource, sys; from ai_suite.image.read import read_rgb\n"
            "from ai_suite.core.errors import SuiteError\nimport PIL.Image\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: read_rgb(sys.argv[1])\nexcept SuiteError as e: print(e.code)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path / "bomb.png"], capture_output=True, text=True)
    code, grown = done.stdout.split()
    assert (code, done.stderr) == ("E102", "") and int(grown) < 30_000


def test_heic_without_its_part(monkeypatch, tmp_path):
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = saved(scene(), "HEIF")
    read._formats.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    try:
        for name in ("a.heic", "a.jpg"):
            (tmp_path / name).write_bytes(data)
            assert "ai-suite[lens]" in refused(tmp_path / name, "E601")
        assert read.read_rgb(saved(scene(), "JPEG")).shape == (64, 96, 3)
    finally:
        read._formats.cache_clear()


def test_names_that_are_no_utf8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xb3\xb2\xff.jpg"))
    path.write_bytes(saved(scene(), "JPEG"))
    assert read.read_rgb(path).shape == (64, 96, 3)
    path.write_bytes(b"no")
    text = refused(path, "E102")
    assert text.encode("utf-8") and "\\xb3\\xb2\\xff.jpg" in text
    path.unlink()
    assert refused(path, "E101").encode("utf-8")


def test_hostile_metadata_is_ignored(capfd):
    jpeg = saved(scene(), "JPEG")
    for payload in (b"Exif\0\0" + b"\xff" * 60_000, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(256)) * 20,
                    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x87\x69\0\x04\0\0\0\x01\0\0\0\x08\0\0\0\0", b"ICC_PROFILE\0\x01\x01junk",
                    b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta " + b"<a>" * 9999):
        marker = b"\xff\xe2" if payload[:3] == b"ICC" else b"\xff\xe1"
        data = jpeg[:2] + marker + (len(payload) + 2).to_bytes(2, "big") + payload + jpeg[2:]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert away(read.read_rgb(data), scene()) < 6
            assert read.look(data)["orientation"] == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "HEIF"])
def test_flipped_bytes_never_escape(kind, capfd):
    import pillow_heif

    pillow_heif.register_heif_opener()
    exif, rng = Image.Exif(), random.Random(0)
    exif[0x0112] = 6
    data = saved(scene(), kind, **({} if kind in ("BMP", "GIF") else {"exif": exif.tobytes()}))
    for _ in range(150):
        hurt = bytearray(data)
        for _ in range(rng.choice((1, 4, 30))):
            hurt[rng.randrange(len(hurt) if rng.random() < 0.5 else min(len(hurt), 200))] = rng.randrange(256)
        try:
            assert read.read_rgb(bytes(hurt)).dtype == np.uint8
            read.look(bytes(hurt))
        except SuiteError as e:
            assert e.code in ("E102", "E103")
    assert capfd.readouterr() == ("", "")


def test_threads_agree_and_leave_the_warnings_as_they_were():
    jobs = [saved(scene(200 + i, 150), kind) for i in range(12) for kind in ("JPEG", "PNG", "GIF")]
    before, alone = list(warnings.filters), [read.look(d) for d in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read.look, jobs)) == alone
    assert warnings.filters == before


# ---- hash, thumbnails, copies


def test_phash_is_that_of_imagehash():
    import imagehash

    rng = np.random.default_rng(0)
    for _ in range(20):
        im = Image.fromarray(rng.integers(0, 255, (9, 13, 3), dtype=np.uint8)).resize((210, 150), Image.Resampling.BICUBIC)
        assert read.phash(np.asarray(im)) == int(str(imagehash.phash(im)), 16)
    assert 0 <= read.phash(np.zeros((16, 16, 3), np.uint8)) < 2 ** 64


def told(im=None):
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 8, "Spy 3000"
    exif.get_ifd(0x8769)[0x9003] = "2026:05:01 10:11:12"
    exif.get_ifd(0x8825)[2] = (37.0, 30.0, 0.0)
    return saved(im or scene(), "JPEG", exif=exif, comment=b"secret")


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".gif"])
def test_strip_leaves_nothing(tmp_path, ending):
    (tmp_path / "a.jpg").write_bytes(told(scene(1600, 1200)))
    before = (tmp_path / "a.jpg").read_bytes()
    assert read.look(before)["gps"] and read.look(before)["day"] == "2026-05-01"
    copy = read.strip(tmp_path / "a.jpg", tmp_path / f"b{ending}")
    seen = read.look(copy)
    assert (seen["width"], seen["height"], seen["orientation"], seen["gps"], seen["day"]) == (1200, 1600, 1, False, "")
    for secret in (b"Exif", b"Spy", b"secret", b"2026", b"ICC_PROFILE", b"EXIF"):
        assert secret not in copy.read_bytes()
    assert (tmp_path / "a.jpg").read_bytes() == before and sorted(os.listdir(tmp_path)) == ["a.jpg", f"b{ending}"]


def test_upright_copy_keeps_what_exif_says(tmp_path):
    (tmp_path / "a.jpg").write_bytes(told(scene(3000, 2000)))
    seen = read.look(read.copy_upright(tmp_path / "a.jpg", tmp_path / "b.jpg"))
    assert (seen["width"], seen["height"], seen["orientation"]) == (683, 1024, 1) and seen["gps"] and seen["day"] == "2026-05-01"


def test_thumbnail():
    data = read.thumbnail(np.asarray(scene(800, 400)), 96)
    assert read.read_rgb(data).shape == (48, 96, 3) and len(data) < 4000 and b"Exif" not in data


@pytest.mark.parametrize("text", ["2026:13", "0000:00:00 00:00:00", "    :  :  ", "2026:05:01", "\u0662\u0660\u0662\u0666:05:01",
                                  ""])
def test_days(text):
    assert read._day({0x8769: {0x9003: text}}) == ("2026-05-01" if text == "2026:05:01" else "")
