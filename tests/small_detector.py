"""A small detector with the interface of the trained model, quick to load; as a program, it runs members or a local stream."""

import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np


class SmallDetector:
    "Compares each value with a slow mean and its slow spread."

    metrics, parts = ("udp_echo_rtt_us", "ccm_loss"), ("z",)

    def __init__(self, delay: float = 0.0, version: str = "1.0.0"):
        self.delay, self.version = delay, version

    def start(self, endpoint: str = ""):
        "A fresh state."
        return {"n": np.zeros(1), "mean": np.zeros(2), "spread": np.ones(2)}

    def update(self, state, second, values):
        "Judge one sample."
        if self.delay:
            time.sleep(self.delay)
        state["n"] += 1
        seen, off = np.isfinite(values), np.nan_to_num(values - state["mean"])
        z = np.abs(off) / np.maximum(state["spread"], 0.1)
        learn = np.where(seen & ((z < 4) | (state["n"] < 60)), 1 / np.minimum(state["n"], 300), 0)
        state["mean"] += learn * off
        state["spread"] += learn * (np.abs(off) * 1.25 - state["spread"])
        high = bool(state["n"][0] > 60 and z.max() > 6)
        score = float(1 - np.exp(-z.max() / 6)) if seen.any() else math.nan
        return SimpleNamespace(score=score, is_anomaly=high, kind="level_shift" if high else "", note="",
                               metric=self.metrics[int(z.argmax())], rule=score, changepoint=0.0, residual=0.0, multivariate=0.0,
                               start=second if high else math.nan, parts=z[:1])


def rows(endpoints: int = 12, steps: int = 300, seed: int = 0, every: int = 10) -> list[dict]:
    "Samples of several endpoints in the order of time, with short level shifts that make a known kind of alert."
    rng = np.random.default_rng(seed)
    noise, shift = rng.normal(0, 2, (steps, endpoints)), np.zeros((steps, endpoints))
    for e in range(endpoints):
        for k in range(80 + 7 * e, steps, 90):
            shift[k : k + 15, e] = 60
    value = lambda k, e: round(100 + 10 * e + noise[k, e] + shift[k, e], 3)
    return [{"timestamp": 1_700_000_000 + every * k, "endpoint": f"du-{e}", "udp_echo_rtt_us": value(k, e), "ccm_loss": 0.0}
            for k in range(steps) for e in range(endpoints)]


if __name__ == "__main__":
    from ai_suite.core.cli import guarded
    from ai_suite.ocad.broker import Settings
    from ai_suite.ocad.kafka import members

    given = json.loads(sys.argv[1])
    workers, load = given.pop("workers", 1), partial(SmallDetector, given.pop("delay", 0.0), given.pop("version", "1.0.0"))
    settings = Settings(**given | {"state": Path(given["state"])})
    sys.exit(guarded(lambda: members(settings, load, workers)))
