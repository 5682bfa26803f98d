"""Several people: boxes, stable numbers, a pose each, and the picture of it."""


import numpy as np
import pytest
from support import BIKES, code_of, needs_bikes

from ai_suite.core.cache import Store
from ai_suite.video.features import SPEED_NAMES, speeds
from ai_suite.video.frames import frames, probe, write_video
from ai_suite.video.objects import ObjectDetector, people
from ai_suite.video.overlay import captions_at, draw_caption, draw_people, overlay_video
from ai_suite.video.people import (
    PeopleEstimator, PersonGate, best_track, crop_of, full_length, gated_pose, owners, people_pose, square_of, to_frame)
from ai_suite.video.pose import found, sample_pose
from ai_suite.video.tracks import Tracker



@pytest.fixture(scope="module")
def cyclist():
    "Twelve frames around the cyclist."
    return [np.ascontiguousarray(f[:, 320:520]) for *_, f in frames(BIKES, start=116, stop=128)]


@pytest.fixture(scope="module")
def pair(cyclist, tmp_path_factory):
    "The cyclist twice, side by side."
    path = tmp_path_factory.mktemp("pair") / "둘 people.mp4"
    return write_video(path, (np.ascontiguousarray(np.hstack([f, f[:, ::-1]])) for f in cyclist), fps=25)


@pytest.fixture(scope="module")
def two(pair):
    return people_pose(pair)


# objects


@needs_bikes
def test_detector_finds_the_person_inside_the_frame(cyclist):
    with ObjectDetector() as detect:
        seen = detect(cyclist[0])
    assert len(people(seen)) >= 1 and "person" in seen.data["class_name"]
    assert (seen.xyxy >= 0).all() and (seen.xyxy <= [200, 272, 200, 272]).all()
    assert seen.class_id.tolist().count(0) == len(people(seen))


def test_detector_sees_nothing_in_grey_and_stays_silent(capfd):
    with ObjectDetector() as detect:
        seen = detect(np.full((1, 1, 3), 90, np.uint8)), detect(np.full((90, 70, 3), 90, np.uint8))
    assert all(len(s) == 0 and s.xyxy.shape == (0, 4) and len(people(s)) == 0 for s in seen)
    assert capfd.readouterr() == ("", "")


def test_detector_takes_strided_frames_and_time_that_stands_still():
    with ObjectDetector(mode="video") as detect:
        for t in (100, 100, 50, None):
            detect(np.zeros((40, 80, 3), np.uint8)[:, ::2], t)


@pytest.mark.parametrize("bad", [None, [[1]], np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8),
                                 np.zeros((4, 0, 3), np.uint8), np.full((4, 4, 3), np.nan, np.float32)])
def test_detector_refuses_other_frames(bad):
    with ObjectDetector() as detect:
        assert code_of(detect, bad) == "E103"


@pytest.mark.parametrize("bad", [dict(classes=["persn"]), dict(classes=["???"]), dict(min_score=-1),
                                 dict(max_results=0), dict(mode="x")])
def test_detector_refuses_settings(bad):
    assert code_of(ObjectDetector, **bad) == "E301"


# tracks


def test_numbers_survive_crossing_order_and_gaps():
    tracker, rng = Tracker(), np.random.default_rng(1)
    owner = {}
    for i in range(100):
        true = np.array([[10 + 2 * i, 0, 50 + 2 * i, 100], [260 - 2 * i, 30, 300 - 2 * i, 150]], float)
        order = rng.permutation(2)[: 1 if 30 <= i < 40 else 2]
        if i % 3:
            tracker.predict()
        else:
            for person, id in zip(order, tracker.update(true[order], np.full(len(order), 0.9)), strict=True):
                owner.setdefault(int(person), set()).add(int(id))
    assert sorted(map(len, owner.values())) == [1, 1] and not owner[0] & owner[1]


