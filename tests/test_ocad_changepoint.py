"""Change points: the online sums, their state, onsets and sizes; cuts of a whole series and their score."""

import importlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from ai_suite.core.errors import SuiteError
from ai_suite.ocad.changepoint import KINDS, NAMES, SCALES, ChangePoint
from ai_suite.ocad.offline import changepoints, merged, noise_of, score_changepoints
from ai_suite.ocad.traces import Trace

ATLAS = Path(os.environ.get("AI_SUITE_DATA", "unset"), "rtt_atlas/real_trace_labelled")


def noise(n: int, metrics: int = 1, seed: int = 0, ar: float = 0.2) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(n, metrics))
    for t in range(1, n):
        z[t] = ar * z[t - 1] + (1 - ar**2) ** 0.5 * z[t]
    return z


def trace(z: np.ndarray, label: np.ndarray | None = None) -> Trace:
    return Trace("e", 60.0 * np.arange(len(z)), z, np.arange(len(z)), label)


@pytest.fixture(scope="module")
def detector() -> ChangePoint:
    return ChangePoint().fit([trace(noise(6000, seed=s), np.zeros(6000, np.uint8)) for s in (1, 2, 3)])


def largest(detector: ChangePoint, z: np.ndarray) -> np.ndarray:
    return detector.score(60.0 * np.arange(len(z)), z)[:, :, 0].max(1)


def test_stream_equals_batch_in_any_portions(detector: ChangePoint) -> None:
    z = noise(700, seed=4)
    z[300:360] += 3
    z[100:110] = np.nan
    seconds = 60.0 * np.arange(len(z))
    whole, state = detector.score(seconds, z), detector.start(1)
    single = np.stack([detector.update(state, s, v) for s, v in zip(seconds, z, strict=True)])
    assert np.array_equal(single, whole, equal_nan=True)
    assert state.dtype == np.float64 and state.ndim == 1 and detector.start(4).nbytes <= 40_000


def test_a_copied_state_goes_on_as_the_original(detector: ChangePoint) -> None:
    z, state = noise(200, seed=5), detector.start(1)
    for t in range(100):
        detector.update(state, float(t), z[t])
    copy = np.frombuffer(state.tobytes()).copy()
    for t in range(100, 200):
        assert np.array_equal(detector.update(state, float(t), z[t]), detector.update(copy, float(t), z[t]))


def test_metrics_do_not_touch_each_other() -> None:
    z = noise(500, 3, seed=6)
    broken = z.copy()
    broken[200:260, 1] += 5
    a, b = (ChangePoint().score(np.arange(500.0), x) for x in (z, broken))
    assert np.array_equal(a[:, :, [0, 2]], b[:, :, [0, 2]]) and not np.array_equal(a[:, :, 1], b[:, :, 1])


def test_the_future_does_not_matter(detector: ChangePoint) -> None:
    z = noise(400, seed=7)
    other = z.copy()
    other[250:] += 9
    a, b = (detector.score(np.arange(400.0), x) for x in (z, other))
    assert np.array_equal(a[:250], b[:250]) and not np.array_equal(a[250:], b[250:])


def test_missing_samples_carry_the_state(detector: ChangePoint) -> None:
    z = noise(300, seed=8)
    z[150:] += 2
    with_gaps = np.insert(z, range(5, 300, 5), np.nan, axis=0)
    there = np.isfinite(with_gaps[:, 0])
    gappy = detector.score(np.arange(float(len(with_gaps))), with_gaps)
    assert np.isnan(gappy[~there]).all()
    assert np.array_equal(gappy[there], detector.score(np.arange(300.0), z))


@pytest.mark.parametrize("height", [8, 50, 1e6, -1e6, np.inf])
def test_one_wild_sample_raises_nothing(detector: ChangePoint, height: float) -> None:
    z = noise(400, seed=9)
    z[200] = height
    assert np.nanmax(largest(detector, z)) < 5


