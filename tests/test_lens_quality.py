"""Rules that say what is wrong with a photo, counted on photos whose fault is known."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ai_suite.lens import quality as q
from ai_suite.lens.faults import FAULTS, flawed
from ai_suite.lens.samples import WALLS, exhibits, hang
from support import code_of

KEYS = {"sharpness", "exposure", "glare", "off_centre", "size"}


def photos(seed, n, faults=FAULTS):
    "n photos of each fault, over the exhibits of one museum."
    rng = np.random.default_rng([seed, 9])
    walls = [hang(e, WALLS[i % 3], 100 * seed + i // 3) for i, e in enumerate(exhibits(3, 4, seed))]
    return [(f, flawed(*walls[k % len(walls)], f, rng, 400)) for f in faults for k in range(n)]


@pytest.fixture(scope="module")
def few():
    return photos(11, 6)


def test_rules_hit_and_stay_quiet(few):
    rates = {r["fault"]: r for r in q.hit_rates(few)}
    assert set(rates) == set(FAULTS)
    assert np.mean([rates[f]["hit"] for f in q.WANTED]) >= 0.9
    assert rates["none"]["other"] <= 0.2 and rates["none"]["hit"] is None


@pytest.mark.slow
def test_rules_hit_and_stay_quiet_in_other_museums():
    rates = {r["fault"]: r for r in q.hit_rates([p for seed in (21, 22) for p in photos(seed, 24)])}
    for fault in q.WANTED:
        assert rates[fault]["hit"] >= 0.9, (fault, rates[fault])
    for code in q.ADVICE:
        assert rates["none"][code] <= 0.05, (code, rates["none"])


def test_assess_gives_five_finite_numbers(few):
    for _, photo in few[::7]:
        a = q.assess(photo)
        assert set(a) == KEYS and all(type(v) is float and np.isfinite(v) for v in a.values())
        assert 0 <= a["sharpness"] <= 1 and -1 <= a["exposure"] <= 1 and 0 <= a["glare"] <= 1
        assert 0 <= a["off_centre"] <= 1 and 0 <= a["size"] <= 1


def test_size_of_the_file_does_not_matter():
    rng = np.random.default_rng(0)
    scene, box = hang(exhibits(1, 1)[0], "plaster")
    big = flawed(scene, box, "none", rng, 480)
    enlarged = np.asarray(Image.fromarray(big).resize((big.shape[1] * 3, big.shape[0] * 3), Image.Resampling.BICUBIC))
    a, b = q.assess(big), q.assess(enlarged)
    for key, within in (("sharpness", 0.12), ("exposure", 0.02), ("off_centre", 0.05), ("size", 0.08)):
        assert abs(a[key] - b[key]) < within, (key, a, b)
    assert q.faults(a) == q.faults(b) == []


def test_sharpness_ignores_contrast_and_noise_but_not_blur():
    from ai_suite.image.degrade import defocus, grain, shake

    scene, box = hang(exhibits(1, 3)[2], "brick")
    photo = flawed(scene, box, "none", np.random.default_rng(4), 320)
    score = lambda p: q.sharpness(q.grey(q.reduced(p)))
    pale = (160 + 0.4 * (photo - 128.0)).clip(0, 255).astype(np.uint8)
    assert abs(score(pale) - score(photo)) < 0.15
    assert abs(score(grain(photo, 6, np.random.default_rng(0))) - score(photo)) < 0.1
    blurred = [score(defocus(photo, s)) for s in (1, 2, 4)]
    assert score(photo) > blurred[0] > blurred[1] > blurred[2]
    for angle in (0, np.pi / 2):
        assert score(shake(photo, 16, angle)) < 0.7 * score(photo)


def test_a_white_object_is_no_glare():
    from ai_suite.image.degrade import glare

    grid = np.full((240, 320, 3), 110, np.uint8)
    grid[::8] = 70
    card = grid.copy()
    card[80:160, 100:200] = 255
    half = lambda p: q.reduced(p, 160).min(-1)
    assert q.reflection(half(card)) < 0.2
    assert q.reflection(half(glare(grid, (0.5, 0.5), 0.15))) > 0.7
    assert q.reflection(half(np.full((240, 320, 3), 255, np.uint8))) == 0


@pytest.mark.parametrize("x,y", [(0.15, 0.5), (0.5, 0.85), (0.85, 0.2)])
def test_off_centre_follows_the_object(x, y):
    rng = np.random.default_rng(0)
    wall = rng.normal(180, 4, (240, 320, 1)).clip(0, 255).repeat(3, 2).astype(np.uint8)
    cx, cy = int(320 * x), int(240 * y)
    for at, wanted in (((cx, cy), True), ((160, 120), False)):
        photo = wall.copy()
        top, left = max(at[1] - 60, 0), max(at[0] - 80, 0)
        photo[top : at[1] + 60, left : at[0] + 80] = (120, 40, 30)
        assert ("centre" in q.faults(q.assess(photo))) == wanted


def test_small_object_and_full_frame():
    rng = np.random.default_rng(0)
    photo = rng.normal(180, 4, (240, 320, 1)).clip(0, 255).repeat(3, 2).astype(np.uint8)
    photo[100:140, 135:185] = (120, 40, 30)
    assert q.faults(q.assess(photo)) == ["closer"]
    busy = rng.integers(0, 255, (30, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    assert q.framing(busy) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 500, 3), (500, 3, 3), (15, 15, 3), (64, 64, 3), (63, 900, 3)])
def test_odd_shapes(shape):
    for value in (0, 128, 255):
        a = q.assess(np.full(shape, value, np.uint8))
        assert set(a) == KEYS and np.isfinite(list(a.values())).all() and q.hints(a)


def test_wrong_arrays():
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)):
        assert code_of(q.assess, wrong) == "E103"


def test_input_is_not_changed(few):
    photo = few[0][1].copy()
    q.assess(photo)
    np.testing.assert_array_equal(photo, few[0][1])


FINE = {"sharpness": 0.7, "exposure": 0.2, "glare": 0.0, "off_centre": 0.1, "size": 0.7}


def test_words_of_the_description():
    assert q.MESSAGE_KO == "전시품이 아닌 가능성이 높습니다. 초점/구도/조명 개선 후 재촬영 해주세요."
    assert [h["ko"] for h in q.hints(FINE)] == ["작품이 프레임 중앙에 오도록", "반사/글레어 줄이기", "더 가까이 촬영"]
    assert all(set(h) == {"code", "ko", "en"} and all(h.values()) for h in q.hints(FINE, "2층/누각 ㄱ"))


@pytest.mark.parametrize("change,codes", [
    ({"sharpness": 0.1}, ["focus"]), ({"exposure": -0.9}, ["dark"]), ({"exposure": 0.99}, ["bright"]),
    ({"glare": 0.9}, ["glare"]),
    ({"off_centre": 0.6}, ["centre"]), ({"size": 0.2}, ["closer"]), ({"off_centre": 0.6, "size": 0.2}, ["centre"]),
    ({"sharpness": 0.1, "glare": 0.9}, ["focus", "glare"]), ({"exposure": -0.9, "sharpness": 0.1, "size": 0.1}, ["dark"]),
])
def test_limits_become_hints(change, codes):
    assert q.faults(FINE | change) == codes
    assert [h["code"] for h in q.hints(FINE | change)] == codes


def test_elsewhere_comes_first():
    assert [h["code"] for h in q.hints(FINE, "2층/누각 ㄱ")] == ["elsewhere"]
    said = q.hints(FINE | {"glare": 0.9}, "2층/누각 ㄱ")
    assert [h["code"] for h in said] == ["elsewhere", "glare"]
    assert "2층" in said[0]["ko"] and "누각 ㄱ" in said[0]["en"] and "item of place 2층" in said[0]["en"]


@pytest.mark.slow
@pytest.mark.skipif("AI_SUITE_DATA" not in os.environ, reason="AI_SUITE_DATA is not set")
def test_real_photos_seldom_get_a_hint():
    from ai_suite.image.read import read_rgb

    files = sorted((Path(os.environ["AI_SUITE_DATA"]) / "grocery_packages" / "train").glob("*/*/*.jpg"))[::8]
    if not files:
        pytest.skip("no photos there")
    (row,) = q.hit_rates(("real", read_rgb(f)) for f in files)
    assert row["other"] <= 0.15, row
