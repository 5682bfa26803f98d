"""Trials: the random detector, parts at equal false alarms, alerts as events, faults in quiet stretches, and the sweeps."""

import inspect
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import code_of

from ai_suite.core.config import plain
from ai_suite.core.events import intervals_of
from ai_suite.ocad import trial
from ai_suite.ocad.bench import Case
from ai_suite.ocad.ensemble import Ocad
from ai_suite.ocad.infer import score_by_rules
from ai_suite.ocad.model import fit
from ai_suite.ocad.rules import Rules
from ai_suite.ocad.simulate import behind, simulated
from ai_suite.ocad.traces import METRICS, Trace, faults_of


def lengths(flag: np.ndarray) -> list[int]:
    return sorted(b - a for a, b in intervals_of(flag))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=80), st.integers(0, 99))
def test_the_random_detector_has_the_same_runs(bits: list[bool], seed: int) -> None:
    flag = np.array(bits)
    made = trial.shuffled(flag, np.random.default_rng(seed))
    assert lengths(made) == lengths(flag) and made.sum() == flag.sum()


def test_the_random_detector_goes_everywhere() -> None:
    flag = np.zeros(50, bool)
    flag[:5] = True
    share = np.mean([trial.shuffled(flag, np.random.default_rng(s)) for s in range(4000)], 0)
    assert np.abs(share[5:-5] - 5 / 46).max() < 0.03 and share[0] > 0.01 and share[-1] > 0.01


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.floats(0, 1), st.integers(0, 99))
def test_a_part_gets_no_more_false_alarms(values: list[int], share: float, seed: int) -> None:
    x, quiet = np.array(values, float), np.random.default_rng(seed).random(len(values)) < 0.7
    quiet[0] = True
    on = trial.at_share(x, quiet, share)
    assert on.any() and (on == (x >= x[on].min())).all()
    if on[quiet].mean() > share + 1e-9:
        assert x[on].min() == x.max()
    elif (~on).any():
        assert (x[quiet] >= x[~on].max()).mean() > share - 1e-9, "a lower threshold would do"


def line(endpoint: str, n: int, label: np.ndarray | None = None, step: float = 60.0) -> Trace:
    kind = None if label is None else np.where(label > 0, "level shift", "").astype("U24")
    return Trace(endpoint, step * np.arange(n), np.zeros((n, 1)), np.arange(n), label, kind)


def test_quiet_rows_end_with_the_event_and_its_aftermath() -> None:
    label = np.zeros(100, np.uint8)
    label[40:50] = 1
    traces = [line("b", 100, label), line("a", 30, np.zeros(30, np.uint8))]
    table = pd.DataFrame({"timestamp": np.r_[traces[1].seconds, traces[0].seconds], "endpoint": ["a"] * 30 + ["b"] * 100,
                          "score": 0.0, "is_anomaly": 0})
    quiet = trial.quiet_rows(table, traces, late=300.0)
    assert quiet[:30].all() and np.flatnonzero(~quiet[30:]).tolist() == list(range(40, 55))


def test_alerts_as_events() -> None:
    label = np.zeros(1440, np.uint8)
    label[100:200] = label[600:700] = 1
    traces = [line("a", 1440, label)]
    told = trial.alert_figures({"a": [(6060.0, 12000.0), (60000.0, 61000.0)]}, traces)
    assert (told["precision"], told["recall"], told["delay_s"]) == (0.5, 0.5, 60.0)
    assert told["wrong_per_endpoint_day"] == pytest.approx(1.0) and told["kinds"]["level shift"]["recall"] == 0.5
    early = trial.alert_figures({"a": [(5000.0, 43000.0)]}, traces)
    assert (early["recall"], early["delay_s"], early["alerts"]) == (1.0, 0.0, 1)
    late = trial.alert_figures({"a": [(12100.0, 12200.0)]}, traces)
    assert late["recall"] == 0.5 and trial.alert_figures({"a": [(12400.0, 12500.0)]}, traces)["recall"] == 0.0


