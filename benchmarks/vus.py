"""VUS-ROC and VUS-PR against TSB-AD's: the same two numbers, the time they take, and our memory.

TSB-AD wants another NumPy than ours, so it lives in `.bench/tsb` and answers over pipes with its own timings."""

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import middle, save

from ai_suite.ocad.vus import vus

HOME = Path(__file__).resolve().parent.parent / ".bench" / "tsb"
NEEDS = ["numpy<2", "scipy", "scikit-learn", "statsmodels"]  # What the two modules that are used here import
PEER = """
import json, sys, time
import numpy as np
from TSB_AD.evaluation.basic_metrics import generate_curve

for line in sys.stdin:
    d = np.load(line.strip())
    began = time.perf_counter()
    *_, roc, pr = generate_curve(d['labels'], d['scores'], int(d['window']))
    print(json.dumps([time.perf_counter() - began, float(roc), float(pr)]), flush=True)
"""


def environment() -> Path | None:
    "The Python that has TSB-AD; built when it is missing, None when that fails."
    python = HOME / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        if subprocess.run([python, "-c", "from TSB_AD.evaluation import basic_metrics"], capture_output=True).returncode:
            subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "TSB-AD==1.5"], check=True)
        return python
    except (OSError, subprocess.CalledProcessError) as e:
        print(f"TSB-AD cannot be installed: {e}", file=sys.stderr)
        return None


def series(n: int, every: int = 1000, long: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    "Labels with an event in each stretch, and a score that knows a little about them."
    rng, labels = np.random.default_rng(seed), np.zeros(n, int)
    for a in range(every // 2, n - long, every):
        labels[a:a + long] = 1
    return labels, rng.random(n) + 0.3 * labels


def ours(labels: np.ndarray, scores: np.ndarray, window: int) -> list[float]:
    "Seconds, VUS-ROC, VUS-PR."
    began = time.perf_counter()
    both = vus(labels, scores, window)
    return [time.perf_counter() - began, *both]


def against(python: Path, n: int, window: int, pairs: int = 7) -> dict:
    "Median of ours / theirs over interleaved pairs; the two numbers must agree."
    labels, scores = series(n)
    with TemporaryDirectory() as folder:
        path = f"{folder}/case.npz"
        np.savez(path, labels=labels, scores=scores, window=window)
        peer = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def theirs() -> list[float]:
            print(path, file=peer.stdin, flush=True)
            return json.loads(peer.stdout.readline())

        calls = [lambda: ours(labels, scores, window), theirs]
        first = [call() for call in calls]
        rows = np.array([[call() for call in calls[::1 - 2 * (k % 2)]][::1 - 2 * (k % 2)] for k in range(pairs)])
        peer.stdin.close()
        peer.wait(30)
    apart = float(np.abs(np.array(first[0]) - first[1])[1:].max())
    assert apart < 1e-9, f"ours and theirs differ by {apart}"
    ratio, low, high = middle(rows[:, 0, 0] / rows[:, 1, 0], 0)
    mine, their = np.median(rows[..., 0], 0)
    return {"pairs": pairs, "ours_s": float(mine), "peer_s": float(their), "ratio": ratio, "low": low, "high": high,
            "apart": apart, "note": f"{n:,} samples, window {window}: ours {mine:.3f} s, TSB-AD 1.5 {their:.2f} s; "
                                    f"numbers apart by {apart:.1e}"}


def memory(window: int = 100) -> dict:
    "Peak of what one call allocates, for two lengths."
    peaks = []
    for n in (100_000, 1_000_000):
        labels, scores = series(n)
        tracemalloc.start()
        vus(labels, scores, window)
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    return {"mb": peaks, "note": f"peak of allocations at 100,000 and 1,000,000 samples, window {window}: "
                                 f"{peaks[0]:.0f} and {peaks[1]:.0f} MB"}


def alone() -> dict:
    "Seconds of ours on a million samples, and with a large window."
    each = {f"{n:,} samples, window {w}": float(np.median([ours(*series(n), w)[0] for _ in range(5)]))
            for n, w in ((100_000, 100), (1_000_000, 100), (100_000, 1000))}
    return {"seconds": each, "note": "; ".join(f"{name}: {s:.3f} s" for name, s in each.items())}


def main() -> None:
    figures = {"memory": memory(), "time": alone()}
    python = environment()
    if python:
        figures["against TSB-AD"] = against(python, 100_000, 100)
    else:
        print("vus against TSB-AD: not run, it is not installed")
    save("vus", figures)


if __name__ == "__main__":
    main()
