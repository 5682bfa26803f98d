"""windows of 10 GB without a copy: anonymous memory while batches are drawn and scored, and while windows are written."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import RESULTS, paired

SIZE, STRIDE, FEATURES, BATCH = 30, 15, 132, 64
FRAME, TEN_GB = FEATURES * 4, 10_000_000_000


def anonymous() -> float:
    "Megabytes of this process that belong to no file."
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Anonymous"))


def sparse(path: Path, *shape: int) -> np.ndarray:
    "A large .npy file that takes room on disk only where it is written; here every 1,000th row along its first axis."
    X = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    X[:: max(1, len(X) // 1000)] = 1
    X.flush()
    return np.load(path, mmap_mode="r")


def batches_of(kind: str, folder: Path, n_batches: int, n_bytes: int) -> dict:
    "Random batches of windows of a memory map, scored by an LSTM: anonymous memory before and at its most."
    import torch

    from ai_suite.core.fit import logits_of, one_thread
    from ai_suite.core.sequence import LSTMClassifier
    from ai_suite.core.windows import Rows, sliding

    if kind == "frames":
        whole = sparse(folder / "frames.npy", n_bytes // FRAME, FEATURES)
        X = sliding(whole, SIZE, STRIDE)
    else:
        whole = X = sparse(folder / "X.npy", n_bytes // (SIZE * FRAME), SIZE, FEATURES)
    torch.manual_seed(0)
    net, rng = LSTMClassifier(FEATURES, 4, hidden=32, layers=1), np.random.default_rng(0)
    with one_thread():
        logits_of(net, np.zeros((BATCH, SIZE, FEATURES), np.float32))
        before, most, total = anonymous(), 0.0, 0.0
        for k in range(n_batches):
            total += float(logits_of(net, Rows(X, rng.integers(0, len(X), BATCH)), batch=BATCH).sum())
            if k % 20 == 0:
                most = max(most, anonymous())
    assert np.isfinite(total)
    return {"shares_memory": bool(np.shares_memory(X, whole)), "memory_map": isinstance(whole, np.memmap), "windows": len(X),
            "batches": n_batches, "gigabytes": round(whole.nbytes / 1e9, 2), "before_mb": round(before), "most_mb": round(most),
            "grown_mb": round(most - before, 1)}


def writing(folder: Path, n_bytes: int) -> dict:
    "Overlapping windows of one recording after another into X.npy: the most anonymous memory on the way."
    from ai_suite.core.windows import WindowWriter, sliding

    frames = np.random.default_rng(0).normal(size=(3000, FEATURES)).astype(np.float32)
    windows = sliding(frames, SIZE, STRIDE)
    before, most = anonymous(), 0.0
    with WindowWriter(folder, SIZE, FEATURES) as writer:
        while writer.n * SIZE * FRAME < n_bytes:
            writer.append(windows)
            most = max(most, anonymous())
    written = writer.path.stat().st_size
    return {"gigabytes": round(written / 1e9, 2), "before_mb": round(before), "most_mb": round(most),
            "grown_mb": round(most - before, 1)}


def drawing(folder: Path, n_windows: int = 4000) -> dict:
    "Random batches of a view of overlapping windows against the same windows copied into one array, both in memory."
    from ai_suite.core.windows import sliding

    frames = np.random.default_rng(0).normal(size=(n_windows * STRIDE + SIZE, FEATURES)).astype(np.float32)
    view = sliding(frames, SIZE, STRIDE)
    copy = np.ascontiguousarray(view)
    parts = np.random.default_rng(1).integers(0, len(view), (200, BATCH))
    return paired(lambda: [view[p] for p in parts], lambda: [copy[p] for p in parts]) | {
        "note": f"200 batches of {BATCH} windows of {SIZE}x{FEATURES} out of {len(view)}"}


KINDS = {"frames": lambda f, small: batches_of("frames", f, 100 if small else 2000, TEN_GB),
         "windows": lambda f, small: batches_of("windows", f, 100 if small else 2000, TEN_GB),
         "writer": lambda f, small: writing(f, 200_000_000 if small else 2_000_000_000),
         "drawing": lambda f, small: drawing(f, 400 if small else 4000)}


def apart(kind: str, small: bool) -> dict:
    "One measurement in a process of its own, so that nothing else counts; its files are removed."
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        command = [sys.executable, __file__, "--one", kind, folder, *(["--small"] if small else [])]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main(small: bool = False) -> Path | None:
    "Measure all; write the result unless it was the small trial."
    figures = {kind: apart(kind, small) for kind in KINDS}
    for kind, figure in figures.items():
        print(kind, json.dumps(figure))
    for kind in ("frames", "windows"):
        assert figures[kind]["shares_memory"] and figures[kind]["memory_map"], f"{kind} were copied"
        assert figures[kind]["grown_mb"] < 300, f"{kind} took {figures[kind]['grown_mb']} MB"
    assert figures["writer"]["grown_mb"] < 50, f"the writer grew by {figures['writer']['grown_mb']} MB"
    if small:
        return None
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    path = RESULTS / "windows.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")
    return path


if __name__ == "__main__":
    if "--one" in sys.argv:
        print(json.dumps(KINDS[sys.argv[2]](Path(sys.argv[3]), "--small" in sys.argv)))
    else:
        main("--small" in sys.argv)
