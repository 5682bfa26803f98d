"""Rows of landmarks without a clock: what the reader refuses, what a window may see, and that no run is on both sides."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ai_suite.behavior.exercises import (FILES, JUMP, SETTINGS, answer_rows, apart, compare, exercise_folder, groups_of, jump_row,
                                         over_jump, plot_answers, posture, published, raw, reach, read_rows, runs_of, score,
                                         speeds, starts_of, steps, tables, twins, windows_of)
from ai_suite.core.errors import SuiteError
from ai_suite.core.splits import check_disjoint, group_kfold
from ai_suite.video.pose import LANDMARKS

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("AI_SUITE_DATA", "AI_SUITE_DATA is not set"), "exercise_correction")
MISSING = "data set exercise_correction is missing: AI_SUITE_DATA does not name it"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason=MISSING)
BODY = {"nose": (0.5, 0.15), "left_shoulder": (0.56, 0.25), "right_shoulder": (0.44, 0.25), "left_hip": (0.54, 0.5),
        "right_hip": (0.46, 0.5), "left_knee": (0.55, 0.7), "right_knee": (0.45, 0.7), "left_ankle": (0.55, 0.9),
        "right_ankle": (0.45, 0.9)}
HEAD = ["label", *(f"{mark}_{part}" for mark in BODY for part in "xyzv")]


def body(bend: float, rng: np.random.Generator) -> list[float]:
    "A figure that stands (0) or squats (1)."
    sunk = [(x, y + 0.2 * bend * (not mark.endswith(("knee", "ankle"))), 0.0, 1.0) for mark, (x, y) in BODY.items()]
    return (np.array(sunk) + rng.normal(0, 0.003, (len(sunk), 4))).ravel().tolist()


def write(path: Path, runs: int = 8, length: int = 10, seed: int = 0, head: list[str] = HEAD) -> Path:
    "A file of alternating runs, up first."
    rng = np.random.default_rng(seed)
    rows = [[("up", "down")[k % 2], *(f"{v:.6f}" for v in body(k % 2, rng))] for k in range(runs) for _ in range(length)]
    path.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")
    return path


def edited(path: Path, row: int, column: str, value: str) -> Path:
    "The file with another value in one cell; row 0 is the header."
    cells = [line.split(",") for line in path.read_text().splitlines()]
    cells[row][cells[0].index(column)] = value
    path.write_text("\n".join(map(",".join, cells)) + "\n")
    return path


def refused(code: str, *words: str):
    return pytest.raises(SuiteError, match=f"^{code} .*" + ".*".join(words))


# reading


def test_rows_are_read_plain_and_packed(tmp_path):
    plain = write(tmp_path / "a.csv")
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    pose, labels, names = read_rows(plain)
    assert pose.shape == (80, 33, 4) and pose.dtype == np.float32 and set(names) == set(BODY)
    assert np.isfinite(pose).all((0, 2)).sum() == 9 and labels.tolist() == (["up"] * 10 + ["down"] * 10) * 4
    assert np.array_equal(read_rows(packed)[0], pose, equal_nan=True)
    assert pose[0, LANDMARKS.index("left_hip"), 1] == pytest.approx(0.5, abs=0.02)


def test_columns_may_come_in_any_order(tmp_path):
    a = write(tmp_path / "a.csv")
    cells = [line.split(",") for line in a.read_text().splitlines()]
    order = np.random.default_rng(1).permutation(len(HEAD))
    (tmp_path / "b.csv").write_text("\n".join(",".join(row[i] for i in order) for row in cells) + "\n")
    assert np.array_equal(read_rows(a)[0], read_rows(tmp_path / "b.csv")[0], equal_nan=True)


@pytest.mark.parametrize(("change", "words"), [
    (("left_knee_z", "left_knee_speed"), "left_knee_speed"), (("left_knee_z", "left_knee_y"), "two columns"),
    (("label", "class"), "class"), (("nose_v", "mouth_left_v"), "mouth_left_x|nose_v")])
def test_wrong_columns_are_refused(tmp_path, change, words):
    with refused("E103", words):
        read_rows(edited(write(tmp_path / "a.csv"), 0, *change))


def test_a_body_without_hips_is_refused(tmp_path):
    cells = [line.split(",") for line in write(tmp_path / "a.csv").read_text().splitlines()]
    keep = [i for i, c in enumerate(HEAD) if not c.startswith("left_hip")]
    (tmp_path / "a.csv").write_text("\n".join(",".join(row[i] for i in keep) for row in cells) + "\n")
    with refused("E103", "left_hip_x"):
        read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize("value", ["nan", "", "inf", "-inf", "high"])
def test_holes_are_named_by_row_and_column(tmp_path, value):
    with refused("E103", "left_knee_y"):
        read_rows(edited(write(tmp_path / "a.csv"), 7, "left_knee_y", value))


def test_other_bad_files(tmp_path):
    with refused("E103", "row 5 has no label"):
        read_rows(edited(write(tmp_path / "a.csv"), 5, "label", " "))
    (tmp_path / "b.csv").write_text(",".join(HEAD) + "\n")
    with refused("E104"):
        read_rows(tmp_path / "b.csv")
    with refused("E101"):
        read_rows(tmp_path / "none.csv")
    with refused("E110", "only one label: up|only one label"):
        tables(write(tmp_path / "c.csv", runs=1))
    small = tmp_path / "small.csv"
    cells = [line.split(",") for line in write(tmp_path / "d.csv").read_text().splitlines()]
    small.write_text("\n".join(",".join(row[:1] + row[5:]) for row in cells) + "\n")
    with refused("E103", "other landmarks"):
        tables(tmp_path / "d.csv", small)


# runs and groups


def test_runs_end_where_labels_or_files_change(tmp_path):
    assert runs_of(np.array(list("aabbba"))).tolist() == [0, 0, 1, 1, 1, 2] and runs_of(np.array([], str)).tolist() == []
    table = tables(write(tmp_path / "a.csv", runs=3), write(tmp_path / "b.csv", runs=2, seed=1))
    assert table["runs"].tolist() == np.repeat(range(5), 10).tolist() and table["classes"] == ["down", "up"]
    assert np.flatnonzero(table["first"]).tolist() == [0, 30] and np.flatnonzero(table["file"]).min() == 30


def test_runs_with_the_same_row_are_one_group(tmp_path):
    table = tables(write(tmp_path / "a.csv"))
    pose = table["pose"].copy()
    pose[75], pose[31] = pose[2], pose[70]
    groups = groups_of(pose, table["runs"])
    assert groups[0] == groups[70] == groups[30] and len(set(groups.tolist())) == 6
    assert groups_of(table["pose"], table["runs"]).tolist() == table["runs"].tolist()


def test_no_group_on_both_sides(tmp_path):
    table = tables(write(tmp_path / "a.csv"))
    folds = group_kfold(table["groups"], 4, table["y"], 0)
    assert sorted(np.concatenate([te for _, te in folds]).tolist()) == list(range(80))
    for part in folds:
        check_disjoint(table["groups"], *part)
    with refused("E105", "more than one part"):
        answer_rows(table, [(np.arange(45), np.arange(45, 80))], {"LSTM": SETTINGS}, seeds=(0,))


# features


def test_posture_ignores_place_and_size(tmp_path):
    pose = tables(write(tmp_path / "a.csv"))["pose"]
    values, names = posture(pose)
    assert values.shape == (80, 2 * 9 + 5) == (80, len(names)) and {"left_knee_angle", "torso_lean"} < set(names)
    assert not any("elbow" in name for name in names)
    assert np.allclose(posture(pose * np.float32(0.4) + np.float32(0.2))[0], values, atol=1e-3)
    assert np.allclose(posture(pose[7:8])[0], values[7:8], atol=1e-6)
    knee, up = values[:, names.index("left_knee_angle")], np.repeat([True, False] * 4, 10)
    assert knee.min() >= 0 and knee.max() <= 1 and posture(pose)[0][up, names.index("left_hip_x")].std() < 0.1


def test_speeds_are_torso_lengths_per_row(tmp_path):
    pose = np.repeat(tables(write(tmp_path / "a.csv"))["pose"][:1], 6, 0)
    pose[..., 0] += 0.05 * np.arange(6)[:, None]
    first = np.arange(6) == 0
    v, torso = speeds(pose, first), 0.25
    assert v.shape == (6, 18) and np.allclose(v[0], 0) and np.allclose(v[1:, 0::2], 0.05 / torso, rtol=0.05)
    assert np.allclose(v[1:, 1::2], 0, atol=1e-5)
    assert np.allclose(speeds(pose[::2], first[:3])[1:], 2 * v[1:3], rtol=1e-3, atol=1e-5)
    assert np.allclose(speeds(pose * np.float32(0.5), first), v, rtol=1e-3, atol=1e-5)
    assert np.allclose(steps(pose, first), np.r_[0, np.full(5, v[1, 0])], rtol=1e-3)


# windows


def test_windows_look_back_only_and_know_no_labels(tmp_path):
    table = tables(write(tmp_path / "a.csv"))
    for settings in (SETTINGS, SETTINGS | {"cut": False, "speeds": True}):
        X, _ = windows_of(table, settings)
        other = {**table, "pose": table["pose"].copy(), "y": 1 - table["y"], "runs": table["runs"] * 0}
        other["pose"][40:] += np.float32(0.01) * np.arange(40, dtype=np.float32)[:, None, None]
        Z, _ = windows_of(other, settings)
        assert X.shape[:2] == (80, 15) and np.isfinite(X).all() and np.array_equal(X[:40], Z[:40]) and not np.array_equal(X, Z)


def test_windows_end_at_jumps_and_files(tmp_path):
    table = tables(write(tmp_path / "a.csv"), write(tmp_path / "b.csv", runs=3, seed=1))
    cut, whole = (windows_of(table, SETTINGS | {"cut": c})[1] for c in (True, False))
    assert (table["runs"][cut] == table["runs"][:, None]).all()
    assert (table["file"][whole] == table["file"][:, None]).all() and (table["runs"][whole] != table["runs"][:, None]).any()
    assert (whole[:, -1] == np.arange(110)).all() and (np.diff(whole, axis=1) >= 0).all()
    assert over_jump(table, 4).sum() == 3 * (7 + 2) and not over_jump(table, 1).any()
    facts = jump_row(table)
    assert facts["changes that jump"] == 1 and facts["other rows that jump"] == 0 and facts["AUC of the step"] == 1
    assert steps(table["pose"], table["first"])[10] > JUMP and starts_of(table["pose"], table["first"], False).sum() == 2


def test_training_windows_see_no_row_of_the_test():
    rows = reach(np.arange(10) == 0, 3)
    assert apart(rows, np.array([0, 1, 2, 6, 7, 8, 9]), np.array([3, 4, 5])).tolist() == [0, 1, 2, 8, 9]


# figures


def test_score_is_that_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(0)
    y, answers = rng.integers(0, 3, 90), [rng.dirichlet(np.ones(3), 90) for _ in range(2)]
    found, picked = score(y, answers, np.arange(90) // 9, 50), [p.argmax(1) for p in answers]
    for name, f in {"accuracy": accuracy_score, "macro_f1": lambda a, b: f1_score(a, b, average="macro")}.items():
        each = [f(y, p) for p in picked]
        assert found[name] == pytest.approx(np.mean(each)) and found[f"{name}_spread"] == pytest.approx(np.std(each))
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert np.allclose(found["f1"], np.mean([f1_score(y, p, average=None) for p in picked], 0)) and found["groups"] == 10
    assert len(score(y, answers, np.arange(90) // 30, 50)["accuracy_by_group"]) == 3


def test_from_files_to_figures(tmp_path):
    table = tables(write(tmp_path / "a.csv", runs=12), write(tmp_path / "b.csv", runs=6, seed=1))
    parts = [tuple(np.flatnonzero(table["file"] == f) for f in (0, 1))]
    tried = {"one row": SETTINGS | {"rows": 1}, "speeds": SETTINGS | {"rows": 4, "speeds": True, "cut": False}}
    found = compare(table, parts, tried, seeds=(0, 1))
    plain = {"logistic regression, raw row", "logistic regression, posture", "largest class", "guess by share"}
    assert set(found) == plain | set(tried)
    assert found["one row"]["accuracy"] > 0.9 and found["one row"]["seeds"] == 2 and found["largest class"]["accuracy"] == 0.5
    assert all(s["groups"] == 6 and np.sum(s["confusion"]) == pytest.approx(60) for s in found.values())
    again = compare(table, parts, {"one row": tried["one row"]}, seeds=(0, 1))
    assert again["one row"] == found["one row"]
    labels = np.array(table["classes"])[table["y"]]
    assert [t.get_text() for t in plot_answers(labels, {"LSTM": labels[::-1]}).axes[0].get_yticklabels()] == ["truth", "LSTM"]


def test_published_figures(tmp_path):
    sheet = tmp_path / "e.csv"
    sheet.write_text('Model,F1,Confusion Matrix\nNB,.5,"[[4 0]\n [4 0]]"\n3_layers,.8,"[[4 0]\n [1 3]]"\n')
    best, worst = published(sheet)
    assert best["model"] == "3_layers" and best["deep"] and not worst["deep"]
    assert best["accuracy"] == 7 / 8 and best["macro_f1"] == pytest.approx((8 / 9 + 6 / 7) / 2)
    sheet.write_text('Model,Confusion Matrix\nNB,"[[4 0 1]]"\n')
    with refused("E103", "no square"):
        published(sheet)


def test_twins_are_found(tmp_path):
    a, b = write(tmp_path / "a.csv"), write(tmp_path / "b.csv", runs=4, seed=1)
    cells = b.read_text().splitlines()
    b.write_text("\n".join(cells + a.read_text().splitlines()[31:41]) + "\n")
    table = tables(a, b)
    assert twins(table, *(np.flatnonzero(table["file"] == f) for f in (0, 1))).tolist() == [3]


def test_missing_data_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("AI_SUITE_DATA", raising=False)
    with refused("E101", "exercise_correction", "AI_SUITE_DATA"):
        exercise_folder()
    monkeypatch.setenv("AI_SUITE_DATA", str(tmp_path))
    with refused("E101", "exercise_correction"):
        exercise_folder()


def test_the_benchmark_says_what_is_missing():
    env = {k: v for k, v in os.environ.items() if k != "AI_SUITE_DATA"} | {"OMP_NUM_THREADS": "1"}
    results = ROOT / "benchmarks/results/exercises.json"
    before = results.read_bytes()
    ran = subprocess.run([sys.executable, ROOT / "benchmarks/exercises.py"], capture_output=True, text=True, timeout=120, env=env,
                         check=False)
    assert ran.returncode == 0 and "E101 data set exercise_correction is missing" in ran.stdout, ran.stderr
    assert results.read_bytes() == before


# real files


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_real_files_are_read(name):
    test, sheet = FILES[name]
    table = tables(REAL / test)
    assert np.isfinite(raw(table["pose"])).all() and np.isfinite(posture(table["pose"])[0]).all()
    assert len(set(table["groups"].tolist())) >= 10
    with gzip.open(REAL / test, "rt") as f:
        assert sum(1 for _ in f) == len(table["y"]) + 1
    for row in published(REAL / sheet) if sheet else []:
        assert f"{row['model']},".encode() in gzip.decompress((REAL / sheet).read_bytes()) and 0.4 < row["accuracy"] <= 1


@needs_data
def test_real_squats_near_the_published_figure_and_their_twins():
    table = tables(REAL / "squat_model__train.csv.gz", REAL / FILES["squat"][0])
    train, test = (np.flatnonzero(table["file"] == f) for f in (0, 1))
    linear = compare(table, [(train, test)], {})["logistic regression, raw row"]
    best = published(REAL / FILES["squat"][1])[0]
    assert best["model"] == "LR" and abs(linear["accuracy"] - best["accuracy"]) < 0.005 and linear["groups"] == 10
    repeated = twins(table, train, test)
    assert len(repeated) and set(repeated.tolist()) < set(table["runs"][train].tolist())
