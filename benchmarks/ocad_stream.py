"""The stream on one core with the full model: latency, throughput, memory and checkpoint of many endpoints, equality to batch."""

import os
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import save

from ai_suite.ocad.model import fit
from ai_suite.ocad.simulate import simulate
from ai_suite.ocad.stream import OcadStream, restore_stream, save_stream
from ai_suite.ocad.traces import METRICS, Trace, read_traces


@cache
def trained() -> tuple[object, list[Trace]]:
    "A model trained on simulated endpoints, or that of the run $BENCH_OCAD, and the endpoints of the test split."
    folder = Path(tempfile.mkdtemp())
    simulate(output=str(folder), seed=11, scale="small")
    if os.environ.get("BENCH_OCAD"):
        from ai_suite.ocad.model import load_model

        model = load_model(os.environ["BENCH_OCAD"])
    else:
        model = fit(read_traces(folder / "train.csv", METRICS)[0], METRICS, epochs=2)
    return model, read_traces(folder / "test.csv", model.metrics)[0]


def messages(traces: list[Trace], n: int) -> list[dict]:
    "The first n samples of every endpoint, in the order of time, as they come from a topic."
    metrics, rows = trained()[0].metrics, []
    for k in range(n):
        for t in (t for t in traces if k < len(t.seconds)):
            values = [None if np.isnan(v) else float(v) for v in t.values[k]]
            rows.append({"timestamp": float(t.seconds[k]), "endpoint": t.endpoint, **dict(zip(metrics, values, strict=True))})
    return rows


def latency(n: int = 2000, warm: int = 200) -> dict:
    "Milliseconds of `push`, message to alerts, endpoints in turn."
    model, traces = trained()
    stream, rows = OcadStream(model), messages(traces, n)
    for row in rows[: warm * len(traces)]:
        stream.push(row)
    took = np.empty(len(rows) - warm * len(traces))
    began, cpu = time.perf_counter(), time.process_time()
    for i, row in enumerate(rows[warm * len(traces) :]):
        start = time.perf_counter()
        stream.push(row)
        took[i] = time.perf_counter() - start
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    p50, p99, most = (1000 * float(x) for x in (*np.quantile(took, [0.5, 0.99]), took.max()))
    return {"p50_ms": p50, "p99_ms": p99, "max_ms": most, "samples_per_s": len(took) / seconds, "cpu_share": cpu / seconds,
            "samples": len(took), "alerts": stream.counts["alerts"],
            "note": f"{len(took):,} samples of {len(traces)} endpoints: p50 {p50:.3f} ms, p99 {p99:.3f} ms, longest {most:.1f} "
                    f"ms, {len(took) / seconds:,.0f} samples/s on one core"}


def rss() -> float:
    "Memory of this process, MB."
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(endpoints: int = 10_000, samples: int = 5) -> dict:
    "State of many endpoints, and its checkpoint."
    model, traces = trained()
    stream, names = OcadStream(model), [f"endpoint-{e:05d}" for e in range(endpoints)]
    rows = messages(traces[:1], samples)
    stream.push(rows[0] | {"endpoint": "warm"})
    before = rss()
    for row in rows:
        for name in names:
            stream.push(row | {"endpoint": name})
    grown = rss() - before
    arrays = sum(a.nbytes for a in next(iter(stream.seats.values()))["state"].values())
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        save_stream(stream, folder, {})
        saving, size = time.perf_counter() - began, (Path(folder) / "checkpoint.npz").stat().st_size / 1e6
        other, began = OcadStream(model), time.perf_counter()
        restore_stream(other, folder)
        restoring = time.perf_counter() - began
    return {"endpoints": endpoints, "mb": grown, "kb_per_endpoint": 1000 * grown / endpoints, "array_bytes": arrays,
            "checkpoint_mb": size, "save_s": saving, "restore_s": restoring,
            "note": f"{endpoints:,} endpoints grow the process by {grown:.0f} MB ({1000 * grown / endpoints:.1f} kB each, of it "
                    f"{arrays / 1000:.1f} kB arrays); checkpoint {size:.0f} MB, saved in {saving:.1f} s, "
                    f"read in {restoring:.1f} s"}


def equality(n: int = 3000) -> dict:
    "Sample by sample against the whole trace at once."
    model, traces = trained()
    worst, flips, rows = 0.0, 0, 0
    for t in traces:
        t = t._replace(seconds=t.seconds[:n], values=t.values[:n], rows=t.rows[:n], label=None, kind=None)
        table, state = model.score(t), model.start(t.endpoint)
        said = [model.update(state, s, v) for s, v in zip(t.seconds, t.values, strict=True)]
        batch = table[["score", "rule", "changepoint", "residual", "multivariate"]].to_numpy(float)
        online = np.array([[v.score, v.rule, v.changepoint, v.residual, v.multivariate] for v in said], float)
        assert (np.isnan(batch) == np.isnan(online)).all()
        worst = max(worst, float(np.nanmax(np.abs(batch - online))))
        flips += int((table.is_anomaly.to_numpy(bool) != [v.is_anomaly for v in said]).sum())
        flips += int((table.kind.fillna("").to_numpy() != [v.kind for v in said]).sum())
        rows += len(said)
    return {"max_difference": worst, "flips": flips, "samples": rows,
            "note": f"{rows:,} samples: largest difference of a score {worst:.1e}, {flips} decisions or kinds flipped"}


FIGURES = {"stream latency": latency, "stream memory": memory, "stream equals batch": equality}

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(FIGURES)
    save("ocad", {name: FIGURES[name]() for name in wanted})
