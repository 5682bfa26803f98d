"""The simulator: what is promised of its data holds, and equal seeds give equal data."""

import json

import numpy as np
import pandas as pd
import pytest

from ai_suite.core.errors import SuiteError
from ai_suite.ocad.simulate import (
    DAYS, EVENT_COLUMNS, KINDS, QUIET_S, SIZES, SPLITS, base_delays, behind, jitter, measured, planned, read_events,
    simulate, simulated,
)
from ai_suite.ocad.traces import METRICS, read_traces


@pytest.fixture(scope="module")
def test_split():
    return simulated("test", seed=3, endpoints=10, days=8)


def test_labels_agree_with_events_and_faults_lie_apart(test_split):
    traces, events = test_split
    assert tuple(events.columns) == EVENT_COLUMNS and set(events.kind) == set(KINDS)
    for trace in traces:
        mine = events[events.endpoint == trace.endpoint].sort_values("start")
        expected = np.full(len(trace.seconds), "", "U24")
        for e in mine.itertuples():
            inside = (trace.seconds >= e.start) & (trace.seconds < e.end)
            assert inside.sum() >= 3
            expected[inside] = e.kind
        assert (trace.kind == expected).all() and (trace.label == (expected != "")).all()
        assert (mine.start.to_numpy()[1:] - mine.end.to_numpy()[:-1] > QUIET_S - 120).all()
        assert mine.start.min() - trace.seconds[0] > 86_300 and mine.end.max() < trace.seconds[-1]
        assert (np.diff(trace.seconds) > 0).all() and trace.label[[0, -1]].sum() == 0


def test_an_endpoint_does_not_depend_on_how_many_there_are(test_split):
    (alone,), events = simulated("test", seed=3, endpoints=1, days=8)
    np.testing.assert_array_equal(alone.values, test_split[0][0].values)
    np.testing.assert_array_equal(alone.seconds, test_split[0][0].seconds)
    other = simulated("test", seed=4, endpoints=1, days=8)[0][0]
    assert not np.array_equal(other.values[:100], alone.values[:100], equal_nan=True)
    assert len({tuple(simulated(s, seed=3, endpoints=1, days=1)[0][0].values[0]) for s in SPLITS}) == 3


@pytest.mark.parametrize("split", SPLITS)
def test_sizes_are_in_range_and_small_faults_last(split):
    rng = np.random.default_rng(0)
    small = []
    for kind in KINDS:
        for _ in range(200):
            n, size = planned(kind, split, 60.0, rng)
            if kind in ("ccm_loss_burst", "cross_metric"):
                continue
            small.append(size < 3)
            assert size >= SIZES[split][0] and n * size**2 >= 115
            assert size <= (SIZES[split][1] if kind != "microburst" else 8)
    assert 0.1 < np.mean(small) < 0.4


def _faults(kind, tries=60):
    for k in range(tries):
        b = behind("test", k, seed=5)
        for i, (name, start, end, size) in enumerate(b["faults"]):
            if name == kind:
                z = (b["delays"] - base_delays(b["p"]) - b["swing"] * b["load"][:, None]) / b["sigma"]
                plain = b["plain"][start:end] / b["sigma"]
                yield plain, z[start:end], z[start - 100:start], size, b["effect"]["metrics"][i].split(";")


@pytest.mark.parametrize("kind", ["clock_step", "reroute", "congestion", "lbm_udp_disagreement", "optics_drift"])
def test_a_shift_shows_in_the_metrics_that_the_event_names(kind):
    for (_, inside, before, size, metrics), _ in zip(_faults(kind), range(12), strict=False):
        moved = np.abs(np.median(inside, 0) - np.median(before, 0))
        assert moved.max() > 0.3 * size
        if kind == "clock_step":
            assert metrics == ["ecpri_delay_us"] and moved[1] > 0.8 * size and max(moved[0], moved[2]) < 0.8
        if kind == "lbm_udp_disagreement":
            assert moved[1] < 0.8 and min(moved[0], moved[2]) < 0.8 and "ecpri_delay_us" not in metrics


def test_cross_metric_changes_relations_and_nothing_else():
    robust = lambda x: 1.4826 * np.median(np.abs(x - np.median(x, 0)), 0)
    levels, spreads, changes = [], [], []
    for (plain, inside, _, _, metrics), _ in zip(_faults("cross_metric", tries=30), range(30), strict=False):
        alone = METRICS.index(metrics[0])
        levels.append(np.abs(np.median(inside, 0)).max())
        spreads.append(robust(inside) / robust(plain))
        other = [m for m in range(3) if m != alone]
        changes.append((np.corrcoef(inside.T)[alone, other].max(), np.corrcoef(inside.T)[other[0], other[1]]))
    assert max(levels) < 0.5 and np.min(spreads) > 0.65 and np.max(spreads) < 1.5 and abs(np.median(spreads) - 1) < 0.05
    assert max(c for c, _ in changes) < 0.35 and min(c for _, c in changes) > 0.4


