"""The stream without Kafka: hostile input, restarts, equality with a batch, memory, Ctrl-C."""

import io
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from small_detector import SmallDetector, rows  # noqa: E402
from support import code_of  # noqa: E402

from ai_suite.core.errors import SuiteError  # noqa: E402
from ai_suite.ocad.messages import MAX_MESSAGE, decode_message, messages_of, replay, second_of, value_of  # noqa: E402
from ai_suite.ocad.series import numbers, times  # noqa: E402
from ai_suite.ocad.stream import CLOCK_BACK, Latency, OcadStream, local_stream, restore_stream, save_stream  # noqa: E402

T0 = 1_700_000_000


def stream(**how) -> OcadStream:
    "A fresh stream of the small detector."
    return OcadStream(SmallDetector(), **how)


def inside(s: OcadStream) -> str:
    "Everything a stream knows, as text."
    return json.dumps([s.seats, {e: s.book.state(e) for e in s.seats}], default=lambda a: a.tolist())


def message(k: float = 0, endpoint: object = "du-1", **more) -> dict:
    "A sample."
    return {"timestamp": T0 + k, "endpoint": endpoint, "udp_echo_rtt_us": 100.0, "ccm_loss": 0.0} | more


# ---- messages


@pytest.mark.parametrize("raw", [
    b"", None, b" ", b"hello", b"[1]", b"3", b"null", b'"x"', b"{", b"\x00" * 9, b"\xff\xfe{", b"[" * 60_000,
    b'{"a":' * 9_000 + b"1" + b"}" * 9_000, b" " * (MAX_MESSAGE + 1), b'{"t": ' + b"9" * 5000 + b"}"])
def test_a_message_that_is_none(raw):
    assert code_of(decode_message, raw) == "E102"


@pytest.mark.parametrize("change", [
    {"timestamp": None}, {"timestamp": True}, {"timestamp": "noon"}, {"timestamp": [1]}, {"timestamp": math.nan},
    {"timestamp": "2024-13-45T99:00:00Z"}, {"timestamp": "9" * 1000}, {"timestamp": "2024-05-31T13:00:00" + "0" * 5000},
    {"timestamp": ""}, {"timestamp": 1e30}, {"timestamp": -9223372036854502.0}, {"timestamp": "0001-01-01T00:00:00+14:00"},
    {"endpoint": None}, {"endpoint": ""}, {"endpoint": "  "}, {"endpoint": 1.5}, {"endpoint": True}, {"endpoint": ["du"]},
    {"endpoint": "x" * 300}, {"endpoint": "\ud800"}, {"udp_echo_rtt_us": "high"}, {"udp_echo_rtt_us": True},
    {"udp_echo_rtt_us": [1]}, {"udp_echo_rtt_us": {}}, {"ccm_loss": "1_0"}, {"ccm_loss": "x" * 60_000}, {"ccm_loss": "0x10"}])
def test_poison_changes_nothing(change):
    s = stream()
    s.push(message())
    before = inside(s), dict(s.counts)
    assert code_of(s.push, message(1) | change) == "E103"
    assert (inside(s), dict(s.counts)) == before


@pytest.mark.parametrize("gone", [("timestamp",), ("endpoint",), ("udp_echo_rtt_us", "ccm_loss")])
def test_a_message_without_what_it_needs(gone):
    assert code_of(stream().push, {k: v for k, v in message().items() if k not in gone}) == "E103"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 10**400, -1, "-1", "", "timeout", " N/A ", "nan", "inf"])
def test_a_missing_value(value):
    assert math.isnan(value_of(value))


def test_missing_metrics_unknown_fields_and_names_in_any_script():
    s = stream()
    for k in range(3):
        for name in ("서울-1", "مرحبا", "😀", " du-1 ", 7):
            s.push(message(k, name, weather="rain", label=1, kind=""))
    s.push({"timestamp": T0 + 9, "endpoint": "du-1", "ccm_loss": 0.0})
    assert list(s.seats) == ["서울-1", "مرحبا", "😀", "7", "du-1"]
    assert s.counts["unknown_fields"] == 15 and s.counts["samples"] == 16
    assert code_of(OcadStream, SmallDetector(), None, 0) == "E301"


def test_negative_numbers_are_timeouts_only_where_they_cannot_be_measured():
    assert math.isnan(value_of(-1)) and value_of(-1, True) == -1 and value_of(-1.5) == -1.5
    s = stream(signed=["ccm_loss"])
    s.push(message(ccm_loss=-1, udp_echo_rtt_us=-1))
    assert s.seats["du-1"]["state"]["mean"].tolist() == [0, -1]


DATES = st.datetimes(min_value=pd.Timestamp("1973-03-04").to_pydatetime(), max_value=pd.Timestamp("2090-01-01").to_pydatetime())


