"""Isolation forest on one row and on many: our walk over flat arrays against scikit-learn's `score_samples`, same forest.

Then the cost of one sample in a stream, for the two multivariate detectors of ocad."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import paired, save, seconds

from ai_suite.ocad.iforest import Forest, features, flat, grow, packed, score_one, score_samples
from ai_suite.ocad.subspace import Relations
from ai_suite.ocad.traces import Trace

CALLS = 20


def link(n: int, seed: int) -> Trace:
    "Residuals of four metrics that share a queue."
    rng = np.random.default_rng(seed)
    z = 0.7 * rng.normal(size=(n, 1)) + 0.7 * rng.normal(size=(n, 4))
    return Trace(f"link-{seed}", np.arange(n) * 60.0, z, np.arange(n), np.zeros(n, np.uint8))


def against_sklearn(rows: int = 2000) -> dict[str, dict]:
    "One row at a time, and all rows at once; the largest difference stands beside the times."
    X = features(link(rows, 0).values)
    forest = grow(X, 100, 256)
    arrays, X64 = flat(forest), X.astype(np.float64)
    nodes = packed(arrays)
    apart = float(np.abs(score_samples(arrays, X64) - forest.score_samples(X64)).max())
    assert apart < 1e-12
    single = [X64[i:i + 1] for i in range(CALLS)]
    one = paired(lambda: [score_one(nodes, arrays, x[0]) for x in single], lambda: [forest.score_samples(x) for x in single])
    many = paired(lambda: score_samples(arrays, X64, nodes), lambda: forest.score_samples(X64))
    note = f"100 trees, 256 rows each, {X.shape[1]} features; largest difference {apart:.1e}"
    return {
        "one row": one | {"note": f"{CALLS} rows, one call each; {one['ours_s'] / CALLS * 1e6:.1f} µs against "
                                  f"{one['peer_s'] / CALLS * 1e3:.2f} ms a row, {1 / one['ratio']:.0f} times faster; {note}"},
        f"{rows} rows": many | {"note": f"one call; {many['ours_s'] / rows * 1e6:.1f} µs a row; {note}"},
    }


def stream(detector: Forest | Relations, trace: Trace) -> dict:
    "Microseconds a sample: middle and 99th percentile of single updates, and the mean of a whole trace at once."
    state, n = detector.start(4), len(trace.seconds)
    one = lambda i: detector.update(state, trace.seconds[i], trace.values[i])
    for i in range(200):
        one(i)
    each = 1e6 * np.array([seconds(lambda i=i: one(i))[0] for i in range(n)])
    batch = 1e6 * min(seconds(lambda: detector.score(trace.seconds, trace.values))[0] for _ in range(5)) / n
    p50, p99 = np.quantile(each, [0.5, 0.99])
    return {"p50_us": float(p50), "p99_us": float(p99), "batch_us": batch, "state_bytes": state.nbytes,
            "note": f"4 metrics: p50 {p50:.1f} µs, p99 {p99:.1f} µs a sample, {batch:.1f} µs in batch, "
                    f"state {state.nbytes} bytes"}


def streams(n: int = 5000) -> dict[str, dict]:
    "Both detectors on one trace."
    train, trace = [link(4000, s) for s in range(1, 4)], link(n, 9)
    return {f"stream, {type(d).__name__}": stream(d, trace) for d in (Forest().fit(train), Relations().fit(train))}


if __name__ == "__main__":
    save("forest", against_sklearn() | streams())
