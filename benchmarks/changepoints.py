"""Change points of 27 RIPE Atlas traces marked by hand: PELT on bent values, on plain values, on ranks, and the online sums."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import save

from ai_suite.ocad.changepoint import NAMES, ChangePoint
from ai_suite.ocad.offline import changepoints, noise_of, rates, score_changepoints
from ai_suite.ocad.series import read_series, tidy

ATLAS = Path(os.environ.get("AI_SUITE_DATA", "unset"), "rtt_atlas/real_trace_labelled")
LEVELS = [i for i, name in enumerate(NAMES) if name.startswith("cusum")]
Find = Callable[[np.ndarray, np.ndarray], np.ndarray]


def traces() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    "Seconds, RTT in ms and marked samples of each file, by name."
    found = {}
    for path in sorted(ATLAS.glob("*.csv.gz")):
        table = tidy(read_series(path, metrics=["rtt", "cp"])[0])
        seconds = table.timestamp.astype("int64").to_numpy() / 1000
        found[path.name.split(".")[0]] = seconds, table.rtt.to_numpy(), np.flatnonzero(table.cp == 1)
    return found


def pelt(cost: str, **settings: float) -> Find:
    "Offline, by `changepoints`."
    return lambda values, seconds: changepoints(values, seconds, cost, **settings)["index"].to_numpy()


def online(alarm: float = 7.0, settle: int = 10, warm: int = 20, ahead: int = 600) -> Find:
    """The level sums alone, strictly causal: an alarm places a change at its onset; the new level is the median of what came
    since, of `settle` samples at least, and the sums start anew. The noise is that of the last 500 samples."""
    def find(values: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        rows = np.flatnonzero(np.isfinite(values))
        known, detector, found, start, level_from = values[rows], ChangePoint(), [], warm, 0
        while start < len(known):
            level, sigma = np.median(known[level_from:start]), noise_of(known[max(0, start - 500):start])
            z = (known[start:start + ahead, None] - level) / max(sigma, 1e-9)
            clock = np.arange(start, start + len(z), dtype=float)
            over = np.flatnonzero((detector.score(clock, z)[:, LEVELS, 0] >= alarm).any(1))
            if not len(over):
                level_from, start = max(level_from, start + len(z) - 500), start + len(z)
                continue
            state = detector.start(1)
            for t in range(over[0] + 1):
                scores = detector.update(state, clock[t], z[t])
            best = LEVELS[int(scores[LEVELS, 0].argmax())]
            level_from = int(detector.onsets(state)[best, 0])
            found.append(level_from)
            start = max(start + int(over[0]) + 1, level_from + settle)
        return rows[found]
    return find


def halves(find: Find, data: dict) -> dict:
    "Counts over the half that settings were chosen on (1st, 3rd, … file by name), the half held out, and all."
    counts = {name: score_changepoints(find(rtt, seconds), true) for name, (seconds, rtt, true) in data.items()}
    names, figure = list(counts), {"margin_samples": 7}
    for part, chosen in {"chosen": names[::2], "held_out": names[1::2], "all": names}.items():
        total = rates(*(int(sum(counts[n][k] for n in chosen)) for k in ("hits", "found", "true")))
        figure[part] = total | {"files": len(chosen), "mean_f1": float(np.mean([counts[n]["f1"] for n in chosen]))}
    figure["note"] = "F1 " + ", ".join(f"{figure[p]['f1']:.3f} {p.replace('_', ' ')}" for p in ("chosen", "held_out", "all")) + (
        f"; all: precision {figure['all']['precision']:.2f}, recall {figure['all']['recall']:.2f}, {len(names)} files; "
        "settings chosen on the 1st, 3rd, … file by name")
    return figure


def speed(n: int = 20_000, metrics: int = 4) -> dict:
    "Time of one online update of 4 metrics, with its quantiles, and of a sample in batch, microseconds."
    z, clock = np.random.default_rng(0).normal(size=(n, metrics)), np.arange(float(n))
    detector = ChangePoint()
    state, spent = detector.start(metrics), np.empty(n)
    detector.update(state, 0.0, z[0]), detector.score(clock[:10], z[:10])
    for t in range(n):
        began = time.perf_counter()
        detector.update(state, clock[t], z[t])
        spent[t] = time.perf_counter() - began
    began = time.perf_counter()
    detector.score(clock, z)
    batch = 1e6 * (time.perf_counter() - began) / n
    p50, p99 = (float(q) for q in np.quantile(1e6 * spent, [0.5, 0.99]))
    return {"p50_us": p50, "p99_us": p99, "batch_us": batch, "state_bytes": state.nbytes, "samples": n,
            "note": f"{metrics} metrics: {p50:.1f} us a sample online (p99 {p99:.1f}), {batch:.1f} us in batch, "
                    f"{state.nbytes} bytes of state"}


METHODS = {"pelt on bent values": pelt("log"), "pelt on plain values": pelt("l2"), "pelt on ranks": pelt("rank"),
           "online sums": online()}

if __name__ == "__main__":
    if "--speed" in sys.argv:
        save("changepoints", {"online speed": speed()})
    if not ATLAS.is_dir():
        print("changepoints: not run, set AI_SUITE_DATA to the folder that holds rtt_atlas")
    else:
        data = traces()
        save("changepoints", {name: halves(find, data) for name, find in METHODS.items()})