@settings(max_examples=60, deadline=None)
@given(DATES, st.sampled_from(["%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M+09:00", "%d/%m/%Y %H:%M", "%Y%m%d"]),
       st.sampled_from(["text", 1, 1_000, 1_000_000, 1_000_000_000]))
def test_times_are_those_of_series(when, form, unit):
    stamp = when.timestamp()
    value = when.strftime(form) if unit == "text" else int(stamp) if unit == 1 else int(stamp * 1000) * (unit // 1000)
    assert second_of(value) == times(pd.Series([str(value)]))[0].value // 10**6 / 1000


@settings(max_examples=80, deadline=None)
@given(st.one_of(st.floats(), st.integers(-12, 10**9), st.text(max_size=8), st.sampled_from(["1e3", "-3", "*", "None", " 5 "])))
def test_values_are_those_of_series(value):
    column, wrong = numbers(pd.Series([value], dtype=object))
    try:
        got = value_of(value)
    except SuiteError:
        got = None
    if got is None:
        assert wrong[0]
    elif not wrong[0]:
        assert got == column[0] or (math.isnan(got) and math.isnan(column[0]))


@settings(max_examples=80, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.text() | st.sampled_from(["timestamp", "endpoint", "ccm_loss"]), x), max_leaves=8))
def test_nothing_but_a_stated_error_comes_out(value):
    s = stream()
    for m in (value, {"timestamp": value, "endpoint": "a", "ccm_loss": 1}, {"timestamp": T0, "endpoint": value, "ccm_loss": 1},
              {"timestamp": T0 + 1, "endpoint": "b", "ccm_loss": value}):
        try:
            s.push(decode_message(json.dumps(m).encode()))
        except SuiteError as e:
            assert e.code in ("E102", "E103")
    save = json.dumps(list(s.seats))
    assert len(s.seats) <= 3 and save.encode()


# ---- the clock of an endpoint


def test_duplicates_and_late_samples_are_dropped_and_counted():
    clean, dirty = stream(), stream()
    for k in range(200):
        clean.push(message(k))
        dirty.push(message(k))
        dirty.push(message(k, udp_echo_rtt_us=999))
        if k > 5:
            dirty.push(message(k - 3, udp_echo_rtt_us=999))
    assert inside(clean) == inside(dirty)
    assert [dirty.counts[k] for k in ("samples", "duplicates", "late", "clock_resets")] == [200, 200, 194, 0]


def test_a_batch_sent_again_is_dropped_whatever_its_length():
    s = stream()
    for k in range(500):
        s.push(message(60 * k))
    before = inside(s)
    for k in range(500):
        s.push(message(60 * k))
    assert inside(s) == before and s.counts["samples"] == 500


def test_a_clock_put_right_after_a_jump_starts_the_endpoint_anew():
    s = stream()
    for k in range(50):
        s.push(message(k))
    s.push(message(2 * CLOCK_BACK))
    for k in range(50, 100):
        s.push(message(k))
    fresh = stream()
    for k in range(59, 100):
        fresh.push(message(k))
    assert s.counts["clock_resets"] == 1 and s.counts["late"] == 10 and s.counts["samples"] == 51 + 41
    np.testing.assert_array_equal(s.seats["du-1"]["state"]["n"], fresh.seats["du-1"]["state"]["n"])
    assert s.seats["du-1"]["last"] == T0 + 99


def test_alerts_go_on_after_a_clock_was_put_right():
    s = stream()
    s.push(message(2 * CLOCK_BACK))
    alerts = [a for k in range(300) for a in s.push(message(k, udp_echo_rtt_us=100 + k % 3 + 90 * (k > 250)))]
    assert len(alerts) == 1


def test_endpoints_are_forgotten_in_order_of_silence():
    s = stream(max_endpoints=3)
    for k, e in enumerate("abcacd"):
        s.push(message(k, e))
    assert list(s.seats) == ["a", "c", "d"] and s.counts["evicted"] == 1
    for k in range(1000):
        s.push(message(k, f"x{k}"))
    assert len(s.seats) == 3 and len(s.book._of) == 3 and s.counts["evicted"] == 1001 - 0


# ---- checkpoints


def test_a_restart_at_any_place_changes_nothing(tmp_path):
    samples = rows(endpoints=4, steps=200)
    whole = stream()
    ids = [a["alert_id"] for m in samples for a in whole.push(m)]
    for cut in (0, 1, 333, 420, 799):
        first, second = stream(), stream()
        got = [a["alert_id"] for m in samples[:cut] for a in first.push(m)]
        save_stream(first, tmp_path, {"rows": cut})
        assert restore_stream(second, tmp_path) == {"rows": cut}
        got += [a["alert_id"] for m in samples[cut:] for a in second.push(m)]
        assert got == ids and inside(second) == inside(whole) and len(ids) >= 4


