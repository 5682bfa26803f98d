"""config/detection_config.yaml: complete, commented, equal to the defaults, and taken by the commands."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from ai_suite.core.cli import run
from ai_suite.core.config import flatten, load_yaml
from ai_suite.core.errors import SuiteError
from ai_suite.core.runs import read_run
from ai_suite.ocad import cli
from ai_suite.ocad.baseline import Baseline
from ai_suite.ocad.iforest import Forest
from ai_suite.ocad.model import load_model
from ai_suite.ocad.residual import Residual
from ai_suite.ocad.rules import Rules
from ai_suite.ocad.settings import DEFAULTS, defaults, settings_from
from ai_suite.ocad.simulate import simulated, write_traces
from ai_suite.ocad.states import States

FILE = Path(__file__).resolve().parent.parent / "config/detection_config.yaml"


def command(capsys, function, *words: str) -> tuple[int, str, str]:
    "Exit code, stdout and stderr of a command."
    capsys.readouterr()
    try: code = run(function, words)
    except SystemExit as e: code = e.code
    return (code or 0, *capsys.readouterr())


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    "Two endpoints, a third of a day each."
    traces, _ = simulated("train", endpoints=2, days=0.4)
    return write_traces(tmp_path_factory.mktemp("data") / "train.csv", traces)


def test_the_file_holds_every_setting_with_its_default():
    written = load_yaml(FILE)
    assert flatten(written) == flatten(defaults())
    assert {k: list(v) for k, v in written.items() if isinstance(v, dict)} == \
           {k: list(v) for k, v in defaults().items() if isinstance(v, dict)}, "in the same order"
    assert settings_from(FILE) == defaults()


def test_every_setting_has_a_comment():
    lines = [line for line in FILE.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(flatten(defaults())) + sum(isinstance(v, dict) and v != {} for v in defaults().values())
    assert not [line for line in lines if not re.search(r" # \S", line)]


@pytest.mark.parametrize(("name", "kind"), [("baseline", Baseline), ("rules", Rules), ("states", States), ("residual", Residual),
                                           ("forest", Forest)])
def test_a_default_is_the_detectors_own(name, kind):
    own = {f.name: f.default for f in fields(kind)}
    assert {k: own[k] for k in DEFAULTS[name] if k != "limits"} == {k: v for k, v in DEFAULTS[name].items() if k != "limits"}


def test_train_takes_the_file(capsys, table, tmp_path):
    common = "--data", str(table), "--epochs", "1"
    changed = tmp_path / "mine.yaml"
    changed.write_text("target_far: 0.01\nrules: {limits: {udp_echo_rtt_us: 1000}}\n"
                       "states: {enter: 1e-3}\nweights: {forest: 0.5}\n")
    found = {}
    for name, path in {"file": FILE, "mine": changed}.items():
        code, out, err = command(capsys, cli.train, *common, "--output", str(tmp_path / name), "--settings", str(path))
        assert code == 0, err
        found[name] = json.loads(out)
    kept = [read_run(tmp_path / name)["parts"]["composite"]["config"]["settings"] for name in found]
    assert kept == [defaults(), settings_from(changed)]
    mine = load_model(tmp_path / "mine")
    assert mine.target == found["mine"]["false_alarms"]["target"] == 0.01
    assert dict(mine.detectors["rules"].limits) == {"udp_echo_rtt_us": 1000}
    assert mine.states.enter == 1e-3 and mine.weights[list(mine.detectors).index("forest")] == 0.5


@pytest.mark.parametrize(("text", "code", "named"), [
    ("rules: {treshold: 5}", "E300", "rules.threshold"), ("paces: 1", "E300", "pace"), ("pace: fast", "E301", "pace"),
    ("target_far: 0.9", "E301", "target_far"), ("alerts: 3", "E301", "alerts"), ("rules: {limits: {a: x}}", "E301", "limits"),
    ("baseline: {gate: .nan}", "E301", "gate")])
def test_a_wrong_file_is_refused_in_one_line(capsys, table, tmp_path, text, code, named):
    (tmp_path / "wrong.yaml").write_text(text)
    exit_code, out, err = command(capsys, cli.train, "--data", str(table), "--output", str(tmp_path / "run"),
                                  "--settings", str(tmp_path / "wrong.yaml"))
    assert (exit_code, out) == (2, "") and code in err and named in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run/run.json").exists()
    with pytest.raises(SuiteError): settings_from(tmp_path / "wrong.yaml")