def test_an_alert_is_sent_when_it_opens_not_when_it_is_thought_to_have_begun() -> None:
    traces, on = trial.numbered([line("z", 10), line("a", 60)]), np.zeros(70, bool)
    on[10 + 20:10 + 40] = True
    table = pd.DataFrame({"timestamp": np.concatenate([t.seconds for t in traces]), "endpoint": ["z"] * 10 + ["a"] * 60,
                          "score": np.where(on, 0.7, 0.1), "is_anomaly": on.astype(int), "kind": np.where(on, "spike", ""),
                          "metric": "rtt", "start": np.where(on, 900.0, np.nan)})
    sent = trial.alerts_by_endpoint(table, traces, ("rtt",))
    assert sent == {"z": [], "a": [(60.0 * 22, 60.0 * 40)]}
    table.loc[10 + 40:, "is_anomaly"] = 1
    assert trial.alerts_by_endpoint(table, traces, ("rtt",))["a"] == [(60.0 * 22, 60.0 * 60)]


def test_stretches_keep_away_from_marks() -> None:
    marks = np.array([300, 320, 1500])
    case = Case("p", 240.0 * np.arange(3000), np.zeros((3000, 1)), None, 0, marks)
    found = trial.quiet_stretches(case)
    spans = [(int(t.seconds[0] / 240), int(t.seconds[-1] / 240) + 1) for t in found]
    assert spans == [(350, 1470), (1530, 3000)] and [t.endpoint for t in found] == ["p#0", "p#1"]
    assert [len(t.seconds) for t in trial.quiet_stretches(case._replace(changes=None))] == [3000]


def noisy(name: str, n: int = 3000, seed: int = 0) -> Trace:
    x = 80 + np.random.default_rng(seed).normal(0, 0.2, n)
    x[::97] = np.nan
    return Trace(name, 240.0 * np.arange(n), x[:, None], np.arange(n))


def test_injected_faults_have_the_stated_sizes_and_nothing_else_changes() -> None:
    calm, steps = noisy("p"), []
    for seed in range(12):
        made = trial.injected(calm, np.random.default_rng(seed))
        off = made.label == 0
        assert np.array_equal(made.values[off], calm.values[off], equal_nan=True)
        assert np.array_equal(np.isnan(made.values), np.isnan(calm.values)) and off[:360].all()
        assert set(made.kind[~off]) <= set(trial.ONE_METRIC.values()) and not (made.kind[off] != "").any()
        away = (made.values - calm.values)[:, 0] / 0.2
        steps += [abs(np.nanmedian(away[made.seconds.searchsorted(f.start):made.seconds.searchsorted(f.end)]))
                  for f in faults_of([made]).itertuples() if f.kind == "level shift"]
    assert len(steps) >= 12 and 1.8 < min(steps) < 3.2 and 4.5 < max(steps) < 8.8
    again = trial.injected(calm, np.random.default_rng(11))
    assert np.array_equal(again.values, made.values, equal_nan=True)
    assert code_of(trial.injected, line("flat", 1000), np.random.default_rng(0)) == "E110"


class Never:
    "A model that may not score what it was trained on."
    threshold = 4.0

    def __init__(self, names: set[str]) -> None:
        self.names, self.detectors = names, {"rules": Rules(("rtt",))}

    def score(self, trace: Trace) -> pd.DataFrame:
        assert trace.endpoint.split("#")[0] not in self.names
        return score_by_rules(self.detectors["rules"], trace)


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    for k in range(4):
        t = noisy(str(k), 2400, seed=k)
        clock = pd.to_datetime(t.seconds + 1.7e9, unit="s").strftime("%d/%m/%Y %H:%M")
        marks = (np.arange(2400) == 1100).astype(int)
        pd.DataFrame({"epoch": clock, "rtt": t.values[:, 0], "cp": marks}).to_csv(tmp_path / f"{k}.csv", sep=";", index=False)
    return tmp_path