def test_checkpoints_that_cannot_be_used(tmp_path):
    assert restore_stream(stream(), tmp_path) is None
    s = stream()
    s.push(message())
    save_stream(s, tmp_path, {})
    other = SmallDetector()
    other.version = "9"
    assert code_of(restore_stream, OcadStream(other), tmp_path) == "E203"
    other = SmallDetector()
    other.metrics = ("a", "b")
    assert code_of(restore_stream, OcadStream(other), tmp_path) == "E203"
    other = SmallDetector()
    other.start = lambda endpoint="": {"n": np.zeros(7)}
    assert code_of(restore_stream, OcadStream(other), tmp_path) == "E203"
    file = tmp_path / "checkpoint.npz"
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:200] + b"\0" * 50 + whole[250:]):
        file.write_bytes(damaged)
        assert code_of(restore_stream, stream(), tmp_path) == "E102"


def test_many_endpoints_are_saved_and_restored(tmp_path):
    s = stream()
    for k in range(2):
        for e in range(1_500):
            s.push(message(k, f"du-{e}"))
    save_stream(s, tmp_path, {})
    t = stream()
    restore_stream(t, tmp_path)
    assert list(t.seats) == list(s.seats) and inside(t) == inside(s)


# ---- sources


def test_a_table_played_back_equals_the_samples_in_order(tmp_path, capsys):
    samples, s, t = rows(), stream(), stream()
    ids = [a["alert_id"] for m in samples for a in s.push(m)]
    table = pd.DataFrame(samples)
    bad = pd.DataFrame([{"timestamp": "never", "endpoint": "du-1", "udp_echo_rtt_us": 1, "ccm_loss": 0}])
    pd.concat([table.sample(frac=1, random_state=1), table[:40], bad]).to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    for file in ("t.csv", "t.parquet"):
        t = stream()
        got = [a["alert_id"] for a in local_stream(t, tmp_path / file)]
        assert sorted(got) == sorted(ids) and len(ids) >= 20
        for e in s.seats:
            assert json.dumps(t.seats[e], default=lambda a: a.tolist()) == json.dumps(s.seats[e], default=lambda a: a.tolist())
    assert "1 rows" in capsys.readouterr().err


def test_speed(tmp_path):
    pd.DataFrame([message(k) for k in range(5)]).to_csv(tmp_path / "t.csv", index=False)
    began = time.monotonic()
    assert len(list(replay(tmp_path / "t.csv", 10))) == 5
    assert 0.35 < time.monotonic() - began < 3


def test_lines_of_every_sort(capsys):
    lines = [json.dumps(message(k)).encode() for k in range(3)]
    long = b'{"x": "' + b"y" * 200_000 + b'"}'
    s = stream()
    text = b"\xef\xbb\xbf" + lines[0] + b"\r\n\n" + long + b"\n" + lines[1] + b"\n\xff\xfe\n{}\n" + lines[2]
    assert list(local_stream(s, source=io.BytesIO(text))) == []
    assert s.counts["samples"] == 3 and s.counts["poison"] == 3
    err = capsys.readouterr().err
    assert err.count("refused") == 3 and "3 samples" in err and "3 poison" in err
    csv = "Time;endpoint;ccm_loss\n2024-05-31 13:00;서울;0\n2024-05-31 13:01;서울\n2024-05-31 13:02;서울;\"1\"\n".encode("cp949")
    got = list(messages_of(io.BytesIO(csv)))
    assert got[0] == {"timestamp": "2024-05-31 13:00", "endpoint": "서울", "ccm_loss": "0"}
    assert got[1].code == "E102" and len(got) == 3
    assert code_of(list, messages_of(io.BytesIO(b"a,b\n1,2\n"))) == "E103"
    assert list(messages_of(io.BytesIO(b""))) == []


