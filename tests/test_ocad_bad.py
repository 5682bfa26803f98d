"""What operators' tables and folders look like when something is wrong with them, through the ocad commands."""

import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ai_suite.core.runs import add_part, load_tensors, read_run, save_tensors, tensors_config
from ai_suite.ocad.cli import main

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::FutureWarning", "error::UserWarning")
BIN = Path(sys.executable).parent / "ocad"
HEAD = [
    "timestamp",
    "endpoint",
    "score",
    "is_anomaly",
    "kind",
    "metric",
    "rule",
    "changepoint",
    "residual",
    "multivariate",
    "note",
]
SHARES = ["score", "rule", "changepoint", "residual", "multivariate"]
KINDS = {"", "level_shift", "spike", "drift", "variance", "loss", "correlation", "flapping", "forecast", "multivariate", "limit"}
START = pd.Timestamp("2026-03-02T00:00:00Z")


def call(*words: object) -> tuple[int, str, str]:
    "Run a command of ocad in this process: exit code, stdout, stderr."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    return int(stop.value.code or 0), out.getvalue(), err.getvalue()


def good(*words: object) -> dict:
    "Run a command that must succeed with exactly one JSON object on stdout."
    code, out, err = call(*words)
    assert code == 0, err
    assert out.count("\n") == 1 and "Traceback" not in err and "Warning" not in err, err
    return json.loads(out)


def refused(code: str, *words: object) -> str:
    "Run a command that must stop with this error: one line with a fix, no traceback, no answer."
    stopped, out, err = call(*words)
    assert stopped == 2, (stopped, out, err)
    line = err.strip().splitlines()[-1]
    assert re.match(rf"{code} .+ → .+", line), err
    assert "Traceback" not in err and out == ""
    return line


def table(n: int = 400, endpoints: tuple[str, ...] = ("du-1", "du-2"), step: float = 60.0, seed: int = 0) -> pd.DataFrame:
    "Quiet measurements of two metrics, as text."
    rng, rows = np.random.default_rng(seed), []
    for k, name in enumerate(endpoints):
        stamps = START + pd.to_timedelta(np.arange(n) * step, unit="s")
        course = np.sin(np.arange(n) * step / 86400 * 2 * np.pi)
        rows.append(
            pd.DataFrame(
                {
                    "timestamp": stamps.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    "endpoint": name,
                    "delay_us": 100 + 10 * k + 5 * course + rng.normal(0, 2, n),
                    "rtt_us": 250 + 20 * k + 9 * course + rng.normal(0, 4, n),
                }
            )
        )
    return pd.concat(rows, ignore_index=True).astype(object)


def written(path: Path, frame: pd.DataFrame) -> Path:
    "A table as a file."
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return path


def scores_of(path: Path, rows: int) -> pd.DataFrame:
    "Scores that keep every promise about columns, rows and values."
    found = pd.read_csv(path, keep_default_na=False, dtype=str)
    parts = [c for c in found.columns if c.startswith("d_")]
    assert list(found.columns[: len(HEAD) + len(parts)]) == [*HEAD, *parts] and parts
    assert len(found) == rows and set(found.is_anomaly) <= {"0", "1"} and set(found.kind) <= KINDS
    for column in [*SHARES, *parts]:
        number = pd.to_numeric(found[column].replace("", None))
        assert number.dropna().between(0, 1).all(), column
    empty = found.score == ""
    assert (found.note[empty] != "").all() and (found.is_anomaly[empty] == "0").all()
    flagged = found.is_anomaly == "1"
    assert (found.kind[flagged] != "").all() and (found.kind[~flagged] == "").all() and (found.metric[~flagged] == "").all()
    return found


def same_rows(found: pd.DataFrame, frame: pd.DataFrame) -> None:
    "Are the scores in the order of the input?"
    assert found.endpoint.tolist() == frame.endpoint.astype(str).str.strip().tolist()


def files_in(folder: Path) -> dict[str, bytes]:
    "Every file below a folder, but for locks."
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A trained run and the tables it knows, in a folder with a space and Hangul in its name."
    root = tmp_path_factory.mktemp("통신 데이터 1")
    written(root / "train 1.csv", table(500))
    good("train", "--data", root / "train 1.csv", "--output", root / "모델 1", "--epochs", 1, "--settings", few(root))
    return root


def few(folder: Path) -> Path:
    "Settings with few trees, so that a training is quick."
    path = folder / "few.yaml"
    path.write_text("forest:\n  n_estimators: 10\n  max_samples: 64\n")
    return path


def infer(world: Path, data: Path, out: Path, *more: object, run: str = "모델 1") -> tuple[object, ...]:
    "The words of an inference."
    return ("infer", "--model", world / run, "--data-source", data, "--output", out, *more)


def trained(data: Path, run: Path, *more: object) -> tuple[object, ...]:
    "The words of a quick training."
    return ("train", "--data", data, "--output", run, "--epochs", 1, "--settings", few(data.parent), *more)


def scored(world: Path, frame: pd.DataFrame, tmp_path: Path, *more: object) -> tuple[pd.DataFrame, dict]:
    "Scores and answer for a table."
    data = written(tmp_path / "in.csv", frame)
    told = good(*infer(world, data, tmp_path / "s.csv", *more))
    found = scores_of(tmp_path / "s.csv", len(frame))
    assert told["rows"] == len(frame) and told["anomalies"] == (found.is_anomaly == "1").sum()
    return found, told


