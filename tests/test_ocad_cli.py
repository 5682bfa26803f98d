"""The way through ocad as the users' document tells it, command by command."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_ocad_bad import HEAD, good, scores_of

from ai_suite.core.runs import check_run, read_run

BIN = Path(sys.executable).parent / "ocad"
TYPES = ("udp_echo", "ecpri", "lbm")
COMMANDS = (
    "check",
    "simulate",
    "prepare",
    "train",
    "train-tcn",
    "train-iforest",
    "optimize-weights",
    "infer",
    "compare",
    "evaluate",
    "report",
    "to-onnx",
    "verify-onnx",
    "bench-onnx",
    "bench",
    "stream",
)


def typed(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
    "A command in a process of its own."
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([str(BIN), *map(str, words)], capture_output=True, text=True, timeout=300, env=env, check=False, **more)


def sums(folder: Path) -> dict[str, str]:
    "What is in the files below a folder."
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Simulated measurements: three endpoints to learn from, two to be judged, two to learn weights from."
    root = tmp_path_factory.mktemp("OCAD 경로")
    told = good("simulate", "--output", root / "data", "--scale", "small", "--seed", 3)
    assert set(told["splits"]) == {"train", "val", "test"}
    for split, endpoints in (("train", 3), ("val", 2), ("test", 2)):
        frame = pd.read_csv(root / f"data/{split}.csv", dtype=str, keep_default_na=False)
        kept = frame.endpoint.isin(frame.endpoint.unique()[:endpoints])
        frame[kept].to_csv(root / f"{split}.csv", index=False)
    return root


@pytest.fixture(scope="module")
def parts(way: Path) -> Path:
    "The run with three forecasters and a forest, and its training sequences."
    told = good("prepare", "--data", way / "train.csv", "--output", way / "processed")
    assert told["train"]["sequences"] > 10_000 and (way / "processed/multivariate_train.parquet").is_file()
    sequences = way / "processed/timeseries_train.parquet"
    words = ("--train-data", sequences, "--output", way / "run", "--epochs", "2")
    lines = [[str(BIN), "train-tcn", *map(str, words), "--metric-type", t] for t in TYPES[:2]]
    jobs = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for line in lines]
    third = good("train-tcn", *words, "--metric-type", TYPES[2])
    for job, name in zip(jobs, TYPES, strict=False):
        out, err = job.communicate(timeout=300)
        assert job.returncode == 0, err
        assert json.loads(out)["metric_type"] == name
    assert third["file"] == "ocad/tcn/lbm_v2.0.0.safetensors" and third["epochs"] == 2
    grown = good(
        "train-iforest",
        "--train-data",
        way / "processed/multivariate_train.parquet",
        "--test-data",
        way / "test.csv",
        "--output",
        way / "run",
        "--n-estimators",
        20,
        "--contamination",
        0.1,
        "--max-samples",
        128,
    )
    assert grown["model"] == "ocad/isolation_forest/multivariate_v2.0.0.skops" and 0 < grown["auc_pr"] <= 1
    return way


@pytest.fixture(scope="module")
def run(parts: Path) -> Path:
    "The whole model."
    before = sums(parts / "run/ocad")
    told = good("train", "--data", parts / "train.csv", "--output", parts / "run", "--epochs", 1, "--keep-parts")
    after = sums(parts / "run/ocad")
    assert {k: after[k] for k in before} == before, "kept parts stay as they are, with what is known about them"
    assert told["parts"] == ["rules", "changepoint", "residual", "forest", "relations", "states"]
    assert told["false_alarms"]["realised"] <= 3e-4 or told["threshold"] == 7
    return parts / "run"


@pytest.fixture(scope="module")
def scores(run: Path) -> Path:
    "The scores of the test data."
    root = run.parent
    good(
        "infer",
        "--model",
        run,
        "--data-source",
        root / "test.csv",
        "--output",
        root / "scores.csv",
        "--report",
        root / "report.html",
        "--alerts",
        root / "alerts.json",
        "--use-trained-models",
    )
    return root / "scores.csv"


def test_the_run_holds_everything_under_its_names(run: Path) -> None:
    files = set(check_run(run)["files"])
    wanted = {f"ocad/tcn/{t}_v2.0.0.{e}" for t in (*TYPES, "ccm") for e in ("safetensors", "json")}
    wanted |= {f"ocad/isolation_forest/multivariate_v2.0.0.{e}" for e in ("skops", "json")}
    assert wanted <= files and set(read_run(run)["parts"]) == {
        *(f"tcn_{t}" for t in (*TYPES, "ccm")),
        "isolation_forest",
        "composite",
    }
    about = json.loads((run / "ocad/tcn/udp_echo_v2.0.0.json").read_text())
    assert about["input_shape"] == [1, 10, 1] and len(about["history"]) == 2


def test_scores_and_alerts(scores: Path) -> None:
    root = scores.parent
    given = pd.read_csv(root / "test.csv", dtype=str)
    found = scores_of(scores, len(given))
    assert list(found.columns[:11]) == HEAD and (found.endpoint == given.endpoint).all()
    assert (pd.to_datetime(found.timestamp) == pd.to_datetime(given.timestamp, format="ISO8601")).all()
    truth = given.label.astype(int) == 1
    flagged = found.is_anomaly == "1"
    assert flagged[truth].mean() > 0.3 and flagged[~truth].mean() < 0.05, "it sees faults"
    alerts = json.loads((root / "alerts.json").read_text())
    assert alerts and len({a["alert_id"] for a in alerts}) == len(alerts)
    page = (root / "report.html").read_text()
    assert len(page) > 50_000 and "http://" not in page.replace("http://www.w3.org", "")


def test_rules_only(run: Path, tmp_path: Path) -> None:
    data = run.parent / "test.csv"
    told = good("infer", "--model", run, "--data-source", data, "--output", tmp_path / "s.csv", "--use-rules-only")
    found = scores_of(tmp_path / "s.csv", told["rows"])
    assert set(found.residual) == {""} and [c for c in found if c.startswith("d_")] == ["d_rules"] and told["anomalies"] > 0


def test_compare(run: Path, tmp_path: Path) -> None:
    told = good(
        "compare",
        "--model",
        run,
        "--data-source",
        run.parent / "test.csv",
        "--baseline",
        "rule_based",
        "--new",
        "trained_models",
        "--output",
        tmp_path / "c.json",
    )
    assert told["difference"]["event_f1"] == pytest.approx(told["new"]["event_f1"] - told["baseline"]["event_f1"])
    assert json.loads((tmp_path / "c.json").read_text()) == told


def test_evaluate_and_report_again(scores: Path, tmp_path: Path) -> None:
    data = scores.parent / "test.csv"
    told = good("evaluate", scores, data, "--gap", 300, "--late", 300)
    assert 0 < told["event_f1"] <= 1 and 0 < told["vus_pr"] <= 1 and told["fa_per_endpoint_day"] < 50
    page = good("report", "--scores", scores, "--data-source", data, "--output", tmp_path / "r.html", "--lang", "ko")
    assert page["rows"] == len(pd.read_csv(data)) and (tmp_path / "r.html").stat().st_size > 50_000


def test_onnx(run: Path, tmp_path: Path) -> None:
    told = good("to-onnx", "--model-path", run, "--output", tmp_path / "onnx", "--input-shape", "1,10,1")
    assert {Path(f["path"]).name for f in told["files"]} == {f"{t}_v2.0.0.onnx" for t in (*TYPES, "ccm")}
    pair = (
        "--onnx-model",
        tmp_path / "onnx/udp_echo_v2.0.0.onnx",
        "--pytorch-model",
        run / "ocad/tcn/udp_echo_v2.0.0.safetensors",
    )
    assert good("verify-onnx", *pair)["max_abs_error"] <= 1e-5
    timed = good("bench-onnx", *pair, "--output", tmp_path / "reports/onnx_benchmark_report.md", "--pairs", 20)
    assert timed["rows"] and (tmp_path / "reports/onnx_benchmark_report.md").read_text().startswith("#")


def test_bench_on_a_table(run: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(run.parent / "test.csv", dtype=str, keep_default_na=False)
    frame[frame.endpoint == frame.endpoint[0]][:2000].drop(columns=["lbm_rtt_us", "ccm_loss"]).to_csv(
        tmp_path / "b.csv", index=False
    )
    rows = good("bench", "--data", tmp_path / "b.csv", "--format", "csv", "--workers", 1)
    wanted = {
        "detector",
        "vus_pr",
        "vus_roc",
        "auc_pr",
        "event_precision",
        "event_recall",
        "event_f1",
        "nab_standard",
        "delay_s",
        "fa_per_endpoint_day",
        "seconds",
    }
    assert all(wanted <= set(row) for row in rows) and {"random", "constant", "oracle"} <= {row["detector"] for row in rows}


def test_optimize_weights(run: Path) -> None:
    before = sums(run / "ocad")
    told = good("optimize-weights", "--model", run, "--validation-data", run.parent / "val.csv")
    assert set(told) >= {"before", "after", "weights", "kept"}
    assert told["kept"] == (told["after"]["f1"] > told["before"]["f1"])
    changed = {k for k, v in sums(run / "ocad").items() if before[k] != v}
    assert changed == ({"composite_v2.0.0.safetensors"} if told["kept"] else set())


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\nfrom ai_suite.ocad.cli import main\n"
        f"for name in {[(c, '--help') for c in COMMANDS]} + [('--help',)]:\n"
        "    text = io.StringIO()\n"
        "    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit): main(list(name))\n"
        "    assert 'usage' in text.getvalue(), name\n"
        "    heavy = {'torch', 'numba', 'sklearn', 'scipy', 'pandas', 'onnx', 'confluent_kafka'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr


def test_every_command_is_listed() -> None:
    ran = typed("--help")
    assert ran.returncode == 0 and all(f"\n  {c} " in ran.stdout for c in COMMANDS)


def opened(text: str) -> set[tuple[str, str, str]]:
    "Which alerts were raised: id, endpoint, kind."
    return {(a["alert_id"], a["endpoint"], a["kind"]) for a in map(json.loads, text.splitlines())}


def test_a_stream_raises_the_alerts_of_an_inference(run: Path, tmp_path: Path) -> None:
    data = run.parent / "test.csv"
    good("infer", "--model", run, "--data-source", data, "--output", tmp_path / "s.csv", "--alerts", tmp_path / "a.json")
    wanted = {(a["alert_id"], a["endpoint"], a["kind"]) for a in json.loads((tmp_path / "a.json").read_text())}
    played = typed("stream", "--model", run, "--replay", data)
    assert played.returncode == 0 and "Traceback" not in played.stderr, played.stderr
    assert opened(played.stdout) == wanted
    frame = pd.read_csv(data).astype(object)
    metrics = [c for c in frame if c not in ("timestamp", "endpoint", "label", "kind")]
    rows = frame.sort_values("timestamp", kind="stable")[["timestamp", "endpoint", *metrics]].to_dict("records")
    lines = "".join(json.dumps({k: None if v != v else v for k, v in row.items()}) + "\n" for row in rows)
    typed_in = typed("stream", "--model", run, input=lines)
    assert typed_in.returncode == 0 and opened(typed_in.stdout) == wanted, typed_in.stderr


ROOMS = {"simulate": "simulate:simulate", "prepare": "prepare:prepare", "train": "model:train", "train_tcn": "forecast:train_tcn",
         "train_iforest": "iforest:train_iforest", "optimize_weights": "model:optimize_weights", "infer": "infer:infer",
         "compare": "infer:compare", "report": "infer:report", "evaluate": "evaluate:evaluate_scores",
         "to_onnx": "deploy:to_onnx",
         "verify_onnx": "deploy:verify_onnx", "bench_onnx": "deploy:bench_onnx", "bench": "bench:bench", "stream": "kafka:stream"}


@pytest.mark.parametrize("command", ROOMS)
def test_a_command_takes_what_its_room_takes(command: str) -> None:
    import importlib
    import inspect

    from ai_suite.ocad import cli

    module, name = ROOMS[command].split(":")
    work = getattr(importlib.import_module(f"ai_suite.ocad.{module}"), name)
    flags, wanted = ({k: p.default for k, p in inspect.signature(f).parameters.items()} for f in (getattr(cli, command), work))
    assert flags == wanted
