"""MiniRocket against aeon's: speed on the same windows, one thread each, and accuracy on the same splits.

aeon wants another NumPy than ours, so it lives in `.bench/aeon` and answers over pipes with its own timings."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
import torch
from paired import save

from ai_suite.core.fit import logits_of, one_thread
from ai_suite.core.minirocket import MiniRocketClassifier
from ai_suite.core.sequence import scaler_of

HOME = Path(__file__).resolve().parent.parent / ".bench" / "aeon"
PEER = """
import json, sys, time
import numpy as np
from aeon.transformations.collection.convolution_based import MiniRocket
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

def task(do, data, calls=1, seed=0):
    global rocket
    d = np.load(data)
    if do == 'fit':
        rocket = MiniRocket(n_kernels=9996, random_state=seed, n_jobs=1).fit(d['X'])
        _, _, sizes, shares, levels = rocket.parameters
        return dict(sizes=sizes.tolist(), shares=shares.tolist(), levels=levels.tolist())
    if do == 'transform':
        began = time.perf_counter()
        for _ in range(calls): features = rocket.transform(d['X'])
        took = time.perf_counter() - began
        np.save(data + '.npy', features)
        return took
    head = make_pipeline(MiniRocket(n_kernels=9996, random_state=seed, n_jobs=1), StandardScaler(with_mean=False),
                         RidgeClassifierCV(alphas=np.logspace(-3, 3, 10)))
    return head.fit(d['X'], d['y']).predict(d['Z']).tolist()

