"""Interleaved pairs of timings: ours and a peer in one run, so that a busy machine slows both."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    "How long something takes: on the clock, and in processor time of this process."
    began, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - busy


def middle(ratio: np.ndarray, seed: int) -> tuple[float, float, float]:
    "Median with a bootstrap interval."
    draws = np.median(ratio[np.random.default_rng(seed).integers(0, len(ratio), (2000, len(ratio)))], 1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(np.median(ratio)), float(low), float(high)


def paired(ours: Callable[[], object], peer: Callable[[], object], pairs: int = 9, warm: int = 1, seed: int = 0) -> dict:
    "Median of ours / peer over interleaved pairs, with a bootstrap interval; the order alternates."
    for _ in range(warm):
        ours(), peer()
    rows = []
    for k in range(pairs):
        first, second = (ours, peer) if k % 2 else (peer, ours)
        a, b = seconds(first), seconds(second)
        rows.append((a, b) if k % 2 else (b, a))
    times = np.array(rows)
    wall, (ratio, low, high) = times[..., 0], middle(times[:, 0, 0] / times[:, 1, 0], seed)
    cpu = middle(times[:, 0, 1] / times[:, 1, 1], seed)
    return {"pairs": pairs, "ours_s": float(np.median(wall[:, 0])), "peer_s": float(np.median(wall[:, 1])),
            "ratio": ratio, "low": low, "high": high, "cpu_ratio": cpu[0], "cpu_low": cpu[1], "cpu_high": cpu[2]}


def save(system: str, figures: dict[str, dict]) -> Path:
    "Write the figures of a system beside those of earlier runs, and print them."
    path = RESULTS / f"{system}.json"
    path.parent.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    before = json.loads(path.read_text())["figures"] if path.exists() else {}
    path.write_text(json.dumps({"machine": machine, "figures": before | figures}, indent=1) + "\n")
    for name, f in figures.items():
        ratio = f"ours / peer {f['ratio']:.3f} ({f['low']:.3f} to {f['high']:.3f}), {f['pairs']} pairs; " if "ratio" in f else ""
        if "cpu_ratio" in f:
            ratio += f"in processor time {f['cpu_ratio']:.3f} ({f['cpu_low']:.3f} to {f['cpu_high']:.3f}); "
        print(f"{name}: {ratio}{f['note']}")
    return path