@pytest.mark.parametrize("size", [2.0, -2.0, 4.0, 10.0])
def test_a_shift_is_found_placed_sized_and_forgotten(detector: ChangePoint, size: float) -> None:
    z, state = noise(700, seed=10), detector.start(1)
    z[400:460] += size
    for t in range(440):
        scores = detector.update(state, 60.0 * t, z[t])
    best = int(scores[:3, 0].argmax())
    assert scores[best, 0] > 5 and KINDS[NAMES[best]] == "level_shift"
    assert abs(detector.onsets(state)[best, 0] / 60 - 400) <= 6
    assert abs(detector.sizes(state)[best, 0] - size) < 0.25 * abs(size) + 0.3
    assert (largest(detector, z)[460:] > 5).sum() <= 15


def test_a_large_fault_is_over_after_three_samples(detector: ChangePoint) -> None:
    for seed in range(10):
        z = noise(700, seed=seed)
        z[400:460] += 6
        assert (largest(detector, z)[463:] < 5).all()


def test_drift_and_spread_and_which_statistic_says_so(detector: ChangePoint) -> None:
    drift, wide, stuck = noise(900, seed=11), noise(900, seed=12), noise(900, seed=13)
    drift[400:700, 0] += np.linspace(0, 2, 300)
    wide[400:500] *= 3
    stuck[400:600] = 0.3
    at = {n: i for i, n in enumerate(NAMES)}
    score = {k: detector.score(np.arange(900.0), z)[:, :, 0] for k, z in (("drift", drift), ("wide", wide), ("stuck", stuck))}
    assert score["drift"][400:700, at["mean_240"]].max() > 5 > score["drift"][400:700, at["variance_up"]].max()
    wide_scores = score["wide"][400:500].max(0)
    assert wide_scores[at["variance_up"]] > 5
    assert score["stuck"][400:600, at["variance_down"]].max() > 5


def test_long_noise_is_quiet(detector: ChangePoint) -> None:
    high = largest(detector, noise(30_000, seed=14))
    assert (high > 5).mean() < 1e-3 and high.max() < 6.5


def test_fit_takes_autocorrelation_back_and_leaves_faults_out() -> None:
    white, coloured = (noise(6000, seed=15, ar=a) for a in (0.0, 0.5))
    none = np.zeros(6000, np.uint8)
    factor = {k: ChangePoint().fit([trace(z, none)]).scale[:, 0] for k, z in (("white", white), ("coloured", coloured))}
    mean_60 = NAMES.index("mean_60")
    assert factor["coloured"][mean_60] < 0.75 < factor["white"][mean_60]
    label = none.copy()
    label[1000:2000] = 1
    faulty = white.copy()
    faulty[1000:2000] += 5
    assert np.allclose(ChangePoint().fit([trace(faulty, label)]).scale[:, 0], factor["white"], rtol=0.15)
    unlabelled = ChangePoint().fit([trace(faulty[500:1100])]).scale[:, 0]
    assert (unlabelled >= 0.2).all() and (unlabelled <= 1.25).all()


def test_fit_survives_missing_constant_and_short_metrics() -> None:
    z = np.stack([np.full(2000, np.nan), np.zeros(2000), noise(2000, seed=16)[:, 0]], 1)
    fitted = ChangePoint().fit([trace(z, np.zeros(2000, np.uint8)), trace(z[:10])])
    assert np.isfinite(fitted.scale).all() and (fitted.scale[:, 0] == 1).all()
    assert np.isfinite(fitted.score(np.arange(2000.0), z)[:, :, 1:]).all()


def test_saved_and_loaded(detector: ChangePoint) -> None:
    again = ChangePoint.load(detector.arrays(), detector.config())
    z = noise(300, seed=17)
    assert np.array_equal(again.score(np.arange(300.0), z), detector.score(np.arange(300.0), z))
    with pytest.raises(SuiteError, match="E203"):
        ChangePoint.load(detector.arrays(), detector.config() | {"names": ["other"]})
    with pytest.raises(SuiteError, match="E203"):
        ChangePoint(np.ones((len(NAMES), 3))).update(detector.start(2), 0.0, np.zeros(2))


