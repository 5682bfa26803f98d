"""What goes wrong in the field, through the behavior commands: a code, a fix, nothing half-made, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_behavior import BIN, call, good, refused

INTERVAL = '<track id="0" label="{}"><box frame="{}" outside="0"/><box frame="{}" outside="1"/></track>'
ENTITY = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotations>&x;</annotations>'
TENS = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefg", "bcdefgh", strict=True))
BOMB = f'<!DOCTYPE a [<!ENTITY a "ha">{TENS}]><annotations>&h;</annotations>'


def annotation(source: str, label: str = "걷기", start: int = 5, end: int = 35, size: int = 48, declared: str = "") -> str:
    "A CVAT export with one event."
    task = f"<task><size>{size}</size><source>{source}</source><labels>{declared}</labels></task>"
    return f"<annotations><meta>{task}</meta>{INTERVAL.format(label, start, end)}</annotations>"


def build(root: Path, out: Path, *more: object, kind: str = "normal") -> tuple[object, ...]:
    "The words of a build command."
    return (f"build-dataset-{kind}", "--video-root", root / "videos", "--xml-root", root / "xml", "--out-dir", out,
            "--stride", 6, "--workers", 1, *more)


def training(save: Path, *data: Path, epochs: int = 1) -> tuple[object, ...]:
    "The words of a training."
    return ("train-lstm-model", "--data-dir", *data, "--device", "cpu", "--epochs", epochs, "--val-ratio", 0.4, "--save", save)


def analysis(shop: Path, video: Path, *more: object, model: str = "m.pt") -> tuple[object, ...]:
    "The words of an analysis."
    return ("analyze-video", "--video", video, "--checkpoint", shop / "모델 1" / model, "--device", "cpu", *more)


def files_in(folder: Path) -> dict[str, bytes]:
    "Every file below a folder, hidden ones too."
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def poses_in(cache: Path) -> dict[str, int]:
    "The cached poses; the number changes when one is written again."
    return {p.name: p.stat().st_ino for p in cache.glob("??/*.npz")}


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Clips with Hangul labels, datasets and a model, in a folder with a space and Hangul in its name."
    from ai_suite.behavior.samples import clip_jobs, make_clips

    root = tmp_path_factory.mktemp("가게 데이터")
    make_clips([*clip_jobs(root / "normal", 4, ["walk", "crouch"], "beige", ["pagoda", "fence"]),
                *clip_jobs(root / "anomaly", 3, ["fall"], "beige", ["pagoda", "fence"], seed=1)], workers=1)
    for xml in root.glob("*/xml/*.xml"):
        text = xml.read_text("utf-8")
        for label, hangul in (("walk", "걷기"), ("crouch", "웅크리기"), ("fall", "낙상")):
            text = text.replace(f'label="{label}"', f'label="{hangul}"').replace(f"<name>{label}<", f"<name>{hangul}<")
        xml.write_text(text, "utf-8")
    good(*build(root / "normal", root / "data/normal"))
    good(*build(root / "anomaly", root / "data/anomaly", "--normal-labels", "걷기", kind="anomaly"))
    good(*training(root / "모델 1/m.pt", root / "data/normal", root / "data/anomaly"))
    return root


@pytest.fixture
def frames(shop: Path, tmp_path: Path) -> Path:
    "A JSON file with the frames of one window."
    path = tmp_path / "동작 1.json"
    path.write_text(json.dumps(np.load(shop / "data/anomaly/X.npy")[0].tolist()))
    return path


def some_clip(shop: Path) -> Path:
    return min((shop / "normal/videos").glob("walk*.mp4"))


# bad videos


def cut(path: Path, clip: Path) -> None:
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])


def zero_frames(path: Path, clip: Path) -> None:
    import cv2

    cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20, (64, 48)).release()


def sound(path: Path, clip: Path) -> None:
    with wave.open(str(path), "wb") as w:
        w.setparams((1, 2, 8000, 0, "NONE", ""))
        w.writeframes(bytes(16000))


def sound_mp4(path: Path, clip: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        for packet in [p for _ in range(20) for p in stream.encode(silence)] + list(stream.encode(None)):
            out.mux(packet)


def nobody(path: Path, clip: Path) -> None:
    from ai_suite.video.frames import write_video

    write_video(path, [np.full((96, 128, 3), 90 + k, np.uint8) for k in range(48)], 12)


def folder(path: Path, clip: Path) -> None:
    path.mkdir()


def text(path: Path, clip: Path) -> None:
    path.write_text("no video at all\n" * 100)


def nothing(path: Path, clip: Path) -> None:
    path.touch()


def first_frame(path: Path, clip: Path) -> None:
    from ai_suite.video.frames import frames, write_video

    write_video(path, [f for *_, f in frames(clip, start=20, stop=21)], 12)


BAD_VIDEOS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "cut.mp4": (cut, "E401"), "none.avi": (zero_frames, "E401"), "sound.avi": (sound, "E400"), "sound.mp4": (sound_mp4, "E400"),
    "nobody.mp4": (nobody, "E402"), "text.mp4": (text, "E400"), "empty.mp4": (nothing, "E400")}


def test_bad_videos_are_skipped_with_their_reason(shop: Path, tmp_path: Path) -> None:
    clip = some_clip(shop)
    (tmp_path / "videos").mkdir()
    (tmp_path / "xml").mkdir()
    for name, (make, _) in BAD_VIDEOS.items():
        make(tmp_path / "videos" / name, clip)
        (tmp_path / "xml" / f"{name}.xml").write_text(annotation(name))
    first_frame(tmp_path / "videos/one.mp4", clip)
    (tmp_path / "xml/one.xml").write_text(annotation("one.mp4", end=1, start=0, size=1))
    folder(tmp_path / "videos/folder.mp4", clip)
    (tmp_path / "xml/folder.xml").write_text(annotation("folder.mp4"))
    shutil.copy(clip, tmp_path / "videos/good.mp4")
    (tmp_path / "xml/good.xml").write_text(annotation("good.mp4"))
    answer = good(*build(tmp_path, tmp_path / "out"))
    skipped = {s["video"]: s["code"] for s in answer["skipped"]}
    assert skipped == {name: code for name, (_, code) in BAD_VIDEOS.items()} | {"folder.xml": "E101"}
    assert all(s["what"] and s["fix"] for s in answer["skipped"])
    videos = {v["video"]: v for v in json.loads((tmp_path / "out/meta.json").read_text())["videos"]}
    assert set(videos) == {"one.mp4", "good.mp4"} and videos["one.mp4"]["frames"] == videos["one.mp4"]["windows"] == 1


@pytest.mark.parametrize("name", [*BAD_VIDEOS, "folder.mp4", "absent.mp4"])
def test_bad_videos_are_refused(shop: Path, tmp_path: Path, name: str) -> None:
    make, code = BAD_VIDEOS.get(name, (folder if name == "folder.mp4" else lambda *_: None, "E101"))
    make(tmp_path / name, some_clip(shop))
    out = tmp_path / "out"
    said = refused(code, *analysis(shop, tmp_path / name, "--output", out / "e.json", "--report", out / "e.html",
                                   "--overlay", out / "e.mp4"))
    assert name in said and "→" in said and not out.exists()


def test_one_frame_is_a_video(shop: Path, tmp_path: Path) -> None:
    first_frame(tmp_path / "one.mp4", some_clip(shop))
    answer = good(*analysis(shop, tmp_path / "one.mp4", "--overlay", tmp_path / "o.mp4", "--report", tmp_path / "r.html"))
    assert answer["duration"] == pytest.approx(1 / 12, abs=1e-3) and (tmp_path / "o.mp4").stat().st_size


def test_a_video_with_its_index_in_front_is_used_as_far_as_it_goes(shop: Path, tmp_path: Path) -> None:
    from test_video import index_first

    data = index_first(some_clip(shop).read_bytes())
    (tmp_path / "videos").mkdir()
    (tmp_path / "xml").mkdir()
    (tmp_path / "videos/cut.mp4").write_bytes(data[: len(data) * 4 // 5])
    (tmp_path / "xml/cut.xml").write_text(annotation("cut.mp4"))
    good(*build(tmp_path, tmp_path / "out"))
    (video,) = json.loads((tmp_path / "out/meta.json").read_text())["videos"]
    assert 0 < video["frames"] < 48
    answer = good(*analysis(shop, tmp_path / "videos/cut.mp4"))
    assert answer["duration"] == pytest.approx(video["frames"] / 12, abs=1e-3)


# bad annotations


def test_bad_annotations_are_skipped_with_their_reason(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "xml").mkdir()
    for name in ("good", "deep", "alone"):
        shutil.copy(some_clip(shop), tmp_path / f"videos/{name}.mp4")
    texts = {"good": annotation("good.mp4"), "bomb": BOMB, "entity": ENTITY, "lonely": annotation("lost.mp4"),
             "deep": annotation("deep.mp4", declared="<a>" * 2000 + "</a>" * 2000),
             "large": annotation("good.mp4") + " " * (70 << 20), "cut": annotation("good.mp4")[:100]}
    for name, content in texts.items():
        (tmp_path / f"xml/{name}.xml").write_text(content)
    answer = good(*build(tmp_path, tmp_path / "out"))
    assert answer["videos"] == 1
    assert {s["video"]: s["code"] for s in answer["skipped"]} == {
        "bomb.xml": "E102", "entity.xml": "E102", "deep.xml": "E102", "large.xml": "E102", "cut.xml": "E102",
        "lonely.xml": "E101", "alone.mp4": "E104", "deep.mp4": "E104"}
    hostname = Path("/etc/hostname").read_text().strip() if Path("/etc/hostname").exists() else "localhost"
    assert hostname not in (tmp_path / "out/meta.json").read_text()


@pytest.mark.parametrize("content", [BOMB, ENTITY, "<annotations>" + "<a>" * 5000 + "</a>" * 5000 + "</annotations>"])
def test_only_bad_annotations_stop_the_build(shop: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml/a.xml").write_text(content)
    (tmp_path / "videos").symlink_to(shop / "normal/videos")
    assert "a.xml" in refused("E104", *build(tmp_path, tmp_path / "out")) and not (tmp_path / "out").exists()


def test_what_the_reader_guessed_is_told(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "xml").mkdir()
    shutil.copy(some_clip(shop), tmp_path / "videos/a.mp4")
    (tmp_path / "xml/a.xml").write_text(annotation("a.mp4", label="미등록", declared="<label><name>걷기</name></label>"))
    ran = call(*build(tmp_path, tmp_path / "out"))
    assert ran.returncode == 0 and "a.mp4: labels used but not declared: 미등록" in ran.stderr
    assert json.loads(ran.stdout)["labels"] == ["미등록"]


def test_equal_names_in_different_folders(shop: Path, tmp_path: Path) -> None:
    clips = sorted((shop / "normal/videos").glob("*.mp4"))
    for place, clip, label in zip(("동쪽", "서쪽"), clips, ("걷기", "웅크리기"), strict=False):
        (tmp_path / "videos" / place).mkdir(parents=True)
        shutil.copy(clip, tmp_path / "videos" / place / "cam.mp4")
        far = tmp_path / "xml" / unicodedata.normalize("NFD", place)
        far.mkdir(parents=True)
        (far / "cam.xml").write_text(annotation("cam.mp4", label))
    (tmp_path / "xml/cam.xml").write_text(annotation("cam.mp4", "어느 것"))
    answer = good(*build(tmp_path, tmp_path / "out", "--background", 0))
    assert answer["labels"] == ["걷기", "웅크리기"] and [s["code"] for s in answer["skipped"]] == ["E100"]
    groups, Y = np.load(tmp_path / "out/groups.npy"), np.load(tmp_path / "out/Y.npy")
    assert set(groups[Y[:, 0] > 0]) == {"동쪽/cam.mp4"} and set(groups[Y[:, 1] > 0]) == {"서쪽/cam.mp4"}


# labels without windows


@pytest.fixture(scope="module")
def sparse(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A dataset in which no window carries one of the two labels."
    root = tmp_path_factory.mktemp("sparse")
    shutil.copytree(shop / "normal/videos", root / "videos")
    (root / "xml").mkdir()
    names = "".join(f"<label><name>{n}</name></label>" for n in ("걷기", "찰나", "없음표"))
    for n, video in enumerate(sorted((root / "videos").glob("*.mp4"))):
        short = INTERVAL.format("찰나", 40, 42) + "</annotations>"
        (root / "xml" / f"{n}.xml").write_text(annotation(video.name, declared=names).replace("</annotations>", short))
    ran = call(*build(root, root / "data"))
    assert ran.returncode == 0 and "no window carries '찰나'" in ran.stderr
    return root


def test_empty_class_in_a_dataset(sparse: Path, tmp_path: Path) -> None:
    meta = json.loads((sparse / "data/meta.json").read_text())
    assert meta["labels"] == ["걷기", "찰나"], "a label that is declared and has no interval gets no column"
    assert meta["windows_per_label"]["찰나"] == 0
    assert np.load(sparse / "data/Y.npy").any(0).tolist() == [True, False]
    assert "없음표" in refused("E105", *build(sparse, tmp_path / "o", "--labels", "없음표")) and not (tmp_path / "o").exists()
    kept = good(*build(sparse, tmp_path / "data", "--labels", "걷기"))
    assert kept["labels"] == ["걷기"] and np.load(tmp_path / "data/Y.npy").shape[1] == 1


def test_empty_class_in_training_and_inference(shop: Path, sparse: Path, frames: Path, tmp_path: Path) -> None:
    said = refused("E110", *training(tmp_path / "m.pt", sparse / "data"))
    assert "찰나" in said and "→" in said and files_in(tmp_path).keys() == {frames.name}
    good(*build(sparse, tmp_path / "data", "--labels", "걷기"))
    trained = good(*training(tmp_path / "m.pt", tmp_path / "data", shop / "data/anomaly"))
    assert trained["labels"] == ["걷기", "낙상"]
    answer = good("run-lstm-inference", "-c", tmp_path / "m.pt", "-i", frames, "-d", "cpu")
    assert answer["labels"] == ["걷기", "낙상"] and np.isfinite(answer["probabilities"]).all()


# bad settings


@pytest.mark.parametrize("words", [("--window-size", 10**9), ("--window-size", 1), ("--stride", 0), ("--background", "inf"),
                                   ("--background", "nan"), ("--overlap", "nan"), ("--resize-w", 5), ("--seed", -1)])
def test_settings_without_sense(shop: Path, tmp_path: Path, words: tuple[object, ...]) -> None:
    refused("E301", *build(shop / "normal", tmp_path / "out", *words))
    assert files_in(tmp_path) == {}


# bad datasets


def nan_in_x(d: Path) -> None:
    X = np.load(d / "X.npy")
    X[3, 4, 5] = np.nan
    np.save(d / "X.npy", X)


def narrow(d: Path) -> None:
    np.save(d / "X.npy", np.load(d / "X.npy")[..., :100])


def cut_x(d: Path) -> None:
    (d / "X.npy").write_bytes((d / "X.npy").read_bytes()[:-1000])


def short_y(d: Path) -> None:
    np.save(d / "Y.npy", np.load(d / "Y.npy")[:-1])


class Touch:
    "Makes a file when unpickled."

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def pickled_y(d: Path) -> None:
    np.save(d / "Y.npy", np.array([Touch(d / "owned")], dtype=object), allow_pickle=True)


def no_meta(d: Path) -> None:
    (d / "meta.json").unlink()


def bad_meta(d: Path) -> None:
    (d / "meta.json").write_text("[" * 100_000)


BAD_DATA = [(nan_in_x, "E103"), (narrow, "E103"), (cut_x, "E102"), (short_y, "E103"), (pickled_y, "E102"), (no_meta, "E100"),
            (bad_meta, "E102")]


@pytest.mark.parametrize(("spoil", "code"), BAD_DATA, ids=[f.__name__ for f, _ in BAD_DATA])
def test_bad_datasets_are_refused(shop: Path, tmp_path: Path, spoil: Callable[[Path], None], code: str) -> None:
    spoil(Path(shutil.copytree(shop / "data/normal", tmp_path / "d")))
    refused(code, *training(tmp_path / "m.pt", shop / "data/anomaly", tmp_path / "d"))
    assert not (tmp_path / "m.pt").exists() and not (tmp_path / "m/run.json").exists() and not (tmp_path / "d/owned").exists()


# bad models


def test_a_checkpoint_with_a_hidden_payload(shop: Path, frames: Path, tmp_path: Path) -> None:
    import torch

    state = torch.load(shop / "모델 1/m.pt", weights_only=True)
    torch.save(state | {"thresholds": Touch(tmp_path / "owned")}, tmp_path / "evil.pt")
    refused("E202", "run-lstm-inference", "-c", tmp_path / "evil.pt", "-i", frames, "-d", "cpu")
    refused("E202", "analyze-video", "--video", some_clip(shop), "--checkpoint", tmp_path / "evil.pt", "--device", "cpu")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "report.html", "metrics.json", "history.csv"])
def test_a_changed_byte_in_any_file_of_a_run(shop: Path, frames: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(shop / "모델 1/m", tmp_path / "m"))
    data = bytearray((run / name).read_bytes())
    data[len(data) // 2] ^= 1
    (run / name).write_bytes(data)
    assert name in refused("E202", "run-lstm-inference", "-c", run, "-i", frames, "-d", "cpu")


def test_a_changed_byte_stops_the_analysis(shop: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(shop / "모델 1/m", tmp_path / "m"))
    with (run / "model.safetensors").open("r+b") as f:
        f.seek(-5, os.SEEK_END)
        f.write(b"\x55")
    line = ("analyze-video", "--video", some_clip(shop), "--checkpoint", run, "--device", "cpu")
    refused("E202", *line, "--output", tmp_path / "e.json")
    assert not (tmp_path / "e.json").exists()


# where results go


def test_outputs_in_folders_that_do_not_exist(shop: Path, tmp_path: Path) -> None:
    home = tmp_path / "결과 1" / "더 깊이"
    answer = good(*analysis(shop, some_clip(shop), "--output", home / "a/이벤트.json", "--report", home / "b/보고서.html",
                            "--overlay", home / "c/영상.mp4", model="m"))
    assert json.loads((home / "a/이벤트.json").read_text("utf-8")) == answer
    assert (home / "b/보고서.html").stat().st_size and (home / "c/영상.mp4").stat().st_size
    assert {p.name for p in home.rglob("*") if p.is_file()} == {"이벤트.json", "보고서.html", "영상.mp4"}


@pytest.mark.parametrize("flag", ["--output", "--report", "--overlay"])
def test_outputs_that_are_folders(shop: Path, tmp_path: Path, flag: str) -> None:
    target = tmp_path / "there.mp4"
    target.mkdir()
    refused("E120", *analysis(shop, some_clip(shop), flag, target))
    assert list(tmp_path.rglob("*")) == [target]


def test_save_to_a_folder(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "m.pt").mkdir()
    refused("E120", *training(tmp_path / "m.pt", shop / "data/normal"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "m.pt"]


@pytest.fixture(params=["/proc", "read-only"])
def closed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    "A place where nothing can be written, even by root."
    if request.param == "/proc":
        yield Path("/proc/no-such")
    else:
        (tmp_path / "ro").mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", tmp_path / "ro"], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("no right to mount a read-only folder here")
        yield tmp_path / "ro"
        subprocess.run(["umount", tmp_path / "ro"], check=True)


def test_places_that_cannot_be_written(shop: Path, closed: Path) -> None:
    refused("E120", *build(shop / "normal", closed / "out"))
    refused("E120", *training(closed / "m.pt", shop / "data/normal"))
    refused("E120", *analysis(shop, some_clip(shop), "--output", closed / "e.json"))


def test_a_cache_that_cannot_be_written_stops_the_build(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file/below")
    for workers in (1, 2):
        refused("E120", *build(shop / "normal", tmp_path / "out", "--workers", workers), AI_SUITE_CACHE=cache)
    assert files_in(tmp_path) == {"file": b""}


# a full disk: a limit on the size of files stands in for it


def limited(kilobytes: int, *words: object) -> str:
    "Run a command that must stop with E120 because its files may not grow beyond a size."
    line = [str(BIN / str(words[0])), *map(str, words[1:])]
    ran = subprocess.run(["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "_", *line], capture_output=True, text=True,
                         timeout=300, check=False)
    assert ran.returncode == 2 and ran.stdout == "" and "Traceback" not in ran.stderr, (ran.returncode, ran.stderr)
    assert ran.stderr.strip().splitlines()[-1].startswith("E120"), ran.stderr
    return ran.stderr


def test_full_disk_while_windows_are_written(shop: Path, tmp_path: Path) -> None:
    limited(64, *build(shop / "normal", tmp_path / "out"))
    assert files_in(tmp_path) == {}
    good(*build(shop / "normal", tmp_path / "out"))
    whole = files_in(tmp_path)
    limited(64, *build(shop / "normal", tmp_path / "out"))
    assert files_in(tmp_path) == whole, "what was there stays"


def test_full_disk_while_poses_are_kept(shop: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", tmp_path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        refused("E120", *build(shop / "normal", shop / "never"), AI_SUITE_CACHE=str(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert not list(shop.glob("never/*"))


@pytest.mark.parametrize("parts", [["normal"], ["normal", "anomaly"]], ids=len)
def test_full_disk_while_a_model_is_written(shop: Path, tmp_path: Path, parts: list[str]) -> None:
    limited(40, *training(tmp_path / "m.pt", *(shop / "data" / part for part in parts)))
    assert [n for n in files_in(tmp_path) if not Path(n).name.startswith(".")] == []


@pytest.mark.parametrize(("flag", "name"), [("--report", "r.html"), ("--overlay", "o.mp4")])
def test_full_disk_while_an_analysis_is_written(shop: Path, tmp_path: Path, flag: str, name: str) -> None:
    limited(4, *analysis(shop, some_clip(shop), flag, tmp_path / name))
    assert files_in(tmp_path) == {}


def test_full_disk_while_the_answer_is_written(shop: Path) -> None:
    refused("E120", *analysis(shop, some_clip(shop), "--output", "/dev/full"))


# Ctrl-C


def started(*words: object, **env: str) -> subprocess.Popen:
    "A command in a process group of its own, as a terminal starts it."
    line = [str(BIN / str(words[0])), *map(str, words[1:])]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | env,
                            start_new_session=True)


def when(happened: Callable[[], object], job: subprocess.Popen, seconds: float = 120) -> None:
    "Wait for something to happen while a command runs."
    end = time.monotonic() + seconds
    while not happened() and job.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


def interrupted(job: subprocess.Popen) -> str:
    "Press Ctrl-C: every process of the group gets the signal."
    os.killpg(job.pid, signal.SIGINT)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 130 and out == "" and "Traceback" not in err, err
    return err


def test_interrupted_build_goes_on_where_it_was(shop: Path, tmp_path: Path) -> None:
    from ai_suite.behavior.samples import clip_jobs, make_clips

    make_clips(clip_jobs(tmp_path, 8, ["walk", "crouch"], "black", ["pagoda"]), workers=1)
    cache, out = tmp_path / "cache 1", tmp_path / "out"
    job = started(*build(tmp_path, out, "--workers", 2), AI_SUITE_CACHE=str(cache))
    when(lambda: poses_in(cache), job)
    assert "E130" in interrupted(job)
    kept = poses_in(cache)
    assert 0 < len(kept) < 8 and files_in(out) == {}, (kept, list(out.rglob("*")))
    good(*build(tmp_path, out, "--workers", 2), AI_SUITE_CACHE=str(cache))
    after = poses_in(cache)
    assert len(after) == 8 and kept.items() <= after.items(), "poses of finished videos are not computed again"
    good(*build(tmp_path, tmp_path / "whole", "--workers", 2), AI_SUITE_CACHE=str(tmp_path / "cache 2"))
    assert files_in(out) == files_in(tmp_path / "whole")


def children_of(job: subprocess.Popen) -> list[int]:
    tasks = Path(f"/proc/{job.pid}/task")
    try:
        return [int(c) for task in tasks.iterdir() for c in (task / "children").read_text().split()]
    except OSError:
        return []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_ctrl_c_while_the_workers_start(shop: Path, tmp_path: Path) -> None:
    job = started(*build(shop / "normal", tmp_path / "out", "--workers", 2), AI_SUITE_CACHE=str(tmp_path / "cache"))
    when(lambda: len(children_of(job)) >= 3, job)
    assert "E130" in interrupted(job) and files_in(tmp_path / "out") == {}


def test_interrupted_training_goes_on_to_the_same_model(shop: Path, tmp_path: Path) -> None:
    def line(name: str) -> tuple[object, ...]:
        return *training(tmp_path / name, shop / "data/normal", shop / "data/anomaly", epochs=16), "--batch", 8

    whole = good(*line("whole.pt"))
    kept = tmp_path / "part/checkpoint/checkpoint.pt"
    job, seen = started(*line("part.pt")), set()

    def third_epoch() -> bool:
        if kept.exists():
            seen.add(kept.stat().st_mtime_ns)
        return len(seen) > 3

    when(third_epoch, job)
    assert "--resume" in interrupted(job)
    assert kept.exists() and not (tmp_path / "part.pt").exists() and not (tmp_path / "part/run.json").exists()
    answer = good(*line("part.pt"), "--resume")
    assert answer["thresholds"] == whole["thresholds"]
    for name in ("model.safetensors", "history.csv"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not kept.exists()


# many videos


def tiny_videos(root: Path, clip: Path, n: int) -> None:
    "Copies of a clip that differ in a box that players skip."
    (root / "videos").mkdir(parents=True)
    (root / "xml").mkdir()
    for k in range(n):
        (root / f"videos/{k}.mp4").write_bytes(clip.read_bytes() + (16).to_bytes(4) + b"free" + k.to_bytes(8))
        (root / f"xml/{k}.xml").write_text(annotation(f"{k}.mp4"))


MEASURED = """
import sys, threading
from ai_suite.behavior import cli
from ai_suite.core.cli import run
from ai_suite.video import pose

