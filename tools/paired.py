"""Interleaved pairs of timings: ours and a peer in one run, so that a busy machine slows both."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def seconds(work: Callable[[], object]) -> float:
    "How long something takes."
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


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
    ratio = times[:, 0] / times[:, 1]
    draws = np.median(ratio[np.random.default_rng(seed).integers(0, pairs, (2000, pairs))], 1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"pairs": pairs, "ours_s": float(np.median(times[:, 0])), "peer_s": float(np.median(times[:, 1])),
            "ratio": float(np.median(ratio)), "low": float(low), "high": float(high)}


def save(system: str, figures: dict[str, dict]) -> Path:
    "Write the figures of a system beside those of earlier runs, and print them."
    path = RESULTS / f"{system}.json"
    path.parent.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    before = json.loads(path.read_text())["figures"] if path.exists() else {}
    path.write_text(json.dumps({"machine": machine, "figures": before | figures}, indent=1) + "\n")
    for name, f in figures.items():
        ratio = f"ours / peer {f['ratio']:.3f} ({f['low']:.3f} to {f['high']:.3f}), {f['pairs']} pairs; " if "ratio" in f else ""
        print(f"{name}: {ratio}{f['note']}")
    return path
