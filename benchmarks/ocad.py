"""The trained model on the simulator's test split, on faults injected into real traces, and what its false-alarm target gives.

The test split is read here and nowhere else; nothing is chosen by its figures. `--val` judges on the validation split and writes
nothing; `--small` takes fewer and shorter endpoints and writes nothing either."""

import os
import sys
import time
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from paired import save

from ai_suite.core.config import plain
from ai_suite.ocad.ensemble import Ocad
from ai_suite.ocad.model import fit
from ai_suite.ocad.simulate import DAYS, simulated
from ai_suite.ocad.traces import METRICS, Trace
from ai_suite.ocad.trial import contamination_sweep, injected_trial, simulated_trial, target_sweep

SPLIT = "val" if "--val" in sys.argv else "test"
SCALE = "small" if "--small" in sys.argv else "full"
DATA = Path(os.environ.get("AI_SUITE_DATA", "unset"))


@cache
def trained(seed: int = 0) -> tuple[Ocad, list[Trace]]:
    "The model with all defaults, trained on the train split, and that split."
    traces = simulated("train", seed, *DAYS[SCALE]["train"])[0]
    return fit(traces, METRICS, seed=seed), traces


def said(row: dict) -> str:
    "A row in words."
    between = row["intervals"]["event_f1"]
    interval = f" ({between[0]:.3f} to {between[1]:.3f})" if between else ""
    return f"{row['detector']} precision {row['event_precision']:.3f}, recall {row['event_recall']:.3f}, F1 " \
           f"{row['event_f1']:.3f}{interval}, false-alarm samples {row['false_alarm_samples']:.2%}, " \
           f"{row['fa_per_endpoint_day']:.3f} false alarms per endpoint and day"


def told(figures: dict) -> str:
    "A trial in words."
    alerts, weakest = figures["alerts"], min(figures["kinds"], key=lambda k: k["recall"])
    return f"{figures['events']} events, {figures['endpoints']} endpoints; " + "; ".join(map(said, figures["rows"][:3])) + (
        f"; alerts: {alerts['alerts']}, precision {alerts['precision']:.3f}, recall {alerts['recall']:.3f}, median delay "
        f"{alerts['delay_s']:.0f} s; weakest kind {weakest['kind']} {weakest['recall']:.2f}; parts alone at the same share of "
        "false-alarm samples, a threshold that knows the labels")


def simulation() -> dict:
    "Train split in, test split judged."
    figures = simulated_trial(0, SCALE, SPLIT, trained()[0])
    return {"note": told(figures), **figures}


def injection() -> dict:
    "Faults injected into quiet stretches of real traces; no target was set for this."
    figures = injected_trial(0, DATA / "rtt_atlas")
    return {"note": f"{figures['stretches']} stretches, none judged by a model that saw its trace; shifts and spikes that nobody "
                    f"marked count as false alarms; {told(figures)}", **figures}


def targets() -> dict:
    "What other endpoints get when a share of false alarms is asked for."
    rows = target_sweep(*trained(), split=SPLIT, scale=SCALE)
    each = [f"{r['target']:g} gives {r['above_line']:.1e} ({r['low']:.1e} to {r['high']:.1e}, flagged {r['flagged']:.1e}, "
            f"threshold {r['threshold']:.2f})" for r in rows]
    return {"note": f"share above the line of {rows[0]['samples']:,} samples of {rows[0]['days']} fault-free days of other "
                    f"endpoints, first days apart, with intervals over days: {', '.join(each)}", "rows": rows}


def contamination() -> dict:
    "What the forest's contamination changes; the validation split is enough."
    model, traces = trained()
    rows = contamination_sweep(model, traces, simulated("val", 0, *DAYS["small"]["val"])[0])
    return {"note": f"contamination {rows[0]['contamination']} to {rows[-1]['contamination']}: "
                    f"{max(r['changed'] for r in rows)} flags change", "rows": rows}


def speed(endpoints: int = 4) -> dict:
    "Samples per second in batch, in processor time of one core, on the validation split."
    model = trained()[0]
    traces = simulated("val", 0, endpoints, 6.0)[0]
    model.score(traces[0])
    began = time.process_time()
    for trace in traces:
        model.score(trace)
    took, samples = time.process_time() - began, sum(len(t.seconds) for t in traces)
    return {"samples": samples, "cpu_s": took, "samples_per_s": samples / took,
            "note": f"{samples / took:,.0f} samples of {len(METRICS)} metrics a second of processor time, whole traces"}


FIGURES = {"simulated test": simulation, "injected": injection, "false-alarm targets": targets, "contamination": contamination,
           "batch speed": speed}

if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if not a.startswith("--")] or list(FIGURES)
    for name in names:
        if name == "injected" and not (DATA / "rtt_atlas").is_dir():
            print("injected: not run, set AI_SUITE_DATA to the folder that holds rtt_atlas")
        elif (SPLIT, SCALE) == ("test", "full"):
            save("ocad", {name: plain(FIGURES[name]())})
        else:
            print(f"{name} ({SPLIT}, {SCALE}): {FIGURES[name]()['note']}")
