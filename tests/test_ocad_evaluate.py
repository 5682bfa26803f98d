"""VUS equals what TSB-AD says, NAB scores equal the published ones, events are counted as written, nothing is adjusted."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from support import code_of

from ai_suite.core.events import merge
from ai_suite.ocad.evaluate import evaluate, evaluate_scores, event_scores, events_table, match_events, scored_of
from ai_suite.ocad.nab import PROFILES, nab_score, prices, probation, read_nab, worth
from ai_suite.ocad.traces import Trace
from ai_suite.ocad.vus import soft_labels, vus, window_of

RECORDED = np.load(Path(__file__).parent / "data" / "vus_cases.npz", allow_pickle=False)
NAB = Path(os.environ.get("AI_SUITE_DATA", "/nowhere")) / "nab"
needs_nab = pytest.mark.skipif(not NAB.is_dir(), reason="AI_SUITE_DATA has no nab")


# VUS


@pytest.mark.parametrize("k", range(len(RECORDED["cases"])), ids=[str(x) for x in RECORDED["cases"]])
def test_volumes_are_those_of_the_published_implementation(k):
    window, roc, pr = RECORDED[f"expected_{k}"]
    found = vus(RECORDED[f"labels_{k}"], np.round(RECORDED[f"score_{k}"].astype(float), 3), int(window))
    assert found.roc == pytest.approx(roc, abs=1e-9) and found.pr == pytest.approx(pr, abs=1e-9)


@pytest.mark.parametrize("k", range(len(RECORDED["series"])), ids=[str(x) for x in RECORDED["series"]])
def test_windows_are_those_of_the_published_rule(k):
    assert window_of(np.round(RECORDED[f"series_{k}"].astype(float), 2)) == int(RECORDED[f"window_{k}"])


@needs_nab
def test_windows_of_real_series():
    assert len(RECORDED["nab_files"]) == 58
    for name, window in zip(RECORDED["nab_files"], RECORDED["nab_windows"], strict=True):
        assert window_of(pd.read_csv(NAB / "data" / str(name))["value"].to_numpy()) == window, name


def volumes_by_definition(labels, scores, window, thresholds):
    "Windows, thresholds and samples one by one"
    n, edges = len(labels), np.flatnonzero(np.diff(np.r_[0, labels, 0])).reshape(-1, 2)
    levels = np.sort(scores)[::-1][np.linspace(0, n - 1, thresholds).astype(int)]
    areas = []
    for w in range(window + 1):
        soft, reach = labels.astype(float), []
        for a, b in edges:
            for d in range(1, w // 2 + 1):
                for i in (a - d, b - 1 + d):
                    if 0 <= i < n:
                        soft[i] += np.sqrt(1 - d / w)
            if reach and reach[-1][1] > a - w // 2:
                reach[-1][1] = b + w // 2
            else:
                reach.append([a - w // 2, b + w // 2])
        soft, curve, precision = np.minimum(soft, 1), [(0.0, 0.0)], []
        for level in levels:
            p = scores >= level
            positives = (labels.sum() + np.where(labels, 1, soft * p).sum()) / 2
            touched = np.mean([p[max(a, 0):b].any() for a, b in reach])
            tp = (soft * p).sum()
            curve.append(((p.sum() - tp) / (n - positives), min(tp / positives, 1) * touched))
            precision.append(tp / p.sum())
        x, y = np.array([*curve, (1, 1)]).T
        areas.append([np.trapezoid(y, x), np.dot(np.diff(y[:-1]), precision)])
    return np.mean(areas, 0)


@given(st.integers(0, 10**6), st.integers(0, 14), st.sampled_from([0.02, 0.1, 0.4]), st.integers(1, 3))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_volumes_follow_the_definition_on_any_labels(seed, window, share, digits):
    rng = np.random.default_rng(seed)
    labels = (rng.random(60) < share).astype(int)
    labels[rng.integers(60)] ^= 1
    scores = np.round(rng.random(60), digits)
    if 0 < labels.sum() < 60:
        assert np.allclose(vus(labels, scores, window, 20), volumes_by_definition(labels, scores, window, 20), atol=1e-12)


def long_case(n):
    rng, labels = np.random.default_rng(0), np.zeros(n, int)
    for a in range(500, n - 50, 1000):
        labels[a:a + 50] = 1
    return labels, rng.random(n) + 0.3 * labels


def test_a_long_series_is_quick():
    labels, scores = long_case(100_000)
    vus(labels, scores, 100)
    began = time.process_time()
    vus(labels, scores, 100)
    assert time.process_time() - began < 0.5


def test_memory_does_not_grow_with_samples_times_windows():
    labels, scores = long_case(100_000)
    peaks = []
    for window in (10, 400):
        tracemalloc.start()
        vus(labels, scores, window)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e7 < 3e7


def test_dense_labels_are_as_quick():
    rng = np.random.default_rng(0)
    labels = (rng.random(100_000) < 0.2).astype(int)
    began = time.process_time()
    vus(labels, rng.random(100_000), 100)
    assert time.process_time() - began < 1


def test_volumes_do_not_change_with_the_scale_of_the_score():
    labels, scores = long_case(3000)
    assert vus(labels, scores, 30) == vus(labels, 1000 * scores - 7, 30)


def test_bad_scores_and_labels_are_refused():
    assert code_of(vus, [0, 1, 0], [0.1, np.nan, 1]) == "E103"
    assert code_of(vus, [0, 1, 0], [0.1, 1]) == "E103"
    assert code_of(vus, [0, 5, 0], [0.1, 0.2, 1]) == "E105"
    assert code_of(vus, [0, 1, 0], [0.1, 0.2, 1], -1) == "E301"
    assert code_of(window_of, np.array([1, np.nan])) == "E103"
    assert np.isnan(vus([0, 0], [1, 2])).all() and np.isnan(vus([1, 1], [1, 2])).all() and np.isnan(vus([], [])).all()


def test_soft_labels_without_events_and_without_window():
    assert (soft_labels(np.zeros(5, int), 10) == 0).all()
    assert soft_labels(np.array([0, 1, 0]), 0).tolist() == [0, 1, 0]


# NAB


N = 400


def corpus():
    windows = {"a": [(100, 120), (180, 181), (200, 250)], "b": [], "c": [(390, 400)]}
    rng = np.random.default_rng(0)
    return windows, {name: np.round(rng.random(N) + 0.05 * (prices(N, w)[1] >= 0), 2) for name, w in windows.items()}


def nab_by_definition(scores, windows, threshold, profile):
    "One sample after the other, as the paper tells it"
    total, n = 0.0, 0
    for name, spans in windows.items():
        best = {}
        for i, s in enumerate(scores[name]):
            if i < min(int(0.15 * len(scores[name])), 750) or not s >= threshold:
                continue
            inside = [(a, b) for a, b in spans if a <= i < b]
            if inside:
                (a, b), = inside
                earned = profile.found * float(worth((i - b) / (b - a)) / worth(-1))
                best[a] = max(best.get(a, -profile.missed), earned)
                continue
            before = [(a, b) for a, b in spans if b <= i]
            position = (i - before[-1][1] + 1) / max(before[-1][1] - before[-1][0] - 1, 1) if before else 3
            total += profile.false * float(worth(position))
        total += sum(best.get(a, -profile.missed) for a, _ in spans)
        n += len(spans)
    return 100 * (total + n * profile.missed) / (n * (profile.found + profile.missed))


@pytest.mark.parametrize("profile", PROFILES)
def test_the_nab_sweep_finds_the_best_of_all_thresholds(profile):
    windows, scores = corpus()
    levels = [*np.unique(np.concatenate([*scores.values()])), 9]
    plain = [nab_by_definition(scores, windows, t, PROFILES[profile]) for t in levels]
    swept = nab_score(scores, windows, profile)
    assert swept["score"] == pytest.approx(max(plain)) and swept["windows"] == 4
    for t, expected in list(zip(levels, plain, strict=True))[::17]:
        assert nab_score(scores, windows, profile, threshold=t)["score"] == pytest.approx(expected)
    assert nab_score(scores, windows, profile, threshold=swept["threshold"]) == pytest.approx(swept)


def test_silence_is_nought_and_the_first_sample_of_each_window_is_a_hundred():
    windows, scores = corpus()
    perfect = {name: np.isin(np.arange(N), [a for a, _ in w]).astype(float) for name, w in windows.items()}
    for profile in PROFILES:
        assert nab_score({name: np.full(N, 0.5) for name in windows}, windows, profile)["score"] == pytest.approx(0)
        assert nab_score(perfect, windows, profile)["score"] == pytest.approx(100)
    assert nab_score(perfect, windows)["false_alarms"] == 0
    assert nab_score(scores, windows, threshold=99) == {"score": 0, "threshold": 99, "windows": 4, "found": 0, "false_alarms": 0}


def test_missing_scores_never_alarm_and_probation_is_not_judged():
    windows, scores = corpus()
    gaps = {name: np.where(np.arange(N) < 185, np.nan, s) for name, s in scores.items()}
    low = {name: np.where(np.arange(N) < 185, -1, s) for name, s in scores.items()}
    assert nab_score(gaps, windows, threshold=0) == nab_score(low, windows, threshold=0)
    noisy = {name: np.where(np.arange(N) < probation(N), 5, s) for name, s in scores.items()}
    assert nab_score(noisy, windows)["score"] == nab_score(scores, windows)["score"]


def test_what_nab_refuses(tmp_path):
    windows, scores = corpus()
    assert code_of(nab_score, {}, windows) == "E103"
    assert code_of(nab_score, scores, windows, "mine") == "E301"
    assert code_of(prices, 100, [(50, 40)]) == code_of(prices, 100, [(50, 101)]) == "E103"
    assert code_of(read_nab, tmp_path) == "E101"
    (tmp_path / "labels").mkdir()
    (tmp_path / "data").mkdir()
    labels = tmp_path / "labels/combined_windows.json"
    table = pd.DataFrame({"timestamp": ["2020-01-01 00:00:00", "2020-01-01 00:05:00"], "value": [1, 2]})
    table.to_csv(tmp_path / "data/a.csv", index=False)
    for text in ("{", "[]", '{"a.csv": [["2020-01-01 00:01:00", "2020-01-01 00:05:00"]]}', '{"a.csv": [["x"]]}', '{"a.csv": 5}'):
        labels.write_text(text)
        assert code_of(read_nab, tmp_path) == "E102", text
    labels.write_text(json.dumps({"../labels/combined_windows.json": []}))
    assert code_of(read_nab, tmp_path) == "E102"


def windowed_gaussian(values, size=6400, step=100):
    "As NAB has it, kept to 12 decimals as in its result files"
    x, i = values - values[0], np.arange(len(values))
    sums, squares = (np.append(0, np.cumsum(x**k)) for k in (1, 2))
    a = np.maximum(i - size, 0) // step * step
    b = np.minimum(i, a + size)
    n = np.maximum(b - a, 1)
    mean = (sums[b] - sums[a]) / n
    std = np.sqrt(np.maximum((squares[b] - squares[a]) / n - mean**2, 0))
    tail = norm.sf(np.abs(x - mean) / np.where(std > 1e-9, std, 1e-6))
    return np.round(np.where(i > 0, 1 - tail, 0), 12)


@needs_nab
def test_the_published_windowed_gaussian_comes_out():
    series = read_nab(NAB)
    assert (len(series), sum(len(s.windows) for s in series), sum(not s.label.any() for s in series)) == (58, 116, 6)
    windows, scores = {s.name: s.windows for s in series}, {s.name: windowed_gaussian(s.values) for s in series}
    published = json.loads((NAB / "final_results.json").read_text())["windowedGaussian"]
    for profile in PROFILES:
        name = profile if profile == "standard" else profile + "_rate"
        assert nab_score(scores, windows, profile)["score"] == pytest.approx(published[name], abs=1e-6)


# Events


intervals = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda x: (x[0], x[0] + x[1])), max_size=8)


@given(intervals, intervals, st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_events_match_as_the_words_say(true, found, gap, late):
    match, joined = match_events(true, found, gap, late), merge(found, gap)
    meets = lambda t, f: f[0] < t[1] + late and f[1] > t[0]
    assert match.hit.tolist() == [any(meets(t, f) for f in joined) for t in true]
    assert match.right.tolist() == [any(meets(t, f) for t in true) for f in joined]
    assert match.alarms <= min(match.right.sum(), len(true))
    for t, delay in zip(true, match.delay, strict=True):
        first = [max(f[0] - t[0], 0) for f in joined if meets(t, f)]
        assert np.isnan(delay) if not first else delay == first[0]


def test_flicker_inside_an_event_buys_no_precision():
    flicker = [(i, i + 1) for i in range(100, 140, 2)]
    wrong = [(10, 11), (20, 21)]
    assert event_scores([(100, 140)], flicker + wrong)["precision"] == pytest.approx(1 / 3)


def test_one_alarm_over_everything_is_one_right_alarm_and_finds_all():
    found = event_scores([(10, 20), (30, 40)], [(0, 100)])
    assert (found["precision"], found["recall"], found["right"]) == (1, 1, 1)


def scores_of(n=600, step=60.0, endpoints=("a", "b"), seed=0):
    rng = np.random.default_rng(seed)
    one = lambda e: pd.DataFrame({"endpoint": e, "seconds": step * np.arange(n), "score": rng.random(n), "is_anomaly": 0})
    return pd.concat([one(e) for e in endpoints], ignore_index=True)


def truth(**columns):
    table = {"endpoint": ["a", "a"], "start": [6000.0, 18000.0], "end": [7200.0, 19200.0], "kind": ["spike", "drift"]}
    return pd.DataFrame(table | columns)


def flagged(table, endpoint, *samples):
    rows = table.index[table.endpoint == endpoint]
    return table.assign(is_anomaly=np.where(table.index.isin(rows[list(samples)]), 1, table.is_anomaly))


def test_figures_by_hand():
    table = flagged(scores_of(), "a", 103, 104, 110, 400, 401, 500)
    table = flagged(table, "b", 7)
    found = evaluate(table, truth(), window=10)
    assert (found["event_recall"], found["event_precision"]) == (0.5, 0.25)
    assert found["delay_s"] == 180 and found["events"] == 2 and found["unseen"] == 0
    assert found["false_alarm_samples"] == pytest.approx(4 / 1160)
    assert found["days"] == pytest.approx(1200 / 1440) and found["fa_per_endpoint_day"] == pytest.approx(3 / (1200 / 1440))
    assert [row["recall"] for row in found["kinds"]] == [0, 1] and [row["kind"] for row in found["kinds"]] == ["drift", "spike"]
    y = np.r_[soft_labels(np.isin(np.arange(600), np.r_[100:120, 300:320]), 0), np.zeros(600)]
    assert found["auc_pr"] == pytest.approx(average_precision_score(y, table.score))
    assert found["auc_roc"] == pytest.approx(roc_auc_score(y, table.score))
    assert found["vus_pr"] == pytest.approx(vus(y[:600], table.score[:600], 10).pr)
    json.dumps(found)


def test_only_a_flagged_sample_inside_finds_an_event():
    for sample, hit in ((99, 0), (100, 0.5), (119, 0.5), (120, 0)):
        found = evaluate(flagged(scores_of(), "a", sample), truth(start=[5990.0, 18000.0]), window=0)
        assert found["event_recall"] == hit, sample
        assert np.isnan(found["delay_s"]) if not hit else found["delay_s"] == 60 * sample - 5990


def test_late_findings_count_only_when_asked_for():
    table = flagged(scores_of(), "a", 122)
    strict, lenient = evaluate(table, truth(), window=0), evaluate(table, truth(), late=180, window=0)
    assert (strict["event_recall"], strict["event_precision"], strict["false_alarm_samples"] > 0) == (0, 0, True)
    assert (lenient["event_recall"], lenient["event_precision"], lenient["false_alarm_samples"]) == (0.5, 1, 0)


def test_the_adjusted_trick_does_not_work():
    "One flagged sample in a long event finds it, and changes no sample figure"
    table = flagged(scores_of(), "a", 110)
    found = evaluate(table, truth(), window=0)
    assert found["auc_pr"] == evaluate(scores_of(), truth(), window=0)["auc_pr"]


def test_random_scores_win_nothing():
    rng = np.random.default_rng(0)
    y = np.zeros(5000, int)
    for a in range(300, 5000, 600):
        y[a:a + 100] = 1
    good, chance = [vus(y, s, 50).pr for s in (rng.random(5000) + 0.5 * y, rng.random(5000))]
    assert chance < y.mean() + 0.05 < good


def test_rows_in_any_order_and_unusable_rows_change_nothing():
    table = flagged(scores_of(), "a", 103, 500)
    more = pd.DataFrame({"endpoint": ["a", "b"], "seconds": [np.nan, 60.0], "score": [0.5, np.nan], "is_anomaly": [1, 0]})
    mixed = pd.concat([table, more], ignore_index=True).sample(frac=1, random_state=0)
    found, plain = evaluate(mixed, truth(), window=5), evaluate(table, truth(), window=5)
    assert repr(found) == repr(plain)


def test_a_fault_between_samples_is_unseen_not_missed():
    found = evaluate(flagged(scores_of(), "a", 103), truth(start=[6000.0, 18001.0], end=[7200.0, 18059.0]), window=0)
    assert (found["unseen"], found["events"], found["event_recall"]) == (1, 1, 1)


def test_traces_with_labels_are_a_truth():
    label = np.isin(np.arange(600), np.r_[100:120, 300:320]).astype(np.uint8)
    seconds = 60.0 * np.arange(600)
    traces = [Trace(e, seconds, np.zeros((600, 1)), np.arange(600), label * (e == "a"), None) for e in "ab"]
    table = flagged(scores_of(), "a", 103)
    assert events_table(traces)[["start", "end"]].equals(truth()[["start", "end"]])
    assert evaluate(table, traces, window=5)["event_f1"] == evaluate(table, truth(), window=5)["event_f1"]


def test_files_as_the_commands_write_them(tmp_path):
    table = flagged(scores_of(), "a", 103, 500)
    utc = lambda s: pd.to_datetime(s, unit="s", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    written = table.assign(timestamp=utc(table.seconds)).drop(columns="seconds").astype({"score": object})
    written.loc[7, "score"] = ""
    written.to_csv(tmp_path / "scores.csv", index=False)
    truth().assign(start=utc(truth().start), end=utc(truth().end)).to_csv(tmp_path / "events.csv", index=False)
    found = evaluate_scores(tmp_path / "scores.csv", tmp_path / "events.csv", output=tmp_path / "out.json")
    assert found["samples"] == 1199 and found["event_recall"] == 0.5
    assert json.loads((tmp_path / "out.json").read_text())["event_recall"] == 0.5
    plain = table.assign(timestamp=utc(table.seconds), rtt=1.0)[["timestamp", "endpoint", "rtt"]]
    plain.to_csv(tmp_path / "plain.csv", index=False)
    assert code_of(evaluate_scores, tmp_path / "scores.csv", tmp_path / "plain.csv") == "E103"
    assert code_of(evaluate_scores, tmp_path / "scores.csv", tmp_path / "none.csv") == "E101"
    assert code_of(evaluate_scores, tmp_path / "events.csv", tmp_path / "events.csv") == "E103"


def test_tables_that_are_refused():
    assert code_of(evaluate, scores_of().drop(columns="is_anomaly"), truth()) == "E103"
    assert code_of(evaluate, scores_of(), truth(endpoint=["x", "y"])) == "E105"
    assert code_of(evaluate, scores_of(), truth(end=[5.0, 6.0])) == "E103"
    assert code_of(evaluate, scores_of().assign(score=np.nan), truth()) == "E104"
    assert code_of(scored_of, scores_of().assign(is_anomaly="perhaps")) == "E103"


def test_intervals_need_several_endpoints_and_hold_the_value():
    few = evaluate(scores_of(), truth(), window=0)
    assert few["intervals"] == {}
    names = [f"e{i}" for i in range(12)]
    table = scores_of(endpoints=names)
    for name in names[::2]:
        table = flagged(table, name, 103)
    faults = pd.DataFrame({"endpoint": names, "start": 6000.0, "end": 7200.0})
    found = evaluate(table, faults, window=0, draws=200)
    low, high = found["intervals"]["event_recall"]
    assert 0 < low < found["event_recall"] == 0.5 < high < 1
    assert found["kinds"] == [{"kind": "fault", "events": 12, "recall": 0.5, "delay_s": 180}]


FLAGS = [[0.0, np.nan, 1.0], [False, None, True], pd.array([0, None, 1], dtype="Int64"), ["0", "", "1"]]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.filterwarnings("error")
def test_flags_of_any_type(flags):
    table = pd.DataFrame({"seconds": [0.0, 60, 120], "score": [0.1, np.nan, 0.3], "is_anomaly": flags})
    assert scored_of(table)[0].flag.tolist() == [False, True]
    events = events_table(pd.DataFrame({"start": [1.0, 2.0], "end": [2.0, 3.0], "kind": ["drift", None]}))
    assert events.kind.tolist() == ["drift", "fault"]