def test_a_stopped_replay_goes_on_where_it_stopped(tmp_path):
    samples = rows(endpoints=3, steps=200)
    pd.DataFrame(samples).to_csv(tmp_path / "t.csv", index=False)
    whole = stream()
    ids = [a["alert_id"] for a in local_stream(whole, tmp_path / "t.csv")]
    code = ("import sys, json; sys.path.insert(0, {here!r})\n"
            "from small_detector import SmallDetector\nfrom ai_suite.core.cli import guarded, emit\n"
            "from ai_suite.ocad.stream import OcadStream, local_stream\n"
            "print('ready', file=sys.stderr, flush=True)\n"
            "work = local_stream(OcadStream(SmallDetector()), {table!r}, {speed}, {state!r})\n"
            "sys.exit(guarded(lambda: emit(work, sys.stdout)))")
    got = []
    for speed, stop in ((200, True), (0, False)):
        places = {"here": str(Path(__file__).parent), "table": str(tmp_path / "t.csv"), "state": str(tmp_path / "state")}
        words = code.format(**places, speed=speed)
        job = subprocess.Popen([sys.executable, "-c", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if stop:
            assert job.stderr.readline() == "ready\n"
            time.sleep(4)
            job.send_signal(signal.SIGINT)
        out, err = job.communicate(timeout=30)
        assert job.returncode == (130 if stop else 0) and "Traceback" not in err, err
        got += [json.loads(line)["alert_id"] for line in out.splitlines()]
        if stop:
            done = restore_stream(stream(), tmp_path / "state")["rows"]
            assert 0 < done < len(samples), err
    assert got == ids
    last = stream()
    restore_stream(last, tmp_path / "state")
    assert inside(last) == inside(whole)


def test_ctrl_c_while_nothing_comes(tmp_path):
    words = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
             "from small_detector import SmallDetector\nfrom ai_suite.core.cli import guarded, emit\n"
             "from ai_suite.ocad.stream import OcadStream, local_stream\n"
             f"sys.exit(guarded(lambda: emit(local_stream(OcadStream(SmallDetector()), state={str(tmp_path)!r}), sys.stdout)))")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        job = subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        job.stdin.write(json.dumps(message(code)).encode() + b"\n")
        job.stdin.flush()
        time.sleep(3)
        job.send_signal(number)
        assert job.wait(10) == code
        job.stdin.close()
        s = stream()
        assert restore_stream(s, tmp_path)["source"] == "stdin" and s.seats["du-1"]["last"] == T0 + code
        job.stderr.close()


# ---- figures


def test_latency_counts_to_four_percent():
    clock, d = Latency(), np.random.default_rng(0).lognormal(-8, 1, 5000)
    assert math.isnan(clock.quantile(0.5))
    for x in d:
        clock.add(x)
    for q in (0.5, 0.9, 0.99):
        assert 0.99 < clock.quantile(q) / np.quantile(d, q) < 1.06
    for x in (0.0, 1e-9, 1e9):
        clock.add(x)
    assert sum(clock.counts) == 5003


# ---- the trained model


@pytest.fixture(scope="module")
def trained():
    "A model of four simulated endpoints, and an endpoint that it has not seen."
    from ai_suite.ocad.model import fit
    from ai_suite.ocad.simulate import simulated
    from ai_suite.ocad.traces import METRICS

    return fit(simulated("train", 5, 4, 3.0)[0], METRICS, epochs=1), simulated("test", 5, 1, 3.0)[0][0]


def said_of(trace, metrics) -> list[dict]:
    "The samples of a trace as messages."
    return [{"timestamp": s, "endpoint": trace.endpoint, **dict(zip(metrics, v.tolist(), strict=True))}
            for s, v in zip(trace.seconds, trace.values, strict=True)]


def test_the_trained_model_says_the_same_in_a_stream_as_of_a_whole_trace(trained, tmp_path):
    model, trace = trained
    table, messages = model.score(trace), said_of(trace, model.metrics)
    state = model.start(trace.endpoint)
    verdicts = [model.update(state, s, v) for s, v in zip(trace.seconds, trace.values, strict=True)]
    np.testing.assert_allclose([v.score for v in verdicts], table.score, rtol=0, atol=1e-9)
    assert [int(v.is_anomaly) for v in verdicts] == table.is_anomaly.tolist()
    assert [v.kind for v in verdicts] == table.kind.tolist()
    s = OcadStream(model)
    alerts = [a for m in messages[:2000] for a in s.push(m)]
    save_stream(s, tmp_path, {})
    t = OcadStream(model)
    restore_stream(t, tmp_path)
    alerts += [a for m in messages[2000:] for a in t.push(m)]
    for name, a in state.items():
        np.testing.assert_allclose(t.seats[trace.endpoint]["state"][name], a, rtol=0, atol=1e-9)
    from ai_suite.ocad.alerts import alerts_of

    offline = alerts_of(table, version=model.version, traces=[trace._replace(rows=np.arange(len(table)))], metrics=model.metrics)
    assert sorted(a["alert_id"] for a in alerts) == sorted(a["alert_id"] for a in offline)


def test_memory_of_ten_thousand_endpoints_stays_below_two_gigabytes(trained, tmp_path):
    model, trace = trained
    s, message, n = OcadStream(model), said_of(trace, model.metrics)[0], 50
    for k in range(n):
        s.push(message | {"endpoint": f"du-{k}"})
    seats = sum(a.nbytes + 150 for seat in s.seats.values() for a in seat["state"].values())
    books = sum(m.ring.nbytes + 2_000 for m in s.book._of.values())
    assert (seats + books) / n * 10_000 < 2e9
