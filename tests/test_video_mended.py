"""Video: what a busy caller, a killed parent, damaged files and closed networks must not break."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from support import BIKES, code_of, needs_bikes

from ai_suite.core.cache import Store
from ai_suite.core.errors import SuiteError
from ai_suite.core.weights import resolve
from ai_suite.video import frames as reading
from ai_suite.video import live, people, pose, replay
from ai_suite.video.frames import container_of, frames, opencv, probe, quiet, shrinker, write_video
from ai_suite.video.landmarkers import Task
from ai_suite.video.live import live_pose, newest, pictures
from ai_suite.video.objects import people as people_of
from ai_suite.video.people import PeopleEstimator, PersonGate, gated_pose
from ai_suite.video.pose import PoseEstimator, found, sample_pose, video_pose
from ai_suite.video.replay import Replay, record, recording

cv2 = opencv()
GREY = np.full((96, 128, 3), 90, np.uint8)


def grey(n, w=64, h=48):
    return [np.full((h, w, 3), 20 + 5 * (k % 40), np.uint8) for k in range(n)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", grey(40), fps=20)


# estimators


def test_people_are_not_looked_for_live():
    assert code_of(PeopleEstimator, mode="live") == code_of(PeopleEstimator, mode="x") == "E301"


def test_people_settings_can_be_read_and_are_recorded(clip, tmp_path):
    with PeopleEstimator(min_score=0.4, min_confidence=0.6) as look:
        file = record(look, clip, tmp_path / "a.npz", stop=2)
    settings = recording(file)["made"]["settings"]
    assert (settings["complexity"], settings["min_score"], settings["min_confidence"]) == (1, 0.4, 0.6)


@pytest.mark.parametrize("every", [1, 5])
def test_a_closed_estimator_refuses(every):
    look = PeopleEstimator(every)
    look(GREY)
    look.close()
    assert code_of(look, GREY) == "E301"
    task = Task("PoseLandmarker", resolve("pose_landmarker_full"), "image")
    task.close()
    assert code_of(task.detect, GREY) == "E301"
    with PersonGate() as gate:
        pass
    assert code_of(gate.detector, GREY) == "E301"


@needs_bikes
def test_depth_of_a_segmented_pose_is_in_units_of_the_frames_width(monkeypatch):
    frame = np.ascontiguousarray(next(frames(BIKES, start=120))[2][:, 320:513])
    padded = np.pad(frame, ((0, 0), (0, -193 % 16), (0, 0)), mode="edge")
    with PoseEstimator(mode="image") as estimate:
        pose_, _ = estimate.segment(frame)
        np.testing.assert_allclose(pose_[:, [0, 2]], estimate(padded)[:, [0, 2]] * 208 / 193, rtol=1e-5, atol=1e-6)
        for bad in (None, np.zeros((4, 4)), np.zeros((4, 0, 3), np.uint8)):
            assert code_of(estimate.segment, bad) == "E103"


def test_detections_without_names_hold_no_people():
    sv = pytest.importorskip("supervision")
    assert len(people_of(sv.Detections(xyxy=np.array([[0, 0, 4, 4.0]])))) == 0
    assert len(people_of(sv.Detections.empty())) == 0


@needs_bikes
def test_the_gates_settings_are_in_the_key(tmp_path, monkeypatch):
    shot = write_video(tmp_path / "a.mp4", [f[:, 320:520] for *_, f in frames(BIKES, start=116, stop=119)], fps=25)
    monkeypatch.setattr(people, "PoseEstimator", None)
    store, default = Store(tmp_path / "store"), signature(PersonGate).parameters["least"]
    gated_pose(shot, store=store)
    before = len(list((tmp_path / "store").glob("??/*.npz")))
    assert default.default == 0.3
    monkeypatch.setattr(PersonGate.__init__, "__defaults__", (25, 5, 0.4, 0.9))
    assert not found(gated_pose(shot, store=store)["pose"]).any()
    assert len(list((tmp_path / "store").glob("??/*.npz"))) == before + 1


@needs_bikes
@pytest.mark.parametrize("lost", [{0, 1}, {2}, {3, 4}])
def test_a_lost_picture_is_a_row_of_nan(lost, tmp_path, monkeypatch):
    shot = write_video(tmp_path / "a.mp4", [f[:, 320:520] for *_, f in frames(BIKES, start=116, stop=123)], fps=25)
    real, calls = reading._picture, []
    monkeypatch.setattr(reading, "_picture", lambda *a: None if calls.append(0) or len(calls) - 1 in lost else real(*a))
    got = video_pose(shot)
    assert set(np.flatnonzero(~found(got["pose"]))) == lost and len(got["pose"]) == 7
    np.testing.assert_allclose(got["t"][2 if 0 in lost else 0:], np.arange(7)[2 if 0 in lost else 0:] / 25, atol=1e-6)
    assert (np.diff(got["t"]) > 0).all()


# workers


ORPHANS = """
import sys, time
from ai_suite.video import pose
if __name__ == "__main__":
    pool, stop = pose._pool(2)
    jobs = [pool.submit(time.sleep, 1) for _ in range(2)]
    [job.result() for job in jobs]
    print(*pool._processes, flush=True)
    time.sleep(60)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="asks /proc")
