"""The benchmark table: columns, rows that bound the scale, formats, NAB when its data are there."""

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ai_suite.core.errors import SuiteError
from ai_suite.ocad.bench import alarms_of, average_precision, bench, cases_of, judge, judged, surprise_of, table_of
from ai_suite.ocad.nab import probation
from ai_suite.ocad.univariate import ALARM, online

DATA = Path(os.environ.get("AI_SUITE_DATA", "unset"))
COLUMNS = {"detector", "vus_pr", "vus_roc", "auc_pr", "event_precision", "event_recall", "event_f1", "nab_standard", "delay_s",
           "fa_per_endpoint_day", "seconds"}
needs_nab = pytest.mark.skipif(not (DATA / "nab/labels").is_dir(), reason="AI_SUITE_DATA has no nab")


def table(n=900, metrics=1, label=True, seed=0):
    rng, t = np.random.default_rng(seed), np.arange(n)
    times = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(600 * t, unit="s")
    frame = pd.DataFrame({"timestamp": times, "endpoint": "du"})
    for m in range(metrics):
        frame[f"m{m}"] = 50 + 5 * np.sin(2 * np.pi * t / 144) + rng.normal(size=n)
    frame.loc[600:640, f"m{metrics - 1}"] += 12
    if label:
        frame["label"] = ((t >= 600) & (t <= 640)).astype(int)
    return frame


@pytest.fixture
def rows(tmp_path):
    table().to_csv(tmp_path / "own.csv", index=False)
    return {r["detector"]: r for r in bench(data=str(tmp_path / "own.csv"), workers=1)}


def test_columns_and_limits(rows):
    json.dumps(list(rows.values()), allow_nan=False)
    assert all(set(r) >= COLUMNS for r in rows.values())
    assert {"random", "constant", "oracle", "offline composite", "online composite"} <= set(rows)
    assert rows["oracle"]["event_f1"] == 1 and rows["oracle"]["nab_standard"] > 95 and rows["oracle"]["delay_s"] == 0
    assert rows["constant"]["event_recall"] == 0 and rows["constant"]["nab_standard"] == 0
    assert rows["random"]["vus_pr"] < 0.3 < rows["offline composite"]["vus_pr"] < rows["oracle"]["vus_pr"] + 1e-9


def test_several_metrics_and_no_label(tmp_path):
    table(metrics=2).to_csv(tmp_path / "two.csv", index=False)
    two = {r["detector"]: r for r in bench(data=str(tmp_path / "two.csv"), workers=1)}
    assert two["offline composite"]["vus_pr"] > 0.3
    table(label=False).to_csv(tmp_path / "none.csv", index=False)
    none = bench(data=str(tmp_path / "none.csv"), workers=1)
    assert all(r["vus_pr"] is None and r["event_f1"] is None and r["nab_standard"] is None for r in none)


@pytest.mark.slow
def test_processes_change_nothing(tmp_path):
    pd.concat([table(700, seed=s).assign(endpoint=f"du-{s}") for s in range(2)]).to_csv(tmp_path / "own.csv", index=False)
    cases = cases_of(tmp_path / "own.csv", "csv")
    alone, side = (table_of(cases, judged(cases, w)) for w in (1, 2))
    assert [{**r, "seconds": 0} for r in alone] == [{**r, "seconds": 0} for r in side]


def test_probation_is_not_judged(tmp_path):
    frame = table()
    frame.loc[20:30, "m0"] += 40
    frame.to_csv(tmp_path / "own.csv", index=False)
    case = cases_of(tmp_path / "own.csv", "csv")[0]
    assert case.probation == 135
    found = judge(case)
    assert all((r["alarm"][:135] < ALARM).all() for r in found.values())


def test_alarm_score_is_the_online_score():
    x = table().m0.to_numpy()
    found = online(x, 600.0 * np.arange(900), 100)
    level = np.mean([found[k] for k in ("novelty", "season", "shift")], axis=0)
    np.testing.assert_allclose(alarms_of(level, 100)[100:], found["score"][100:], atol=1e-12)


def test_surprise_and_precision():
    np.testing.assert_allclose(surprise_of(np.array([5.0, 5, 1, 9])), -np.log10([0.75, 0.75, 1, 0.25]))
    assert average_precision(np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.8, 0.2])) == 1


def test_marked_changes(tmp_path):
    pytest.importorskip("ruptures")
    t = np.arange(600)
    rtt = np.where(t < 300, 20.0, 35.0) + np.random.default_rng(0).normal(size=600)
    folder = tmp_path / "real_trace_labelled"
    folder.mkdir()
    stamp = pd.Timestamp("2016-10-14") + pd.to_timedelta(240 * t, unit="s")
    pd.DataFrame({"epoch": stamp, "rtt": rtt, "cp": (t == 300).astype(int)}).to_csv(folder / "1.csv", sep=";", index=False)
    first = bench(data=str(tmp_path), format="rtt", workers=1)[0]
    assert first["detector"] == "changepoints" and first["event_f1"] == 1 and first["vus_pr"] is None


@pytest.mark.parametrize("kwargs, code", [({"format": "nab"}, "E101"), ({"format": "rtt"}, "E103"), ({"format": "x"}, "E301"),
                                          ({"probation": 1.5}, "E301"), ({"data": "/nowhere"}, "E101")])
def test_bad_input_is_named(tmp_path, kwargs, code):
    table().to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(SuiteError) as e:
        bench(**({"data": str(tmp_path / "own.csv"), "workers": 1} | kwargs))
    assert e.value.code == code


@needs_nab
def test_probation_is_numentas():
    assert all(c.probation == probation(len(c.seconds)) for c in cases_of(DATA / "nab", "nab"))


@needs_nab
@pytest.mark.slow
def test_figures_of_a_few_series():
    "Loose limits over six series; all of them are the work of benchmarks/nab.py."
    cases = [c for c in cases_of(DATA / "nab", "nab") if len(c.seconds) < 2600 and c.label.any()][:6]
    rows = {r["detector"]: r for r in table_of(cases, judged(cases, 1))}
    assert rows["offline composite"]["vus_pr"] > 2.5 * rows["random"]["vus_pr"]
    assert rows["online composite"]["nab_standard"] > rows["random"]["nab_standard"]


def test_the_benchmark_can_be_imported():
    home = Path(__file__).resolve().parent.parent
    if str(home / "tools") not in sys.path:
        sys.path.insert(0, str(home / "tools"))
    spec = spec_from_file_location("bench_nab", home / "benchmarks/nab.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.figures)
