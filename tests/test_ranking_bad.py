"""What people bring to ai-rank by mistake: copies, contradictions, unknown files, bombs, a disk that is full."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_ranking import QUICK, home, rank  # noqa: F401


@pytest.fixture
def works(home, tmp_path):  # noqa: F811
    root, _ = home
    return Path(shutil.copytree(root / "images", tmp_path / "images")), pd.read_csv(root / "metadata.csv")


def trained(folder, table, out, *more, code=0, kind="--metadata"):
    table.to_csv(out.parent / "table.csv", index=False)
    order = ("--tier-order", "S,A,B") if kind == "--metadata" else SHARES
    return rank("train", "--data-dir", folder, kind, out.parent / "table.csv", *order, "--output-dir", out, *QUICK, "--epochs", 1,
                *more, code=code)


def test_copies_in_two_tiers_are_left_out(works, tmp_path):
    folder, table = works
    shutil.copy(folder / "작품 0-2.png", folder / "copy.png")
    extra = pd.DataFrame({"filename": ["copy.png"], "tier": ["B"], "group": ["someone"]})
    told, err = trained(folder, pd.concat([table, extra]), tmp_path / "run")
    assert set(told["skipped"]) == {"copy.png", "작품 0-2.png"} and "two values" in err


def test_copies_of_one_tier_stay_in_one_split(works, tmp_path):
    folder, table = works
    copies = []
    for k in range(12):
        shutil.copy(folder / f"작품 {k}-2.png", folder / f"copy {k}.png")
        copies.append((f"copy {k}.png", "S", f"another {k}"))
    trained(folder, pd.concat([table, pd.DataFrame(copies, columns=table.columns)]), tmp_path / "run")
    splits = pd.read_json(tmp_path / "run/splits.json", typ="series")
    where = {name: part for part in splits.index for name in splits[part]}
    assert all(where[f"copy {k}.png"] == where[f"작품 {k}-2.png"] for k in range(12))


PAIRS = ["left", "right", "preferred"]
SHARES = ("--train-ratio", 0.6, "--val-ratio", 0.2, "--test-ratio", 0.2)


def votes_of(folder, contradict=False):
    ways = [(1, 0), (2, 0), (2, 1)]
    better = [(f"작품 {i}-{k}.png", f"작품 {j}-{low}.png") for i in range(12) for j in range(12) for k, low in ways]
    rows = [(*pair, "left") for pair in better] + [(*pair, "right") for pair in better if contradict]
    return pd.DataFrame(rows, columns=PAIRS)


def test_contradictory_votes_add_up_to_nothing_known(works, tmp_path):
    folder, _ = works
    told, _ = trained(folder, votes_of(folder), tmp_path / "run", kind="--pairs")
    assert told["pairwise_accuracy"] > 0.8
    found, err = rank("check", "--data-dir", folder, "--pairs", tmp_path / "table.csv")
    assert not found["errors"]
    told, err = trained(folder, votes_of(folder, contradict=True), tmp_path / "both", kind="--pairs")
    answer, _ = rank("compare", folder / "작품 1-2.png", folder / "작품 1-0.png", "--checkpoint", tmp_path / "both")
    assert abs(answer["p_left"] - 0.5) < 0.1


def test_unknown_files_in_pairs_are_named(works, tmp_path):
    folder, _ = works
    table = pd.concat([votes_of(folder), pd.DataFrame([("nobody.png", "작품 1-0.png", "left")], columns=PAIRS)])
    told, err = trained(folder, table, tmp_path / "run", kind="--pairs")
    assert set(told["skipped"]) == {"nobody.png"} and "left out: nobody.png" in err


def test_a_vote_for_neither_side_is_an_error(works, tmp_path):
    folder, _ = works
    _, err = trained(folder, votes_of(folder).assign(preferred="maybe"), tmp_path / "run", kind="--pairs", code=2)
    assert err.strip().splitlines()[-1].startswith("E1") and not (tmp_path / "run/run.json").exists()


def test_a_bomb_is_left_out(works, tmp_path):
    folder, _ = works
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("L", (4000, 3000), 90).save(folder / "large.png")
    told, _ = trained(folder, votes_of(folder), tmp_path / "run", kind="--pairs")
    told, err = rank("score", folder, "--checkpoint", tmp_path / "run", "--output", tmp_path / "s.csv")
    assert set(told["skipped"]) == {"bomb.png"} and "too many pixels" in err
    assert "large.png" in set(pd.read_csv(tmp_path / "s.csv").filename)


def test_a_checkpoint_of_another_width_is_refused(home, tmp_path):  # noqa: F811
    root, _ = home
    told = torch.load(root / "run/best_model.pt", weights_only=True)
    told["model_state_dict"]["_extra_state"]["encoder"]["features"] = 12
    torch.save(told, tmp_path / "best_model.pt")
    a = root / "images/작품 1-2.png"
    _, err = rank("compare", a, a, "--checkpoint", tmp_path / "best_model.pt", code=2)
    assert "E202" in err


@pytest.mark.parametrize("kilobytes", [4, 400])
def test_a_full_disk_leaves_nothing_that_looks_whole(home, tmp_path, kilobytes):  # noqa: F811
    root, _ = home
    words = ["train", "--data-dir", root / "images", "--metadata", root / "metadata.csv", "--tier-order", "S,A,B", "--output-dir",
             tmp_path / "run", *QUICK, "--epochs", 1]
    line = [sys.executable, "-c", "from ai_suite.ranking.cli import main; main()", *map(str, words)]
    limited = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "_", *line]
    ran = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and ran.stdout == "" and "Traceback" not in ran.stderr, ran.stderr
    assert ran.stderr.strip().splitlines()[-1].startswith("E120"), ran.stderr
    assert not (tmp_path / "run/run.json").exists() and not (tmp_path / "run/best_model.pt").exists()


@pytest.mark.integration
def test_from_pictures_to_a_leaderboard(works, tmp_path):
    folder, table = works
    told, _ = trained(folder, table, tmp_path / "run")
    table.to_csv(tmp_path / "m.csv", index=False)
    judged, _ = rank("evaluate", "--checkpoint", tmp_path / "run", "--test-data", tmp_path / "m.csv", "--image-dir", folder,
                     "--tier-order", "S,A,B")
    assert judged["pairwise_accuracy"] > 0.8 and judged["seen"] > 0
    rank("score", folder, "--checkpoint", tmp_path / "run", "--output", tmp_path / "s.csv", "--html", tmp_path / "s.html")
    found = pd.read_csv(tmp_path / "s.csv")
    assert list(found.columns) == ["rank", "filename", "score", "lower", "upper"] and (np.diff(found.score) <= 0).all()
    same, _ = rank("compare", folder / "작품 1-2.png", folder / "작품 1-2.png", "--checkpoint", tmp_path / "run")
    assert same["decision"] == "tie" and abs(same["score_left"] - same["score_right"]) < 1e-5


def test_the_course_for_tensorboard(works, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, table = works
    trained(folder, table, tmp_path / "run", "--tensorboard", "--no-report")
    told = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert {"valid_loss/head 1", "valid_loss/head 2", "lr/head 1"} <= set(told.Tags()["scalars"])
    assert not (tmp_path / "run/report.html").exists()