for line in sys.stdin: print(json.dumps(task(**json.loads(line))), flush=True)
"""


def environment() -> Path | None:
    "The Python that has aeon; built when it is missing, None when that fails."
    python = HOME / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        if subprocess.run([python, "-c", "import aeon"], capture_output=True).returncode:
            subprocess.run([python, "-m", "pip", "install", "-q", "aeon"], check=True)
        return python
    except (OSError, subprocess.CalledProcessError) as e:
        print(f"aeon cannot be installed: {e}", file=sys.stderr)
        return None


class Aeon:
    "A process with aeon in it, on one thread."

    def __init__(self, python: Path, folder: str):
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=os.environ | one)
        self.folder, self.number = Path(folder), itertools.count()

    def keep(self, **arrays: np.ndarray) -> str:
        "Write windows for the process, channels before frames as it wants them."
        path = self.folder / f"{next(self.number)}.npz"
        np.savez(path, **{k: a.swapaxes(1, 2) if a.ndim == 3 else a for k, a in arrays.items()})
        return str(path)

    def __call__(self, do: str, data: str, **more: int) -> object:
        print(json.dumps({"do": do, "data": data, **more}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "aeon's process has ended"
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


def interval(ours: list[float], peer: list[float]) -> dict:
    "Median of ours / peer over pairs, with a bootstrap interval."
    a, b = np.array(ours), np.array(peer)
    ratio, n = a / b, len(a)
    draws = np.median(ratio[np.random.default_rng(0).integers(0, n, (2000, n))], 1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"pairs": n, "ours": float(np.median(a)), "peer": float(np.median(b)), "ratio": float(np.median(ratio)),
            "low": float(low), "high": float(high)}


def interleaved(ours: Callable[[], float], peer: Callable[[], float], pairs: int = 9) -> dict:
    "Both tell their seconds; the order alternates."
    ours(), peer()
    rows: list[tuple[float, float]] = []
    for k in range(pairs):
        first, second = (ours, peer) if k % 2 else (peer, ours)
        a, b = first(), second()
        rows.append((a, b) if k % 2 else (b, a))
    return interval([a for a, _ in rows], [b for _, b in rows])


def rocket(X: np.ndarray, n_classes: int, seed: int = 0) -> MiniRocketClassifier:
    "Ours, prepared."
    mean, std = scaler_of(X)
    model = MiniRocketClassifier(X.shape[2], n_classes, window=X.shape[1], mean=mean, std=std)
    model.prepare(X, seed)
    return model.eval()


def timed(work: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - began


def speed(aeon: Aeon) -> dict[str, dict]:
    "Features of windows of 30 frames and 132 channels: many at once, and one."
    X = np.random.default_rng(0).normal(size=(256, 30, 132)).astype(np.float32)
    model = rocket(X, 4)
    aeon("fit", aeon.keep(X=X))
    many, single, x = aeon.keep(X=X), aeon.keep(X=X[:1]), torch.from_numpy(X[:1])
    with torch.inference_mode():
        batch = interleaved(lambda: timed(lambda: model.transform(X), 1), lambda: aeon("transform", many))
        one = interleaved(lambda: timed(lambda: model(x), 50), lambda: aeon("transform", single, calls=50))
    return {"transform": batch | {"note": "256 windows of 30x132 to 9,996 features, "
                                          f"{batch['ours'] / 256 * 1e3:.2f} ms a window"},
            "one window": one | {"note": f"50 calls; ours {one['ours'] / 50 * 1e3:.2f} ms to the logits, "
                                         f"aeon {one['peer'] / 50 * 1e3:.2f} ms to the features"}}


def same_features(aeon: Aeon) -> str:
    "Both on one channel with aeon's levels and a sharp edge."
    X = np.random.default_rng(1).normal(size=(64, 30, 1)).astype(np.float32)
    told = aeon("fit", aeon.keep(X=X))
    model = MiniRocketClassifier(1, 2, window=30)
    assert model.plan == list(zip(told["sizes"], told["shares"], strict=True))
    sharp, found, levels = 1e5, [], np.split(np.array(told["levels"]), 84 * np.cumsum(told["shares"])[:-1])
    order = lambda i, flat: flat.reshape(84, -1)[np.r_[i % 2:84:2, 1 - i % 2:84:2]].reshape(2, 42, -1).swapaxes(1, 2).ravel()
    for i, level in enumerate(levels):
        found.append(order(i, level) * sharp - 0.5)
    model.mix.fill_(sharp)
    model.levels.copy_(torch.from_numpy(np.concatenate(found)))
    data = aeon.keep(X=X)
    aeon("transform", data)
    theirs = np.split(np.load(data + ".npy"), 84 * np.cumsum(told["shares"])[:-1], axis=1)
    theirs = np.stack([np.concatenate([order(i, part[row]) for i, part in enumerate(theirs)]) for row in range(len(X))])
    apart = np.abs(model.transform(X) - theirs)
    assert (apart > 1e-4).mean() < 1e-3, "our features are not aeon's"
    return f"on one channel with aeon's levels and a sharp edge {(apart < 1e-4).mean():.4%} of {apart.size} features are equal"


def waves(recordings: int = 60, per: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Five classes of noisy waves that differ in frequency; weights and offsets of 8 channels belong to the recording."
    rng, t = np.random.default_rng(seed), np.arange(40)
    y, groups = rng.integers(0, 5, recordings * per), np.repeat(np.arange(recordings), per)
    weight, offset = rng.normal(size=(recordings, 1, 8)), rng.normal(0, 2, (recordings, 1, 8))
    swing = np.sin(2 * np.pi * t * (0.1 + 0.025 * y)[:, None] + rng.uniform(0, 2 * np.pi, (len(y), 1)))[..., None]
    x = swing * weight[groups] + offset[groups] + rng.normal(0, 1.5, (len(y), 40, 8))
    return x.astype(np.float32), y, groups


def mocap(frames: int = 20, step: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    "Windows of the six sequences with the label of most of their frames; None without AI_SUITE_DATA."
    from scipy.io import loadmat

    file = Path(os.environ.get("AI_SUITE_DATA", "")) / "mocap6" / "mocap6.mat"
    if "AI_SUITE_DATA" not in os.environ or not file.exists():
        return None
    parts = []
    for g, s in enumerate(loadmat(file, squeeze_me=True, struct_as_record=False)["DataBySeq"]):
        for a in range(0, len(s.X) - frames + 1, step):
            parts.append((s.X[a:a + frames], np.bincount(s.TrueZ[a:a + frames].astype(int)).argmax(), g))
    X, y, groups = zip(*parts, strict=True)
    return np.stack(X).astype(np.float32), np.unique(y, return_inverse=True)[1], np.array(groups)


def accuracy(aeon: Aeon, X: np.ndarray, y: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]], seeds: int = 7) -> dict:
    "Share of right answers, pooled over the folds, a pair for each seed of the kernels; each with its own ridge head."
    ours, peer, recall = [], [], []
    for seed in range(seeds):
        right, known = np.zeros((2, len(y)), bool), np.zeros(len(y), bool)
        for train, test in folds:
            model = rocket(X[train], int(y.max()) + 1, seed)
            model.fit_head(X[train], y[train])
            right[0, test] = logits_of(model, X[test]).argmax(1) == y[test]
            right[1, test] = aeon("score", aeon.keep(X=X[train], y=y[train], Z=X[test]), seed=seed) == y[test]
            known[test] = np.isin(y[test], y[train])
        tested = np.unique(np.concatenate([t for _, t in folds]))
        ours.append(right[0, tested].mean())
        peer.append(right[1, tested].mean())
        recall.append([np.mean([r[known & (y == c)].mean() for c in np.unique(y[known])]) for r in right])
    macro = np.median(recall, 0)
    return interval(ours, peer) | {"macro_recall_ours": float(macro[0]), "macro_recall_peer": float(macro[1])}


def main(python: Path) -> dict[str, dict]:
    with TemporaryDirectory() as folder, one_thread():
        aeon = Aeon(python, folder)
        figures = speed(aeon)
        figures["transform"]["note"] += "; " + same_features(aeon)
        X, y, groups = waves()
        result = accuracy(aeon, X, y, [(np.flatnonzero(groups < 40), np.flatnonzero(groups >= 40))])
        figures["accuracy, waves"] = result | {"note": f"generated waves, seed 0, 5 classes, 20 of 60 recordings kept for the "
                                               f"test: ours {result['ours']:.3f}, aeon {result['peer']:.3f}, chance 0.2"}
        if data := mocap():
            X, y, groups = data
            folds = [(np.flatnonzero(groups != g), np.flatnonzero(groups == g)) for g in np.unique(groups)]
            result = accuracy(aeon, X, y, folds)
            figures["accuracy, mocap6"] = result | {
                "note": f"{len(X)} windows of 20 frames, every fifth start, one sequence left out at a time, pooled: ours "
                        f"{result['ours']:.3f}, aeon {result['peer']:.3f}; macro recall of classes seen in training: ours "
                        f"{result['macro_recall_ours']:.3f}, aeon {result['macro_recall_peer']:.3f}; "
                        "beside it, not run here: random forest 0.735 and 0.81 "
                        "as noted with the data, step unknown"}
        else:
            print("mocap6: not run, set AI_SUITE_DATA to the folder that holds it")
        aeon.close()
    return figures


if __name__ == "__main__":
    python = environment()
    if python:
        save("minirocket", main(python))
    else:
        print("minirocket: not run, aeon is not installed")
