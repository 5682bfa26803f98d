"""Record what TSB-AD's published implementation says about small cases: the numbers that ours must equal.

Run with the Python of an environment that has TSB-AD and NumPy 1 (`benchmarks/vus.py` makes one in `.bench/tsb`):
`.bench/tsb/bin/python tools/vus_cases.py`. AI_SUITE_DATA adds the window lengths of the NAB series."""

import csv
import os
from pathlib import Path

import numpy as np
from TSB_AD.evaluation.basic_metrics import generate_curve
from TSB_AD.utils.slidingWindows import find_length_rank

HOME = Path(__file__).resolve().parent.parent / "tests" / "data" / "vus_cases.npz"


def labels(n: int, *spans: tuple[int, int]) -> np.ndarray:
    y = np.zeros(n, np.uint8)
    for a, b in spans:
        y[a:b] = 1
    return y


def scored(y: np.ndarray, seed: int, gain: float = 0.4, digits: int = 3) -> np.ndarray:
    "A rounded random score that knows something about the labels."
    return np.round(np.random.default_rng(seed).random(len(y)) + gain * y, digits)


def volumes() -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    "Name: labels, scores, largest window."
    rng = np.random.default_rng(0)
    some = labels(1200, (100, 140), (500, 501), (700, 760))
    near = labels(1000, (100, 110), (114, 118), (140, 150), (300, 301), (303, 304), (340, 360), (400, 430))
    edges = labels(900, (0, 30), (400, 420), (870, 900))
    dense = (rng.random(800) < 0.1).astype(np.uint8)
    long = labels(4000, (900, 1400), (2000, 2010), (3000, 3003))
    cases = {f"some {w}": (some, scored(some, w), w) for w in (0, 1, 2, 10, 100)}
    cases |= {f"near {w}": (near, scored(near, w), w) for w in (7, 40, 100)}
    cases |= {f"edges {w}": (edges, scored(edges, w), w) for w in (0, 10, 100)}
    cases |= {f"dense {w}": (dense, scored(dense, w), w) for w in (1, 10, 100)}
    cases["one event"] = labels(500, (200, 260)), scored(labels(500, (200, 260)), 3), 100
    cases["one sample"] = labels(500, (250, 251)), scored(labels(500, (250, 251)), 4), 100
    cases["first sample"] = labels(300, (0, 1)), scored(labels(300, (0, 1)), 5), 20
    cases["last sample"] = labels(300, (299, 300)), scored(labels(300, (299, 300)), 6), 20
    cases["constant score"] = some, np.full(len(some), 0.5), 100
    cases["two values"] = some, (scored(some, 7) > 0.8).astype(float), 50
    cases["few values"] = some, scored(some, 8, digits=1), 50
    cases["oracle"] = some, some.astype(float), 100
    cases["upside down"] = some, 1.0 - some, 100
    cases["late by 20"] = some, np.roll(some, 20).astype(float), 100
    cases["shorter than the thresholds"] = labels(60, (20, 30)), scored(labels(60, (20, 30)), 9), 10
    cases["window beyond the series"] = labels(120, (50, 60)), scored(labels(120, (50, 60)), 10), 300
    cases["nearly all anomalous"] = 1 - labels(400, (180, 190)), scored(1 - labels(400, (180, 190)), 11), 20
    cases["long"] = long, scored(long, 12), 100
    return cases


def series() -> dict[str, np.ndarray]:
    "Series whose window is looked for."
    rng, t = np.random.default_rng(1), np.arange(3000)
    waves = {f"period {p}": np.sin(2 * np.pi * t / p) + 0.1 * rng.normal(size=len(t)) for p in (5, 24, 97, 200, 288, 320)}
    waves |= {f"exactly {p}": np.sin(2 * np.pi * t[:1500] / p) for p in (5, 6, 303, 304)}
    walk = np.cumsum(rng.normal(size=2000))
    more = {"noise": rng.normal(size=2000), "walk": walk, "line": np.arange(500.0), "constant": np.ones(500),
            "short": rng.normal(size=30), "very short": np.array([1.0, 2.0, 1.0, 3.0]),
            "long": np.tile(np.sin(2 * np.pi * np.arange(60) / 60), 500)}
    return {name: np.round(x, 2) for name, x in (waves | more).items()}


def nab(folder: Path) -> dict[str, int]:
    "File: window, for the NAB series; none without the data."
    found = {}
    for path in sorted(folder.glob("*/*.csv")):
        with path.open(newline="") as f:
            values = np.array([float(row["value"]) for row in csv.DictReader(f)])
        found[f"{path.parent.name}/{path.name}"] = int(find_length_rank(values.reshape(-1, 1)))
    return found


def main() -> None:
    out: dict[str, np.ndarray] = {}
    cases, shapes = volumes(), series()
    for k, (y, score, window) in enumerate(cases.values()):
        *_, roc, pr = generate_curve(y.astype(int), score, window)
        out |= {f"labels_{k}": y, f"score_{k}": score.astype(np.float32) if len(np.unique(score)) > 2 else score,
                f"expected_{k}": np.array([window, roc, pr])}
        assert np.array_equal(np.round(out[f"score_{k}"].astype(float), 3), score)
    for k, x in enumerate(shapes.values()):
        out |= {f"series_{k}": x.astype(np.float32), f"window_{k}": np.array(find_length_rank(x.reshape(-1, 1)))}
        assert np.array_equal(np.round(out[f"series_{k}"].astype(float), 2), x)
    windows = nab(Path(os.environ.get("AI_SUITE_DATA", "")) / "nab" / "data")
    np.savez_compressed(HOME, cases=np.array([*cases]), series=np.array([*shapes]), nab_files=np.array([*windows]),
                        nab_windows=np.array([*windows.values()], int), **out)
    print(f"{len(cases)} cases, {len(shapes)} series, {len(windows)} NAB windows in {HOME.name}, {HOME.stat().st_size} bytes")


if __name__ == "__main__":
    main()