def test_no_trace_is_judged_by_a_model_that_saw_it(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(traces: list[Trace], metrics: tuple[str, ...], **_: object) -> Never:
        seen.append({t.endpoint.split("#")[0] for t in traces})
        assert metrics == ("rtt",) and all(t.label is None for t in traces), "training gets no faults and no labels"
        return Never(seen[-1])

    monkeypatch.setattr(trial, "fit", watched)
    told = trial.injected_trial(0, atlas, folds=2)
    assert seen[0] | seen[1] == {"0", "1", "2", "3"} and not seen[0] & seen[1]
    assert (told["stretches"], told["endpoints"]) == (8, 4) and told["events"] >= 10
    by = {row["detector"]: row for row in told["rows"]}
    same = ("event_precision", "event_recall", "event_f1", "false_alarm_samples")
    assert [by["composite"][k] for k in same] == [by["rules alone"][k] for k in same], "here the model is the rules"
    assert by["composite"]["event_recall"] > by["random"]["event_recall"]


def test_injection_without_data() -> None:
    assert code_of(trial.injected_trial, data="nowhere") == "E101"


def test_a_fault_free_endpoint_has_the_noise_of_the_simulator() -> None:
    free, sigma = trial.fault_free("val", 3, 7, 2.0), behind("val", 3, 7, 2.0)["sigma"]
    jump = np.diff(free.values[:, :3], axis=0)
    rough = 1.4826 * np.nanmedian(np.abs(jump), 0) / 2**0.5
    assert free.label.sum() == 0 and not (free.kind != "").any()
    assert (rough / sigma > 0.6).all() and (rough / sigma < 1.2).all() and np.isnan(free.values).any()
    assert not np.array_equal(free.values, trial.fault_free("val", 3, 8, 2.0).values, equal_nan=True)


@pytest.fixture(scope="module")
def learned() -> tuple[Ocad, list[Trace]]:
    traces = simulated("train", endpoints=2, days=2)[0]
    return fit(traces, METRICS, epochs=1), traces


def test_a_trial_reads_the_split_once(learned: tuple[Ocad, list[Trace]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(split: str, *args: object) -> object:
        asked.append(split)
        return simulated(split, 0, 3, 3)

    monkeypatch.setattr(trial, "simulated", watched)
    told = trial.simulated_trial(split="val", scale="small", model=learned[0])
    assert asked == ["val"] and told["split"] == "val"
    assert inspect.signature(trial.simulated_trial).parameters["split"].default == "test"
    by = {row["detector"]: row for row in told["rows"]}
    assert {"composite", "rules alone", "random", "rule", "d_states"} <= set(by)
    assert by["composite"]["event_f1"] > max(by["random"]["event_f1"], by["rules alone"]["event_f1"])
    assert sum(k["events"] for k in told["kinds"]) == told["events"] and told["alerts"]["recall"] >= 0.5
    assert json.loads(json.dumps(plain(told), allow_nan=False))["events"] == told["events"]


def test_nothing_is_judged_on_the_training(learned: tuple[Ocad, list[Trace]]) -> None:
    for wrong in ({"split": "train"}, {"split": "other"}, {"scale": "huge"}):
        assert code_of(trial.simulated_trial, model=learned[0], **wrong) == "E301"


def test_a_larger_target_gives_more(learned: tuple[Ocad, list[Trace]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trial.DAYS, "small", {"val": (2, 2)})
    rows = trial.target_sweep(*learned, targets=(1e-4, 0.3), split="val", scale="small")
    assert [r["target"] for r in rows] == [1e-4, 0.3] and rows[0]["threshold"] >= rows[1]["threshold"]
    assert rows[0]["above_line"] <= rows[1]["above_line"] and rows[0]["days"] >= 2 and rows[0]["samples"] > 2000


def test_contamination_changes_nothing(learned: tuple[Ocad, list[Trace]]) -> None:
    model, train = learned
    judged = simulated("val", endpoints=1, days=2)[0]
    rows = trial.contamination_sweep(model, train[:1], judged, (0.01, 0.2))
    assert [r["changed"] for r in rows] == [0, 0] and rows[0]["flagged"] > 0
    assert rows[1]["sklearn_flagged"] > 5 * rows[0]["sklearn_flagged"]
