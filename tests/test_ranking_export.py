"""ai-rank export and benchmark from the shell: parity, foreign files, odd paths, batches, figures."""

import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ai_suite.core.errors import SuiteError
from ai_suite.core.runs import save_pt
from ai_suite.image.graph import export_pixels, painted
from ai_suite.ranking import export
from ai_suite.ranking.cli import main
from ai_suite.ranking.extractor import DINOv2FeatureExtractor
from ai_suite.ranking.model import PairwiseRankingModel
from ai_suite.ranking.portable import OnnxRanker


def rank(*words, code=0):
    "Run ai-rank; its answer and what it said."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main([str(w) for w in words])
    assert stop.value.code == code, err.getvalue()
    return (json.loads(out.getvalue()) if out.getvalue() else None), err.getvalue()


def saved(folder, eyes):
    "A checkpoint with random heads on an encoder."
    torch.manual_seed(0)
    model = PairwiseRankingModel(eyes, features=eyes.features, members=3)
    model.told = eyes.described()
    for head in model.heads:
        nn.init.normal_(head.line.weight, std=0.05)
    model.tie.fill_(0.2)
    save_pt(folder / "best_model.pt", {"model_state_dict": model.state_dict()})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A small Dinov2 in a folder, a model on it, pictures of many shapes, and the exported file."
    from transformers import Dinov2Config, Dinov2Model

    root = tmp_path_factory.mktemp("내보내기")
    small = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14)
    Dinov2Model(small).save_pretrained(root / "dino")
    saved(root, DINOv2FeatureExtractor(str(root / "dino"), img_size=70, pooling="both"))
    (root / "그림").mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        Image.fromarray(painted(rng)).save(root / f"그림/작품 {k}.{'png' if k % 2 else 'jpg'}")
    words = "--checkpoint", root, "--encoder", root / "dino", "--onnx", root / "순위 모델.onnx", "--image-dir", root / "그림"
    return root, rank("export", *words)[0]


def test_the_file_answers_as_the_checkpoint(home):
    root, told = home
    assert told["photos"] == {"given": 6, "generated": 0, "varied": 194} and told["opset"] == 18
    assert told["parity"]["pairs"] == 19900 and told["parity"]["flipped"] == 0
    assert told["parity"]["max_abs_error"] <= told["parity"]["tolerance"]
    assert told["bytes"] == (root / "순위 모델.onnx").stat().st_size
    a, b = root / "그림/작품 0.jpg", root / "그림/작품 1.png"
    theirs, _ = rank("compare", a, b, "--checkpoint", root, "--encoder", root / "dino")
    ours, _ = rank("compare", a, b, "--checkpoint", root / "순위 모델.onnx")
    assert ours["decision"] == theirs["decision"]
    assert all(abs(ours[k] - theirs[k]) < 1e-4 for k in ours if k != "decision")


def test_a_folder_is_ranked_from_the_file_alone(home, tmp_path):
    root, _ = home
    (tmp_path / "in").mkdir()
    for p in (root / "그림").iterdir():
        (tmp_path / "in" / p.name).write_bytes(p.read_bytes())
    (tmp_path / "in/broken.png").write_bytes(b"no picture")
    file = root / "순위 모델.onnx"
    pages = "--output", tmp_path / "s.csv", "--html", tmp_path / "s.html"
    told, err = rank("score", tmp_path / "in", "--checkpoint", file, *pages)
    assert told["images"] == 6 and list(told["skipped"]) == ["broken.png"] and "left out: broken.png" in err
    assert told["best"] == best_by_hand(file, root / "그림")
    _, err = rank("compare", root / "그림/작품 0.jpg", tmp_path / "in/broken.png", "--checkpoint", file, code=2)
    assert "E102" in err
    _, err = rank("score", tmp_path / "in", "--checkpoint", file, "--encoder", "x", "--output", tmp_path / "s.csv", code=2)
    assert "E301" in err and "holds its encoder" in err


