"""The way through ai-lens as the users' document tells it, command by command."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

for part in ("torch", "timm", "torchvision", "onnxscript", "onnxruntime", "pytorch_metric_learning", "faiss"):
    pytest.importorskip(part)
from PIL import Image  # noqa: E402

from ai_suite.core.cache import locked  # noqa: E402
from ai_suite.core.cli import arguments  # noqa: E402
from ai_suite.core.runs import check_run  # noqa: E402
from ai_suite.lens.cli import COMMANDS, main  # noqa: E402

BIN = Path(sys.executable).parent / "ai-lens"
FILES = ("best.ckpt", "best_auroc_reject.ckpt", "last.pt", "best.onnx")
YAML = """\
# configs/default.yaml
seed: 42
img_size: 224
backbone: vit_b16
optimizer: adamw
lr: 3e-4
weight_decay: 0.05
scheduler: cosine
loss: arcface
embedding_dim: 512
augment:
  random_resized_crop: true
  color_jitter: 0.2
  horizontal_flip: true
  gaussian_blur: true
reject:
  threshold: 0.62
  min_top1_margin: 0.12
export:
  onnx: true
  opset: 17
"""  # As the users' document has it
RECOLLECT = "전시품이 아닌 가능성이 높습니다. 초점/구도/조명 개선 후 재촬영 해주세요."
TOLD = {"place", "predictions", "decision"}
nfd = lambda text: unicodedata.normalize("NFD", str(text))


def shell(*words, code=0):
    "A command in this process: what it prints on stdout, read as JSON, and what it says on stderr."
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    assert stop.value.code == code, err.getvalue()
    assert code in (0, 2) and "Traceback" not in err.getvalue()
    return (json.loads(out.getvalue()) if out.getvalue() else None), err.getvalue()


def process(*words, **env):
    "A command in a process of its own."
    env = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run([str(BIN), *map(str, words)], capture_output=True, text=True, timeout=300, env=env, check=False)


def once(factory, name, make):
    "A folder that is made once, though several processes test side by side."
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with locked(base / f".{name}.lock", timeout=500):
        if not (base / f"{name}.done").exists():
            make(base / name)
            (base / f"{name}.done").touch()
    return base / name


def write_museum(home):
    from ai_suite.lens.samples import write_samples

    write_samples(home, places=3, items=3, photos=9, size=160)
    (home / "default.yaml").write_text(YAML)


@pytest.fixture(scope="session")
def museum(tmp_path_factory):
    "Photos of three places with three exhibits each, and photos that show none."
    return once(tmp_path_factory, "lens_museum", write_museum)


@pytest.fixture(scope="module", autouse=True)
def cache(museum):
    "A cache of its own."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("AI_SUITE_CACHE", str(museum.parent / "lens_cache"))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, museum, cache):
    "A run folder and what the command said; the third place is not learned."

    def make(home):
        home.mkdir()
        words = ("--config", museum / "default.yaml", "--backbone", "efficientnet_lite0", "--img-size", 96, "--epochs", 40)
        places = ("--place", nfd("1층"), "--place", "2층", "--background", museum / "ood", "--lr", "2e-3")
        done = process("train", "--data-root", museum / "data", *places, *words, "--save-dir", home / "run")
        assert done.returncode == 0, done.stderr
        (home / "said.json").write_text(json.dumps([done.stdout, done.stderr]))

    home = once(tmp_path_factory, "lens_trained", make)
    return home / "run", *json.loads((home / "said.json").read_text())


@pytest.fixture(scope="module")
def run(trained):
    "The run folder, which no test changes."
    return trained[0]


@pytest.fixture
def own(run, tmp_path):
    "A copy of the run that a test may change."
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def photo(museum):
    "A photo that was taken on the ground floor."
    return museum / "data/1층/누각 ㄱ/01.jpg"


def test_validate_data_before_training(museum, tmp_path):
    found, err = shell("validate-data", "--data-root", museum / "data", "--config-out", tmp_path / "clean.yaml")
    assert found["items"] == 9 and found["images"] == 81 and not found["errors"]
    assert {"E110"} <= {w["code"] for w in found["warnings"]}, "nine photos are fewer than ten"
    assert "1층" in err and "{" not in err
    words = ["--data-root", "d", "--save-dir", "s", "--config", str(tmp_path / "clean.yaml")]
    from ai_suite.lens.train import train

    assert arguments(train, words)["data_root"] == "d"


def test_validate_data_ends_with_2_when_there_are_errors(museum, tmp_path):
    data = Path(shutil.copytree(museum / "data/1층", tmp_path / "data/1층")).parent
    for f in sorted((data / "1층/누각 ㄴ").glob("*.jpg"))[2:]:
        f.unlink()
    found, err = shell("validate-data", "--data-root", data, code=2)
    assert [e["code"] for e in found["errors"]] == ["E110"] and "누각 ㄴ" in found["errors"][0]["what"]


def test_training_writes_what_the_contract_names(trained):
    run, out, err = trained
    told = json.loads(out)
    assert out.count("\n") == 1, "JSON and nothing else on stdout"
    assert told["mode"] == "frozen" and "epoch 40/40" in err and "{" not in err
    about = check_run(run)
    wanted = {*FILES, "metrics.json", "history.csv", "validation.safetensors"}
    assert wanted <= set(about["files"]) and all((run / name).is_file() for name in (*wanted, "run.json"))
    assert about["seed"] == 42 and about["config"]["lr"] == 2e-3 and about["config"]["backbone"] == "efficientnet_lite0"
    assert about["config"]["augment"]["horizontal_flip"] and about["config"]["augment"]["color_jitter"] == 0.2
    assert (told["thresholds"]["*"]["T"], told["thresholds"]["*"]["M"]) == (0.62, 0.12), "reject: of the YAML"
    assert len((run / "history.csv").read_text().splitlines()) == 41
    assert json.loads((run / "metrics.json").read_text())["top1_place"] == told["top1_place"] > 0.6
    assert {".commit"}.isdisjoint(p.name for p in run.iterdir())


def test_the_network_is_written_as_the_yaml_asks_or_it_says_why_not(trained):
    told = json.loads(trained[1])["onnx"]
    assert told["file"] == "best.onnx" and told["parity"]["photos"] >= 200 and told["parity"]["flipped"] == 0
    assert told["parity"]["max_abs_error"] <= 1e-4
    assert told["opset"] == 17 or (told["opset_asked"] == 17 and "opset 18" in told["note"])


def same(a, b):
    "Answers of one model in two formats."
    assert a.keys() == b.keys() and a["decision"] == b["decision"]
    assert [p["item"] for p in a["predictions"]] == [p["item"] for p in b["predictions"]]
    assert [p["score"] for p in a["predictions"]] == pytest.approx([p["score"] for p in b["predictions"]], abs=2e-4)


def test_infer_says_the_same_from_every_model_file(run, museum, photo):
    "Folder, checkpoint and ONNX; accepted and not, and both end with 0."
    strange = next((museum / "ood/벽").glob("*.jpg"))
    for image, keys in ((photo, {"selected_item", "confidence"}), (strange, {"message", "hints"})):
        ask = ("--place", "1층", "--image", image, "--topk", 2)
        first, err = shell("infer", "--model", run, *ask)
        assert set(first) == TOLD | keys and first["place"] == "1층" and not err
        assert all(set(p) == {"item", "score"} for p in first["predictions"]) and len(first["predictions"]) == 2
        for name in ("best.ckpt", "best.onnx"):
            same(first, shell("infer", "--model", run / name, *ask)[0])
    assert first["message"] == RECOLLECT and isinstance(first["hints"], list) and first["decision"] == "recollect"


def test_infer_reads_the_other_checkpoints(run, photo):
    for name in ("best_auroc_reject.ckpt", "last.pt"):
        told, _ = shell("infer", "--model", run / name, "--place", "1층", "--image", photo)
        assert TOLD < set(told) and len(told["predictions"]) == 3


def test_an_answer_as_the_document_shows_it(run, photo):
    told, _ = shell("infer", "--model", run, "--place", "1층", "--image", photo, "--reject-threshold", 0.62)
    assert told["decision"] == "accept" and told["selected_item"] == "누각 ㄱ" == told["predictions"][0]["item"]
    assert told["confidence"] == told["predictions"][0]["score"] >= 0.62
    scores = [p["score"] for p in told["predictions"]]
    assert scores == sorted(scores, reverse=True) and sum(scores) <= 1.0001
    assert list(told) == ["place", "predictions", "decision", "selected_item", "confidence"]


def test_infer_as_a_process(run, photo):
    done = process("infer", "--model", run / "best.onnx", "--place", nfd("1층"), "--image", photo, "--pretty")
    assert done.returncode == 0 and json.loads(done.stdout)["place"] == "1층" and not done.stderr
    assert done.stdout.startswith("{\n") and "누각" in done.stdout, "Hangul is not escaped"


def test_both_normal_forms_of_a_place_give_the_same(run, photo):
    a, b = (shell("infer", "--model", run, "--place", f("1층"), "--image", photo)[0] for f in (str, nfd))
    assert a == b


def test_wrong_words_end_with_2_and_name_what_was_meant(run, photo, museum, tmp_path):
    image = ("--image", photo)
    for words, code, hint in (
        (("infer", "--model", run, "--place", "4층", *image), "E301", "1층"),
        (("infer", "--model", run, "--place", "3층", *image), "E301", "1층"),
        (("infer", "--model", tmp_path / "none", "--place", "1층", *image), "E200", "none"),
        (("infer", "--model", run, "--place", "1층", "--image", tmp_path / "none.jpg"), "E101", "none.jpg"),
        (("infer", "--model", run, "--place", "1층", *image, "--topk", 0), "E301", "topk"),
        (("infer", "--model", run, "--place", "1층", *image, "--reject-threshold", 62), "E301", "62"),
        (("infer", "--model", run, "--place", "1층", *image, "--rejct-threshold", 0.6), "E300", "--reject-threshold"),
        (("infer", "--model", run, *image), "E301", "--place"),
        (("inferr",), "E300", "infer"),
        (("train", "--data-root", museum / "data"), "E301", "--save-dir"),
        (("evaluate", "--model", run, "--data-root", museum / "data", "--kfold", 1), "E301", "kfold"),
        (("tune", "--model", run, "--target-far", 5), "E301", "target"),
        (("export", "--ckpt", run / "best.onnx", "--onnx", tmp_path / "x.onnx"), "E200", "exported"),
        (("export", "--ckpt", run), "E301", "--onnx"),
    ):
        told, err = shell(*words, code=2)
        assert told is None and err.startswith(code) and hint in err and err.count("\n") == 1, (words, err)


def test_list_flags_both_ways():
    from ai_suite.lens.enroll import enroll
    from ai_suite.lens.evaluate import evaluate
    from ai_suite.lens.train import train

    for f, flag, rest in ((train, "--place", ["--data-root", "d", "--save-dir", "s"]),
                          (evaluate, "--holdout", ["--model", "m", "--data-root", "d"]),
                          (enroll, "--images", ["--model", "m", "--place", "a", "--item", "b"])):  # fmt: skip
        twice, once_ = [flag, "a", flag, "b"], [flag, "a", "b"]
        assert arguments(f, rest + twice) == arguments(f, rest + once_) == arguments(f, once_ + rest)
        assert arguments(f, rest + twice)[flag[2:]] == ["a", "b"]


def test_the_yaml_of_the_document_and_flags_over_it(museum):
    from ai_suite.lens.train import train

    words = ["--config", str(museum / "default.yaml"), "--data-root", "d", "--save-dir", "s"]
    given = arguments(train, words)
    assert given["backbone"] == "vit_b16" and given["lr"] == 3e-4 and given["embedding"] == 512 and given["export_onnx"] is True
    assert given["export_opset"] == 17 and given["reject_threshold"] == 0.62 and given["augment_horizontal_flip"] is True
    assert arguments(train, [*words, "--backbone", "resnet50"])["backbone"] == "resnet50"


def test_infer_batch_writes_a_line_per_photo_and_goes_on(run, photo, museum, tmp_path):
    captures, out = tmp_path / "captures", tmp_path / "x.jsonl"
    (captures / nfd("오전")).mkdir(parents=True)
    for k, f in enumerate(sorted((museum / "data/1층/누각 ㄱ").glob("*.jpg"))[:4]):
        shutil.copy(f, captures / nfd("오전") / f"{k}.jpg")
    (captures / "bad.jpg").write_text("no photo")
    words = ("infer-batch", "--model", run, "--place", "1층", "--input-dir", captures, "--output", out)
    told, err = shell(*words)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["bad.jpg", *(f"오전/{k}.jpg" for k in range(4))]
    assert set(lines[0]) == {"image", "error"} and set(lines[0]["error"]) == {"code", "what", "fix"}
    single, _ = shell("infer", "--model", run, "--place", "1층", "--image", photo)
    same({"image": "오전/0.jpg"} | single, lines[1])
    count = lambda what: sum(line.get("decision") == what for line in lines)
    assert (told["images"], told["errors"], told["accepted"], told["recollect"]) == (5, 1, count("accept"), count("recollect"))
    whole = out.read_bytes()
    assert shell(*words)[0] == told and out.read_bytes() == whole, "nothing is asked twice"
    out.write_bytes(whole[: len(whole) // 2])
    again, err = shell(*words)
    assert again == told and out.read_bytes() == whole and "photos have their answer" in err


def test_tune_writes_thresholds_into_the_model(own, photo, tmp_path):
    told, err = shell("tune", "--model", own, "--target-far", 0.2, "--output", tmp_path / "tuning.html")
    assert told["target_far"] == 0.2 and {"T", "M", "D"} <= set(told["thresholds"]["*"]) and told["tried"] and "{" not in err
    assert {"T", "M", "D", "false_accept", "low", "high"} <= set(told["rows"][0])
    page = (tmp_path / "tuning.html").read_text()
    assert "<html" in page and "false accepts" in page and "src=\"http" not in page
    from ai_suite.lens.bundle import load_bundle

    away = Path(shutil.copy(own / "best.onnx", tmp_path / "moved.onnx"))
    for model in (own, own / "best.ckpt", away):
        assert load_bundle(model).gallery.thresholds == told["thresholds"] and load_bundle(model).gallery.revision >= 0
    strict, _ = shell("tune", "--model", own, "--target-far", 0.01)
    assert strict["rows"][0]["correct_accept"] <= told["rows"][0]["correct_accept"] + 1e-9
    assert shell("infer", "--model", own, "--place", "1층", "--image", photo)[0]["decision"] in ("accept", "recollect")


FIGURES = {"top1_place", "top3_place", "top1", "top3", "map", "reject_auroc", "eer", "fpr_at_95tpr", "ece"}


def test_evaluate_with_strangers(run, museum, tmp_path):
    words = ("evaluate", "--model", run, "--data-root", museum / "data", "--ood", museum / "ood", "--output", tmp_path)
    told, err = shell(*words)
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert kept == told and set(kept) >= FIGURES and all(0 <= kept[k] <= 1 for k in FIGURES)
    assert kept["top1_place"] >= 0.8 and kept["reject_auroc"] > 0.9
    assert "trained on" in err and kept["counts"]["trained_on"] > 0 and "3층" in err, "what a reader must know"
    assert kept["unseen"]["photos"] + kept["counts"]["trained_on"] == kept["counts"]["photos"] == 54
    assert (tmp_path / "answers.csv").read_text().startswith("image,kind,place,truth,answer")


def test_evaluate_by_training_anew(run, museum, tmp_path):
    "Two folds, and a place that is left out of training."
    words = ("evaluate", "--model", run / "best.ckpt", "--data-root", museum / "data", "--kfold", 2, "--holdout", "1층")
    told, err = shell(*words, "--output", tmp_path)
    assert told["how"] == "2-fold" and set(told) >= FIGURES and told["top1_place"] > 0.5
    assert not any("trained on" in w for w in told["warnings"])
    place = told["holdout"]["1층"]
    assert place["enrolled_from"] == 5 and set(place) >= FIGURES and place["photos"] > 0


def test_report(run, museum, tmp_path):
    words = ("report", "--model", run, "--data-root", museum / "data", "--ood", museum / "ood", "--output", tmp_path)
    told, _ = shell(*words)
    page = Path(told["report"]).read_text()
    assert Path(told["report"]) == tmp_path / "report.html" and "누각 ㄱ" in page and "charset" in page.lower()
    links = [page[i : i + 60] for at in ("http://", "https://") for i in range(len(page)) if page.startswith(at, i)]
    assert all(link.startswith("http://www.w3.org/") for link in links), links
    assert page.count("src=") == page.count('src="data:image/'), "nothing is fetched"
    assert set(json.loads(Path(told["json"]).read_text())) >= FIGURES and str(museum) not in page


def test_index_from_the_root_and_from_the_place(run, museum, photo, tmp_path):
    words, roots = ("build-index", "--model", run, "--place", nfd("1층")), (museum / "data", museum / "data/1층")
    built = [shell(*words, "--data-root", root, "--save", tmp_path / f"{k}.index")[0] for k, root in enumerate(roots)]
    assert built[0] | {"index": ""} == built[1] | {"index": ""} and built[0]["items"] == 3 and built[0]["photos"] == 27
    ask = ("infer", "--model", run, "--place", "1층", "--image", photo)
    with_index, without = shell(*ask, "--index", tmp_path / "0.index")[0], shell(*ask)[0]
    assert with_index["selected_item"] == without["selected_item"]
    assert with_index["confidence"] == pytest.approx(without["confidence"], abs=2e-3)
    told, err = shell("build-index", "--model", run, "--data-root", museum / "data", "--place", "9층", "--save", "x", code=2)
    assert told is None and err.startswith("E301")


def test_enroll_infer_and_remove(own, run, museum, tmp_path):
    photos = sorted((museum / "data/3층").iterdir())[0]
    name, (new, *others) = photos.name, sorted(photos.glob("*.jpg"))
    shell("build-index", "--model", own, "--data-root", museum / "data", "--place", "1층", "--save", tmp_path / "old.index")
    words = ("enroll", "--model", own, "--place", nfd("1층"), "--item", nfd("새 전시품"))
    told, _ = shell(*words, "--images", *others[:3], "--images", *others[3:])
    assert told["action"] == "enrolled" and told["added"] == 8 and told["items"] == 4 and told["revision"] == 1
    away = Path(shutil.copy(own / "best.onnx", tmp_path / "전화기.onnx"))
    for model in (own, away, own / "best.ckpt"):
        said, _ = shell("infer", "--model", model, "--place", "1층", "--image", new)
        assert said["predictions"][0]["item"] == "새 전시품", name
        assert said["predictions"][0]["score"] > 0.3
    told, err = shell("infer", "--model", own, "--place", "1층", "--image", new, "--index", tmp_path / "old.index", code=2)
    assert err.startswith("E200") and "stale" in err
    told, _ = shell(*words, "--remove")
    assert told["action"] == "removed" and told["revision"] == 2
    ask = ("--place", "1층", "--image", new)
    back, never = (shell("infer", "--model", m, *ask)[0] for m in (own, run))
    assert back == never
    told, _ = shell("enroll", "--model", away, "--place", "4층", "--item", "하나", "--images", *others)
    only, _ = shell("infer", "--model", away, "--place", "4층", "--image", new)
    assert told["action"] == "enrolled" and [p["item"] for p in only["predictions"]] == ["하나"]


def test_sdk(run, photo):
    from ai_suite.lens.sdk import Lens

    lens = Lens(model_path=str(run / "best.onnx"))
    result = lens.infer(place="1층", image_path=str(photo), reject_threshold=0.62)
    assert (result.decision, result.selected_item) == ("accept", "누각 ㄱ") and result.confidence >= 0.62
    assert result.as_dict() == shell("infer", "--model", run, "--place", "1층", "--image", photo)[0]


def test_a_phone_needs_no_training_library(run, photo, tmp_path):
    away = shutil.copy(run / "best.onnx", tmp_path / "m.onnx")
    code = (
        "import sys\nfrom ai_suite.lens.sdk import Lens\n"
        f"r = Lens(model_path={str(away)!r}).infer(place='1층', image_path={str(photo)!r})\n"
        "assert r.selected_item == '누각 ㄱ', r\n"
        "heavy = {'torch', 'timm', 'fastai', 'sklearn', 'pandas', 'cv2', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy():
    code = (
        "import sys, contextlib, io\nfrom ai_suite.lens.cli import main\n"
        f"for words in {[(c, '--help') for c in COMMANDS]} + [('--help',)]:\n"
        "    text = io.StringIO()\n"
        "    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit): main(list(words))\n"
        "    assert 'usage' in text.getvalue(), words\n"
        "    heavy = {'torch', 'timm', 'fastai', 'sklearn', 'scipy', 'pandas', 'onnx', 'faiss'} & set(sys.modules)\n"
        "    assert not heavy, (words, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_commands_are_the_ones_of_the_contract():
    wanted = "validate-data train evaluate tune build-index enroll infer infer-batch export report"
    assert sorted(COMMANDS) == sorted(wanted.split())


def test_photos_from_a_phone_are_turned_and_shrunk(run, photo, tmp_path):
    "A larger photo of the same scene, lying on its side with the mark that says so."
    im = Image.open(photo).resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    im.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.JPG", exif=exif, quality=92)
    told, _ = shell("infer", "--model", run / "best.onnx", "--place", "1층", "--image", tmp_path / "phone.JPG")
    assert told["predictions"][0]["item"] == "누각 ㄱ"
