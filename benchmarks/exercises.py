"""Exercises from rows of landmarks: squats on their own test file, the others by folds, beside published figures."""

import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from ai_suite.behavior.exercises import (FILES, NEAR, SETTINGS, compare, exercise_folder, jump_row, nearest_rows, published,
                                         tables, twins)
from ai_suite.core.errors import SuiteError
from ai_suite.core.fit import one_thread
from ai_suite.core.splits import group_kfold

RESULTS = Path(__file__).resolve().parent / "results" / "exercises.json"
SEEDS, PENALTIES = (0, 1, 2), (0.01, 0.1, 1.0, 10.0)
ROW = {"LSTM, one row": SETTINGS | {"rows": 1}}
WINDOW = {"LSTM, 15 rows": SETTINGS}
JUMPING = {"LSTM, 15 rows, speeds, over jumps": SETTINGS | {"speeds": True, "cut": False}}
OTHERS = {"LSTM, 15 rows, speeds": SETTINGS | {"speeds": True}, "TCN, 15 rows": SETTINGS | {"name": "tcn", "layers": 2},
          "Transformer, 15 rows": SETTINGS | {"name": "transformer"}}
MORE = {"LSTM, 15 rows, over jumps": SETTINGS | {"cut": False}, "LSTM, 5 rows": SETTINGS | {"rows": 5},
        "LSTM of 64, 15 rows": SETTINGS | {"hidden": 64}}
TRIED = ROW | WINDOW | OTHERS | JUMPING | MORE


def choice(folder: Path) -> dict[str, Any]:
    "What was tried, on the squat training file alone: three folds of label runs, one seed."
    table = tables(folder / "squat_model__train.csv.gz")
    folds = group_kfold(table["groups"], 3, table["y"], 0)
    found = compare(table, folds, TRIED, (0,))
    for C in PENALTIES:
        rows = compare(table, folds, {}, C=C)
        found |= {f"{k}, C = {C:g}": v for k, v in rows.items() if k.startswith("logistic")}
    return {k: v for k, v in found.items() if k in TRIED or "C = " in k}


def squat(folder: Path) -> dict[str, Any]:
    "Trained on the training file, tested once on the test file; again without the training runs that the test file repeats."
    table = tables(folder / "squat_model__train.csv.gz", folder / FILES["squat"][0])
    train, test = (np.flatnonzero(table["file"] == f) for f in (0, 1))
    repeated = twins(table, train, test)
    clean = train[~np.isin(table["runs"][train], repeated)]
    near = nearest_rows(table, test, train)[0] < NEAR
    few = ROW | WINDOW | {"Transformer, 15 rows": OTHERS["Transformer, 15 rows"]}
    return {"jumps": jump_row(tables(folder / FILES["squat"][0])), "classes": table["classes"],
            "models": compare(table, [(train, test)], ROW | WINDOW | OTHERS | JUMPING, SEEDS),
            "twin_runs": repeated.tolist(), "twin_rows_train": len(train) - len(clean), "twin_rows_test": int(near.sum()),
            "without_twins": compare(table, [(clean, test)], few, SEEDS)}


def stretches(groups: np.ndarray, k: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    "Folds of neighbouring groups: as far from the training rows as one file allows."
    names, first = np.unique(groups, return_index=True)
    parts = [np.isin(groups, part) for part in np.array_split(names[np.argsort(first)], k)]
    return [(np.flatnonzero(~part), np.flatnonzero(part)) for part in parts]


def folded(path: Path) -> dict[str, Any]:
    "Five folds by label run of a test file."
    table = tables(path)
    folds = group_kfold(table["groups"], 5, table["y"], 0)
    return {"jumps": jump_row(table), "classes": table["classes"],
            "models": compare(table, folds, ROW | WINDOW | JUMPING, SEEDS),
            "stretches": compare(table, stretches(table["groups"]), WINDOW, SEEDS),
            "groups_per_fold": [len(set(table["groups"][te].tolist())) for _, te in folds]}


def figures(folder: Path) -> dict[str, Any]:
    "Everything, and what others measured on the same rows."
    found: dict[str, Any] = {"tried": choice(folder)}
    for name, (test, sheet) in FILES.items():
        found[name] = squat(folder) if name == "squat" else folded(folder / test)
        found[name]["published"] = published(folder / sheet) if sheet else []
        print(f"{name}: {'test file' if name == 'squat' else '5 folds by label run, another split than the published one'}")
        for title, s in found[name]["models"].items():
            print(f"  {title:40} {s['accuracy']:.3f} ({s['accuracy_low']:.3f} to {s['accuracy_high']:.3f})", flush=True)
        for s in found[name]["published"][:1]:
            print(f"  published, {s['model']:29} {s['accuracy']:.3f}")
    return found


if __name__ == "__main__":
    try:
        folder = exercise_folder()
    except SuiteError as e:
        raise SystemExit(print(f"exercises not run: {e}")) from None
    began = time.process_time()
    with one_thread():
        result = figures(folder)
    facts = {"settings": SETTINGS, "seeds": SEEDS, "cpu_s": round(time.process_time() - began)}
    RESULTS.write_text(json.dumps(facts | result, indent=1) + "\n", encoding="utf-8")