def test_the_file_is_judged_as_the_checkpoint(home, tmp_path):
    root, _ = home
    (tmp_path / "m.csv").write_text("filename,score\n" + "".join(f"작품 {k},{k}\n" for k in range(6)) + "gone.png,1\n")
    words = "--test-data", tmp_path / "m.csv", "--image-dir", root / "그림"
    ours, err = rank("evaluate", "--checkpoint", root / "순위 모델.onnx", *words)
    theirs, _ = rank("evaluate", "--checkpoint", root, "--encoder", root / "dino", *words)
    same = ("pairwise_accuracy", "ci_low", "ci_high", "n_pairs", "spearman", "kendall", "skipped")
    assert ours["n_pairs"] == 15 and list(ours["skipped"]) == ["gone.png"] and "left out: gone.png" in err
    assert {k: ours[k] for k in same} == {k: theirs[k] for k in same}
    assert abs(ours["pearson"] - theirs["pearson"]) < 1e-4


def best_by_hand(file, folder):
    "The name of the best picture, by hand."
    files = sorted(folder.iterdir())
    return files[int(OnnxRanker(file).score(files)[0].argmax())].name


def test_scores_do_not_depend_on_batch_or_order(home):
    root, _ = home
    ranker = OnnxRanker(root / "순위 모델.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 90, 130, 3), dtype=np.uint8)
    whole = ranker.score(pixels)[0]
    alone = ranker.score(list(pixels))[0]
    order = np.random.default_rng(1).permutation(9)
    shuffled = np.zeros(9)
    for part in np.array_split(order, 3):
        shuffled[part] = ranker.score(pixels[part])[0]
    assert np.ptp(whole) > 1e-3
    assert max(np.abs(whole - alone).max(), np.abs(whole - shuffled).max()) < 1e-5


def test_no_pytorch_is_loaded(home):
    root, _ = home
    code = ("import sys; from ai_suite.ranking.portable import OnnxRanker; r = OnnxRanker(sys.argv[1]); "
            "r.compare(sys.argv[2], sys.argv[2]); print('torch' in sys.modules, 'transformers' in sys.modules)")
    words = [sys.executable, "-c", code, root / "순위 모델.onnx", root / "그림/작품 0.jpg"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_tampered_network_is_not_kept(home, tmp_path, monkeypatch):
    class Tampered(export.Deployed):
        def forward(self, pixels):
            return super().forward(pixels.flip(3))  # Red and blue exchanged

    root, _ = home
    monkeypatch.setattr(export, "Deployed", Tampered)
    words = "--checkpoint", root, "--encoder", root / "dino", "--onnx", tmp_path / "new/x.onnx"
    _, err = rank("export", *words, code=2)
    assert "E203" in err and "differs from the checkpoint: scores by" in err and not list((tmp_path / "new").iterdir())


def test_decisions_that_turn_are_counted_and_hairs_are_not():
    scores = np.linspace(-1, 1, 20)
    same = export.differences(scores + 1e-7, scores, 0.0)
    assert same["flipped"] == 0 and same["pairs"] == 190
    export.require_parity(same, "x.onnx")
    found = export.differences(-scores, scores, 0.0)
    assert found["flipped"] > 100
    with pytest.raises(SuiteError, match="E203"):
        export.require_parity(found, "x.onnx")


def test_files_that_are_not_ours_are_refused(home, tmp_path):
    class Zero(nn.Module):
        def forward(self, pixels):
            score = pixels.float().mean((1, 2, 3))
            return score, 0 * score

    root, _ = home
    picture = root / "그림/작품 0.jpg"
    good = OnnxRanker(root / "순위 모델.onnx").about
    others = {"lens": ({"kind": "lens"}, "E200"), "newer": (good | {"schema": 99}, "E202"), "odd": (good | {"tie": -1}, "E200")}
    for name, (told, code) in others.items():
        export_pixels(Zero(), tmp_path / f"{name}.onnx", outputs=("score", "spread"), metadata=told, name=name)
        _, err = rank("compare", picture, picture, "--checkpoint", tmp_path / f"{name}.onnx", code=2)
        assert code in err
    export_pixels(Zero(), tmp_path / "names.onnx", outputs=("a", "b"), metadata=good, name="names")
    (tmp_path / "text.onnx").write_text("no model")
    for name, code in {"names": "E203", "text": "E200", "absent": "E200"}.items():
        assert code in rank("compare", picture, picture, "--checkpoint", tmp_path / f"{name}.onnx", code=2)[1]


@pytest.mark.parametrize(("words", "code"), [
    (("--onnx", "{tmp}/a.bin"), "E301"), (("--onnx", "{tmp}/a.onnx", "--opset", 99), "E301"),
    (("--onnx", "{tmp}/a.onnx", "--image-dir", "{tmp}"), "E104"), (("--onnx", "{tmp}/other/a.onnx"), "E120")])
def test_wishes_that_cannot_be(home, tmp_path, words, code):
    root, _ = home
    (tmp_path / "other").mkdir()
    (tmp_path / "other/run.json").write_text("{}")
    asked = [str(w).format(tmp=tmp_path) for w in words]
    _, err = rank("export", "--checkpoint", root, "--encoder", root / "dino", *asked, code=2)
    assert code in err and not list(tmp_path.rglob("*.onnx"))


def test_an_exported_file_is_no_checkpoint(home, tmp_path):
    root, _ = home
    _, err = rank("export", "--checkpoint", root / "순위 모델.onnx", "--onnx", tmp_path / "a.onnx", code=2)
    assert "E200" in err and "exported already" in err


@pytest.mark.slow
def test_the_embedded_encoder_with_three_sizes(tmp_path):
    saved(tmp_path, DINOv2FeatureExtractor("efficientnet_lite0", img_size=(64, 96, 128)))
    told, _ = rank("export", "--checkpoint", tmp_path, "--onnx", tmp_path / "x.onnx", "--opset", 17)
    assert told["sizes"] == [64, 96, 128] and told["opset"] == 18 and told["opset_asked"] == 17 and told["parity"]["flipped"] == 0


@pytest.mark.slow
def test_a_vision_transformer_of_timm(tmp_path):
    import timm

    torch.manual_seed(0)
    net = timm.create_model("test_vit", pretrained=False)
    torch.save(net.state_dict(), tmp_path / "test_vit.pth")
    saved(tmp_path, DINOv2FeatureExtractor("test_vit", img_size=96, weights=str(tmp_path / "test_vit.pth")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AI_SUITE_WEIGHTS", str(tmp_path))
        told, _ = rank("export", "--checkpoint", tmp_path, "--onnx", tmp_path / "x.onnx")
    assert told["sizes"] == [96] and told["parity"]["flipped"] == 0


def test_benchmark_says_what_it_measured(home, tmp_path):
    root, _ = home
    words = "--samples", 120, "--epochs", 1, "--sizes", 56, "--batches", 2, "--device", "cpu", "--output", tmp_path / "벤치.json"
    told, _ = rank("benchmark", "--encoder", root / "dino", *words)
    assert told == json.loads((tmp_path / "벤치.json").read_text())
    assert {"cores", "threads", "torch"} <= set(told["machine"]) and told["seed"] == 42
    training = told["head_training"]
    assert training["met"] is None and training["seconds"] > 0 and training["epochs"] == [1, 1, 1]
    assert 0 < told["cached_pair"]["median_ms"] <= told["cached_pair"]["p95_ms"] and told["cached_pair"]["target"] == 1
    assert [(r["size"], r["batch"]) for r in told["encoding"]] == [(56, 2)] and told["encoding"][0]["pictures_per_s"] > 0
    assert torch.cuda.is_available() or (told["cuda"]["measured"] is False and told["cuda"]["why"])


@pytest.mark.parametrize("words", [("--sizes", "big"), ("--batches", 0), ("--samples", 5), ("--sizes", 9)])
def test_benchmark_refuses_nonsense(words):
    assert "E301" in rank("benchmark", *words, code=2)[1]