def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(ORPHANS)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(map(alive, workers))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    left = [pid for pid in workers if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize("cores, pinned", [({3, 5}, {5}), ({1, 2, 3}, None), ({0}, None)])
def test_only_as_many_workers_as_cores_are_pinned(cores, pinned, monkeypatch):
    set_to = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, own: set_to.append(own), raising=False)
    monkeypatch.setattr(signal, "signal", lambda *a: None)
    monkeypatch.setattr(pose, "_STOP", [])
    threads = cv2.getNumThreads()
    pose._settle(multiprocessing.Value("i", 1), None, 2)
    cv2.setNumThreads(threads)
    assert set_to == ([pinned] if pinned else [])


# live


class Network:
    "Stands where a live estimator stands: works on one frame, keeps the newest one ready."

    def __init__(self):
        self.working = self.ready = self.result = None

    def push(self, frame, t_ms):
        if self.working is None:
            self.working = int(t_ms)
        else:
            self.ready = int(t_ms)
        return int(t_ms)

    def finish(self):
        self.result, self.working, self.ready = self.working, self.ready, None

    def latest(self, after=-1, wait=0):
        return (self.result, None) if self.result is not None and self.result > after else None


@pytest.mark.parametrize("takes", [0, 0.3, 1])
def test_few_frames_wait_and_the_one_wanted_is_among_them(takes):
    rng = np.random.default_rng(0)
    for pace in (1, 3, 40):
        network = Network()
        waiting, seen = live._Waiting(network), -1
        for k in range(2000):
            waiting.push((k, GREY))
            assert len(waiting.frames) <= live.HELD
            if rng.random() < 1 / pace and network.working is not None:
                network.finish()
                if rng.random() < takes:
                    picture = waiting.take(network.result)
                    assert picture == (network.result // 1000, GREY) and network.result > seen
                    seen = network.result
        assert waiting.count == 2000 and (waiting.take(-5) is None)


def test_a_busy_caller_holds_few_frames_and_every_frame_is_counted(tmp_path):
    long = write_video(tmp_path / "long.mp4", grey(60, 128, 96), fps=60)
    counts, held = {}, []
    for _ in (poses := live_pose(long, counts=counts)):
        time.sleep(0.4)
        held.append(len(poses.gi_frame.f_locals["waiting"].frames))
    assert max(held) <= live.HELD
    assert counts["frames"] == 60 == counts["shown"] + counts["dropped"] + counts["missed"]
    assert min(counts.values()) >= 0 and counts["shown"] == len(held) < 10


class Camera:
    "A camera that gives some frames."

    def __init__(self, n, pause=0.01):
        self.n, self.pause, self.released = n, pause, False

    def read(self):
        self.n -= 1
        time.sleep(self.pause)
        return (True, np.full((48, 64, 3), self.n % 200, np.uint8)) if self.n >= 0 else (False, None)

    def release(self):
        self.released = True


def test_a_camera_that_stops_is_an_error(monkeypatch):
    cameras = [Camera(5), Camera(5), Camera(5)]
    monkeypatch.setattr(live, "_camera", lambda number: cameras[number])
    for number, read in enumerate((pictures, newest, live_pose)):
        got = []
        with pytest.raises(SuiteError, match=f"E400 camera {number} stopped"):
            got.extend(read(number))
        assert got and cameras[number].released


def test_newest_passes_over_what_comes_meanwhile_and_closes_the_camera(monkeypatch):
    camera = Camera(10_000, 0.005)
    monkeypatch.setattr(live, "_camera", lambda number: camera)
    before, times, values = threading.active_count(), [], []
    for t, frame in newest(0, resize_w=32):
        times.append(t)
        values.append(int(frame[0, 0, 0]))
        assert frame.shape == (24, 32, 3)
        if len(times) == 4:
            break
        time.sleep(0.2)
    assert np.diff(times).min() > 0.1 and (np.diff(values) < -5).all()
    assert camera.released and threading.active_count() <= before


def test_newest_of_a_file_ends_with_its_last_picture(clip):
    real = [f for *_, f in frames(clip)]
    got = list(newest(clip))
    assert [t for t, _ in got] == sorted({t for t, _ in got}) and abs(got[-1][0] - 39 / 20) < 1e-6
    for t, frame in got:
        np.testing.assert_array_equal(frame, real[round(20 * t)])
    assert code_of(lambda: next(newest("gone.mp4"))) == "E101" and code_of(lambda: next(newest(clip, 3))) == "E301"
    assert code_of(pictures, clip, 3) == code_of(lambda: next(live_pose(clip, resize_w=3))) == "E301"


def test_leaving_a_film_does_not_wait_for_its_next_picture(tmp_path):
    slow = write_video(tmp_path / "slow.mp4", grey(4), fps=0.2)
    began = time.monotonic()
    for _ in newest(slow):
        break
    assert time.monotonic() - began < 2


# files


def test_one_way_to_shrink():
    assert shrinker(None)(GREY) is GREY and shrinker(500)(GREY) is GREY
    assert shrinker(64)(GREY).shape == (48, 64, 3) and shrinker(16)(np.zeros((1, 400, 3), np.uint8)).shape == (1, 16, 3)
    assert code_of(shrinker, 15) == code_of(shrinker, 0) == "E301"


@pytest.mark.parametrize("fps", [0.5, 12.5, 240])
def test_slow_and_fast_rates_are_believed(fps, tmp_path):
    facts = probe(write_video(tmp_path / "a.mp4", grey(6), fps=fps))
    assert abs(facts["fps"] - fps) < 0.01 and abs(facts["duration"] - 6 / fps) < 0.01
    assert np.allclose([t for _, t, _ in frames(tmp_path / "a.mp4")], np.arange(6) / fps, atol=2e-3)


def test_rates_that_are_none():
    cap = lambda fps: type("Cap", (), {"get": lambda self, what: fps})()
    assert [reading._fps(cap(f)) for f in (0, -1, np.nan, np.inf, 1000, 90_000, 600, 0.01)] == [25] * 6 + [600, 0.01]


def test_boxes_that_reach_beyond_the_file(tmp_path):
    for size in (b"\0\0\0\x01free" + b"\xff" * 8, b"\0\0\0\x01free\x7f" + b"\xff" * 7, b"\xff\xff\xff\xfffree" + bytes(8)):
        (tmp_path / "a.mp4").write_bytes(size + bytes(600))
        assert code_of(probe, tmp_path / "a.mp4") == "E401"


def test_names_that_no_file_can_have(tmp_path):
    assert code_of(probe, tmp_path / ("a" * 300 + ".mp4")) == code_of(probe, tmp_path / "a\0b.mp4") == "E101"


def test_more_containers(tmp_path):
    y4m = b"YUV4MPEG2 W16 H16 F25:1 C420jpeg\n" + (b"FRAME\n" + bytes([90]) * 256 + bytes([128]) * 128) * 3
    (tmp_path / "a.y4m").write_bytes(y4m)
    assert [i for i, *_ in frames(tmp_path / "a.y4m")] == [0, 1, 2]
    starts = {"hevc": b"\0\0\0\x01\x40\x01", "mxf": bytes.fromhex("060e2b34020501010d01020101020400"), "ivf": b"DKIF",
              "dav": b"DHAV\xfd"}
    assert {name: container_of(head + bytes(50)) for name, head in starts.items()} == {name: name for name in starts}
    with quiet():
        out = cv2.VideoWriter(str(tmp_path / "a.ivf"), cv2.VideoWriter_fourcc(*"VP80"), 25, (64, 48))
    if out.isOpened():
        for frame in grey(4):
            out.write(frame)
        out.release()
        assert len(list(frames(tmp_path / "a.ivf"))) == 4
    (tmp_path / "t.mp4").write_bytes(b"hello " * 60)
    with pytest.raises(SuiteError, match="E400 t.mp4 is not a container we accept → convert it with ffmpeg -i"):
        probe(tmp_path / "t.mp4")


# recordings


def test_every_damage_to_a_recording_is_e102(tmp_path):
    whole = tmp_path / "whole.npz"
    rng = np.random.default_rng(0)
    np.savez_compressed(whole, t=np.arange(3) / 25, width=64, height=48, fps=25.0, pose=rng.random((3, 33, 4)).astype(np.float16))
    data, codes = whole.read_bytes(), set()
    for k in range(400):
        bad = bytearray(data)
        for at in rng.integers(0, len(data), 1 + k % 4):
            bad[at] ^= 1 << rng.integers(0, 8)
        (tmp_path / "bad.npz").write_bytes(bad[: len(bad) - (k % 3) * 40])
        try:
            recording(tmp_path / "bad.npz")
        except SuiteError as e:
            codes.add(e.code)
    assert codes == {"E102"}


def test_a_recording_that_would_fill_the_memory_is_not_read(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("t.npy", bytes(3_000_000))
    monkeypatch.setattr(replay, "LARGEST", 2_000_000)
    with pytest.raises(SuiteError, match="E102 a.npz would unpack"):
        recording(tmp_path / "a.npz")


def test_without_looks_a_frame_is_asked_for_by_time():
    sample = sample_pose()
    frame, player = np.zeros((272, 640, 3), np.uint8), Replay(sample)
    for _ in range(2):
        assert code_of(player, frame) == "E104"
    np.testing.assert_array_equal(player(frame, 40), sample["pose"][1])
    assert code_of(player, frame) == code_of(player, frame, 20) == "E104"