def test_a_moving_person_is_where_the_tracker_says_between_looks():
    tracker = Tracker()
    for i in range(31):
        box = np.array([[4.0 * i, 0, 4.0 * i + 60, 100]])
        tracker.predict() if i % 5 else tracker.update(box, np.array([0.9]))
    for i in range(31, 35):
        tracker.predict()
        assert abs(tracker.boxes()[1][0, 0] - 4 * i) < 4


def test_two_boxes_never_share_a_number():
    tracker, rng = Tracker(), np.random.default_rng(0)
    for _ in range(60):
        corner = rng.uniform(0, 200, (rng.integers(0, 7), 2))
        ids = tracker.update(np.c_[corner, corner + 60], rng.uniform(0, 1, len(corner)))
        given = ids[ids > 0].tolist()
        assert len(given) == len(set(given)) and len(set(tracker.boxes()[0])) == len(tracker.tracks)


def test_lost_tracks_stay_for_keep_frames_and_not_longer():
    tracker = Tracker(keep=4)
    tracker.update(np.array([[0, 0, 9, 9]]), np.array([0.9]))
    alive = [tracker.predict() or len(tracker.tracks) for _ in range(6)]
    assert alive == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("boxes, scores", [([[0, 0, 1]], [1]), ([[0, 0, 1, 1]], []), ([[0, 0, 1, np.inf]], [1]),
                                           ([[0, 0, 1, 1]], [np.nan])])
def test_tracker_refuses_bad_boxes(boxes, scores):
    assert code_of(Tracker().update, boxes, scores) == "E103"


def test_a_larger_box_in_front_is_another_person_and_the_hidden_one_comes_back():
    tracker, behind, front = Tracker(), np.array([60, 20, 100, 120.0]), np.array([40, 0, 120, 180.0])
    assert tracker.update([behind], [0.9]).tolist() == [1]
    assert tracker.update([front], [0.9]).tolist() == [2]
    for _ in range(20):
        tracker.predict()
    assert tracker.update([front, behind + [45, 0, 45, 0]], [0.9, 0.9]).tolist() == [2, 1]


def test_far_boxes_are_strangers():
    tracker = Tracker()
    tracker.update([[0, 0, 40, 100]], [0.9])
    assert tracker.update([[90, 0, 130, 100]], [0.9]).tolist() == [2]


# people


@pytest.mark.parametrize("box", [(10, 20, 50, 120), (-30, -10, 20, 40), (90, 90, 99, 99), (300, 300, 300, 300)])
def test_crop_and_back(box):
    frame = np.random.default_rng(0).integers(0, 255, (100, 120, 3), np.uint8)
    left, top, side = square = square_of(box)
    crop = crop_of(frame, square)
    assert crop.shape == (side, side, 3) and side >= 16
    for x, y in ((left, top), (left + side - 1, top + side - 1), (left + side // 2, top + side // 2)):
        expected = frame[y, x] if 0 <= x < 120 and 0 <= y < 100 else np.zeros(3)
        assert (crop[y - top, x - left] == expected).all()
    pose = to_frame(np.tile([0.5, 0.25, 0, 1.0], (33, 1)), square, 120, 100)
    np.testing.assert_allclose(pose[0, :2] * [120, 100], [left + side / 2, top + side / 4], rtol=1e-5, atol=1e-4)


def test_one_pose_seen_in_two_squares_counts_once():
    pose = sample_pose()["pose"][120]
    xs, ys = np.clip(pose[:, 0], 0, 1), np.clip(pose[:, 1], 0, 1)
    own = np.array([xs.min(), ys.min(), xs.max(), ys.max()])
    boxes = np.stack([own, own + [0.05, 0, 0.05, 0], np.clip(own - [0.3, 0, 0.3, 0], 0, 1)])
    assert owners(np.stack([pose] * 3), boxes).sum() == 1


@needs_bikes
def test_two_people_get_a_pose_each(two):
    whole = {id: p for id, p in two.items() if found(p["pose"]).sum() >= 9}
    assert len(whole) == 2
    centre = sorted(float(np.nanmedian(p["pose"][:, [11, 12, 23, 24], 0])) for p in whole.values())
    assert centre[0] < 0.5 < centre[1]
    for p in whole.values():
        n = len(p["frames"])
        assert (p["pose"].dtype, p["pose"].shape, p["box"].shape) == (np.float32, (n, 33, 4), (n, 4))
        assert (np.diff(p["frames"]) > 0).all() and (p["box"] >= 0).all() and (p["box"] <= 1).all()


@needs_bikes
def test_best_track_is_one_of_them_in_full_length(two, pair):
    pose = full_length(two[best_track(two)], 20)
    assert pose.shape == (20, 33, 4) and found(pose)[:12].mean() > 0.7 and not found(pose)[12:].any()


def test_nobody(tmp_path):
    grey = write_video(tmp_path / "grey.mp4", [np.full((64, 96, 3), 90, np.uint8)] * 7, fps=25)
    assert people_pose(grey, every=3) == {}
    assert code_of(best_track, {}) == "E402"
    unseen = dict(frames=np.array([0]), pose=np.full((1, 33, 4), np.nan), box=np.ones((1, 4)))
    assert code_of(best_track, {3: unseen}) == "E402"
    assert code_of(people_pose, tmp_path / "gone.mp4") == "E101"


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[i][k], b[i][k], equal_nan=True) for i in a for k in a[i])