frames, workers, root = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if frames:
    import numpy as np
    def long(path, *settings):
        facts = {"fps": 12.0, "width": 384, "height": 288, "n_frames": frames}
        x = np.random.default_rng(len(str(path))).random((frames, 33, 4), np.float32)
        return {"pose": x, "t": np.arange(frames) / 12} | {k: np.array(v) for k, v in facts.items()}
    pose._compute = long

peak, done = [0], threading.Event()
def watch():
    while not done.wait(.003):
        text = open("/proc/self/status").read()
        peak.append(int(text[text.index("RssAnon:") + 8:].split()[0]))
thread = threading.Thread(target=watch)
thread.start()
code = run(cli.build_dataset_normal, ["--video-root", root + "/videos", "--xml-root", root + "/xml", "--out-dir", root + "/out",
                                      "--background", ".002", "--workers", workers])
done.set()
thread.join()
print(max(peak) // 1024, file=sys.stderr)
sys.exit(code)
"""


def peak_of(root: Path, cache: Path, frames: int, workers: int) -> int:
    "Build, in a process of its own; its largest anonymous memory in MB."
    line = [sys.executable, "-c", MEASURED, str(frames), str(workers), str(root)]
    env = os.environ | {"AI_SUITE_CACHE": str(cache)}
    ran = subprocess.run(line, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stderr.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_number_of_videos(shop: Path, tmp_path: Path, workers: int) -> None:
    "Poses of 40,000 frames, 21 MB a video, put into the cache first; the measured build only reads them."
    # twelve videos more are 252 MB if they are kept; two workers may have one or two more of them on the way at once
    peaks = {}
    for n in (4, 16):
        tiny_videos(tmp_path / str(n), some_clip(shop), n)
        peak_of(tmp_path / str(n), tmp_path / "cache", 40_000, 1)
        peaks[n] = peak_of(tmp_path / str(n), tmp_path / "cache", 0, workers)
    assert len(poses_in(tmp_path / "cache")) == 16
    assert peaks[16] < peaks[4] + 105, peaks


def test_another_window_size_needs_no_poses(shop: Path, tmp_path: Path) -> None:
    import resource

    cache = {"AI_SUITE_CACHE": str(tmp_path / "cache")}
    good(*build(shop / "normal", tmp_path / "a"), **cache)
    poses, before = poses_in(tmp_path / "cache"), resource.getrusage(resource.RUSAGE_CHILDREN)
    good(*build(shop / "normal", tmp_path / "b", "--window-size", 20), **cache)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(poses) == 4 and poses_in(tmp_path / "cache") == poses
    assert np.load(tmp_path / "b/X.npy").shape[1:] == (20, 132)
    assert after.ru_utime - before.ru_utime < 5, "seconds of computing, imports included"
