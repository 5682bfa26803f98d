"""The forecaster in torch, in ONNX and in the detector's kernel: one sample at a time, and many; its errors beside others."""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import save

from ai_suite.ocad.baseline import fit_baseline
from ai_suite.ocad.deploy import bench_onnx, to_onnx, verify_onnx
from ai_suite.ocad.forecast import train_tcn
from ai_suite.ocad.residual import Residual
from ai_suite.ocad.simulate import simulated, write_traces
from ai_suite.ocad.traces import METRIC_TYPES, Trace

REPORT = Path(__file__).resolve().parent / "results" / "ocad_onnx.md"


def forecasters(train: list[Trace], val: list[Trace], folder: Path) -> dict[str, dict]:
    "Train all four on simulated endpoints, validate on others, and write them as ONNX."
    paths = {name: str(write_traces(folder / f"{name}.csv", traces)) for name, traces in (("train", train), ("val", val))}
    figures = {}
    for metric in METRIC_TYPES:
        began = time.perf_counter()
        r = train_tcn(train_data=paths["train"], val_data=paths["val"], output=str(folder / "run"), metric_type=metric)
        errors = {k: r["metrics"][k]["mae"] for k in ("tcn", "last_value", "window_mean")}
        took = time.perf_counter() - began
        note = (f"{r['sequences']['train']} sequences, {r['epochs']} epochs in {took:.0f} s; mean absolute error in sigmas: "
                f"{errors['tcn']:.3f}, last value {errors['last_value']:.3f}, window mean {errors['window_mean']:.3f}; "
                f"validation loss (pinball, sigmas) {r['valid_loss']:.4f}; squared error in shares of the range "
                f"{r['metrics']['tcn']['mse_of_range']:.4f}")
        figures[f"forecast, {metric}"] = {"errors": errors, "valid_loss": r["valid_loss"], "note": note}
    to_onnx(model_path=str(folder / "run"))
    return figures


def onnx(run: Path) -> dict[str, dict]:
    "Torch against ONNX."
    verify_onnx(onnx_model=str(run), pytorch_model=str(run))
    rows = bench_onnx(onnx_model=str(run), pytorch_model=str(run), output=str(REPORT))["rows"]
    return {f"onnx, {r['name']}": {**r, "note": f"one window, median: torch {r['torch_ms']:.3f} ms, ONNX {r['onnx_ms']:.3f} ms, "
                                   f"{r['faster']:.1f} times faster ({r['low']:.1f} to {r['high']:.1f}), "
                                   f"largest difference {r['max_abs_error']:.1e}"} for r in rows}


def kernel(train: list[Trace], val: list[Trace]) -> dict[str, dict]:
    "The detector: all four metrics of a sample, one by one and in batch."
    baseline = fit_baseline(train)
    traces = [t._replace(values=baseline.score(t.seconds, t.values)[..., 0]) for t in (*train, *val)]
    began = time.perf_counter()
    detector = Residual().fit(traces[: len(train)])
    fit = time.perf_counter() - began
    seconds, values = traces[-1].seconds, traces[-1].values
    state, times = detector.start(4), []
    for second, row in zip(seconds, values, strict=True):
        began = time.perf_counter_ns()
        detector.update(state, second, row)
        times.append((time.perf_counter_ns() - began) / 1e3)
    began = time.perf_counter()
    for t in traces:
        detector.score(t.seconds, t.values)
    rate = 4 * sum(len(t.seconds) for t in traces) / (time.perf_counter() - began)
    p50, p99 = np.quantile(times[500:], [0.5, 0.99])
    return {"kernel": {"p50_us": p50, "p99_us": p99, "windows_per_s": rate, "fit_s": fit, "state_bytes": state.nbytes,
                       "note": f"4 metrics of a sample {p50:.1f} us (p99 {p99:.1f}); {rate:,.0f} windows/s in batch; "
                               f"{state.nbytes} bytes of state; fit of {len(train)} endpoints {fit:.0f} s"}}


def main() -> None:
    train, val = (simulated(split, seed=3, endpoints=8, days=4)[0] for split in ("train", "val"))
    with TemporaryDirectory() as folder:
        figures = forecasters(train, val, Path(folder))
        figures |= onnx(Path(folder) / "run")
    save("ocad_onnx", figures | kernel(train, val))


if __name__ == "__main__":
    main()
