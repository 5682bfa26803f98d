"""The rules: each fires on what it is for and on nothing else; on line equals afterwards."""

import numpy as np
import pytest

from ai_suite.core.errors import SuiteError
from ai_suite.ocad.evaluate import event_scores
from ai_suite.ocad.rules import WARM, Rules, rule_events
from ai_suite.ocad.simulate import simulated
from ai_suite.ocad.traces import Trace

ONE = Rules(metrics=("rtt_us",))
LOSS = Rules(metrics=("ccm_loss",))


def series(n=600, sigma=3.0, level=200.0, seed=0):
    return np.arange(n) * 60.0, level + sigma * np.random.default_rng(seed).standard_normal((n, 1))


def fired(rules, t, x, name):
    with np.errstate(invalid="ignore"):
        return np.flatnonzero((rules.score(t, x)[:, rules.names.index(name)] >= rules.threshold).any(1))


@pytest.mark.parametrize("seed", range(3))
def test_on_line_equals_batch_to_the_bit(seed):
    (trace,), _ = simulated("test", seed, 1, 2)
    rules, state = Rules(limits={"lbm_rtt_us": 150.0}), Rules().start(4)
    assert state.nbytes < 40_000
    whole = rules.score(trace.seconds, trace.values)
    single = np.array([rules.update(state, s, v) for s, v in zip(trace.seconds, trace.values, strict=True)])
    np.testing.assert_array_equal(single, whole)
    state = rules.start()
    parts = [rules.score(trace.seconds[a:a + 700], trace.values[a:a + 700], state) for a in range(0, len(trace.rows), 700)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_future_changes_nothing():
    t, x = series()
    changed = x.copy()
    changed[400:] += 100
    np.testing.assert_array_equal(ONE.score(t, x)[:400], ONE.score(t, changed)[:400])


def test_quiet_noise_is_quiet_and_sigma_is_sigma():
    t, x = series(20_000)
    z = ONE.score(t, x)[WARM:, 1, 0]
    assert (z >= ONE.threshold).mean() < 2e-4
    assert 0.9 < 1.4826 * np.median(z) < 1.15  # |z| of normal noise has the median .674
    assert rule_events(ONE, t, x) == []


def test_warm_up_says_nothing_then_speaks():
    t, x = series()
    said = ONE.score(t, x)[:, :, 0]
    assert np.isnan(said[:WARM, 1:3]).all() and np.isfinite(said[WARM:, 1:3]).all()
    assert np.isnan(said[:, 3]).all()  # not a metric of losses


def test_an_outlier_fires_once_and_moves_nothing():
    t, x = series()
    odd = x.copy()
    odd[300] += 1000
    a, b = ONE.score(t, x)[:, 1, 0], ONE.score(t, odd)[:, 1, 0]
    assert b[300] == 100 and np.abs(a - b)[301:].max() < 0.25
    assert rule_events(ONE, t, odd) == []


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_large_step_is_found_at_once_and_followed_for_hours_only(sign):
    t, x = series(3000)
    x[500:] += sign * 30
    events = rule_events(ONE, t, x)
    assert 500 * 60 <= events[0][0] <= 503 * 60
    assert 30 * 60 < events[-1][1] - events[0][0] < 900 * 60
    assert 500 in fired(ONE, t, x, "rate")


def test_slow_drift_is_not_seen():
    t, x = series(3000)
    x[1000:2000] += np.linspace(0, 12, 1000)[:, None]
    x[2000:] += 12
    assert rule_events(ONE, t, x) == []


def test_rate_needs_neighbours_in_time():
    t, x = series()
    x[300:] += 30
    late = t.copy()
    late[300:] += 3600
    assert 300 in fired(ONE, t, x, "rate") and 300 not in fired(ONE, late, x, "rate")


def test_missing_values_carry_the_state():
    t, x = series()
    gone = x.copy()
    gone[200:230] = np.nan
    said = ONE.score(t, gone)
    assert np.isnan(said[200:230]).all()
    kept = np.r_[0:200, 230:600]
    np.testing.assert_array_equal(ONE.score(t[kept], x[kept])[:, 1], said[kept][:, 1])
    silent = ONE.score(t, np.full((600, 1), np.nan))
    assert np.isnan(silent).all() and rule_events(ONE, t, np.full((600, 1), np.nan)) == []


def test_loss_needs_several_in_short_time():
    t, x = np.arange(200) * 60.0, np.zeros((200, 1))
    x[[20, 50, 80, 110, 111]] = 1
    assert len(fired(LOSS, t, x, "loss")) == 0
    x[[112]] = 1
    assert fired(LOSS, t, x, "loss")[0] == 112
    x[:] = 0
    x[150] = 2
    assert fired(LOSS, t, x, "loss")[0] == 150


def test_loss_as_ratio_is_learned():
    t, x = np.arange(200) * 60.0, np.zeros((200, 1))
    x[[5, 20, 21, 22, 90]] = [[1], [3], [2], [1], [1]]
    ratio = LOSS.fit([Trace("a", t, x / 60, np.arange(200))])
    np.testing.assert_allclose(ratio.score(t, x / 60)[:, 3], LOSS.score(t, x)[:, 3], rtol=1e-12)
    assert LOSS.fit([Trace("a", t, x * 0, np.arange(200))]).unit == (1.0,)
    assert Rules().fit(simulated("train", 0, 2, 2)[0]).unit == (1.0, 1.0, 1.0, 1.0)


def test_labelled_faults_are_not_learned_from():
    t, x = np.arange(10) * 60.0, np.zeros((10, 1))
    x[3], x[5] = 0.001, 0.02
    label = np.zeros(10, np.uint8)
    label[3] = 1
    assert LOSS.fit([Trace("a", t, x, np.arange(10), label)]).unit == (0.02,)


def test_limit_is_a_limit():
    t, x = series()
    rules = Rules(metrics=("rtt_us",), limits={"rtt_us": 240.0})
    x[100] = 239.9
    x[5] = x[200] = 240.0
    assert list(fired(rules, t, x, "limit")) == [5, 200]


def test_constant_metric_is_quiet_until_it_changes():
    t, x = np.arange(300) * 60.0, np.full((300, 1), 50.0)
    assert np.nanmax(ONE.score(t, x)) == 0
    x[200:] = 60.0
    assert fired(ONE, t, x, "threshold")[0] == 200 and np.nanmax(ONE.score(t, x)) == 100
    zero = ONE.score(t, np.zeros((300, 1)))
    assert np.nanmax(zero) == 0 and np.isfinite(zero[WARM:, 1]).all()


def test_scale_and_shift_do_not_matter():
    t, x = series(sigma=3, level=30)
    a, b = ONE.score(t, x)[:, 1:3], ONE.score(t, 1000 * x)[:, 1:3]
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_kept_and_loaded():
    rules = Rules(limits={"ccm_loss": 5.0}, threshold=4.0).fit(simulated("train", 0, 2, 2)[0])
    again = Rules.load(rules.arrays(), rules.config())
    assert again == rules and "loss" in rules.reason("loss", "ccm_loss", 9.0)
    for name in rules.names:
        assert rules.reason(name, "ccm_loss", 9.0).startswith("ccm_loss")


def test_wrong_width_has_a_code():
    with pytest.raises(SuiteError, match="E203"):
        Rules().score(np.arange(3.0), np.zeros((3, 2)))


def test_rules_alone_are_neither_useless_nor_enough():
    traces, events = simulated("val", 11, 20, 6)
    found = {t.endpoint: rule_events(Rules(), t.seconds, t.values) for t in traces}
    true = {name: mine[["start", "end"]].to_numpy() for name, mine in events.groupby("endpoint")}
    assert 0.45 < event_scores(true, found)["f1"] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_rules_alone_on_the_whole_test_split(seed):
    traces, events = simulated("test", seed)
    found = {t.endpoint: rule_events(Rules(), t.seconds, t.values) for t in traces}
    true = {name: mine[["start", "end"]].to_numpy() for name, mine in events.groupby("endpoint")}
    assert len(events) >= 1000 and 0.5 <= event_scores(true, found)["f1"] <= 0.8