def test_outliers_stand_alone_and_quiet_time_is_quiet():
    for k in range(6):
        b = behind("test", k, seed=6)
        usual = base_delays(b["p"]) + b["swing"] * b["load"][:, None]
        z_true = (b["delays"] - usual) / b["sigma"]
        trace, _ = measured(dict(b, p=dict(b["p"], gaps_per_day=0, timeouts=0)))
        z = (trace.values[:, :3] - usual) / b["sigma"]
        odd = np.flatnonzero((np.abs(z - z_true) > 3).any(1))
        assert (np.diff(odd) > 20).all() and (trace.label[odd] == 0).all()
        level = pd.DataFrame(z[trace.kind == ""]).rolling(60).median()
        assert level.abs().max().max() < 1.2


def test_losses_are_counts_and_cost_probes():
    traces, events = simulated("test", seed=7, endpoints=12, days=8)
    quiet = np.concatenate([t.values[t.kind == "", 3] for t in traces])
    burst = np.concatenate([t.values[t.kind == "ccm_loss_burst"] for t in traces])
    assert (quiet == quiet.round()).all() and np.mean(quiet > 0) < 0.004 and quiet.max() <= 3
    assert burst[:, 3].mean() > 1 and burst[:, 3].max() <= 60
    silent = [np.isnan(x[:, :3]).mean() for x in (burst, np.concatenate([t.values[t.kind == ""] for t in traces]))]
    assert silent[0] > 5 * silent[1] > 0


def test_jitter_leans_to_the_right_with_unit_spread():
    z = np.random.default_rng(1).standard_normal(100_000)
    for shape in ("lognormal", "gamma", "heavy"):
        for skew in (0.1, 0.4):
            x = jitter(z, shape, skew)
            assert abs(np.median(x)) < 0.02 and 0.9 < 1.4826 * np.median(np.abs(x - np.median(x))) < 1.15
            assert np.quantile(x, 0.999) > -np.quantile(x, 0.001)
            assert (np.diff(jitter(np.linspace(-4, 4, 100), shape, skew)) > 0).all()


def test_files_hold_what_memory_holds(tmp_path):
    said = simulate(output=str(tmp_path), seed=2, scale="small")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.csv", "meta.json", "test.csv", "train.csv", "val.csv"]
    events = read_events(tmp_path / "events.csv")
    assert list(events.columns) == list(EVENT_COLUMNS[:5])
    for split, (endpoints, days) in DAYS["small"].items():
        traces, metrics, counts, _ = read_traces(tmp_path / f"{split}.csv")
        memory, truth = simulated(split, 2, endpoints, days)
        assert metrics == METRICS and counts["unusable_rows"] == counts["duplicates"] == counts["out_of_order"] == 0
        for a, b in zip(traces, memory, strict=True):
            assert a.endpoint == b.endpoint
            for x, y in zip(a[1:4], b[1:4], strict=True):
                np.testing.assert_array_equal(x, y)
            assert (a.label == b.label).all() and (a.kind == b.kind).all()
        mine = events[events.endpoint.str.startswith(split)]
        assert said["splits"][split] == {"endpoints": endpoints, "rows": counts["rows"], "events": len(mine)}
        np.testing.assert_array_equal(mine.start, truth.start)
        np.testing.assert_array_equal(mine.end, truth.end)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert len(meta["events"]) == len(events) and len(meta["endpoints"]) == sum(e for e, _ in DAYS["small"].values())
    first = (tmp_path / "train.csv").read_bytes()
    simulate(output=str(tmp_path / "again"), seed=2, scale="small")
    assert (tmp_path / "again" / "train.csv").read_bytes() == first
    assert (tmp_path / "again" / "meta.json").read_bytes() == (tmp_path / "meta.json").read_bytes()


@pytest.mark.parametrize("interval, days", [(1.0, 0.2), (10.0, 3), (300.0, 6), (3600.0, 20), (60.0, 0.01)])
def test_other_intervals_and_lengths(interval, days):
    traces, events = simulated("test", 1, 2, days, interval)
    for trace in traces:
        assert (np.diff(trace.seconds) > 0).all()
        assert abs(np.median(np.diff(trace.seconds)) - interval) < 0.1 * interval
        assert np.nanmin(trace.values) >= 0
    assert len(events) == 0 or (events.end > events.start).all()


@pytest.mark.parametrize("settings", [{"split": "holdout"}, {"endpoints": 0}, {"days": 0.0}, {"days": -1.0}, {"interval_s": 0.5}])
def test_bad_settings_have_a_code(settings):
    with pytest.raises(SuiteError) as e:
        simulated(**settings)
    assert e.value.code == "E301"


def test_bad_output_has_a_code(tmp_path):
    with pytest.raises(SuiteError, match="E301"):
        simulate(output=str(tmp_path), scale="huge")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SuiteError, match="E120"):
        simulate(output=str(tmp_path / "file" / "below"), scale="small")


@pytest.mark.slow
def test_full_scale_has_a_thousand_test_events():
    traces, events = simulated("test")
    assert len(traces) == 80 and len(events) >= 1000
    assert events.kind.value_counts().min() >= 80
