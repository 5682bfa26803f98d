"""Photos made worse on purpose: what must hold of every fault, and of a picture taken again."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from ai_suite.image import degrade as d
from support import code_of

PHOTOS = [np.ascontiguousarray(load_sample_image(n)[::2, ::2]) for n in ("china.jpg", "flower.jpg")]
FULL = np.array([[0, 0], [320, 0], [320, 214], [0, 214]], float)


def psnr(a, b):
    return 10 * np.log10(255**2 / max(float(np.mean((a.astype(float) - b) ** 2)), 1e-9))


def steep(rgb):
    return float(np.abs(np.diff(rgb.astype(float).mean(-1), axis=1)).mean())


def test_homography_sends_corners_where_they_belong():
    old = np.array([[10, 20], [200, 5], [220, 180], [3, 150]], float)
    a, b, c, e, f, g, h, i = d.homography(FULL, old)
    w = h * FULL[:, 0] + i * FULL[:, 1] + 1
    x, y = (a * FULL[:, 0] + b * FULL[:, 1] + c) / w, (e * FULL[:, 0] + f * FULL[:, 1] + g) / w
    np.testing.assert_allclose(np.stack([x, y], 1), old, atol=1e-6)


def test_perspective_keeps_and_flips():
    photo = PHOTOS[0][:214, :320]
    assert np.abs(d.perspective(photo, FULL, (320, 214)).astype(int) - photo).max() <= 1
    mirrored = d.perspective(photo, FULL[[1, 0, 3, 2]], (320, 214))
    assert np.abs(mirrored.astype(int) - photo[:, ::-1]).mean() < 1


@pytest.mark.parametrize("kind", [k for k in d.KINDS if k != "crop"])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_step_is_worse(kind, seed):
    for photo in PHOTOS:
        series = [psnr(photo, d.degrade(photo, kind, s, seed)) for s in range(d.STEPS + 1)]
        assert all(a > b for a, b in zip(series, series[1:], strict=False)), (kind, series)


def test_blur_takes_sharpness_and_noise_adds_it():
    for photo in PHOTOS:
        soft, loud = ([steep(d.degrade(photo, k, s)) for s in range(d.STEPS + 1)] for k in ("blur", "noise"))
        assert soft == sorted(soft, reverse=True) and loud == sorted(loud)


def test_compression_makes_smaller_files():
    sizes = [len(d.jpeg(PHOTOS[0], q)) for q in d.QUALITY]
    assert sizes == sorted(sizes, reverse=True)


def test_crops_are_nested():
    ramp = np.zeros((256, 256, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(256), np.arange(256)[:, None]
    for seed in range(5):
        seen = [d.degrade(ramp, "crop", s, seed)[..., :2].astype(int) for s in range(d.STEPS + 1)]
        for wide, near in zip(seen, seen[1:], strict=False):
            assert (near.min((0, 1)) >= wide.min((0, 1)) - 1).all() and (near.max((0, 1)) <= wide.max((0, 1)) + 1).all()
            assert (np.ptp(near, (0, 1)) < np.ptp(wide, (0, 1)) - 10).all()


def test_seed_decides_and_nothing_else():
    for kind in d.KINDS:
        one, two = d.degrade(PHOTOS[0], kind, 3, 1), d.degrade(PHOTOS[0], kind, 3, 1)
        np.testing.assert_array_equal(one, two)
        assert one.shape == PHOTOS[0].shape and one.dtype == np.uint8
    assert (d.degrade(PHOTOS[0], "noise", 3, 1) != d.degrade(PHOTOS[0], "noise", 3, 2)).any()


def test_degrade_leaves_the_original_alone():
    photo = PHOTOS[1].copy()
    for kind in d.KINDS:
        for step in (0, 2):
            out = d.degrade(photo, kind, step)
            out[:] = 0
    np.testing.assert_array_equal(photo, PHOTOS[1])


def test_bad_kind_and_step():
    assert code_of(d.degrade, PHOTOS[0], "rain", 1) == "E301"
    assert code_of(d.degrade, PHOTOS[0], "blur", d.STEPS + 1) == "E301"
    assert code_of(d.degrade, PHOTOS[0], "blur", -1) == "E301"


def test_grain_has_the_strength_it_says():
    flat = np.full((300, 300, 3), 128, np.uint8)
    for sigma in (4.0, 12.0):
        brightness = d.grain(flat, sigma, np.random.default_rng(0)).astype(float) @ np.full(3, 1 / 3)
        assert abs(brightness.std() / sigma - np.sqrt(1 + 1 / 27)) < 0.06
        assert abs(brightness.mean() - 128) < 1


def test_light_glare_shake():
    photo = PHOTOS[0]
    assert d.relight(photo, 0.5).mean() == pytest.approx(photo.mean() / 2, abs=1)
    left, right = np.split(d.relight(np.full((40, 80, 3), 100, np.uint8), 1.0, (1.0, 0.0)).astype(float), 2, axis=1)
    assert right.mean() > left.mean() + 30
    spot = d.glare(photo, (0.25, 0.5), 0.1)
    assert spot[106, 80].min() == 255 and (spot[:, 300] == photo[:, 300]).all()
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(d.shake(stripes, 9, 0.0)[:, 12:-12]) < 50 and np.ptp(d.shake(stripes, 9, np.pi / 2)) == 200
    white = np.full((20, 20, 3), 255, np.uint8)
    np.testing.assert_array_equal(d.shake(white, 15, 0.7), white)


def test_views_stay_inside():
    views = np.stack([d.viewpoint(640, 400, np.random.default_rng(i), 2) for i in range(300)])
    assert views.min() >= -1e-9 and (views.max((0, 1)) <= [640 + 1e-9, 400 + 1e-9]).all()
    np.testing.assert_allclose(d.viewpoint(640, 400, np.random.default_rng(0), 0), [[0, 0], [640, 0], [640, 400], [0, 400]])


def test_taken_again():
    photo = PHOTOS[0]
    assert np.abs(d.rephotograph(photo, np.random.default_rng(0), 0).astype(int) - photo).max() <= 1
    again = [d.rephotograph(photo, np.random.default_rng(i), 1) for i in (0, 0, 1)]
    np.testing.assert_array_equal(again[0], again[1])
    assert (again[0] != again[2]).any() and again[0].shape == photo.shape
    far = [np.mean([psnr(photo, d.rephotograph(photo, np.random.default_rng(i), s)) for i in range(8)]) for s in (0.3, 1, 2)]
    assert far[0] > far[2]


def test_jpeg_is_a_jpeg():
    with Image.open(BytesIO(d.jpeg(PHOTOS[0], 80))) as image:
        assert image.format == "JPEG" and image.size == PHOTOS[0].shape[1::-1]
    for shape in ((1, 1, 3), (2, 3, 3)):
        tiny = np.zeros(shape, np.uint8)
        for kind in d.KINDS:
            assert d.degrade(tiny, kind, d.STEPS).shape == shape
        assert d.rephotograph(tiny, np.random.default_rng(0)).shape == shape