# tables that look odd but can be learned from


def with_labels(frame: pd.DataFrame, label: object) -> pd.DataFrame:
    return frame.assign(label=label)


def dead_metric(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(rtt_us="")


def dead_at_one(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(rtt_us=frame.rtt_us.where(frame.endpoint == "du-1", ""))


def constant_metric(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(rtt_us=250)


def all_constant(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(rtt_us=250, delay_us=0)


def one_endpoint(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame.endpoint == "du-1"]


def no_endpoint(frame: pd.DataFrame) -> pd.DataFrame:
    return one_endpoint(frame).drop(columns="endpoint")


def one_metric(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="rtt_us")


def whole_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(
        delay_us=frame.delay_us.astype(float).round().astype(int), rtt_us=frame.rtt_us.astype(float).round().astype(int)
    )


def temperatures(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(delay_us=frame.delay_us.astype(float) - 130)


def generic_names(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(columns={"delay_us": "value", "rtt_us": "metric 1/s (%)"})


def hangul(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.rename(columns={"delay_us": "지연"}).assign(
        endpoint=frame.endpoint.map({"du-1": "서울 DU, 1", "du-2": "<b>é\"'"})
    )


def twenty_metrics(frame: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return frame.assign(**{f"m{i:02d}": rng.normal(i, 1 + i, len(frame)) for i in range(18)})


def text_in_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(delay_us=["broken" if i % 50 == 7 else v for i, v in enumerate(frame.delay_us)])


def infinities(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(
        delay_us=["inf" if i % 40 == 3 else "-Infinity" if i % 40 == 9 else v for i, v in enumerate(frame.delay_us)]
    )


def huge(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(delay_us=[10**30 + i if i % 97 == 5 else v for i, v in enumerate(frame.delay_us)])


def huge_level(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(delay_us=10**18 + np.arange(len(frame)) * 1000, rtt_us=frame.rtt_us.astype(float) * 1e300)


def tiny(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(delay_us=frame.delay_us.astype(float) * 1e-30)


def mixed_zones(frame: pd.DataFrame) -> pd.DataFrame:
    stamps = pd.to_datetime(frame.timestamp)
    shown = [
        s.tz_convert("Asia/Seoul").isoformat() if i % 3 == 0 else str(int(s.timestamp())) if i % 3 == 1 else s.isoformat()
        for i, s in enumerate(stamps)
    ]
    return frame.assign(timestamp=shown)


def backwards(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[::-1].reset_index(drop=True)


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sample(frac=1, random_state=0).reset_index(drop=True)


def doubled(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame[100:150]], ignore_index=True)


def clock_set_back(frame: pd.DataFrame) -> pd.DataFrame:
    stamps = pd.to_datetime(frame.timestamp)
    late = (np.arange(len(frame)) % 400) >= 200
    return frame.assign(timestamp=(stamps - pd.to_timedelta(np.where(late, 1830, 0), unit="s")).dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


def irregular(frame: pd.DataFrame) -> pd.DataFrame:
    jitter = pd.to_timedelta(np.random.default_rng(0).uniform(0, 40, len(frame)), unit="s")
    kept = np.random.default_rng(1).random(len(frame)) < 0.8
    return frame.assign(timestamp=(pd.to_datetime(frame.timestamp) + jitter).astype(str))[kept].reset_index(drop=True)


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    late = pd.to_timedelta(np.where((np.arange(len(frame)) % 400) >= 200, 40, 0), unit="D")
    return frame.assign(timestamp=(pd.to_datetime(frame.timestamp) + late).astype(str))


def long_form(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.melt(["timestamp", "endpoint"], var_name="metric", value_name="value")


ODD: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    f.__name__: f
    for f in (
        dead_metric,
        dead_at_one,
        constant_metric,
        all_constant,
        one_endpoint,
        no_endpoint,
        one_metric,
        whole_numbers,
        temperatures,
        generic_names,
        hangul,
        twenty_metrics,
        text_in_numbers,
        infinities,
        huge,
        huge_level,
        tiny,
        mixed_zones,
        backwards,
        shuffled,
        doubled,
        clock_set_back,
        irregular,
        gaps,
    )
} | {"labels_only_0": lambda frame: with_labels(frame, 0), "labels_empty": lambda frame: with_labels(frame, "")}


@pytest.mark.parametrize("odd", ODD)
def test_odd_tables_are_learned_and_scored(tmp_path: Path, odd: str) -> None:
    frame = ODD[odd](table())
    data = written(tmp_path / "t.csv", frame)
    told = good(*trained(data, tmp_path / "run"))
    assert told["samples"] > 0 and np.isfinite(told["threshold"])
    said = good(
        "infer",
        "--model",
        tmp_path / "run",
        "--data-source",
        data,
        "--output",
        tmp_path / "s.csv",
        "--report",
        tmp_path / "r.html",
        "--alerts",
        tmp_path / "a.json",
    )
    found = scores_of(tmp_path / "s.csv", len(frame))
    assert said["rows"] == len(frame) and (found.score != "").mean() > 0.8
    if "endpoint" in frame:
        same_rows(found, frame)
    assert (found.is_anomaly == "1").mean() < 0.2, "quiet data"


@pytest.mark.parametrize("step", [1.0, 3600.0])
def test_seconds_and_hours(tmp_path: Path, step: float) -> None:
    frame = table(600, step=step)
    data = written(tmp_path / "t.csv", frame)
    good(*trained(data, tmp_path / "run"))
    good("infer", "--model", tmp_path / "run", "--data-source", data, "--output", tmp_path / "s.csv")
    assert (scores_of(tmp_path / "s.csv", 1200).is_anomaly == "1").mean() < 0.1


def test_a_metric_named_twice_is_one_metric(world: Path, tmp_path: Path) -> None:
    told = good(*trained(written(tmp_path / "t.csv", table(120)), tmp_path / "run", "--metrics", "rtt_us", "rtt_us"))
    assert told["metrics"] == ["rtt_us"]
    assert good("check", "--data", tmp_path / "t.csv", "--metrics", "rtt_us", "rtt_us")["metrics"] == ["rtt_us"]


def test_long_form_is_one_sample_per_time(world: Path, tmp_path: Path) -> None:
    frame = table(100)
    wide, _ = scored(world, frame, tmp_path)
    data = written(tmp_path / "long.csv", long_form(frame))
    assert good(*infer(world, data, tmp_path / "l.csv"))["rows"] == 200
    pd.testing.assert_frame_equal(scores_of(tmp_path / "l.csv", 200), wide)


def test_a_metric_that_is_asked_for_but_never_measured(tmp_path: Path) -> None:
    data = written(tmp_path / "t.csv", dead_metric(table()))
    told = good(*trained(data, tmp_path / "run", "--metrics", "delay_us", "rtt_us"))
    assert told["metrics"] == ["delay_us", "rtt_us"]
    said = good("infer", "--model", tmp_path / "run", "--data-source", data, "--output", tmp_path / "s.csv")
    assert said["missing"] == ["rtt_us"] and (scores_of(tmp_path / "s.csv", 800).score != "").all()


# tables that nothing can be learned from


def content(text: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text.encode() if isinstance(text, str) else text)


def frame_as(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], object]:
    return lambda path: written(path, change(table()))


BAD: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "empty": ("E104", "empty", content("")),
    "white space": ("E104", "empty", content(" \n\n")),
    "header only": ("E104", "no rows", content("timestamp,endpoint,delay_us\n")),
    "one row": ("E110", "100 normal samples", frame_as(lambda f: f[:1])),
    "99 rows": ("E110", "100 normal samples", frame_as(lambda f: f[:99])),
    "binary": ("E102", "t.csv", content(bytes(range(256)) * 20)),
    "zeros": ("E102", "t.csv", content(b"\0" * 4096)),
    "no times": ("E103", "timestamp", frame_as(lambda f: f.drop(columns="timestamp"))),
    "times are words": ("E104", "usable", frame_as(lambda f: f.assign(timestamp="yesterday"))),
    "no numbers": ("E103", "no column of numbers", frame_as(lambda f: f[["timestamp", "endpoint"]].assign(delay_us="fast"))),
    "nothing measured": ("E103", "no column of numbers", frame_as(lambda f: f.assign(delay_us="", rtt_us="NaN"))),
    "words as labels": (
        "E103",
        "label holds 'maybe'",
        frame_as(lambda f: f.assign(label=["maybe" if i < 5 else 0 for i in f.index])),
    ),
    "only faults": ("E110", "normal", frame_as(lambda f: f.assign(label=1))),
    "two columns alike": ("E103", "two columns", content("timestamp,delay_us,delay_us\n2026-01-01T00:00:00Z,1,2\n")),
    "ragged": ("E102", "t.csv", content("timestamp,delay_us\n2026-01-01T00:00:00Z,1\n2026-01-01T00:01:00Z,1,2,3\n")),
}


@pytest.mark.parametrize("bad", BAD)
def test_nothing_to_learn_from(tmp_path: Path, bad: str) -> None:
    code, said, make = BAD[bad]
    make(tmp_path / "t.csv")
    assert said in refused(code, *trained(tmp_path / "t.csv", tmp_path / "run"))
    assert not files_in(tmp_path / "run") if (tmp_path / "run").exists() else True


@pytest.mark.parametrize("command", ["train-tcn", "train-iforest", "prepare"])
@pytest.mark.parametrize("bad", ["empty", "header only", "one row", "binary", "no times", "words as labels", "only faults"])
def test_the_other_trainings_refuse_it_too(tmp_path: Path, command: str, bad: str) -> None:
    _, _, make = BAD[bad]
    make(tmp_path / "t.csv")
    if bad in {"train-iforest": ("one row",), "prepare": ("one row", "only faults")}.get(command, ()):
        pytest.skip("one row is something for these")
    flag = "--data" if command == "prepare" else "--train-data"
    more = ["--metric-type", "delay_us"] if command == "train-tcn" else []
    refused("E1..", command, flag, tmp_path / "t.csv", "--output", tmp_path / "run", *more)
    assert not (tmp_path / "run").exists() or not files_in(tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--target-far", "2"], "E301", "target"),
        (["--target-far", "0"], "E301", "target"),
        (["--target-far", "nan"], "E301", "target"),
        (["--epochs", "0"], "E301", "epochs"),
        (["--epochs", "many"], "E301", "epochs"),
        (["--metrics", "delay_ms"], "E103", "delay_us"),
        (["--metrics", "label"], "E103", "label"),
        (["--version", "../v1"], "E301", "version"),
        (["--version", ""], "E301", "version"),
        (["--seed", "-1"], "E301", "seed"),
        (["--epoch", "1"], "E300", "--epochs"),
    ],
)
def test_wrong_values_of_a_training(world: Path, tmp_path: Path, words: list[str], code: str, said: str) -> None:
    assert said in refused(code, *trained(world / "train 1.csv", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists() or not files_in(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("target_fra: 0.001\n", "E300", "target_far"),
        ("rules:\n  treshold: 3\n", "E300", "rules.threshold"),
        ("rules: 4\n", "E301", "rules"),
        ("target_far: often\n", "E301", "target_far"),
        ("target_far: 0.7\n", "E301", "target_far"),
        ("pace: .inf\n", "E301", "pace"),
        ("residual:\n  channels: 0\n", "E301", "channels"),
        ("forest:\n  n_estimators: 0\n", "E301", "n_estimators"),
        ("baseline:\n  level_s: -5\n", "E301", "level_s"),
        ("rules:\n  limits:\n    delay_us: 0\n", "E301", "limits.delay_us"),
        ("residual:\n  batch: 12.5\n", "E301", "whole"),
        ("weights:\n  rules: -1\n", "E301", "weights.rules"),
        ("rules: [1\n", "E102", "yaml"),
        ("- 1\n", "E102", "yaml"),
    ],
)
def test_wrong_settings(world: Path, tmp_path: Path, text: str, code: str, said: str) -> None:
    path = tmp_path / "detection.yaml"
    path.write_text(text)
    words = ("train", "--data", world / "train 1.csv", "--output", tmp_path / "run", "--epochs", 1, "--settings", path)
    assert said in refused(code, *words)
    refused("E101", *words[:-1], tmp_path / "none.yaml")


def test_a_limit_for_what_is_not_measured_is_said(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("rules:\n  limits:\n    delay_ms: 5\nforest:\n  n_estimators: 10\n")
    data = written(tmp_path / "t.csv", table(150))
    words = ("train", "--data", data, "--output", tmp_path / "run", "--epochs", 1, "--settings", tmp_path / "limits.yaml")
    code, _, err = call(*words)
    assert code == 0 and "delay_ms" in err


def test_a_broken_training_keeps_the_run_that_is_there(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "모델 1", tmp_path / "run")
    whole = files_in(tmp_path / "run")
    refused("E110", *trained(written(tmp_path / "t.csv", table(50)), tmp_path / "run"))
    refused("E301", *trained(world / "train 1.csv", tmp_path / "run", "--target-far", 0.9))
    assert files_in(tmp_path / "run") == whole


def test_a_run_is_trained_again_with_other_metrics(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "모델 1", tmp_path / "run")
    data = written(tmp_path / "t.csv", one_metric(table()))
    good(*trained(data, tmp_path / "run"))
    said = good("infer", "--model", tmp_path / "run", "--data-source", data, "--output", tmp_path / "s.csv")
    assert said["rows"] == 800 and "missing" not in said
    part = read_run(tmp_path / "run")["parts"]["composite"]
    assert part["metrics"] == part["config"]["metrics"] == ["delay_us"], "run.json says what the model is"
    assert part["data_hash"] != read_run(world / "모델 1")["parts"]["composite"]["data_hash"]


# odd tables at inference


def test_every_promise_of_the_scores(world: Path, tmp_path: Path) -> None:
    frame = table(300, ("du-1", "du-9"), seed=5)
    frame.loc[150:200, "delay_us"] = frame.loc[150:200, "delay_us"].astype(float) + 60
    found, told = scored(world, frame, tmp_path, "--report", tmp_path / "r.html", "--alerts", tmp_path / "a.json")
    assert set(told) == {"rows", "anomalies", "alerts", "output", "report"} and told["anomalies"] > 20
    assert [c for c in found if c.startswith("d_")] == [
        f"d_{d}" for d in ("rules", "changepoint", "residual", "forest", "relations", "states")
    ]
    same_rows(found, frame)
    assert (pd.to_datetime(found.timestamp) == pd.to_datetime(frame.timestamp)).all()
    inside = found.iloc[150:201]
    assert (inside.is_anomaly == "1").mean() > 0.8 and set(inside.metric[inside.is_anomaly == "1"]) == {"delay_us"}
    alerts = json.loads((tmp_path / "a.json").read_text())
    assert len(alerts) == told["alerts"] >= 1
    assert all(
        {"alert_id", "endpoint", "start", "end", "severity", "kind", "metrics", "score", "evidence"} <= set(a) for a in alerts
    )


def test_the_same_input_gives_the_same_file(world: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "in.csv", table(200, ("du-1", "new")))
    for name in ("1.csv", "2.csv"):
        good(*infer(world, data, tmp_path / name))
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_rows_in_any_order_get_the_same_scores(world: Path, tmp_path: Path) -> None:
    frame = table(200)
    found, _ = scored(world, frame, tmp_path)
    order = np.random.default_rng(0).permutation(len(frame))
    mixed, _ = scored(world, frame.iloc[order].reset_index(drop=True), tmp_path)
    pd.testing.assert_frame_equal(mixed, found.iloc[order].reset_index(drop=True))


def test_a_known_endpoint_needs_no_warm_up_and_a_new_one_does(world: Path, tmp_path: Path) -> None:
    found, _ = scored(world, table(100, ("du-1", "new")), tmp_path)
    learning = (found.note == "learning").groupby(found.endpoint).sum()
    assert learning["du-1"] == 0 and 0 < learning["new"] < 60


def test_a_missing_metric_is_named_and_the_rest_is_scored(world: Path, tmp_path: Path) -> None:
    found, told = scored(world, one_metric(table(200)), tmp_path, "--report", tmp_path / "r.html")
    assert told["missing"] == ["rtt_us"] and (found.score != "").all() and "rtt_us" not in set(found.metric)
    dead, told = scored(world, dead_metric(table(200)), tmp_path)
    assert told["missing"] == ["rtt_us"]
    pd.testing.assert_frame_equal(dead, found)


def test_more_metrics_than_the_model_knows(world: Path, tmp_path: Path) -> None:
    frame = table(200)
    found, _ = scored(world, frame, tmp_path)
    more, told = scored(
        world, frame.assign(jitter_us=7, note="x", a=frame.delay_us)[["a", *frame.columns[::-1], "jitter_us", "note"]], tmp_path
    )
    assert "missing" not in told
    pd.testing.assert_frame_equal(more, found)


def test_words_in_a_metric_the_model_does_not_know_do_not_matter(world: Path, tmp_path: Path) -> None:
    frame = table(200)
    found, _ = scored(world, frame, tmp_path)
    more, _ = scored(world, frame.assign(other=["?" if i % 5 == 0 else i for i in range(400)]), tmp_path)
    pd.testing.assert_frame_equal(more, found)


def test_words_as_labels_are_named(world: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "t.csv", table(200).assign(label="maybe"))
    assert "'maybe'" in refused("E103", *infer(world, data, tmp_path / "s.csv"))


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_few_rows(world: Path, tmp_path: Path, rows: int) -> None:
    found, told = scored(world, table(rows, ("new",)), tmp_path, "--report", tmp_path / "r.html", "--alerts", tmp_path / "a.json")
    assert told["alerts"] == 0 and (found.note[: min(rows, 30)] == "learning").all()
    assert json.loads((tmp_path / "a.json").read_text()) == []


def test_unusable_rows_stay_where_they_are(world: Path, tmp_path: Path) -> None:
    frame = table(100, ("du-1",))
    frame.loc[10, "timestamp"], frame.loc[20, "delay_us"], frame.loc[30, "endpoint"] = "soon", "quick", ""
    frame.loc[40, ["delay_us", "rtt_us"]], frame.loc[50, "timestamp"] = "", frame.loc[49, "timestamp"]
    frame.loc[60, ["delay_us", "rtt_us"]], frame.loc[70, "delay_us"] = -1, "inf"
    found, _ = scored(world, frame, tmp_path)
    assert found.note.iloc[[10, 20, 30]].tolist() == ["unusable row"] * 3
    assert found.note.iloc[50] == "duplicate of an earlier row" and found.note.iloc[[40, 60]].tolist() == ["no measurement"] * 2
    assert np.flatnonzero(found.score == "").tolist() == [10, 20, 30, 40, 50, 60]
    assert found.timestamp[10] == "" and found.endpoint[30] == ""


@pytest.mark.parametrize(
    "odd",
    [
        "infinities",
        "huge",
        "huge_level",
        "backwards",
        "mixed_zones",
        "clock_set_back",
        "irregular",
        "gaps",
        "constant_metric",
        "all_constant",
        "text_in_numbers",
        "doubled",
        "no_endpoint",
    ],
)
def test_odd_tables_are_scored_by_a_model_of_good_ones(world: Path, tmp_path: Path, odd: str) -> None:
    found, _ = scored(world, ODD[odd](table(200)), tmp_path, "--report", tmp_path / "r.html", "--alerts", tmp_path / "a.json")
    assert (found.score != "").mean() > 0.8
    scored(world, ODD[odd](table(200)), tmp_path, "--use-rules-only", "--alerts", tmp_path / "a.json")


def test_names_in_hangul_and_with_signs(world: Path, tmp_path: Path) -> None:
    frame = table(120, ("서울 DU, 1", "<script>alert(1)</script>", '"quoted"', "=1+1", "a/b\\c"))
    found, told = scored(world, frame, tmp_path / "폴더 둘", "--report", tmp_path / "폴더 둘" / "보고 서.html", "--lang", "ko")
    same_rows(found, frame)
    page = Path(told["report"]).read_text()
    assert "<script>alert(1)</script>" not in page and "서울 DU, 1" in page


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("empty", "E104"),
        ("header only", "E104"),
        ("binary", "E102"),
        ("no times", "E103"),
        ("times are words", "E104"),
        ("no numbers", "E104"),
        ("ragged", "E102"),
    ],
)
def test_nothing_to_score(world: Path, tmp_path: Path, bad: str, code: str) -> None:
    BAD[bad][2](tmp_path / "t.csv")
    refused(code, *infer(world, tmp_path / "t.csv", tmp_path / "s.csv"))
    assert not (tmp_path / "s.csv").exists()


def test_a_table_of_other_metrics(world: Path, tmp_path: Path) -> None:
    other = table(100).rename(columns={"delay_us": "delay_ms", "rtt_us": "temperature"})
    said = refused("E103", *infer(world, written(tmp_path / "o.csv", other), tmp_path / "s.csv"))
    assert "delay_us" in said and "rtt_us" in said
    refused("E101", *infer(world, tmp_path / "none.csv", tmp_path / "s.csv"))


# runs that cannot be used


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    "A copy of the run, to be damaged."
    shutil.copytree(world / "모델 1", tmp_path / "run")
    return tmp_path


def composite(copy: Path) -> Path:
    return copy / "run/ocad/composite_v2.0.0.safetensors"


def test_what_is_no_model(world: Path, tmp_path: Path) -> None:
    data = world / "train 1.csv"
    refused("E200", *infer(tmp_path, data, tmp_path / "s.csv", run="nothing"))
    (tmp_path / "empty").mkdir()
    refused("E200", *infer(tmp_path, data, tmp_path / "s.csv", run="empty"))
    refused("E200", *infer(world, data, tmp_path / "s.csv", run="train 1.csv"))
    refused("E200", *infer(world, data, tmp_path / "s.csv", run="모델 1/ocad/composite_v2.0.0.safetensors"))
    add_part(tmp_path / "other", "net", {"a.bin": b"1"}, {}, system="lens")
    assert "lens" in refused("E203", *infer(tmp_path, data, tmp_path / "s.csv", run="other"))
    assert "lens" in refused("E203", *trained(written(tmp_path / "t.csv", table(150)), tmp_path / "other"))
    assert not (tmp_path / "s.csv").exists()


def test_a_run_with_forecasters_only(world: Path, tmp_path: Path) -> None:
    data = world / "train 1.csv"
    good("train-tcn", "--train-data", data, "--output", tmp_path / "run", "--metric-type", "delay_us", "--epochs", 1)
    for words in (
        infer(tmp_path, data, tmp_path / "s.csv", run="run"),
        ("compare", "--model", tmp_path / "run", "--data-source", data),
        ("optimize-weights", "--model", tmp_path / "run", "--validation-data", data),
        ("stream", "--model", tmp_path / "run", "--replay", data),
    ):
        assert "ocad train" in refused("E200", *words)


def test_damaged_files(world: Path, copy: Path) -> None:
    data, file = world / "train 1.csv", composite(copy)
    whole = file.read_bytes()
    words = infer(copy, data, copy / "s.csv", run="run")
    for damaged in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1]), (copy / "run/run.json").read_bytes()):
        file.write_bytes(damaged)
        refused("E202", *words)
    shutil.copy(copy / "run/ocad/tcn/delay_us_v2.0.0.safetensors", file)
    refused("E202", *words)
    file.unlink()
    refused("E200", *words)
    (copy / "run/run.json").write_text("{")
    refused("E200", *words)
    assert not (copy / "s.csv").exists()


def relisted(copy: Path) -> None:
    "Write the checksums of a run again, as someone who means harm would."
    from ai_suite.core.cache import sha256_of

    path = copy / "run/run.json"
    run = json.loads(path.read_text())
    run["files"] = {name: sha256_of(copy / "run" / name) for name in run["files"]}
    path.write_text(json.dumps(run))


def header(size: int, text: bytes) -> bytes:
    return struct.pack("<Q", size) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        header(1 << 62, b"{}"),
        header(2, b"{}"),
        header(4, b"nope"),
        header(100_000, b"[" * 100_000),
        header(2, b"[]"),
        header(23, b'{"__metadata__":{"a":1}}'[:23]),
    ],
    ids=["empty", "short", "long header", "no tensors", "no json", "deep", "list", "cut"],
)
def test_hostile_safetensors(world: Path, copy: Path, content: bytes) -> None:
    composite(copy).write_bytes(content)
    relisted(copy)
    refused("E20[023]", *infer(copy, world / "train 1.csv", copy / "s.csv", run="run"))


def changed(
    copy: Path, tensors: Callable[[dict], object] = lambda t: None, about: Callable[[dict], object] = lambda a: None
) -> None:
    "Write a composite with other content and a right checksum."
    path = composite(copy)
    t, a = {k: v.numpy().copy() for k, v in load_tensors(path).items()}, tensors_config(path)
    tensors(t)
    about(a)
    save_tensors(path, t, a)
    relisted(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.clear(),
        lambda t: t.update(known=t["known"][:, :-1]),
        lambda t: t.update(known=t["known"][:0]),
        lambda t: t.update(known=t["known"] * np.nan),
        lambda t: t.update(weights=t["weights"][:2]),
        lambda t: t.update(known=np.repeat(t["known"], 3, 0)),
        lambda t: t.update(known=t["known"].astype(np.float32)),
        lambda t: t.update(weights=t["weights"] * np.nan),
        lambda t: t.update({"baseline.floor": t["baseline.floor"][:1]}),
        lambda t: t.update({"baseline.prior_mean": t["baseline.prior_mean"][:, :2]}),
        lambda t: t.update({"known.states": t["known.states"][:, :50]}),
        lambda t: t.update({"known.states": t["known.states"][:1]}),
        lambda t: t.update({"states.xs": t["states.xs"][:1]}),
        lambda t: t.update({"states.dense": t["states.dense"] + 7}),
        lambda t: t.update({"states.dense": t["states.dense"].astype(np.float64)}),
        lambda t: t.update({"states.relation": t["states.relation"][:1, :1]}),
        lambda t: t.update({"states.usual": t["states.usual"][:3]}),
        lambda t: t.update({"rules.unit": np.ones(5)}),
        lambda t: t.update({"changepoint.scale": np.ones((1, 1))}),
        lambda t: t.update({"residual.conv": t["residual.conv"][:1]}),
        lambda t: t.update({"relations.knots": t["relations.knots"][:1]}),
        lambda t: t.update({"forest.roots": t["forest.roots"] + 10**6}),
        lambda t: t.update({"forest.scale": t["forest.scale"][:1]}),
        lambda t: t.pop("baseline.floor"),
        lambda t: t.pop("states.xs"),
        lambda t: t.pop("known"),
    ],
)
def test_arrays_that_do_not_fit(world: Path, copy: Path, change: Callable[[dict], object]) -> None:
    changed(copy, tensors=change)
    refused("E20[0-3]", *infer(copy, world / "train 1.csv", copy / "s.csv", run="run"))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.clear(),
        lambda a: a.update(kind="tcn"),
        lambda a: a.update(metrics=["delay_us"]),
        lambda a: a.update(metrics=[]),
        lambda a: a.update(metrics="delay_us"),
        lambda a: a.update(metrics=[1, 2]),
        lambda a: a.update(metrics=["delay_us", "delay_us"]),
        lambda a: a.update(endpoints=["x"]),
        lambda a: a.update(endpoints=None),
        lambda a: a.update(detectors={}),
        lambda a: a.update(detectors={"os.system": {}}),
        lambda a: a["detectors"].pop("rules"),
        lambda a: a["detectors"].update(rules=None),
        lambda a: a["detectors"]["rules"].update(metrics=["delay_us"]),
        lambda a: a["detectors"]["rules"].update(evil=1),
        lambda a: a["detectors"]["rules"].update(threshold="x"),
        lambda a: a["detectors"]["residual"].update(channels=10**9),
        lambda a: a.update(threshold="high"),
        lambda a: a.update(threshold=None),
        lambda a: a.update(threshold=float("nan")),
        lambda a: a.update(target=0),
        lambda a: a.update(facts=None),
        lambda a: a.update(facts={"parts": 3}),
        lambda a: a.update(version=None),
        lambda a: a["baseline"].update(level_s="long"),
        lambda a: a["states"].update(enter="x"),
        lambda a: a.pop("brief"),
    ],
)
def test_facts_that_do_not_fit(world: Path, copy: Path, change: Callable[[dict], object]) -> None:
    changed(copy, about=change)
    refused("E20[0-3]", *infer(copy, world / "train 1.csv", copy / "s.csv", run="run"))


def test_paths_out_of_a_run(world: Path, copy: Path) -> None:
    path = copy / "run/run.json"
    run = json.loads(path.read_text())
    (copy / "secret.safetensors").write_bytes(composite(copy).read_bytes())
    run["files"]["../secret.safetensors"] = run["files"]["ocad/composite_v2.0.0.safetensors"]
    run["parts"]["composite"]["files"] = ["../secret.safetensors"]
    path.write_text(json.dumps(run))
    refused("E202", *infer(copy, world / "train 1.csv", copy / "s.csv", run="run"))
    for parts in (
        None,
        [],
        {"composite": {}},
        {"composite": {"files": []}},
        {"composite": {"files": ["a.json"]}},
        {"composite": 3},
    ):
        path.write_text(json.dumps({**run, "parts": parts}))
        refused("E20[0-3]", *infer(copy, world / "train 1.csv", copy / "s.csv", run="run"))


# parts that are kept


def test_kept_parts_that_do_not_fit(world: Path, copy: Path) -> None:
    data = written(copy / "t.csv", one_metric(table()))
    run = copy / "run"
    whole = files_in(run)
    assert "forest" in refused("E203", *trained(data, run, "--keep-parts"))
    assert files_in(run) == whole
    (run / "ocad/tcn/delay_us_v2.0.0.safetensors").write_bytes(b"x")
    refused("E202", *trained(world / "train 1.csv", run, "--keep-parts"))


# outputs that cannot be written


def test_outputs_are_made_with_their_folders(world: Path, tmp_path: Path) -> None:
    data = world / "train 1.csv"
    out = tmp_path / "a b/c"
    good(*infer(world, data, out / "s.parquet", "--report", out / "d/r.html", "--alerts", out / "e/a.json"))
    assert len(pd.read_parquet(out / "s.parquet")) == 1000 and (out / "d/r.html").stat().st_size > 10_000


def test_outputs_that_cannot_be(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = world / "train 1.csv"
    refused("E120", *infer(world, data, tmp_path / "file/s.csv"))
    refused("E120", *infer(world, data, tmp_path))
    refused("E120", *infer(world, data, "/dev/full"))
    refused("E120", *infer(world, data, tmp_path / "s.csv", "--report", "/dev/full"))
    refused("E120", *infer(world, data, tmp_path / "s.csv", "--alerts", tmp_path / "file/a.json"))
    refused("E120", *infer(world, data, "/proc/nothing/s.csv"))
    refused("E120", *trained(written(tmp_path / "t.csv", table(120)), tmp_path / "file"))
    refused("E120", *trained(tmp_path / "t.csv", tmp_path / "file/run"))
    assert not list(tmp_path.rglob(".tmp-*")) and (tmp_path / "file").read_text() == ""


def started(*words: object, kilobytes: int = 0) -> subprocess.Popen:
    "A command in a process group of its own, as a terminal starts it."
    line = [str(BIN), *map(str, words)]
    limit = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "_"] if kilobytes else []
    return subprocess.Popen(
        [*limit, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_full_disk_while_a_model_is_written(tmp_path: Path) -> None:
    "A limit on the size of files stands in for a disk without space."
    data = written(tmp_path / "t.csv", table(120))
    job = started(*trained(data, tmp_path / "run"), kilobytes=8)
    out, err = job.communicate(timeout=300)
    assert job.returncode == 2 and out == "" and "Traceback" not in err, err
    assert err.strip().splitlines()[-1].startswith("E120")
    assert not (tmp_path / "run/run.json").exists() or "composite" not in read_run(tmp_path / "run").get("parts", {})


# Ctrl-C and two at a time


def when(happened: Callable[[], object], job: subprocess.Popen, seconds: float = 120) -> None:
    "Wait until something has happened while a command runs."
    until = time.monotonic() + seconds
    while not happened():
        assert job.poll() is None and time.monotonic() < until, job.communicate()
        time.sleep(0.02)


@pytest.fixture
def long_table(tmp_path: Path) -> Path:
    return written(tmp_path / "long.csv", table(4000, tuple("abcdef")))


def stopped(job: subprocess.Popen, pause: float) -> str:
    time.sleep(pause)
    os.killpg(job.pid, signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130 and out == "" and "Traceback" not in err, (job.returncode, out, err)
    return err


@pytest.mark.parametrize("pause", [1.0, pytest.param(6.0, marks=pytest.mark.slow)])
def test_ctrl_c_during_a_training(tmp_path: Path, long_table: Path, pause: float) -> None:
    job = started("train", "--data", long_table, "--output", tmp_path / "run", "--epochs", 500)
    stopped(job, pause)
    assert not (tmp_path / "run").exists() or files_in(tmp_path / "run") == {}


def test_ctrl_c_keeps_the_checkpoint_of_a_forecaster(tmp_path: Path, long_table: Path) -> None:
    words = ("train-tcn", "--train-data", long_table, "--output", tmp_path / "run", "--metric-type", "delay_us")
    job = started(*words, "--epochs", 2000, "--patience", 2000)
    when(lambda: list(tmp_path.glob("run/.training/*.pt")), job)
    assert "--resume" in stopped(job, 0)
    assert [p.name for p in (tmp_path / "run/.training").iterdir()] == ["tcn_delay_us_v2.0.0.pt"]
    assert not (tmp_path / "run/run.json").exists()
    assert "epochs was 2000" in refused("E301", *words, "--epochs", 3, "--resume")


def test_two_trainings_into_one_run(world: Path, tmp_path: Path) -> None:
    data = world / "train 1.csv"
    jobs = [started(*trained(data, tmp_path / "run", "--seed", seed)) for seed in (1, 2)]
    for job in jobs:
        _, err = job.communicate(timeout=300)
        assert job.returncode == 0, err
    good(*infer(tmp_path, data, tmp_path / "s.csv", run="run"))
    parts = read_run(tmp_path / "run")["parts"]
    assert set(parts) == {"tcn_delay_us", "tcn_rtt_us", "isolation_forest", "composite"}


# the commands around


def test_the_other_commands_on_unlabelled_data(world: Path, tmp_path: Path) -> None:
    data, run = world / "train 1.csv", world / "모델 1"
    assert "label" in refused("E110", "compare", "--model", run, "--data-source", data)
    assert "label" in refused("E110", "optimize-weights", "--model", run, "--validation-data", data)
    labelled = written(tmp_path / "l.csv", table(200).assign(label=0))
    refused("E110", "compare", "--model", run, "--data-source", labelled)
    refused("E110", "optimize-weights", "--model", run, "--validation-data", labelled)
    faulty = written(tmp_path / "f.csv", table(200).assign(label=lambda f: (f.index % 200 > 150).astype(int)))
    assert "rule_based" in refused("E301", "compare", "--model", run, "--data-source", faulty, "--baseline", "rules")
    everything = written(tmp_path / "e.csv", table(200).assign(label=1))
    good("compare", "--model", run, "--data-source", everything)
    whole = files_in(run)
    told = good(
        "optimize-weights", "--model", run, "--validation-data", written(tmp_path / "1.csv", one_endpoint(pd.read_csv(faulty)))
    )
    assert told["kept"] is False and files_in(run) == whole, "one endpoint cannot judge"


def test_a_report_of_other_data(world: Path, tmp_path: Path) -> None:
    frame = table(100)
    scored(world, frame, tmp_path)
    other = written(tmp_path / "other.csv", table(90))
    words = ("report", "--scores", tmp_path / "s.csv", "--output", tmp_path / "r.html", "--data-source")
    refused("E105", *words, other)
    refused("E103", "report", "--scores", other, "--output", tmp_path / "r.html", "--data-source", other)
    refused("E101", *words, tmp_path / "none.csv")
    assert good(*words, tmp_path / "in.csv")["rows"] == 200
    renamed = written(tmp_path / "renamed.csv", frame.assign(endpoint="x" + frame.endpoint))
    refused("E105", *words, renamed)


def test_wrong_words_on_the_command_line(world: Path, tmp_path: Path) -> None:
    assert "ocad infer" in refused("E300", "infre")
    assert "--data-source" in refused("E301", "infer", "--model", world / "모델 1", "--output", tmp_path / "s.csv")
    both = ("--use-rules-only", "--use-trained-models")
    assert "one of the two" in refused("E301", *infer(world, world / "train 1.csv", tmp_path / "s.csv"), *both)
    assert "lang" in refused(
        "E301", *infer(world, world / "train 1.csv", tmp_path / "s.csv", "--report", tmp_path / "r.html", "--lang", "de")
    )
