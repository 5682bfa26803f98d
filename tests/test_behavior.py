"""The behavior commands as a user types them, on good and on bad input."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

BIN = Path(sys.executable).parent


def call(*words: object, **env: str) -> subprocess.CompletedProcess:
    "Run a command of the suite."
    line = [str(BIN / str(words[0])), *map(str, words[1:])]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, env=os.environ | env, check=False)


def good(*words: object, **env: str) -> dict:
    "Run a command that must succeed, and read its answer."
    ran = call(*words, **env)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def refused(code: str, *words: object, **env: str) -> str:
    "Run a command that must stop with this error, without a traceback and without an answer."
    ran = call(*words, **env)
    assert ran.returncode == 2, (ran.returncode, ran.stderr)
    assert ran.stderr.strip().splitlines()[-1].startswith(code), ran.stderr
    assert "Traceback" not in ran.stderr and ran.stdout == ""
    return ran.stderr


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Clips, datasets and a model, in a folder with a space and Hangul in its name."
    from ai_suite.behavior.samples import clip_jobs, make_clips

    root = tmp_path_factory.mktemp("행동 data")
    make_clips([*clip_jobs(root / "normal", 6, ["walk", "reach", "crouch"], "beige", ["pagoda", "fence"]),
                *clip_jobs(root / "anomaly", 4, ["fall"], "beige", ["pagoda", "fence"], seed=1)], workers=1)
    for kind in ("normal", "anomaly"):
        good(f"build-dataset-{kind}", "--video-root", root / kind / "videos", "--xml-root", root / kind / "xml",
             "--out-dir", root / "data" / kind, "--stride", 6, "--workers", 1,
             *(["--normal-labels", "walk"] if kind == "anomaly" else []))
    good("train-lstm-model", "--data-dir", root / "data/normal", root / "data/anomaly", "--epochs", 1, "--batch", 16,
         "--device", "cpu", "--val-ratio", 0.4, "--save", root / "model/m.pt", "--export-onnx")
    return root


def frames(root: Path, n: int = 30, name: str = "frames.json", wrap: bool = True) -> Path:
    "A JSON file with the first frames of a window."
    x = np.load(root / "data/anomaly/X.npy")[0]
    rows = np.tile(x, (-(-n // len(x)), 1))[:n].tolist()
    path = root / name
    path.write_text(json.dumps({"frames": rows} if wrap else rows))
    return path


def test_dataset_folder(world: Path) -> None:
    for kind in ("normal", "anomaly"):
        folder = world / "data" / kind
        X, Y, groups = (np.load(folder / f"{n}.npy") for n in ("X", "Y", "groups"))
        meta = json.loads((folder / "meta.json").read_text())
        assert X.dtype == np.float32 and X.shape[1:] == (30, 132) and Y.dtype == np.float32
        assert len(X) == len(Y) == len(groups) and groups.dtype.kind == "U"
        wanted = {"labels", "label_kinds", "feature_names", "window_size", "stride", "overlap", "fps", "resize_w",
                  "model_complexity", "videos", "skipped"}
        assert wanted <= set(meta) and kind in meta["label_kinds"].values() and len(meta["feature_names"]) == 132
        assert meta["label_kinds"].get("fall", "anomaly") == "anomaly" and meta["label_kinds"].get("walk") != "anomaly"
    assert np.load(world / "data/anomaly/Y.npy").any() and not np.load(world / "data/anomaly/Y.npy").all()


def test_checkpoint_and_run(world: Path) -> None:
    import torch

    bundle = torch.load(world / "model/m.pt", weights_only=True)
    assert {"state_dict", "meta", "thresholds", "metrics", "config"} <= set(bundle)
    assert bundle["meta"]["labels"] == ["crouch", "fall", "reach", "walk"] and len(bundle["thresholds"]) == 4
    split = bundle["metrics"]["split"]
    assert not set(split["train"]) & set(split["validation"])
    names = {p.name for p in (world / "model/m").iterdir()}
    assert {"run.json", "metrics.json", "history.csv", "model.safetensors", "report.html"} <= names


def test_inference_answer(world: Path) -> None:
    answer = good("run-lstm-inference", "-c", world / "model/m.pt", "-i", frames(world, 47), "-d", "cpu", "--pretty")
    assert set(answer) == {"decision", "labels", "probabilities", "thresholds", "predicted", "anomaly_score", "windows"}
    fall = answer["labels"].index("fall")
    assert answer["anomaly_score"] == answer["probabilities"][fall]
    assert (answer["decision"] == "anomaly") == ("fall" in answer["predicted"])
    assert answer["probabilities"] == [max(w["probabilities"][c] for w in answer["windows"]) for c in range(4)]
    assert answer["windows"][-1]["end"] == 47
    bare = good("run-lstm-inference", "--checkpoint", world / "model/m", "--input-json",
                frames(world, 47, "bare.json", wrap=False), "--device", "cpu")
    assert bare["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-6)


def test_short_input_is_filled_up(world: Path) -> None:
    answer = good("run-lstm-inference", "-c", world / "model/m.pt", "-i", frames(world, 3, "short.json"), "-d", "cpu")
    assert [(w["start"], w["end"]) for w in answer["windows"]] == [(0, 3)]


def test_analyze_video(world: Path) -> None:
    video = next((world / "anomaly/videos").glob("*.mp4"))
    out, page = world / "events.json", world / "events.html"
    answer = good("analyze-video", "--video", video, "--checkpoint", world / "model/m.pt", "--output", out, "--report", page,
                  "--overlay", world / "events.mp4", "--device", "cpu")
    from ai_suite.video.frames import probe

    assert abs(probe(world / "events.mp4")["n_frames"] - probe(video)["n_frames"]) <= 1
    assert answer == json.loads(out.read_text()) and {"video", "fps", "duration", "events"} <= set(answer)
    assert str(world) not in page.read_text()
    assert all({"start", "end", "label", "kind", "confidence", "track"} <= set(e) for e in answer["events"])


def answers_by_onnx(world: Path, *extra: object) -> dict:
    return good("run-lstm-inference", "-i", frames(world, 47), "-d", "cpu", *extra)


def test_onnx_answers_as_torch(world: Path) -> None:
    assert (world / "model/m.onnx").read_bytes() == (world / "model/m/model.onnx").read_bytes()
    ours = answers_by_onnx(world, "-c", world / "model/m.pt")
    for extra in (["-c", world / "model/m.pt", "--onnx", world / "model/m.onnx"], ["-c", world / "model/m.onnx"],
                  ["-c", world / "model/m", "--onnx"]):
        theirs = answers_by_onnx(world, *extra)
        assert theirs["probabilities"] == pytest.approx(ours["probabilities"], abs=1e-4)
        assert theirs["predicted"] == ours["predicted"] and theirs["windows"][-1]["end"] == 47


def test_onnx_of_another_model_is_refused(world: Path, tmp_path: Path) -> None:
    good("train-lstm-model", "--data-dir", world / "data/normal", world / "data/anomaly", "--epochs", 1, "--device", "cpu",
         "--val-ratio", 0.4, "--model", "tcn", "--seed", 5, "--save", tmp_path / "t.pt", "--export-onnx")
    refused("E203", "run-lstm-inference", "-c", world / "model/m.pt", "--onnx", tmp_path / "t.onnx", "-i", frames(world))
    refused("E200", "run-lstm-inference", "-c", world / "model/m.pt", "--onnx", tmp_path / "none.onnx", "-i", frames(world))


def test_analyze_by_onnx(world: Path) -> None:
    video = next((world / "anomaly/videos").glob("*.mp4"))
    ours, theirs = (good("analyze-video", "--video", video, "--checkpoint", world / "model/m.pt", "--device", "cpu", *extra)
                    for extra in ([], ["--onnx", world / "model/m.onnx"]))
    assert [(e["label"], e["track"]) for e in ours["events"]] == [(e["label"], e["track"]) for e in theirs["events"]]


@pytest.mark.parametrize("every", [1, 3])
def test_stream_equals_batch(world: Path, every: int) -> None:
    from ai_suite.behavior.model import load_scorer
    from ai_suite.behavior.stream import BehaviorStream, replayed
    from ai_suite.video.pose import video_pose

    rng = np.random.default_rng(every)
    clip = video_pose(next((world / "anomaly/videos").glob("*.mp4")))
    pose = np.concatenate([clip["pose"]] * 3)
    pose[40:44] = np.nan
    t = np.cumsum(rng.uniform(0.03, 0.13, len(pose)))
    t[60:] += 1.7
    for scorer in (load_scorer(world / "model/m.pt"), load_scorer(world / "model/m.onnx")):
        whole = replayed(pose, scorer, t, 16 / 9, every)
        stream = BehaviorStream(scorer, 16 / 9, every)
        answers = [stream.push(row, when) for row, when in zip(pose, t, strict=True)]
        said = {a["t"]: a["probabilities"] for a in answers if a["ready"]}
        events = sorted([e for a in answers for e in a["ended"]] + stream.close(), key=lambda e: (e["start"], e["label"]))
        assert events == whole["events"]
        mine = np.array([whole["probabilities"][np.abs(whole["t"] - when).argmin()] for when in said])
        live = np.array(list(said.values()))
        np.testing.assert_allclose(live, mine, atol=1e-5)
        assert len(said) > 10 and ((live >= scorer.thresholds) == (mine >= scorer.thresholds)).all()
        assert {e["label"] for a in answers for e in a["started"]} == {e["label"] for e in events}


def test_stream_takes_numbers_and_keeps_its_own_time(world: Path) -> None:
    from ai_suite.behavior.stream import BehaviorStream

    x = np.load(world / "data/anomaly/X.npy")[0]
    stream = BehaviorStream(world / "model/m.onnx")
    answers = [stream.push(row.tolist()) for row in x]
    assert [a["ready"] for a in answers] == [False] * 29 + [True]
    batch = good("run-lstm-inference", "-c", world / "model/m.onnx", "-i", frames(world, 30))
    assert answers[-1]["probabilities"] == pytest.approx(batch["probabilities"], abs=1e-5)
    assert stream.push(np.zeros(132))["ready"] and stream.push(x[0].reshape(33, 4))["ready"]


@pytest.mark.parametrize("extra", [[], ["--realtime"], ["--people"]])
def test_watch_video(world: Path, extra: list[str]) -> None:
    video = sorted((world / "normal/videos").glob("walk*.mp4"))[0]
    ran = call("watch-video", "--source", video, "--checkpoint", world / "model/m.onnx", *extra)
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    for row in rows:
        assert set(row) == {"change", "t", "start", "end", "label", "kind", "confidence", "track"}
        assert (row["end"] is None) == (row["change"] == "started") and row["t"] + 1e-6 >= row["start"]
        assert (row["track"] is None) != ("--people" in extra)
    begun, over = ([(r["label"], r["start"], r["track"]) for r in rows if r["change"] == c] for c in ("started", "ended"))
    assert sorted(begun) == sorted(over)


def test_ctrl_c_ends_what_is_going_on(world: Path, tmp_path: Path) -> None:
    "A file at its own rate is left in the middle: each event that began is also ended."
    from ai_suite.behavior.samples import make_clips
    from ai_suite.suite.demo import TRAIN

    job = dict(name="long", motion=["walk"] * 5, folder=str(tmp_path), seed=(1,), **TRAIN)
    video, = make_clips([job], workers=1)
    line = [str(BIN / "watch-video"), "--source", str(video), "--checkpoint", str(world / "model/m.onnx"), "--realtime"]
    job = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(14)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130 and "Traceback" not in err, err
    rows = [json.loads(line) for line in out.splitlines()]
    begun, over = (sorted((r["label"], r["start"]) for r in rows if r["change"] == c) for c in ("started", "ended"))
    assert begun == over


def test_watch_without_a_camera(world: Path) -> None:
    refused("E400", "watch-video", "--source", "97", "--checkpoint", world / "model/m.onnx")
    refused("E101", "watch-video", "--source", world / "none.mp4", "--checkpoint", world / "model/m.onnx")


def test_several_people_and_a_gate(world: Path) -> None:
    video = next((world / "anomaly/videos").glob("*.mp4"))
    answer = good("analyze-video", "--video", video, "--checkpoint", world / "model/m.onnx", "--people", "--overlay",
                  world / "people.mp4", "--report", world / "people.html")
    assert all(isinstance(e["track"], int) for e in answer["events"]) and (world / "people.html").stat().st_size > 10_000
    gated = good("analyze-video", "--video", video, "--checkpoint", world / "model/m.onnx", "--gate")
    assert all(e["track"] is None for e in gated["events"])


BAD_JSON = ["", "{", "[]", '{"frames": []}', "[[1, 2], [3]]", '[["a"]]', "[[NaN]]", "[1, 2]", '{"x": 1}']


@pytest.mark.parametrize("text", BAD_JSON)
def test_bad_json(world: Path, text: str) -> None:
    path = world / "bad.json"
    path.write_text(text)
    refused("E10", "run-lstm-inference", "-c", world / "model/m.pt", "-i", path, "-d", "cpu")


def test_wrong_width(world: Path) -> None:
    path = world / "narrow.json"
    path.write_text("[[1, 2, 3]]")
    refused("E203", "run-lstm-inference", "-c", world / "model/m.pt", "-i", path, "-d", "cpu")


def test_landmarks_beyond_reason(world: Path) -> None:
    path = frames(world, name="huge.json")
    rows = json.loads(path.read_text())["frames"]
    rows[3][44] = 1e20
    path.write_text(json.dumps(rows))
    refused("E103", "run-lstm-inference", "-c", world / "model/m.pt", "-i", path, "-d", "cpu")


def test_same_video_on_both_sides_is_refused(world: Path) -> None:
    from ai_suite.behavior.evaluate import evaluate
    from ai_suite.core.errors import SuiteError

    with pytest.raises(SuiteError, match="E105"):
        evaluate(world / "model/m.pt", [world / "data/normal", world / "data/anomaly"], world / "data/anomaly", n=10)


def test_a_second_demo_starts_anew(tmp_path: Path) -> None:
    from ai_suite.suite import demo

    plan = {"normal": 1, "anomaly": 1, "test": 1}
    (tmp_path / "train_normal/videos").mkdir(parents=True)
    (tmp_path / "train_normal/videos/old.mp4").write_bytes(b"x")
    assert demo.generate(tmp_path, plan, seed=0, workers=1) == 3
    made = sorted(p.name for p in tmp_path.glob("*/videos/*"))
    assert made == ["fall_beige_000.mp4", "walk_beige_000.mp4", "walk_black_000.mp4"]


def test_hostile_model_files(world: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path}/owned",)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    refused("E20", "run-lstm-inference", "-c", tmp_path / "evil.pt", "-i", frames(world), "-d", "cpu")
    assert not (tmp_path / "owned").exists()


def test_changed_byte(world: Path, tmp_path: Path) -> None:
    import shutil

    run = Path(shutil.copytree(world / "model/m", tmp_path / "m"))
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (run / "model.safetensors").write_bytes(data)
    refused("E202", "run-lstm-inference", "-c", run, "-i", frames(world), "-d", "cpu")


def test_one_bad_video_stops_nothing(world: Path, tmp_path: Path) -> None:
    import shutil

    for part in ("videos", "xml"):
        shutil.copytree(world / "normal" / part, tmp_path / part)
    first, second, third = sorted((tmp_path / "videos").glob("*.mp4"))[:3]
    first.write_bytes(first.read_bytes()[:4000])
    second.write_bytes(b"")
    (tmp_path / "xml" / f"{third.stem}.xml").unlink()
    (tmp_path / "xml/lonely.xml").write_text("<annotations><version>1.1</version>")
    answer = good("build-dataset-normal", "--video-root", tmp_path / "videos", "--xml-root", tmp_path / "xml",
                  "--out-dir", tmp_path / "out", "--workers", 1)
    assert answer["videos"] == 3
    assert {Path(s["video"]).name for s in answer["skipped"]} >= {first.name, second.name, third.name, "lonely.xml"}
    assert all(s["code"] and s["fix"] for s in answer["skipped"])


def test_window_longer_than_the_clip(world: Path, tmp_path: Path) -> None:
    answer = good("build-dataset-normal", "--video-root", world / "normal/videos", "--xml-root", world / "normal/xml",
                  "--out-dir", tmp_path, "--window-size", 100, "--overlap", 0.1, "--workers", 1)
    assert answer["windows"] == answer["videos"] == 6


def test_wrong_folders_and_settings(world: Path, tmp_path: Path) -> None:
    roots = ("--video-root", world / "normal/videos", "--xml-root", world / "normal/xml")
    missing = ("--video-root", tmp_path / "no", "--xml-root", tmp_path)
    refused("E10", "build-dataset-normal", *missing, "--out-dir", tmp_path / "o")
    refused("E301", "build-dataset-normal", *roots, "--out-dir", tmp_path / "o", "--overlap", "2")
    refused("E105", "build-dataset-normal", *roots, "--out-dir", tmp_path / "o", "--labels", "swim")
    refused("E301", "build-dataset-normal", *roots)
    refused("E300", "build-dataset-normal", *roots, "--out-dir", tmp_path / "o", "--windowsize", "3")
    (tmp_path / "file").write_text("x")
    refused("E120", "build-dataset-normal", *roots, "--out-dir", tmp_path / "file" / "o", "--workers", "1")
    assert not list(tmp_path.glob("o/*.npy"))


def test_training_refuses_what_is_no_dataset(world: Path, tmp_path: Path) -> None:
    refused("E101", "train-lstm-model", "--data-dir", tmp_path / "none", "--save", tmp_path / "m.pt")
    refused("E100", "train-lstm-model", "--data-dir", tmp_path, "--save", tmp_path / "m.pt")
    refused("E301", "train-lstm-model", "--data-dir", world / "data/normal", "--save", tmp_path / "m.pkl")
    assert not list(tmp_path.glob("m*"))


def test_labels_of_two_kinds_clash(world: Path, tmp_path: Path) -> None:
    import shutil

    other = Path(shutil.copytree(world / "data/normal", tmp_path / "d"))
    meta = json.loads((other / "meta.json").read_text())
    meta["label_kinds"]["walk"] = "anomaly"
    (other / "meta.json").write_text(json.dumps(meta))
    refused("E105", "train-lstm-model", "--data-dir", world / "data/normal", "--data-dir", other, "--save", tmp_path / "m.pt")


def test_interrupted_training_resumes(world: Path, tmp_path: Path) -> None:
    line = [str(BIN / "train-lstm-model"), "--data-dir", str(world / "data/normal"), str(world / "data/anomaly"),
            "--epochs", "400", "--patience", "400", "--batch", "8", "--device", "cpu", "--val-ratio", "0.4",
            "--save", str(tmp_path / "m.pt")]
    job = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kept, began = tmp_path / "m/checkpoint/checkpoint.pt", time.time()
    while not kept.exists() and time.time() - began < 90:
        time.sleep(0.2)
    time.sleep(1.5)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 130 and out == "" and "Traceback" not in err, err
    assert kept.exists() and not (tmp_path / "m.pt").exists()


def test_same_seed_same_model(world: Path, tmp_path: Path) -> None:
    answers = [good("train-lstm-model", "--data-dir", world / "data/normal", world / "data/anomaly", "--epochs", 2,
                    "--device", "cpu", "--val-ratio", 0.4, "--seed", 3, "--save", tmp_path / f"{k}.pt") for k in "ab"]
    assert answers[0]["thresholds"] == answers[1]["thresholds"]
    a, b = ((tmp_path / k / "model.safetensors").read_bytes() for k in "ab")
    assert a == b


@pytest.mark.parametrize("model", ["tcn", "transformer", "minirocket"])
def test_one_epoch_of_the_other_networks(world: Path, tmp_path: Path, model: str) -> None:
    good("train-lstm-model", "--data-dir", world / "data/normal", world / "data/anomaly", "--epochs", 1, "--device", "cpu",
         "--val-ratio", 0.4, "--model", model, "--save", tmp_path / "m.pt")
    answer = good("run-lstm-inference", "-c", tmp_path / "m.pt", "-i", frames(world), "-d", "cpu")
    assert len(answer["probabilities"]) == 4


def test_config_file_gives_defaults(world: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 1\nval-ratio: 0.4\nlr: 3e-3\ndevice: cpu\n")
    answer = good("train-lstm-model", "--config", tmp_path / "c.yaml", "--data-dir", world / "data/normal",
                  "--save", tmp_path / "m.pt")
    assert answer["labels"] == ["crouch", "reach", "walk"]


BENCHMARKS = sorted((Path(__file__).resolve().parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda p: p.stem)
def test_the_benchmarks_find_what_they_call(script: Path) -> None:
    folders = [str(script.parent.parent / "tools"), str(script.parent)]
    code = f"import sys; sys.path[:0] = {folders!r}; import {script.stem}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_demo_beats_its_baseline(tmp_path: Path) -> None:
    answer = good("ai-suite", "demo", "--folder", tmp_path / "demo", "--scale", "full", "--seed", 1)
    lstm, logistic = answer["models"][:2]
    assert logistic["macro_f1"] <= 0.85 and lstm["macro_f1"] >= logistic["macro_f1"] + 0.05 and answer["difference"]["low"] > 0
