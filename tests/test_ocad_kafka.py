"""Kafka against a real broker protocol: equal to a replay, poison, a broker that goes away, kill −9, members that come and go."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

confluent_kafka = pytest.importorskip("confluent_kafka")
from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from small_detector import SmallDetector, rows  # noqa: E402

from ai_suite.core.cache import load_arrays  # noqa: E402
from ai_suite.core.errors import SuiteError  # noqa: E402
from ai_suite.ocad.broker import Settings, reach, read_properties  # noqa: E402
from ai_suite.ocad.member import Member, run_member  # noqa: E402
from ai_suite.ocad.messages import Stop  # noqa: E402
from ai_suite.ocad.stream import OcadStream, restore_stream  # noqa: E402

HERE = Path(__file__).parent
QUIET = {"log_level": 0}


@pytest.fixture
def broker():
    "A broker in a process of its own, and its address."
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, HERE / "kafka_broker.py"], text=True, **pipes) as p:
        p.address = p.stdout.readline().strip()
        yield p
        p.send_signal(signal.SIGCONT)
        p.stdin.close()


class Members:
    "A process of `ocad stream` on Kafka, with what it says."

    def __init__(self, broker, state: Path, **settings):
        self.log = state.parent / f"{time.monotonic_ns()}.log"
        given = {"brokers": broker.address, "state": str(state), "checkpoint": 1.0, "report": 1.0} | settings
        words = [sys.executable, HERE / "small_detector.py", json.dumps(given)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, stderr=log, start_new_session=True)

    def said(self) -> str:
        return self.log.read_text()

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def stop(self) -> str:
        "Ctrl-C, and what was said."
        self.signal(signal.SIGINT)
        assert self.process.wait(20) == 130, self.said()
        assert "Traceback" not in self.said(), self.said()
        return self.said()


@pytest.fixture
def run(broker, tmp_path):
    "Starts members; kills what is left."
    started = []

    def start(**settings) -> Members:
        started.append(Members(broker, tmp_path / "state", **settings))
        return started[-1]

    yield start
    for m in started:
        if m.process.poll() is None:
            m.signal(signal.SIGCONT)
            m.signal(signal.SIGKILL)
            m.process.wait()


def put(broker, messages, topic: str = "ocad.samples", key=lambda m: m["endpoint"]) -> None:
    "Send samples."
    p = Producer({"bootstrap.servers": broker.address, "linger.ms": 5, **QUIET})
    for m in messages:
        p.produce(topic, json.dumps(m).encode(), key(m).encode())
        p.poll(0)
    assert p.flush(20) == 0


def everything(broker, topic: str) -> list:
    "All messages of a topic."
    c = Consumer({"bootstrap.servers": broker.address, "group.id": "test", "enable.auto.commit": False, **QUIET})
    n = len(c.list_topics(topic, timeout=10).topics[topic].partitions)
    ends = [c.get_watermark_offsets(TopicPartition(topic, k), timeout=10)[1] for k in range(n)]
    c.assign([TopicPartition(topic, k, 0) for k in range(n)])
    found, until = [], time.monotonic() + 15
    while len(found) < sum(ends) and time.monotonic() < until:
        found += [m for m in c.consume(500, 0.2) if m.error() is None]
    c.close()
    return found


def wait_for(condition, seconds: float = 25.0, every: float = 0.1):
    "Wait until something holds."
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(every)
    return value


def scored(members: Members) -> int:
    "Samples that the last line of each member speaks of."
    lines = [line for line in members.said().splitlines() if " samples" in line]
    return max((int(line.split(" samples")[0].split()[-1].replace(",", "")) for line in lines), default=0)


def expected(messages) -> tuple[list[str], OcadStream]:
    "The alerts and the states of an unbroken run."
    stream = OcadStream(SmallDetector())
    alerts = [a for m in messages for a in stream.push(m)]
    return sorted(a["alert_id"] for a in alerts), stream


def same_as_unbroken(broker, state: Path, messages, more: int = 0) -> None:
    "No sample lost: equal states. No alert lost or doubled."
    ids, unbroken = expected(messages)
    assert len(ids) >= 20
    sent = everything(broker, "ocad.alerts")
    assert sorted(json.loads(m.value())["alert_id"] for m in sent) == ids
    assert all(m.key().decode() == json.loads(m.value())["endpoint"] for m in sent)
    seats = {}
    for path in (state / "ocad.samples").glob("*/checkpoint.npz"):
        part = OcadStream(SmallDetector())
        restore_stream(part, path.parent)
        assert not seats.keys() & part.seats.keys()
        seats |= part.seats
    assert seats.keys() == unbroken.seats.keys()
    for endpoint, seat in unbroken.seats.items():
        assert seat["last"] == seats[endpoint]["last"]
        for name, a in seat["state"].items():
            np.testing.assert_allclose(seats[endpoint]["state"][name], a, rtol=0, atol=1e-9)


# ---- without a broker


def test_no_broker_is_said_in_time(tmp_path):
    began = time.monotonic()
    with pytest.raises(SuiteError) as e:
        reach(Settings("127.0.0.1:9", tmp_path, timeout=1.5))
    assert e.value.code == "E510" and "127.0.0.1:9" in e.value.what and time.monotonic() - began < 4


@pytest.mark.parametrize("text, code", [("acks=0", "E301"), ("group.id = x", "E301"), ("no sign", "E102"), ("=1", "E102")])
def test_properties_that_cannot_be(tmp_path, text, code):
    file = tmp_path / "p"
    file.write_text("# comment\n\nsecurity.protocol = plaintext\n" + text)
    with pytest.raises(SuiteError) as e:
        read_properties(file)
    assert e.value.code == code and "line 4" in e.value.what


def test_an_unknown_property_is_named(tmp_path):
    with pytest.raises(SuiteError) as e:
        reach(Settings("127.0.0.1:9", tmp_path, extra=(("sasl.pasword", "secret"),)))
    assert e.value.code == "E301" and "sasl.pasword" in e.value.what and "sasl.password" in e.value.fix
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("topics", [{"topic_in": "a/b"}, {"topic_in": ".."}, {"topic_out": "ocad.samples"}])
def test_topics_that_cannot_be(tmp_path, topics):
    with pytest.raises(SuiteError) as e:
        reach(Settings("127.0.0.1:9", tmp_path, **topics))
    assert e.value.code == "E301"


# ---- with one


def test_equal_to_a_replay_poison_set_aside_and_a_second_start(broker, run, tmp_path):
    samples = rows()
    bad = [b"not json", b"", b'{"timestamp": 1700000000, "endpoint": "du-1", "ccm_loss": "high"}', b'{"endpoint": "du-1"}',
           b'{"timestamp": 1700000000, "endpoint": "\\ud800", "ccm_loss": 1}', b"\xff\x00" * 10, b"x" * 70_000]
    put(broker, samples[:2000])
    p = Producer({"bootstrap.servers": broker.address, **QUIET})
    for k, value in enumerate(bad):
        p.produce("ocad.samples", value, f"du-{k}".encode())
    p.flush(10)
    put(broker, samples[2000:])
    first = run()
    wait_for(lambda: len(everything(broker, "ocad.dead")) == len(bad) and scored(first) == len(samples))
    said = first.stop()
    assert "lag 0" in said and "set aside" in said
    same_as_unbroken(broker, tmp_path / "state", samples)
    dead = everything(broker, "ocad.dead")
    assert sorted(m.value() or b"" for m in dead) == sorted(bad)
    for m in dead:
        h = {k: v.decode() for k, v in m.headers()}
        assert h["code"] in ("E102", "E103") and h["reason"] and h["topic"] == "ocad.samples"
        assert int(h["partition"]) < 4 and int(h["offset"]) >= 0 and h["id"] == f"{h['topic']}/{h['partition']}/{h['offset']}"


def test_killed_in_mid_stream_no_sample_lost_no_alert_doubled(broker, run, tmp_path):
    samples = rows(steps=400)
    put(broker, samples[:2400])
    first = run(checkpoint=600.0)
    wait_for(lambda: len(everything(broker, "ocad.alerts")) >= 12)
    first.signal(signal.SIGKILL)
    before = Counter(json.loads(m.value())["alert_id"] for m in everything(broker, "ocad.alerts"))
    assert max(before.values()) == 1
    kept = load_arrays(next((tmp_path / "state").glob("ocad.samples/*/checkpoint.npz")))
    assert len(kept["clock"]) == 0, "the checkpoint is that of the beginning: everything is scored again"
    put(broker, samples[2400:])
    second = run()
    wait_for(lambda: scored(second) == len(samples))
    assert "already sent" in second.stop()
    same_as_unbroken(broker, tmp_path / "state", samples)


def test_broker_gone_for_a_while_and_back(broker, run, tmp_path):
    samples = rows()
    put(broker, samples[:1800])
    member = run()
    wait_for(lambda: scored(member) == 1800)
    broker.send_signal(signal.SIGSTOP)
    wait_for(lambda: "does not answer" in member.said())
    time.sleep(1)
    broker.send_signal(signal.SIGCONT)
    put(broker, samples[1800:])
    wait_for(lambda: "answers again" in member.said())
    wait_for(lambda: scored(member) == len(samples), 30)
    member.stop()
    same_as_unbroken(broker, tmp_path / "state", samples)


def test_two_members_share_and_one_leaves(broker, run, tmp_path):
    samples = rows()
    put(broker, samples[:1200])
    first, second = run(), run()
    wait_for(lambda: len([m for m in (first, second) if scored(m)]) == 2, 30)
    put(broker, samples[1200:2400])
    time.sleep(1)
    second.stop()
    put(broker, samples[2400:])
    wait_for(lambda: scored(first) == len(samples), 30)
    first.stop()
    same_as_unbroken(broker, tmp_path / "state", samples)


def test_ctrl_c_while_the_broker_is_away(broker, run, tmp_path):
    samples = rows()
    put(broker, samples[:1800])
    member = run()
    wait_for(lambda: scored(member) == 1800)
    broker.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    member.stop()
    broker.send_signal(signal.SIGCONT)
    put(broker, samples[1800:])
    member = run()
    wait_for(lambda: scored(member) == len(samples))
    member.stop()
    same_as_unbroken(broker, tmp_path / "state", samples)


def test_the_state_of_another_model_or_group_is_refused(broker, run):
    put(broker, rows(steps=20))
    member = run()
    wait_for(lambda: scored(member) == 240)
    member.stop()
    for wrong, code in (({"version": "2.0.0"}, "E203"), ({"group": "other"}, "E301")):
        member = run(**wrong)
        assert member.process.wait(30) == 2 and code in member.said() and "--state" in member.said(), member.said()


def test_reading_pauses_while_nothing_is_delivered(broker, tmp_path):
    samples = rows(steps=100)
    put(broker, samples)
    s = Settings(broker.address, tmp_path, checkpoint=0.1)
    member, seen = Member(s, reach(s), lambda: OcadStream(SmallDetector())), []

    def alive() -> bool:
        done = sum(part.next for part in member.open.values())
        if done and not seen:
            member.in_flight += 10_000
            seen.append(done)
            put(broker, rows(steps=10, seed=1))
        elif len(seen) == 1 and member.paused:
            seen.append(done)
        elif len(seen) in range(2, 12):
            seen.append(done)
            if len(seen) == 12:
                member.in_flight -= 10_000
        return done < len(samples) + 120

    run_member(member, Stop(), alive)
    assert not member.paused and len(set(seen[2:])) == 1 and seen[2] < len(samples) + 120


def test_bytes_of_a_poison_message_come_back_as_they_were(broker, run):
    p = Producer({"bootstrap.servers": broker.address, **QUIET})
    p.produce("ocad.samples", bytes(range(256)) * 300, b"\xff\xfe")
    p.produce("ocad.samples", None, b"gone")
    p.flush(10)
    member = run()
    dead = wait_for(lambda: (d := everything(broker, "ocad.dead")) and len(d) == 2 and d)
    member.stop()
    assert {m.key(): m.value() for m in dead} == {b"\xff\xfe": bytes(range(256)) * 300, b"gone": None}


@pytest.mark.slow
def test_killed_again_while_it_repeats(broker, run, tmp_path):
    "The second owner writes checkpoints while it is still repeating; a third one must know what the first had sent."
    samples = rows(steps=400)
    put(broker, samples)
    first = run(checkpoint=600.0)
    wait_for(lambda: len(everything(broker, "ocad.alerts")) >= 20)
    first.signal(signal.SIGKILL)
    second = run(checkpoint=0.01, delay=0.004)
    offset = lambda p: json.loads(load_arrays(p)["meta"].tobytes())["positions"]["offset"]
    wait_for(lambda: 200 < sum(map(offset, (tmp_path / "state").glob("ocad.samples/*/checkpoint.npz"))))
    second.signal(signal.SIGKILL)
    third = run()
    wait_for(lambda: scored(third) == len(samples), 40)
    third.stop()
    same_as_unbroken(broker, tmp_path / "state", samples)


def test_processes_share_and_a_killed_one_is_replaced(broker, run, tmp_path):
    samples = rows()
    put(broker, samples[:1800])
    both = run(workers=2)
    wait_for(lambda: sum(line.startswith("member") and " 0 samples" not in line for line in both.said().splitlines()) > 2, 30)
    children = Path(f"/proc/{both.process.pid}/task/{both.process.pid}/children").read_text().split()
    workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    wait_for(lambda: "was killed by signal 9; another takes its place" in both.said())
    put(broker, samples[1800:])
    asked = {"bootstrap.servers": broker.address, "group.id": "ocad", **QUIET}
    group = Consumer(asked)
    parts = [TopicPartition("ocad.samples", k) for k in range(4)]
    wait_for(lambda: sum(max(p.offset, 0) for p in group.committed(parts, timeout=10)) == len(samples), 40)
    group.close()
    both.process.send_signal(signal.SIGTERM)
    assert both.process.wait(20) == 143
    same_as_unbroken(broker, tmp_path / "state", samples)


@pytest.mark.slow
def test_killed_at_random_again_and_again(broker, run, tmp_path):
    samples, rng = rows(steps=1500), np.random.default_rng(1)
    cuts = np.linspace(0, len(samples), 6).astype(int)
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        put(broker, samples[a:b])
        members = run(workers=2, checkpoint=0.3, delay=0.001)
        time.sleep(11 + 4 * rng.random())
        members.signal(signal.SIGKILL)
    last = run()
    wait_for(lambda: scored(last) == len(samples), 120)
    last.stop()
    same_as_unbroken(broker, tmp_path / "state", samples)