def test_reasons_are_sentences(detector: ChangePoint) -> None:
    assert detector.reason("cusum_2", "udp_echo_rtt_us", 43_500, 3.21) == "udp_echo_rtt_us rose by 3.2 sigma since 12:05"
    assert detector.reason("mean_240", "m", 43_500, -1.0) == "m drifted down by 1.0 sigma since 12:05"
    for name in NAMES:
        assert "nan" not in detector.reason(name, "m")


def test_running_means_are_means() -> None:
    z = np.clip(noise(400, seed=18), -2, 2)
    scores = ChangePoint(found=np.inf).score(np.arange(400.0), z)[:, :, 0]
    for i, n in enumerate(SCALES):
        assert scores[-1, 3 + i] == pytest.approx(abs(z[-n:].mean()) * n**0.5, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=12, unique=True), st.lists(st.integers(0, 120), max_size=12, unique=True),
       st.integers(0, 12))
def test_matching_is_the_largest_there_is(found: list[int], true: list[int], margin: int) -> None:
    near = np.abs(np.subtract.outer(found, true)) <= margin if found and true else np.zeros((1, 1), bool)
    most = int(near[linear_sum_assignment(near, maximize=True)].sum())
    assert score_changepoints(found, true, margin)["hits"] == most


def test_offline_cuts_among_spikes_and_timeouts() -> None:
    rng = np.random.default_rng(19)
    x = 180 + np.repeat([0.0, 6, 1, 9], 300) + 0.4 * rng.normal(size=1200)
    x[rng.random(1200) < 0.02] += 80
    x[rng.random(1200) < 0.05] = np.nan
    seconds = 1e9 + 240.0 * np.arange(1200)
    table = changepoints(x, seconds)
    assert score_changepoints(table["index"], [300, 600, 900], 3)["f1"] == 1
    assert np.allclose(table["size"], [6, -5, 8], atol=0.3) and np.allclose(table["after"] - table["before"], table["size"])
    assert np.array_equal(table["time"], seconds[table["index"]]) and np.isfinite(x[table["index"]]).all()


def test_offline_does_not_depend_on_units_or_order_of_magnitude() -> None:
    x = 200 + np.repeat([0.0, 8, -5], 200) + 0.5 * np.random.default_rng(20).normal(size=600)
    cuts = [changepoints(k * x, np.arange(600.0))["index"].tolist() for k in (1, 1000, 1e-3)]
    assert cuts[0] == cuts[1] == cuts[2] == [200, 400]


def test_merging_starts_with_the_closest() -> None:
    x = np.repeat([0.0, 1.0, 1.2, 5.0], 10)
    assert merged(x, [10, 20, 30], 0.5) == [10, 30]
    assert merged(x, [10, 20, 30], 99) == []
    assert noise_of(np.array([3.0, 3.0])) == pytest.approx(0.024)


def test_offline_refuses_what_is_no_series() -> None:
    for values, seconds in ((np.ones(3), np.ones(4)), (np.ones((3, 2)), np.ones((3, 2))), (np.ones(2), np.array([2.0, 1.0]))):
        with pytest.raises(SuiteError, match="E103"):
            changepoints(values, seconds)


@pytest.mark.skipif(not ATLAS.is_dir(), reason="AI_SUITE_DATA has no rtt_atlas")
def test_marked_traces_are_cut_where_people_cut_them(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).resolve().parent.parent
    for folder in ("tools", "benchmarks"):
        monkeypatch.syspath_prepend(str(root / folder))
    bench = importlib.import_module("changepoints")
    data = bench.traces()
    figure = bench.halves(bench.pelt("log"), {name: data[name] for name in list(data)[:4]})
    assert figure["all"]["true"] == 83 and figure["all"]["f1"] > 0.6
