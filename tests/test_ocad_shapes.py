"""Shapes and the composite of one series: exactness, causality, bad input."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from ai_suite.core.errors import SuiteError
from ai_suite.ocad.shapes import discord, filled, poly, residual_map, spectral_residual, spread, trailing_poly, trailing_residual
from ai_suite.ocad.univariate import ALARM, CAP, NAMES, Follower, components, composite, offline, online, time_of_day


def wave(n=1200, day=144, seed=0):
    rng = np.random.default_rng(seed)
    return np.sin(2 * np.pi * np.arange(n) / day) + 0.1 * rng.normal(size=n), 600.0 * np.arange(n)


def test_residual_map_is_least_squares():
    rng = np.random.default_rng(0)
    size, first, window, degree = 80, 33, 9, 3
    y, t = rng.normal(size=size), np.linspace(-1, 1, size)
    outside = np.r_[:first, first + window:size]
    fit = np.polynomial.Polynomial.fit(t[outside], y[outside], degree)
    inside = slice(first, first + window)
    np.testing.assert_allclose(residual_map(size, first, window, degree) @ y, (y - fit(t))[inside], atol=1e-10)


@pytest.mark.parametrize("window", [5, 12, 40])
def test_poly_of_a_polynomial_is_nothing(window):
    t = np.linspace(-1, 1, 500)
    assert poly(3 * t**2 - t, window).max() < 1e-9
    assert trailing_poly(3 * t, window)[10 * window:].max() < 1e-9


def test_poly_equals_a_fit_of_each_window():
    x, window = wave(300)[0], 10
    starts = np.unique(np.r_[0:291:5, 290])
    expected = []
    for a in starts:
        left = int(np.clip(a - 45, 0, 200))
        t = np.arange(left, left + 100)
        out = (t < a) | (t >= a + window)
        fit = np.polynomial.Polynomial.fit(t[out], x[t[out]], 2)
        expected.append(np.sqrt(np.mean((x[a:a + window] - fit(np.arange(a, a + window)))**2)))
    np.testing.assert_allclose(poly(x, window), spread(np.array(expected), starts, window, 300), atol=1e-9)


@pytest.mark.parametrize("window", [8, 21])
def test_discord_equals_all_pairs(window):
    x = wave(220, 40)[0]
    W = sliding_window_view(x, window)
    D = np.sqrt(((W[:, None] - W) ** 2).mean(2))
    near = np.abs(np.subtract.outer(range(len(W)), range(len(W)))) < max(1, window // 2)
    nearest = np.where(near, np.inf, D).min(1)
    np.testing.assert_allclose(discord(x, window), spread(nearest, np.arange(len(W)), window, len(x)), atol=1e-7)


def test_discord_of_a_long_series_is_averaged_down():
    x = np.repeat(wave(1500, 48)[0], 8)
    x[6000:6400] = x[6000]
    found = discord(x, 384)
    assert found.shape == x.shape and 5800 < np.argmax(found) < 6600


@pytest.mark.parametrize("trailing, memory", [(lambda x: trailing_poly(x, 4), 40), (trailing_residual, 64)])
def test_trailing_forms_depend_on_their_memory_only(trailing, memory):
    x = wave()[0]
    batch = trailing(x)
    assert np.isnan(batch[:memory - 1]).all() and np.isfinite(batch[memory - 1:]).all()
    for t in (memory - 1, 500, 1199):
        np.testing.assert_allclose(trailing(x[t - memory + 1:t + 1])[-1], batch[t], atol=1e-9)
    later = x.copy()
    later[800:] = 1e6
    np.testing.assert_array_equal(trailing(later)[:700], batch[:700])


def test_one_stream_one_truth():
    x, seconds = wave(1500)
    x[400:404] = np.nan
    part, parts = time_of_day(seconds)
    for memory in (2000, 500):
        f = Follower(parts, 200, memory)
        batch, state, rows = f.follow(f.start(), part, x), f.start(), []
        at = 0
        for n in np.random.default_rng(0).integers(1, 90, 100):
            rows.append(f.follow(state, part[at:at + n], x[at:at + n]))
            at += n
        np.testing.assert_array_equal(np.concatenate(rows), batch)
        assert np.isnan(batch[:200]).all() and np.isnan(batch[400:404]).all() and np.isfinite(batch[404:]).all()


def test_online_surprises_are_counted_shares():
    x, seconds = wave(900)
    found = online(x, seconds, 100)
    share = lambda v: 10 ** -v
    for name in NAMES:
        s = share(found[name][100:])
        assert (s > 0).all() and (s <= 1).all()
        assert (s <= 0.1).mean() < 0.2
    x[700] += 9
    jump = online(x, seconds, 100)["score"]
    assert jump[700] >= ALARM and (jump[100:700] < ALARM).mean() > 0.99
    np.testing.assert_array_equal(online(x, seconds, 100)["score"][:700], found["score"][:700])


def test_online_does_not_care_for_units():
    x, seconds = wave(900)
    a, b = online(x, seconds, 100), online(8 * x - 1024, seconds, 100)
    np.testing.assert_allclose(b["score"], a["score"], atol=1e-9)


def test_composite_is_bounded_and_finds_the_odd_day():
    x, seconds = wave(2000)
    x[1200:1260] = x[1200]
    views = components(x, seconds)
    score = composite(views)
    assert ((score >= 0) & (score <= CAP)).all() and 1150 < np.argmax(score) < 1310
    np.testing.assert_array_equal(score, offline(x, seconds))
    np.testing.assert_allclose(offline(5 * x + 70, seconds), score, atol=1e-6)


@pytest.mark.parametrize("n", [16, 17, 40])
def test_short_series(n):
    x, seconds = wave(n)
    assert offline(x, seconds).shape == (n,) and np.isfinite(offline(x)).all()
    assert np.isfinite(spectral_residual(x)).all() and np.isfinite(discord(x, 5)).all()


@pytest.mark.parametrize("x", [np.zeros(300), np.full(300, 7.0), np.r_[np.zeros(150), np.nan * np.ones(150)]])
def test_nothing_happens_in_a_flat_series(x):
    seconds = 60.0 * np.arange(300)
    assert offline(x, seconds).max() < 1e-6
    assert np.nanmax(np.r_[0, online(x, seconds, 50)["score"]]) < ALARM / 4


@pytest.mark.parametrize("call, code", [
    (lambda: offline(np.zeros(15)), "E110"), (lambda: offline(np.full(50, np.nan)), "E110"),
    (lambda: poly(np.zeros(50), 0), "E301"), (lambda: trailing_poly(np.zeros(50), 5, reach=1), "E301"),
    (lambda: online(np.zeros(50), np.zeros(49)), "E103"), (lambda: online(np.zeros(50), np.arange(50.0), 60, 50), "E301"),
    (lambda: filled(np.zeros((3, 3))), "E103"), (lambda: offline(np.zeros(50), np.arange(49.0)), "E103")])
def test_bad_input_is_named(call, code):
    with pytest.raises(SuiteError) as e:
        call()
    assert e.value.code == code