@needs_bikes
def test_live_file_and_cache_are_equal(two, pair, tmp_path):
    with PeopleEstimator() as look:
        live = [look(f, 1000 * t) for _, t, f in frames(pair)]
    for id, p in two.items():
        np.testing.assert_array_equal([live[i][id][0] for i in p["frames"]], p["pose"])
        np.testing.assert_array_equal([live[i][id][1] for i in p["frames"]], p["box"])
    assert sum(map(len, live)) == sum(len(p["frames"]) for p in two.values())
    store = Store(tmp_path)
    assert same(people_pose(pair, store=store), two)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("??/*.npz")}
    assert same(people_pose(pair, every=5, store=store, max_people=6), two) and len(before) == 1


def test_an_empty_video_is_cached_too(tmp_path):
    grey = write_video(tmp_path / "grey.mp4", [np.full((64, 96, 3), 90, np.uint8)] * 3, fps=25)
    store = Store(tmp_path / "cache")
    assert people_pose(grey, store=store) == {} == people_pose(grey, store=store)
    people_pose(grey, store=store, max_people=1)
    assert len(list((tmp_path / "cache").glob("??/*.npz"))) == 2
    assert code_of(people_pose, grey, 0, store=store) == "E301"


def test_a_pose_squeezed_into_a_part_of_the_box_is_nobodys():
    pose = sample_pose()["pose"][120]
    own = np.concatenate([pose[:, :2].min(0), pose[:, :2].max(0)])
    small = pose.copy()
    small[:, :2] = own[:2] + (pose[:, :2] - own[:2]) * 0.2
    assert owners(pose[None], own[None]).all() and not owners(small[None], own[None]).any()


@needs_bikes
def test_gate_drops_poses_where_nobody_is_and_keeps_the_cyclist(cyclist):
    pose, empty = sample_pose()["pose"], sample_pose()["pose"][216:226]
    moved = pose[116:128].copy()
    moved[..., 0] = (moved[..., 0] * 640 - 320) / 200
    gate = PersonGate()
    assert found(np.stack([gate(f, p) for f, p in zip(cyclist, moved, strict=True)])).all() and gate.looks == 1
    street = [f for *_, f in frames(BIKES, start=216, stop=226)]
    gone = np.stack([gate(f, p) for f, p in zip(street, empty, strict=True)])
    assert found(empty).any() and not found(gone).any()
    gate.close()


