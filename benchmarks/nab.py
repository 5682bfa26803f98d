"""The 58 series of the Numenta Anomaly Benchmark: every component and the composite, offline and online, beside published ones.

The 18 series named in `nab_file_map.csv` stand beside TSB-AD's published columns. Its files are the whole NAB files
without the last row, so lengths agree to one sample; the labels of some (by `anomaly_len` in its table) are of another
length than NAB's own windows, which are used here, and its detectors have no probation."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
import pandas as pd
from paired import save

from ai_suite.ocad.bench import Case, cases_of, judged, table_of
from ai_suite.ocad.univariate import ALARM

DATA = Path(os.environ.get("AI_SUITE_DATA", "unset"))
PUBLISHED = DATA / "tsb_ad_published"


def published() -> tuple[pd.DataFrame, pd.DataFrame]:
    "Which of TSB-AD's files are which of NAB's, and their VUS-PR by detector; empty without the tables."
    names = pd.read_csv(PUBLISHED / "nab_file_map.csv")
    table = pd.read_csv(PUBLISHED / "uni_mergedTable_VUS-PR.csv").set_index("file").loc[names.tsb_ad_file]
    return names, table


def differences(cases: Sequence[Case], names: pd.DataFrame, table: pd.DataFrame) -> str:
    "How the mapped files differ from NAB's own."
    by_name = {c.name: c for c in cases}
    pairs = [(by_name[n], table.loc[t]) for t, n in names[["tsb_ad_file", "nab_file"]].itertuples(index=False)]
    shorter = sum(len(c.seconds) - int(row.ts_len) == 1 for c, row in pairs)
    apart = [abs(int(cast(np.ndarray, c.label).sum()) - int(row.anomaly_len)) > 5 for c, row in pairs]
    return f"{shorter} of {len(pairs)} are one sample shorter there, {sum(apart)} carry labels of another length"


def unlabelled(cases: Sequence[Case], results: dict[str, Any], detector: str) -> dict[str, float]:
    "False alarms a day on the series without any fault, one by one."
    found = {}
    for c in cases:
        days = (len(c.seconds) - c.probation) * float(np.median(np.diff(c.seconds))) / 86_400
        found[c.name] = float((results[c.name][detector]["alarm"][c.probation:] >= ALARM).sum() / days)
    return found


def said(rows: list[dict[str, Any]], *detectors: str) -> str:
    "The main figures of some rows in words."
    by = {r["detector"]: r for r in rows}
    return "; ".join(f"{d}: VUS-PR {by[d]['vus_pr']:.3f}, NAB standard {by[d]['nab_standard']:.1f} swept, "
                     f"{by[d]['nab_at_alarm']:.1f} at the fixed threshold" for d in detectors)


def whole(cases: Sequence[Case], results: dict[str, Any]) -> dict[str, float]:
    "VUS-PR of each detector without a probation."
    known = [results[c.name] for c in cases if np.any(c.label)]
    return {d: float(np.mean([r[d]["vus_pr_whole"] for r in known])) for d in known[0]}


def best_single(rows: list[dict[str, Any]], mode: str) -> dict[str, Any]:
    "The best component of a mode by VUS-PR."
    single = [r for r in rows if r["detector"].startswith(mode) and "composite" not in r["detector"]]
    return max(single, key=lambda r: r["vus_pr"])


def part(cases: Sequence[Case], results: dict[str, Any]) -> dict[str, Any]:
    "Rows over some series, and what they say."
    rows = table_of(cases, results)
    best, chance = best_single(rows, "offline"), next(r for r in rows if r["detector"] == "random")
    note = f"{len(cases)} series; {said(rows, 'offline composite', 'online composite')}; best single view offline: " \
           f"{best['detector'].split()[1]} {best['vus_pr']:.3f}; random {chance['vus_pr']:.3f}"
    return {"note": note, "rows": rows}


def figures(workers: int | None = None) -> dict[str, dict]:
    "Everything; the development half is every second series in order of path."
    root = DATA / "nab"
    cases = cases_of(root, "nab")
    began = time.perf_counter()
    results = judged(cases, workers)
    took = time.perf_counter() - began
    free = [c for c in cases if not np.any(c.label)]
    made = {"rows, all series": part(cases, results), "rows, development half": part(cases[::2], results),
            "rows, other half": part(cases[1::2], results)}
    bare = whole(cases, results)
    single = max((v, k) for k, v in bare.items() if k.startswith("offline") and "composite" not in k)
    made["no probation, all series"] = {"note": f"offline composite VUS-PR {bare['offline composite']:.3f}, best single view "
                                        f"{single[1].split()[1]} {single[0]:.3f}", "vus_pr": bare}
    if PUBLISHED.is_dir():
        names, table = published()
        chosen, known = set(names.nab_file), table.iloc[:, :31].mean().sort_values()[::-1].round(3)
        made["rows, the 18 of TSB-AD"] = part([c for c in cases if c.name in chosen], results)
        plain = whole([c for c in cases if c.name in chosen], results)["offline composite"]
        made["rows, the 18 of TSB-AD"]["note"] += f"; offline composite without probation {plain:.3f}; published " \
            f"there: {', '.join(f'{k} {v:.3f}' for k, v in known.head(4).items())}; {differences(cases, names, table)}"
    quiet = {d: unlabelled(free, results, d) for d in ("online composite", "offline composite")}
    made["false alarms"] = {"note": "a day on the series without labels: " + "; ".join(
        f"{d} {np.mean(list(v.values())):.3f}" for d, v in quiet.items()), "by_series": quiet}
    made["time"] = {"note": f"{took:.0f} s for {len(cases)} series on {workers or os.cpu_count()} processes"}
    return made


if __name__ == "__main__":
    if not (DATA / "nab" / "labels").is_dir():
        print("nab: not run, set AI_SUITE_DATA to the folder that holds nab")
    else:
        save("nab", figures())
