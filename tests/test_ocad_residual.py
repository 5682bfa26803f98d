"""Forecasters: sequences without holes, the same numbers in every form, trainings that survive, errors with a way out."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import code_of

from ai_suite.core.errors import SuiteError
from ai_suite.core.onnx import session
from ai_suite.core.runs import add_part, check_run, read_run
from ai_suite.ocad.deploy import bench_onnx, to_onnx, verify_onnx, windows_for
from ai_suite.ocad.forecast import TCN, learn, load_tcn, net_of, tcns_of, train_tcn
from ai_suite.ocad.prepare import prepare, run_lengths, sequences_of, targets_of
from ai_suite.ocad.residual import HIGH, LOW, MIDDLE, Residual, packed, unpacked
from ai_suite.ocad.traces import Trace
from ai_suite.ocad.windows import divide, noise_of, read_windows, windows_of

T0 = 1_700_000_000


def probe(seed=0, n=400, metrics=2, step=60.0):
    "One endpoint: AR(1) noise around a level."
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (n, metrics))
    for i in range(1, n):
        x[i] += 0.5*x[i-1]
    return Trace(f"du-{seed}", T0 + step*np.arange(n), x, np.arange(n))


def table(*traces, names=("udp_echo_rtt_us", "lbm_rtt_us")):
    return pd.concat([pd.DataFrame({"timestamp": t.seconds.astype(int), "endpoint": t.endpoint,
                                    **{m: 100*(i + 1) + 3*t.values[:, i] for i, m in enumerate(names)}}) for t in traces])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")/"probes.csv"
    table(*map(probe, range(3))).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")/"run"
    for metric in ("udp_echo", "lbm"):
        train_tcn(train_data=str(data), output=str(folder), metric_type=metric, epochs=1)
    to_onnx(model_path=str(folder))
    return folder


def shaken(seed=0, size=.2):
    "A forecaster with weights that no training would give."
    torch.manual_seed(seed)
    net = TCN().eval()
    for p in net.parameters():
        p.data += size*torch.randn_like(p)
    return net


def made(n=2, seed=0):
    return Residual(weights=packed([shaken(seed + i) for i in range(n)]) | {"unit": np.ones(n), "typical": np.full(n, .67)})


# --- sequences

def test_sequences_never_step_over_a_hole():
    rng = np.random.default_rng(0)
    n, kept = 500, np.sort(rng.choice(600, 500, replace=False))
    values = rng.normal(size=(n, 2))
    values[rng.random((n, 2)) < .05] = np.nan
    label = (rng.random(n) < .02).astype(np.uint8)
    trace = Trace("a", 60.*kept, values, np.arange(n), label)
    targets, counts = targets_of(trace)
    for m in range(2):
        for t in range(n):
            part = slice(t - 10, t + 1)
            whole = t >= 10 and np.isfinite(values[part, m]).all() and not label[part].any() and (np.diff(kept[part]) == 1).all()
            assert targets[t, m] == whole, (t, m)
    assert counts["sequences"] == targets.sum() and sum(counts.values()) == 2*(n - 10)
    x, y, at = sequences_of(trace, 1, targets)
    assert np.isfinite(x).all() and np.array_equal(y, values[at, 1]) and np.array_equal(x[:, -1], values[at - 1, 1])


def test_run_lengths_of_nothing_and_of_one():
    assert run_lengths(np.ones((1, 2), bool), np.zeros(1, bool)).tolist() == [[1, 1]]
    assert not targets_of(Trace("a", np.zeros(1), np.ones((1, 1)), np.zeros(1)))[0].any()


def test_prepare_writes_the_promised_columns(data, tmp_path):
    found = prepare(data=str(data), output=str(tmp_path))
    sequences = pq.read_table(tmp_path/"timeseries_train.parquet")
    assert sequences.column_names == ["endpoint", "timestamp", "metric_type", "sequence", "target"]
    assert pa.types.is_floating(sequences.schema.field("sequence").type.value_type)
    assert set(sequences["metric_type"].unique().to_pylist()) == {"udp_echo", "lbm"}
    assert found["train"]["sequences"] == len(sequences) == 3*2*390
    row = sequences.slice(0, 1).to_pylist()[0]
    raw = pd.read_csv(data)
    assert np.allclose(row["sequence"], raw.udp_echo_rtt_us[:10]) and np.isclose(row["target"], raw.udp_echo_rtt_us[10])
    assert row["timestamp"].timestamp() == raw.timestamp[10]
    rows = pd.read_parquet(tmp_path/"multivariate_train.parquet")
    assert list(rows) == ["endpoint", "timestamp", "udp_echo_rtt_us", "lbm_rtt_us"] and len(rows) == len(raw)


def test_prepare_takes_the_folder_of_a_simulator(tmp_path):
    for i, part in enumerate(("train", "val", "test")):
        t = probe(i, 60)
        fault = np.arange(60) // 5 == 6
        frame = table(t).assign(label=fault.astype(int), kind=np.where(fault, "spike", ""))
        frame.to_csv(tmp_path/f"{part}.csv", index=False)
    found = prepare(data=str(tmp_path), output=str(tmp_path/"out"))
    assert set(found) == {"train", "val", "test"} and len(list((tmp_path/"out").iterdir())) == 6
    assert found["val"]["left_out"]["fault"] == 2*15 and found["val"]["fault_rows"] == 5
    asked = prepare(data=str(tmp_path), output=str(tmp_path/"out"), faults=True)
    assert asked["val"]["left_out"]["fault"] == 0 and asked["val"]["sequences"] == 100
    assert set(pd.read_parquet(tmp_path/"out/multivariate_test.parquet").kind) == {"", "spike"}


def test_prepare_leaves_nothing_half_written(data, tmp_path):
    (tmp_path/"timeseries_train.parquet").mkdir()
    assert code_of(prepare, data=str(data), output=str(tmp_path)) == "E120"
    assert [p.name for p in tmp_path.iterdir()] == ["timeseries_train.parquet"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_prepare_of_a_million_rows_needs_little_memory(tmp_path):
    code = ("import sys, numpy as np\n"
            "from ai_suite.ocad.prepare import write_sequences\nfrom ai_suite.ocad.traces import Trace\n"
            "rng = np.random.default_rng(0)\n"
            "t = np.arange(10_000)\n"
            "traces = [Trace(f'd{i}', 60.*t, rng.normal(size=(10_000, 4)), t) for i in range(100)]\n"
            "def peak(): return next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM'))/1024\n"
            "before = peak()\n"
            "print(write_sequences(sys.argv[1], traces, list('abcd'))['sequences'])\n"
            "print(peak() - before)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path/"s.parquet")], capture_output=True, text=True, check=True)
    sequences, grown = done.stdout.split()
    assert int(sequences) == 100*9990*4 and float(grown) < 300


# --- the network

def test_a_whole_series_is_forecast_as_its_windows():
    net = shaken()
    x = torch.from_numpy(np.random.default_rng(0).standard_t(3, (2, 300, 1))).float()
    windows = x.unfold(1, 10, 1).permute(0, 1, 3, 2).reshape(-1, 10, 1)
    with torch.inference_mode():
        assert net(windows[:1]).shape == (1, 1)
        assert torch.allclose(net.bands(x).reshape(-1, 3), net.bands(windows)[:, 0], atol=1e-5)
        assert torch.allclose(net(x + 20), net(x) + 20, atol=1e-4)
        assert (net.bands(x).diff(dim=-1) > 0).all()


def test_one_spike_leaves_no_echo():
    net = TCN().eval()
    x = torch.zeros(1, 40, 1)
    x[0, 20] = 1000
    with torch.inference_mode():
        forecast = net(x)[0]
    assert forecast.abs().max() < 1


def test_noise_is_measured_under_a_daily_course_and_never_zero():
    rng = np.random.default_rng(0)
    course = 50*np.sin(np.arange(20_000)/200) + rng.normal(0, 2, 20_000)
    assert abs(noise_of(np.diff(course)) - 2) < .1
    assert noise_of(np.zeros(9)) == 1 and noise_of(np.empty(0)) == 1
    rare = np.diff((rng.random(5000) < .01)*1.)
    assert 0 < noise_of(rare) < .2


def test_division_is_by_endpoint_or_with_a_gap_in_time():
    train, valid, how = divide(windows_of([probe(i) for i in range(4)], 0))
    assert how == "endpoint" and not set(train.endpoint) & set(valid.endpoint)
    train, valid, how = divide(windows_of([probe(0)], 0))
    assert how == "time" and valid.second.min() - train.second.max() > 10*60


def test_prepared_files_teach_the_same(data, tmp_path):
    prepare(data=str(data), output=str(tmp_path))
    raw, names = read_windows(data, "lbm_rtt_us")
    ready, same = read_windows(tmp_path/"timeseries_train.parquet", "lbm")
    assert names == same and np.abs(raw.x - ready.x).max() < 1e-3 and np.array_equal(raw.endpoint, ready.endpoint)


# --- training

def test_the_seed_repeats_a_training_and_beats_the_last_value(data, tmp_path):
    ask = {"train_data": str(data), "metric_type": "udp_echo", "epochs": 8}
    a, b = (train_tcn(**ask, output=str(tmp_path/name)) for name in "ab")
    assert a["valid_loss"] == b["valid_loss"]
    for x, y in zip(*(load_tcn(tmp_path/name, "udp_echo")[0].state_dict().values() for name in "ab"), strict=True):
        assert torch.equal(x, y)
    assert a["metrics"]["tcn"]["mae"] < a["metrics"]["last_value"]["mae"]


def test_files_of_a_forecaster(run):
    about = json.loads((run/"ocad/tcn/udp_echo_v2.0.0.json").read_text())
    assert about["receptive_field"] == 10 and about["quantiles"] == [.1, .5, .9] and about["history"][0]["epoch"] == 1
    assert set(tcns_of(run)) == {"udp_echo", "lbm"} and read_run(run)["system"] == "ocad"
    assert {"ocad/tcn/lbm_v2.0.0.safetensors", "ocad/onnx/lbm_v2.0.0.onnx"} <= set(check_run(run)["files"])
    assert load_tcn(run, "udp_echo_rtt_us")[1]["metric_type"] == "udp_echo"


def killed_in_training(data, output):
    "A training that kills itself right after its checkpoint of epoch 10."
    code = ("import os, signal, sys\nimport ai_suite.ocad.forecast as f\nsave = f.save_pt\n"
            "def last(*a): save(*a); os.kill(os.getpid(), signal.SIGKILL)\n"
            "f.save_pt = last\n"
            "f.train_tcn(train_data=sys.argv[1], output=sys.argv[2], metric_type='udp_echo', epochs=13)")
    return subprocess.run([sys.executable, "-c", code, str(data), str(output)], capture_output=True).returncode


def test_a_killed_training_is_resumed_to_the_same_weights(data, tmp_path):
    assert killed_in_training(data, tmp_path/"killed") == -signal.SIGKILL
    assert list((tmp_path/"killed/.training").iterdir())
    ask = {"train_data": str(data), "metric_type": "udp_echo", "epochs": 13}
    resumed = train_tcn(**ask, output=str(tmp_path/"killed"), resume=True)
    whole = train_tcn(**ask, output=str(tmp_path/"whole"))
    assert abs(resumed["valid_loss"] - whole["valid_loss"]) <= 1e-6
    for a, b in zip(*(load_tcn(tmp_path/n, "udp_echo")[0].state_dict().values() for n in ("killed", "whole")), strict=True):
        assert (a - b).abs().max() <= 1e-6
    assert not list((tmp_path/"killed/.training").iterdir())


def test_ctrl_c_keeps_the_last_whole_epoch(tmp_path):
    train, valid, _ = divide(windows_of([probe(i) for i in range(3)], 0))
    net, calls = TCN(), []

    def press(*_):
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
    net.enter.register_forward_hook(press)
    with pytest.raises(SuiteError) as e:
        learn(net, train, valid, epochs=5, path=tmp_path/"c.pt")
    assert e.value.code == "E130" and "--resume" in e.value.fix
    assert len(torch.load(tmp_path/"c.pt", weights_only=True)["history"]) == 2
    assert code_of(learn, TCN(), train, valid, epochs=5, seed=5, path=tmp_path/"c.pt", resume=True) == "E301"
    assert code_of(learn, TCN(8), train, valid, epochs=5, path=tmp_path/"c.pt", resume=True) == "E301"
    (tmp_path/"c.pt").write_bytes(b"no checkpoint")
    assert code_of(learn, TCN(), train, valid, epochs=5, path=tmp_path/"c.pt", resume=True) in ("E200", "E202")


def test_two_trainings_write_into_one_run_at_once(data, tmp_path):
    code = "import sys; from ai_suite.ocad.forecast import train_tcn; " \
           "train_tcn(train_data=sys.argv[1], output=sys.argv[2], metric_type=sys.argv[3], epochs=2)"
    words = [sys.executable, "-c", code, str(data), str(tmp_path/"run")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([*words, m], stderr=subprocess.PIPE, env=env) for m in ("udp_echo", "lbm")]
    assert [p.communicate() and p.returncode for p in both] == [0, 0]
    assert set(tcns_of(tmp_path/"run")) == {"udp_echo", "lbm"}
    check_run(tmp_path/"run")


@pytest.mark.parametrize("change, code", [
    ({"metric_type": "udp_ecko"}, "E103"), ({"epochs": 0}, "E301"), ({"version": "../x"}, "E301"), ({"version": ""}, "E301"),
    ({"train_data": "missing.csv"}, "E101"), ({"lr": -1.}, "E301")])
def test_bad_requests_are_refused(data, tmp_path, change, code):
    ask = {"train_data": str(data), "output": str(tmp_path), "metric_type": "udp_echo", "epochs": 1}
    assert code_of(train_tcn, **ask | change) == code
    assert not (tmp_path/"run.json").exists()


def test_a_wrong_metric_is_answered_with_the_nearest(data, tmp_path):
    with pytest.raises(SuiteError) as e:
        train_tcn(train_data=str(data), output=str(tmp_path), metric_type="lbn")
    assert e.value.fix == "use --metric-type lbm"
    prepare(data=str(data), output=str(tmp_path))
    assert code_of(read_windows, tmp_path/"timeseries_train.parquet", "ecpri") == "E103"


def test_short_and_damaged_data(data, tmp_path):
    table(probe(0, 1)).to_csv(tmp_path/"one.csv", index=False)
    table(probe(0, 30)).to_csv(tmp_path/"few.csv", index=False)
    for name in ("one.csv", "few.csv"):
        assert code_of(train_tcn, train_data=str(tmp_path/name), output=str(tmp_path/"r"), metric_type="lbm") == "E110"
    prepare(data=str(data), output=str(tmp_path))
    good = (tmp_path/"timeseries_train.parquet").read_bytes()
    (tmp_path/"cut.parquet").write_bytes(good[: len(good)//2])
    assert code_of(read_windows, tmp_path/"cut.parquet", "lbm") == "E102"
    middle = bytearray(good)
    middle[200:900] = b"\xff"*700
    (tmp_path/"scratched.parquet").write_bytes(middle)
    assert code_of(read_windows, tmp_path/"scratched.parquet", "lbm") == "E102"
    prepare(data=str(data), output=str(tmp_path/"five"), steps=5)
    assert code_of(read_windows, tmp_path/"five", "lbm") == "E103"


def test_a_metric_that_never_moves_or_was_never_measured(tmp_path):
    frame = table(*map(probe, range(2))).assign(ccm_loss=0, dead="timeout")
    frame.to_csv(tmp_path/"d.csv", index=False)
    found = train_tcn(train_data=str(tmp_path/"d.csv"), output=str(tmp_path/"r"), metric_type="ccm", epochs=2)
    assert np.isfinite(found["valid_loss"]) and found["metrics"]["tcn"]["mae"] < 1
    assert found["metrics"]["tcn"]["mse_of_range"] < 1
    assert code_of(train_tcn, train_data=str(tmp_path/"d.csv"), output=str(tmp_path/"r"), metric_type="dead") == "E103"


def test_damaged_model_files_are_refused(run, tmp_path):
    good = (run/"ocad/tcn/lbm_v2.0.0.safetensors").read_bytes()
    (tmp_path/"cut.safetensors").write_bytes(good[:-100])
    assert code_of(net_of, tmp_path/"cut.safetensors") == "E200"
    assert code_of(net_of, tmp_path/"none.safetensors") == "E200"
    (tmp_path/"renamed.safetensors").write_bytes(good.replace(b"convs.0.bias", b"convs.9.bias"))
    assert code_of(net_of, tmp_path/"renamed.safetensors") == "E203"
    assert code_of(load_tcn, run, "ecpri") == "E200" and code_of(load_tcn, tmp_path, "lbm") == "E200"
    add_part(tmp_path/"r", "tcn_lbm", {"ocad/tcn/lbm_v2.0.0.safetensors": good}, {}, system="ocad")
    load_tcn(tmp_path/"r", "lbm")
    (tmp_path/"r/ocad/tcn/lbm_v2.0.0.safetensors").write_bytes(good + b" ")
    assert code_of(load_tcn, tmp_path/"r", "lbm") == "E202"


# --- the detector

def test_the_kernel_forecasts_as_torch_does():
    detector, x = made(), np.random.default_rng(1).standard_t(2, (300, 2))*3
    state, said = detector.start(2), []
    for t in range(300):
        detector.update(state, 60.*t, x[t])
        said.append(state[2:].reshape(2, -1)[:, [LOW, MIDDLE, HIGH]])
    for m in range(2):
        with torch.inference_mode():
            theirs = unpacked(detector.weights, m).bands(torch.from_numpy(x[None, :, [m]]).float())[0].numpy()
        assert np.abs(np.array(said)[9:, m] - theirs).max() < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_stream_is_batch_with_holes_gaps_and_outliers(seed):
    rng = np.random.default_rng(seed)
    x, seconds = rng.standard_t(2, (600, 2)), np.cumsum(rng.uniform(50, 70, 600))
    x[rng.random(x.shape) < .1] = np.nan
    x[200:230, 0] = np.nan
    x[5], seconds[400:] = 1e9, seconds[400:] + 1e5
    detector = made(seed=seed)
    whole, state = detector.score(seconds, x), detector.start(2)
    assert np.array_equal(whole, [detector.update(state, *s) for s in zip(seconds, x, strict=True)], equal_nan=True)
    parts, state = [], detector.start(2)
    for a, b in [(0, 1), (1, 257), (257, 600)]:
        parts.append(detector.run(state, seconds[a:b], x[a:b]))
        state = state.copy()
    assert np.array_equal(whole, np.concatenate(parts), equal_nan=True)
    future = detector.score(seconds[:300], x[:300])
    assert np.array_equal(future, whole[:300], equal_nan=True) and (whole[np.isfinite(whole)] >= 0).all()
    assert state.nbytes < 40_000


def test_missing_values_are_bridged_for_five_samples_then_ten_are_needed():
    x = np.random.default_rng(0).normal(size=(100, 1))
    x[30:35], x[60:66] = np.nan, np.nan
    out = made(1).score(60.*np.arange(100), x)[:, 0, 0]
    assert np.isnan(out[:10]).all() and np.isfinite(out[10:30]).all()
    assert np.isnan(out[30:35]).all() and np.isfinite(out[35:60]).all()
    assert np.isnan(out[60:76]).all() and np.isfinite(out[76:]).all()
    late = 60.*np.arange(100) + 400*(np.arange(100) >= 40)
    out = made(1).score(late, np.nan_to_num(x))[:, 0, 0]
    assert np.isnan(out[40:50]).all() and np.isfinite(out[50:]).all()


def test_one_row_no_row_and_nothing_measured():
    detector = made()
    assert np.isnan(detector.score(np.zeros(1), np.ones((1, 2)))).all()
    assert detector.score(np.empty(0), np.empty((0, 2))).shape == (0, 2, 2)
    assert np.isnan(detector.score(60.*np.arange(50), np.full((50, 2), np.nan))).all()
    assert np.isnan(detector.look(detector.start(2))).all()


@pytest.fixture(scope="module")
def fitted():
    return Residual(epochs=4).fit([probe(i, 800) for i in range(4)])


def test_the_fitted_unit_is_a_sigma(fitted):
    healthy = probe(50, 4000)
    surprise, unrest = fitted.score(healthy.seconds, healthy.values)[20:].transpose(1, 0, 2)
    assert .55 < np.nanmedian(surprise) < .8 and np.nanquantile(surprise, .99) < 3.2 and np.nanquantile(unrest, .99) < 3.2


def test_faults_stand_out_and_a_fault_is_not_learned(fitted):
    t = probe(51, 600)
    t.values[300, 0] += 8
    t.values[400:440, 1] *= 3
    out = fitted.score(t.seconds, t.values)
    assert out[300, 0, 0] > 4 and np.nanmedian(out[410:440, 1, 1]) > 3
    assert out[302, 0, 0] < 4
    wild = [probe(i, 800) for i in range(4)]
    wild = [w._replace(values=np.where(np.arange(800)[:, None] < 400, w.values, 50*w.values),
                       label=(np.arange(800) >= 400).astype(np.uint8)) for w in wild]
    careful = Residual(epochs=2).fit(wild)
    assert np.nanmedian(careful.score(t.seconds, t.values)[:300, 0]) > .4


def test_an_endpoint_with_larger_noise_gets_its_own_unit(fitted):
    t = probe(52, 4000)
    out = fitted.score(t.seconds, 2*t.values)[:, 0]
    assert np.nanmedian(out[3000:]) < .6*np.nanmedian(2*fitted.score(t.seconds, t.values)[:, 0]) + .1


def test_the_detector_is_kept_whole(fitted):
    t = probe(53)
    again = Residual.load(fitted.arrays(), json.loads(json.dumps(fitted.config())))
    assert np.array_equal(again.score(t.seconds, t.values), fitted.score(t.seconds, t.values), equal_nan=True)
    assert code_of(Residual.load, {k: v for k, v in fitted.arrays().items() if k != "conv"}, fitted.config()) == "E203"
    assert code_of(Residual.load, fitted.arrays() | {"unit": np.ones(3)}, fitted.config()) == "E203"
    assert code_of(fitted.start, 5) == "E203"


def test_a_trained_forecaster_can_be_used_and_a_dead_metric_is_silent(run):
    traces = [probe(i) for i in range(3)]
    net = load_tcn(run, "udp_echo")[0]
    detector = Residual(epochs=1).fit(traces, {0: net})
    for a, b in zip(net.state_dict().values(), unpacked(detector.weights, 0).state_dict().values(), strict=True):
        assert torch.equal(a, b)
    dead = [t._replace(values=np.c_[t.values[:, 0], np.full(len(t.rows), np.nan), np.zeros(len(t.rows))]) for t in traces]
    detector = Residual(epochs=1).fit(dead)
    out = detector.score(dead[0].seconds, np.c_[dead[0].values[:, 0], dead[0].values[:, 0], np.zeros(400)])
    assert np.isnan(out[:, :, 1]).all() and np.nanmax(out[:, 0, 2]) < 1 and np.isfinite(out[20:, 0, 0]).all()


def test_reasons_are_sentences():
    detector = made()
    assert detector.reason("surprise", "udp_echo_rtt_us", 6.02, 103, 131) == "udp_echo_rtt_us: forecast 103, saw 131 (6.0 sigma)"
    assert "sigma" in detector.reason("surprise", "lbm_rtt_us", 4.4) and "ten" in detector.reason("unrest", "lbm_rtt_us", 4.4)


# --- ONNX

def test_onnx_answers_as_torch_for_every_batch(run):
    found = verify_onnx(onnx_model=str(run), pytorch_model=str(run))
    assert found["max_abs_error"] <= 1e-5 and len(found["files"]) == 2
    s, net = session(run/"ocad/onnx/lbm_v2.0.0.onnx"), load_tcn(run, "lbm")[0]
    for n in (1, 2, 33):
        x = windows_for(n)
        forecast, lower, upper = s.run(None, {"window": x})
        with torch.inference_mode():
            q = net.bands(torch.from_numpy(x))[:, 0].numpy()
        assert forecast.shape == (n, 1) and np.abs(np.c_[lower, forecast, upper] - q).max() <= 1e-5


def test_onnx_goes_where_it_is_asked_to(run, tmp_path):
    source = run/"ocad/tcn/lbm_v2.0.0.safetensors"
    made = to_onnx(model_path=str(source), output=str(tmp_path/"x/lbm.onnx"), input_shape="4, 10, 1")["files"]
    assert [f["path"] for f in made] == [str(tmp_path/"x/lbm.onnx")]
    assert session(tmp_path/"x/lbm.onnx").get_inputs()[0].shape == [4, 10, 1]
    verify_onnx(onnx_model=str(tmp_path/"x/lbm.onnx"), pytorch_model=str(source), windows=100)


def test_onnx_commands_refuse(run, tmp_path):
    tcn, onnx = run/"ocad/tcn", run/"ocad/onnx"
    ask = partial(to_onnx, output=str(tmp_path/"x.onnx"))
    assert code_of(ask, model_path=str(tcn/"lbm_v2.0.0.safetensors"), input_shape="1,12,1") == "E203"
    assert code_of(ask, model_path=str(tcn/"lbm_v2.0.0.json")) == "E200"
    assert code_of(ask, model_path=str(tmp_path/"none.safetensors")) == "E200"
    assert code_of(ask, model_path=str(run)) == "E301"
    pairs = partial(verify_onnx, pytorch_model=str(tcn/"lbm_v2.0.0.safetensors"))
    assert code_of(pairs, onnx_model=str(onnx/"udp_echo_v2.0.0.onnx")) == "E203"
    assert code_of(pairs, onnx_model=str(tmp_path/"none.onnx")) == "E200"
    (tmp_path/"cut.onnx").write_bytes((onnx/"lbm_v2.0.0.onnx").read_bytes()[:500])
    assert code_of(pairs, onnx_model=str(tmp_path/"cut.onnx")) == "E200"
    assert not (tmp_path/"x.onnx").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_benchmark_writes_its_report(run, tmp_path):
    found = bench_onnx(onnx_model=str(run), pytorch_model=str(run), output=str(tmp_path/"reports/r.md"), pairs=40)
    assert all(r["onnx_ms"] > 0 and r["torch_mb"] > r["onnx_mb"] > 10 for r in found["rows"])
    page = (tmp_path/"reports/r.md").read_text()
    assert "udp_echo_v2.0.0" in page and "lbm_v2.0.0" in page


