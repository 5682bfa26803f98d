"""configs/default.yaml: complete, equal to the defaults of training, taken by the command; and the users' own file."""

import inspect
from pathlib import Path

import yaml

from ai_suite.core.cli import arguments
from ai_suite.lens.augment import AUGMENT
from ai_suite.lens.learn import DEFAULTS
from ai_suite.lens.train import train

FILE = Path(__file__).resolve().parent.parent / "configs/default.yaml"
PLACES = {"data_root", "save_dir", "place", "background", "resume"}  # Not settings: they differ from training to training


def read():
    return arguments(train, ["--data-root", "data", "--save-dir", "run", "--config", str(FILE)])


def test_every_setting_is_there_with_its_default():
    given, known = read(), inspect.signature(train).parameters
    for name, p in known.items():
        if name not in PLACES:
            assert given.get(name, p.default) == p.default, name
            own = name.partition("_")[2] if name.startswith(("augment_", "reject_", "export_")) else name
            own = {"embedding": "embedding_dim"}.get(own, own)
            assert f"{own}:" in FILE.read_text(), name


def test_nothing_else_is_there():
    told = yaml.safe_load(FILE.read_text())
    assert set(told["augment"]) == set(AUGMENT)
    flat = {k for k in told if k not in ("augment", "reject", "export")}
    assert flat - {"embedding_dim"} <= set(inspect.signature(train).parameters) - PLACES


def test_what_stands_behind_a_mark_is_what_fine_tuning_takes():
    loose = [line.removeprefix("# ") for line in FILE.read_text().splitlines() if line.startswith("# ") and ": " in line]
    told = {k: yaml.safe_load(line)[k] for line in loose for k in ("epochs", "batch_size", "lr") if line.startswith(f"{k}:")}
    assert {k: float(v) for k, v in told.items()} == {k: DEFAULTS["finetune"][k] for k in ("epochs", "batch_size", "lr")}


def test_flags_win_over_the_file():
    given = arguments(train, ["--data-root", "d", "--save-dir", "r", "--config", str(FILE), "--seed", "7", "--loss", "ce"])
    assert (given["seed"], given["loss"], given["img_size"]) == (7, "ce", 224)