@needs_bikes
def test_gated_pose_is_video_pose_with_gaps(pair, tmp_path):
    store = Store(tmp_path)
    first, again = gated_pose(pair, store=store), gated_pose(pair, store=store)
    plain = gated_pose(pair)
    for other in (again, plain):
        np.testing.assert_array_equal(first["pose"], other["pose"])
    assert first["pose"].shape == (12, 33, 4) and set(first) >= {"t", "fps", "width", "height", "looks"}
    assert code_of(gated_pose, pair, 0) == "E301"


# features


def test_speeds_know_units_gaps_and_size():
    pose = sample_pose()["pose"][112:130]
    per_frame, per_second = speeds(pose), speeds(pose, fps=25)
    assert per_frame.shape == (18, len(SPEED_NAMES)) and np.isnan(per_frame[0]).all()
    np.testing.assert_allclose(per_second[1:], 25 * per_frame[1:], rtol=1e-5)
    np.testing.assert_allclose(speeds(pose * [0.5, 0.5, 0.5, 1])[1:], per_frame[1:], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(speeds(pose[:9]), per_frame[:9])
    assert not speeds(np.repeat(pose[:1], 4, 0))[1:].any() and speeds(np.zeros((0, 33, 4))).shape == (0, 13)
    assert code_of(speeds, pose, 0) == "E301" and code_of(speeds, pose[0]) == "E103"


# overlay


@needs_bikes
def test_an_event_of_a_track_is_written_beside_its_person(two, pair, tmp_path):
    event = {"start": 0, "end": 9, "label": "쓰러짐 fall", "kind": "anomaly"}
    a, b = (next(frames(overlay_video(pair, tmp_path / f"{n}.mp4", two, [event | {"track": n}], picture=False)))[2]
            for n in list(two)[:2])
    red = [np.argwhere((np.abs(f.astype(int) - [0xA0, 0x1C, 0x1C]) < 40).all(-1)) for f in (a, b)]
    assert all(len(r) > 100 for r in red) and abs(red[0][:, 1].mean() - red[1][:, 1].mean()) > 60


def test_drawing_leaves_the_frame_alone_and_survives_odd_poses():
    frame, pose = np.full((61, 83, 3), 200, np.uint8), sample_pose()["pose"][120]
    odd = pose.copy()
    odd[:5], odd[5:9, :2] = np.nan, 1e9
    for p in (pose, odd, np.full((33, 4), np.nan)):
        shown = draw_people(frame, {12: (p, np.array([-1, 0.2, 3, 0.9])), 13: (p, np.full(4, np.nan))})
        assert shown.shape == frame.shape and shown.dtype == np.uint8
    assert (frame == 200).all()


def test_captions_are_drawn_whatever_they_hold():
    frame = np.full((40, 60, 3), 200, np.uint8)
    events = [{"start": 0, "end": 1, "label": label} for label in ("쓰러짐", "a\nb", "x" * 500, "", "🙂")]
    assert (draw_caption(frame, captions_at(events, 0.5)) != frame).any() and (frame == 200).all()
    assert captions_at(events, 1.0) == []


@needs_bikes
def test_overlay_of_an_odd_sized_video(pair, two, tmp_path):
    events = [{"start": 0.1, "end": 0.3, "label": "기다림", "kind": "anomaly", "confidence": 0.5}]
    out = overlay_video(pair, tmp_path / "out 결과.mp4", two, events, resize_w=201)
    facts = probe(out)
    assert (facts["n_frames"], facts["fps"], facts["width"] % 2, facts["height"] % 2) == (12, 25.0, 0, 0)
    assert code_of(overlay_video, pair, tmp_path / "x.mp4", np.zeros((3, 4))) == "E103"
    assert code_of(overlay_video, pair, pair) == "E120" and code_of(overlay_video, pair, tmp_path / "x.webm") == "E120"
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
