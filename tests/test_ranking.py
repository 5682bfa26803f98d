"""ai-rank from the shell: training, the users' inference example, bad pictures and votes, interruption, other encoders."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ai_suite.core.runs import check_run
from ai_suite.core.weights import installed_file
from ai_suite.image.degrade import degrade
from ai_suite.image.read import read_rgb
from ai_suite.ranking.cli import main

LITE = ("--encoder", "efficientnet_lite0", "--img-size", 96)
QUICK = (*LITE, "--epochs", 4, "--members", 2, "--device", "cpu")


def rank(*words, code=0):
    "Run ai-rank; its answer and what it said."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    assert stop.value.code == code, err.getvalue()
    return (json.loads(out.getvalue()) if out.getvalue() else None), err.getvalue()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Pieces of two photos in three tiers of sharpness, and a trained model."
    root = tmp_path_factory.mktemp("순위")
    folder = root / "images"
    folder.mkdir()
    photos = [read_rgb(installed_file("sklearn", f"datasets/images/{n}.jpg")) for n in ("china", "flower")]
    rng, rows = np.random.default_rng(0), []
    for k in range(12):
        y, x = rng.integers(0, 240, 2)
        for tier in range(3):
            name = f"작품 {k}-{tier}.png"
            Image.fromarray(degrade(photos[k % 2][y : y + 160, x : x + 160], "blur", (0, 3, 5)[2 - tier], k)).save(folder / name)
            rows.append((name, "SAB"[2 - tier], f"artist {k}"))
    pd.DataFrame(rows, columns=["filename", "tier", "group"]).to_csv(root / "metadata.csv", index=False)
    told, err = rank("train", "--data-dir", folder, "--metadata", root / "metadata.csv", "--tier-order", "S,A,B", "--output-dir",
                     root / "run", *QUICK, "--train-ratio", 0.6, "--val-ratio", 0.2, "--test-ratio", 0.2)
    return root, told


def test_training_writes_a_whole_run(home):
    root, told = home
    assert told["pairwise_accuracy"] > 0.8 and told["images"] == 36 and told["split"] == "test"
    assert set(told["baselines"]) == {"chance", "line over features by hand", "line over the same features"}
    run = check_run(root / "run")
    assert run["system"] == "ranking" and {"best_model.pt", "splits.json", "history.csv", "metrics.json"} <= set(run["files"])
    splits = json.loads((root / "run/splits.json").read_text())
    artists = [{name.split("-")[0] for name in splits[k]} for k in ("train", "val", "test")]
    assert not artists[0] & artists[1] and not artists[1] & artists[2] and not artists[0] & artists[2]
    assert str(root) not in (root / "run/run.json").read_text()


def test_the_inference_example_of_the_users_document(home, tmp_path, monkeypatch):
    root, _ = home
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(root / "run/best_model.pt", tmp_path / "checkpoints/best_model.pt")
    for k, tier in ((1, 2), (2, 0)):
        Image.open(root / f"images/작품 0-{tier}.png").save(tmp_path / f"image{k}.jpg")
    monkeypatch.chdir(tmp_path)

    from torchvision import transforms

    from ai_suite.ranking.model import PairwiseRankingModel

    model = PairwiseRankingModel()
    checkpoint = torch.load("checkpoints/best_model.pt", weights_only=True)
    model.load_state_dict(checkpoint["model_state_dict"])
    model.eval()
    transform = transforms.Compose([
        transforms.Resize((768, 768)),
        transforms.ToTensor(),
        transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ])
    img1 = transform(Image.open("image1.jpg")).unsqueeze(0)
    img2 = transform(Image.open("image2.jpg")).unsqueeze(0)
    with torch.no_grad():
        score1, score2 = model(img1, img2)
    assert score1 > score2


def test_compare_score_and_evaluate(home, tmp_path):
    root, _ = home
    sharp, blurred = root / "images/작품 1-2.png", root / "images/작품 1-0.png"
    found, _ = rank("compare", sharp, blurred, "--checkpoint", root / "run")
    assert found["decision"] == "left" and found["p_left"] > 0.5 and found["score_left"] > found["score_right"]
    assert rank("compare", sharp, sharp, "--checkpoint", root / "run/best_model.pt")[0]["decision"] == "tie"
    pages = "--output", tmp_path / "s.csv", "--html", tmp_path / "s.html"
    told, _ = rank("score", root / "images", "--checkpoint", root / "run", *pages)
    table = pd.read_csv(tmp_path / "s.csv")
    assert list(table.columns) == ["rank", "filename", "score", "lower", "upper"] and len(table) == told["images"] == 36
    assert table.score.is_monotonic_decreasing and (table.lower <= table.score).all() and table["rank"].iloc[0] == 1
    page = (tmp_path / "s.html").read_text()
    assert "순위" in page and "작품 1-2" in page and str(root) not in page
    words = "--test-data", root / "metadata.csv", "--image-dir", root / "images", "--tier-order", "S,A,B"
    judged, err = rank("evaluate", "--checkpoint", root / "run", *words)
    assert {"pairwise_accuracy", "ci_low", "ci_high", "n_pairs", "spearman", "kendall", "pearson", "auc_per_tier"} <= set(judged)
    assert judged["seen"] > 0 and "trained or chosen on" in err


def test_votes_teach_too(home, tmp_path):
    root, _ = home
    rng = np.random.default_rng(0)
    names = sorted(p.name for p in (root / "images").iterdir())
    rows = []
    for _ in range(600):
        a, b = rng.choice(names, 2, replace=False)
        better = int(a[-5]) > int(b[-5])
        rows.append((a, b, "tie" if a[-5] == b[-5] else "left" if better else "right"))
    pd.DataFrame(rows, columns=["left", "right", "preferred"]).to_csv(tmp_path / "pairs.csv", index=False)
    words = "--pairs", tmp_path / "pairs.csv", "--output-dir", tmp_path / "run", *QUICK
    told, _ = rank("train", "--data-dir", root / "images", *words, "--train-ratio", 0.4, "--val-ratio", 0.2, "--test-ratio", 0.4)
    assert told["pairwise_accuracy"] > 0.6
    words = "--test-data", tmp_path / "pairs.csv", "--image-dir", root / "images"
    judged, _ = rank("evaluate", "--checkpoint", tmp_path / "run", *words)
    assert judged["ceiling"]["pairwise_accuracy"] > 0.5 and judged["ties"]["voted"] > 0


def test_broken_pictures_are_left_out_and_named(home, tmp_path):
    root, _ = home
    folder = Path(shutil.copytree(root / "images", tmp_path / "images"))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "text.jpg").write_text("not a picture")
    Image.new("CMYK", (80, 80), (10, 20, 30, 40)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (80, 80), (10, 20, 30, 40)).save(folder / "alpha.png")
    Image.fromarray(np.full((80, 80), 40_000, np.uint16)).save(folder / "deep.png")
    told, err = rank("score", folder, "--checkpoint", root / "run", "--output", tmp_path / "s.csv")
    assert set(told["skipped"]) == {"broken.jpg", "text.jpg"} and told["images"] == 39 and "left out: broken.jpg" in err
    table = pd.read_csv(root / "metadata.csv")
    extra = pd.DataFrame({"filename": ["broken.jpg", "gone.jpg", "작품 0-2.png"], "tier": ["S", "S", "B"], "group": ""})
    pd.concat([table, extra]).to_csv(tmp_path / "m.csv", index=False)
    told, err = rank("train", "--data-dir", folder, "--metadata", tmp_path / "m.csv", "--tier-order", "S,A,B", "--output-dir",
                     tmp_path / "run", *QUICK, "--epochs", 1)
    assert {"broken.jpg", "gone.jpg", "작품 0-2.png"} == set(told["skipped"])


@pytest.mark.parametrize("tiers", [["S"] * 36, ["S"] + ["A"] * 35])
def test_one_tier_or_a_tier_of_one(home, tmp_path, tiers):
    root, _ = home
    pd.read_csv(root / "metadata.csv").assign(tier=tiers).to_csv(tmp_path / "m.csv", index=False)
    _, err = rank("train", "--data-dir", root / "images", "--metadata", tmp_path / "m.csv", "--tier-order", "S,A", "--output-dir",
                  tmp_path / "run", *QUICK, code=2)
    assert "E110" in err and not (tmp_path / "run/run.json").exists()


def test_a_checkpoint_of_another_encoder_is_refused(home, tmp_path):
    root, _ = home
    a = root / "images/작품 1-2.png"
    _, err = rank("compare", a, a, "--checkpoint", root / "run", "--encoder", "tf_mobilenetv3_small_minimal_100", code=2)
    assert "E201" in err or "E202" in err
    state = torch.load(root / "run/best_model.pt", weights_only=True)
    state["model_state_dict"]["_extra_state"]["encoder"]["weights"] = "0" * 16
    torch.save(state, tmp_path / "best_model.pt")
    _, err = rank("compare", a, a, "--checkpoint", tmp_path / "best_model.pt", code=2)
    assert "E202" in err and "another encoder" in err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"\x80\x04\x95"])
def test_a_damaged_checkpoint_is_refused(home, tmp_path, content):
    root, _ = home
    (tmp_path / "best_model.pt").write_bytes(content)
    _, err = rank("compare", root / "images/작품 1-2.png", root / "images/작품 1-0.png", "--checkpoint", tmp_path, code=2)
    assert "E20" in err


def test_ctrl_c_then_resume_is_as_if_nothing_happened(home, tmp_path):
    root, _ = home
    words = ["train", "--data-dir", root / "images", "--metadata", root / "metadata.csv", "--tier-order", "S,A,B", *LITE,
             "--epochs", 60, "--patience", 60, "--members", 1, "--device", "cpu", "--save-every-n-epochs", 1,
             "--train-ratio", 0.5, "--val-ratio", 0.4, "--test-ratio", 0.1]
    program = [sys.executable, "-c", "from ai_suite.ranking.cli import main; main()", *map(str, words)]
    p = subprocess.Popen([*program, "--output-dir", str(tmp_path / "run")], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                         text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    end = time.time() + 120
    while not (tmp_path / "run/last.pt").exists() and time.time() < end and p.poll() is None:
        time.sleep(0.05)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and "E130" in err and "--resume" in err and not (tmp_path / "run/run.json").exists()
    done, _ = rank(*words, "--output-dir", tmp_path / "run", "--resume")
    whole, _ = rank(*words, "--output-dir", tmp_path / "whole")
    a, b = (torch.load(tmp_path / k / "best_model.pt", weights_only=True)["model_state_dict"] for k in ("run", "whole"))
    assert done["pairwise_accuracy"] == whole["pairwise_accuracy"]
    assert all((a[k] == b[k]).all() for k in a if k != "_extra_state")


def test_scores_do_not_depend_on_batch_or_order(home):
    from ai_suite.core.cache import Store
    from ai_suite.ranking.extractor import embed
    from ai_suite.ranking.learn import scores_of
    from ai_suite.ranking.model import load_model

    root, _ = home
    model, _ = load_model(root / "run")
    paths = sorted((root / "images").iterdir())
    found = []
    for batch, order in ((1, paths), (7, paths[::-1])):
        rows, _ = embed(model.extractor, order, batch=batch, store=Store(root / f"cache{batch}"))
        scores = scores_of(model, rows)[0]
        found.append(scores if batch == 1 else scores[::-1])
    assert np.abs(found[0] - found[1]).max() < 1e-5


def test_a_damaged_entry_of_the_cache_is_made_again(home, tmp_path):
    from ai_suite.core.cache import Store
    from ai_suite.ranking.extractor import DINOv2FeatureExtractor, embed

    root, _ = home
    eyes, path = DINOv2FeatureExtractor("efficientnet_lite0", img_size=96), root / "images/작품 1-2.png"
    first, _ = embed(eyes, [path], store=Store(tmp_path))
    kept = list(tmp_path.rglob("*.npz"))
    assert len(kept) == 1
    kept[0].write_bytes(kept[0].read_bytes()[:40])
    again, _ = embed(eyes, [path], store=Store(tmp_path))
    assert (first == again).all()
