"""Alerts: few of them, the same ones after a restart, delivered once, and never at the stream's cost."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import numpy as np
import pytest
from support import code_of

pd = pytest.importorskip("pandas")

from ai_suite.ocad.alerts import AlertBook, alerts_of, settings_of  # noqa: E402
from ai_suite.ocad.evidence import iso, reasons, severity_of, sparkline  # noqa: E402
from ai_suite.ocad.sinks import AlertStore, Webhook, deliver, json_lines, log_line  # noqa: E402

NOON = 1.77e9
KEYS = ["alert_id", "endpoint", "start", "end", "severity", "kind", "metrics", "score", "evidence"]


class Verdict(NamedTuple):
    score: float
    is_anomaly: bool
    kind: str = ""
    metric: str = ""
    rule: float = 0.0
    changepoint: float = 0.0
    residual: float = 0.0
    multivariate: float = 0.0
    start: float = np.nan
    parts: np.ndarray = np.zeros(2)
    note: str = ""


FINE, LOST = Verdict(0.1, False), Verdict(np.nan, False)


def bad(score=0.8, kind="level_shift", metric="udp_echo_rtt_us", **more):
    return Verdict(score, True, kind, metric, **{"changepoint": score, **more})


def play(book, pattern, endpoint="du-1", start=0, step=60, **more):
    "`.` fine, `x` anomalous, `!` strong, `?` unusable."
    verdicts = {".": FINE, "x": bad(**more), "!": bad(**{**more, "score": 0.99}), "?": LOST}
    return [a for i, c in enumerate(pattern) for a in book.push(endpoint, NOON + step * (start + i), verdicts[c])]


# ---- when an alert opens and closes


@pytest.mark.parametrize("pattern, n", [("..x..x....x", 0), ("x.x", 0), ("x.x.x", 1), ("xx...x", 0), ("xxx", 1), ("!", 1),
                                        ("x??x?x", 1)])
def test_debounce_counts_usable_samples(pattern, n):
    assert len(play(AlertBook(), pattern)) == n


def test_an_alert_has_the_form_that_was_promised():
    (alert,) = play(AlertBook(version="2.0.0"), "...xxx")
    assert list(alert) == KEYS
    assert alert["end"] is None and alert["start"] == iso(NOON + 180) and alert["start"].endswith("Z")
    assert (alert["kind"], alert["metrics"], alert["severity"]) == ("level_shift", ["udp_echo_rtt_us"], "minor")
    assert {"detector", "metric", "before", "after", "onset", "statistics", "reason", "plot"} <= alert["evidence"].keys()
    assert alert["evidence"]["detector"] == "changepoint" and set(alert["evidence"]["reason"]) == {"en", "ko"}
    json.dumps(alert, allow_nan=False)


def test_it_closes_where_the_quiet_began_and_only_then():
    book = AlertBook({"long_s": 600}, updates=True)
    out = play(book, "xxx.........x..........")
    assert [a["evidence"]["state"] for a in out] == ["open", "raised", "closed"]
    assert out[-1]["end"] == iso(NOON + 60 * 13) and not book.open_alerts()
    assert len({a["alert_id"] for a in out}) == 1 and [a["evidence"]["revision"] for a in out] == [0, 1, 2]


def test_what_was_emitted_does_not_change_afterwards():
    book = AlertBook()
    (alert,) = play(book, "xxx")
    text = json.dumps(alert)
    play(book, "xx!", start=3, metric="lbm_rtt_us")
    assert json.dumps(alert) == text
    assert book.open_alerts()[0]["metrics"] == ["udp_echo_rtt_us", "lbm_rtt_us"]


def test_the_same_kind_soon_after_continues_another_kind_does_not():
    book = AlertBook({"cooldown_s": 600})
    first = play(book, "xxx..........")
    assert play(book, "xxx", start=13) == [] and book.counts["continued"] == 1
    assert book.open_alerts()[0]["alert_id"] == first[0]["alert_id"]
    play(book, "." * 10, start=16)
    other = play(book, "xxx", start=26, kind="loss", metric="ccm_loss")
    assert len(other) == 1 and other[0]["alert_id"] != first[0]["alert_id"]


def test_after_the_cool_down_it_is_a_new_alert():
    book = AlertBook({"cooldown_s": 60})
    assert len({a["alert_id"] for a in play(book, "xxx" + "." * 20 + "xxx")}) == 2
    assert book.counts["continued"] == 0


def test_a_start_never_lies_in_the_alert_before():
    book = AlertBook({"cooldown_s": 0}, updates=True)
    out = play(book, "xxx" + "." * 20 + "xxx", start=0)
    assert play(AlertBook(), "xxx")[0]["alert_id"] == out[0]["alert_id"]
    late = book.push("du-2", NOON, bad(0.99, start=NOON - 300))
    assert late[0]["start"] == iso(NOON - 300)
    play(book, "." * 10, endpoint="du-2", start=1)
    again = book.push("du-2", NOON + 7200, bad(0.99, start=NOON - 300))
    assert again[-1]["start"] == iso(NOON + 60)


def test_silence_closes_and_empties_the_window():
    book = AlertBook({"stale_s": 300}, updates=True)
    play(book, "xx")
    assert play(book, "x", start=100) == []
    play(book, "xx", start=101)
    (closed,) = book.expire(NOON + 60 * 200)
    assert closed["end"] == iso(NOON + 60 * 103) and not book.open_alerts()
    play(book, "xxx", start=300)
    assert [a["evidence"]["state"] for a in play(book, ".", start=400)] == ["closed"]


def test_late_and_repeated_samples_change_nothing():
    book = AlertBook()
    play(book, "xxx")
    state = book.state("du-1")
    assert play(book, "!!!") == [] and book.push("du-1", float("nan"), bad()) == []
    assert book.state("du-1") == state and book.counts["late"] == 4


# ---- restart


@pytest.mark.parametrize("seed", range(5))
def test_a_replay_from_any_checkpoint_gives_the_same_alerts(seed):
    rng = np.random.default_rng(seed)
    rate = np.repeat(rng.choice([0.02, 0.6], 20, p=[0.7, 0.3]), 20)
    pattern = "".join(np.where(rng.random(400) < rate, "x", "."))
    values = rng.normal(100, 1, (400, 2))

    def run(book, span):
        verdicts = {".": FINE, "x": bad(start=NOON)}
        return [a for i in span for a in book.push("du-1", NOON + 60 * i, verdicts[pattern[i]], values[i])]

    settings = {"config": {"cooldown_s": 240}, "version": "1", "metrics": ("udp_echo_rtt_us", "b")}
    whole = run(AlertBook(**settings), range(400))
    assert len(whole) > 1
    for cut in (1, 60, 133, 250, 399):
        before, after = AlertBook(**settings), AlertBook(**settings)
        emitted = run(before, range(cut))
        after.restore("du-1", json.loads(json.dumps(before.state("du-1"))))
        again = run(after, range(max(cut - 50, 0), 400))
        assert emitted + again == whole


def test_state_of_an_endpoint_never_seen_is_empty_and_restores():
    book = AlertBook()
    assert book.state("nobody") == {}
    book.restore("nobody", {})
    assert book.state("nobody") == {}


def test_the_id_depends_on_endpoint_start_kind_and_version_only():
    ids = {play(AlertBook(version=v), p, endpoint=e, kind=k, score=s)[0]["alert_id"] for v, p, e, k, s in (
        ("1", "xxx", "a", "drift", 0.8), ("2", "xxx", "a", "drift", 0.8), ("1", ".xxx", "a", "drift", 0.8),
        ("1", "xxx", "b", "drift", 0.8), ("1", "xxx", "a", "spike", 0.8), ("1", "xxx.", "a", "drift", 0.9))}
    assert len(ids) == 5


# ---- many endpoints


def storm(book, n, step=5.0, kind="loss"):
    return [a for d in range(n) for i in range(3) for a in book.push(f"du-{d}", NOON + step * d + i, bad(kind=kind))]


def test_many_endpoints_become_one_incident():
    out = storm(AlertBook(), 12)
    assert [a["evidence"]["notify"] for a in out] == [True] * 5 + [False] * 7
    assert [a["severity"] for a in out] == ["major"] * 4 + ["critical"] * 8
    groups = [a["evidence"]["group"] for a in out]
    assert groups[:4] == [None] * 4 and [g["count"] for g in groups[4:]] == list(range(5, 13))
    assert len({g["id"] for g in groups[4:]}) == 1 and "12 endpoints" in out[-1]["evidence"]["reason"]["en"]


def test_kinds_and_times_far_apart_are_no_incident():
    assert not any(a["evidence"]["group"] for a in storm(AlertBook(), 12, step=60.0))
    book = AlertBook()
    assert not any(a["evidence"]["group"] for kind in ("loss", "drift", "spike") for a in storm(book, 4, kind=kind))


def test_an_incident_survives_a_restart():
    first, second = AlertBook(), AlertBook()
    before = storm(first, 8)
    for d in range(8):
        second.restore(f"du-{d}", json.loads(json.dumps(first.state(f"du-{d}"))))
    again = [a for i in range(3) for a in second.push("du-9", NOON + 45 + i, bad(kind="loss"))]
    assert again[0]["evidence"]["group"] == {**before[-1]["evidence"]["group"], "count": 9}


def test_the_same_endpoint_counts_once_in_an_incident():
    book = AlertBook({"cooldown_s": 0, "quiet": 1, "group_s": 1000})
    storm(book, 5)
    out = [a for i in range(6) for v in (FINE, bad(0.99, kind="loss")) for a in book.push("du-0", NOON + 100 + 2 * i + v[1], v)]
    assert len(out) > 3 and {a["evidence"]["group"]["count"] for a in out} == {5}


# ---- what it says


@pytest.mark.parametrize("kind", ["level_shift", "spike", "drift", "variance", "loss", "correlation", "flapping", "forecast",
                                  "multivariate", "limit", "", "unheard of"])
def test_every_kind_has_a_sentence_in_both_languages(kind):
    words = reasons(kind, "lbm_rtt_us", NOON, 100.0, 90.0, {"rule": 0.9}, 3)
    assert "100 µs" in words["en"] and "−10 %" in words["ko"] and iso(NOON) in words["en"]
    assert any("\uac00" <= c <= "\ud7a3" for c in words["ko"]) and "{" not in words["en"] + words["ko"]


def test_values_give_medians_a_picture_and_statistics():
    book = AlertBook(metrics=("a", "udp_echo_rtt_us"), parts=("cusum", "mad"))
    for i in range(300):
        verdict = bad(0.99, parts=np.array([4.0, 9.0])) if i == 290 else FINE
        out = book.push("d", NOON + i, verdict, (1.0, 100.0 + 20 * (i >= 280)))
        if i == 290: (alert,) = out
    e = alert["evidence"]
    assert (e["before"], e["after"]) == (100.0, 120.0) and e["statistics"] == {"mad": 9.0, "cusum": 4.0}
    assert len(e["plot"]["v"]) == settings_of().keep and sparkline(e["plot"]).startswith("<svg")
    assert e["plot"]["from"] == iso(NOON + 290 - 119)


def test_a_value_that_is_missing_leaves_a_hole_and_an_unknown_metric_no_picture():
    book = AlertBook(metrics=("a",))
    book.push("d", 0.0, FINE, [np.nan])
    (alert,) = book.push("d", 60.0, bad(0.99, metric="a"), np.array([5.0]))
    assert alert["evidence"]["plot"]["v"] == [None, 5.0] and alert["evidence"]["before"] is None
    (alert,) = book.push("e", 60.0, bad(0.99, metric="other"), np.array([5.0]))
    assert alert["evidence"]["plot"] is None


def test_severity_rises_with_each_reason_and_no_further_than_critical():
    assert severity_of("spike", 0.5, 0, []) == "info"
    assert severity_of("drift", 0.5, 0, []) == "minor"
    assert severity_of("drift", 0.5, 0, ["ccm_loss"]) == "major"
    assert severity_of("loss", 1.0, 1e6, ["ccm_loss"], 1000) == "critical"


# ---- offline


def table_of(pattern, endpoint, step=60):
    seen = [bad() if c == "x" else LOST if c == "?" else FINE for c in pattern]
    return pd.DataFrame([{"timestamp": iso(NOON + step * i), "endpoint": endpoint, "score": v.score,
                          "is_anomaly": int(v.is_anomaly), "kind": v.kind, "metric": v.metric, "changepoint": v.changepoint,
                          "note": "", "d_cusum": v.score}
                         for i, v in enumerate(seen)])


def test_a_table_gives_the_alerts_of_the_stream(tmp_path):
    patterns = {"du-1": "..xxx.....x..........xxx....", "수원": "xxx", "du-3": ".....?x?"}
    table = pd.concat([table_of(p, e) for e, p in patterns.items()], ignore_index=True)
    book = AlertBook(version="1")
    online = [a for e, p in patterns.items() for a in play(book, p, endpoint=e)]
    offline = alerts_of(table, version="1")
    assert {a["alert_id"] for a in offline} == {a["alert_id"] for a in online} and len(offline) == 2
    assert [a["end"] is None for a in offline] == [True, True] and offline[1]["evidence"]["continued"] == 1
    assert offline[0]["endpoint"] == "수원" and offline[0]["evidence"]["statistics"] == {"cusum": 0.8}
    table.to_csv(tmp_path / "s.csv", index=False)
    assert alerts_of(pd.read_csv(tmp_path / "s.csv"), version="1") == offline
    shuffled = table.sample(frac=1, random_state=0)
    assert [a["alert_id"] for a in alerts_of(shuffled, version="1")] == [a["alert_id"] for a in offline]


# ---- the store


def alert(n, state="open", revision=0, end=None, severity="minor", notify=True):
    return {"alert_id": f"id{n}", "endpoint": f"du-{n}", "start": iso(NOON + n), "end": end, "severity": severity,
            "kind": "drift", "metrics": ["a"], "score": 0.9, "evidence": {"state": state, "revision": revision, "notify": notify,
                                                         "reason": {"en": "moved", "ko": "변화"}}}


def test_put_is_idempotent_and_never_goes_back(tmp_path):
    store = AlertStore(tmp_path / "new" / "a.sqlite")
    assert store.put([alert(1), alert(1)]) == [True, False]
    assert store.put([alert(1, "closed", 2, end=iso(NOON))]) == [True]
    assert store.put([alert(1), alert(1, "raised", 1)]) == [False, False]
    assert store.get("id1")["end"] == iso(NOON) and store.get("nobody") is None


def test_an_acknowledgement_outlives_updates_and_the_process(tmp_path):
    AlertStore(tmp_path / "a.sqlite").put([alert(1), alert(2)])
    acked = AlertStore(tmp_path / "a.sqlite").ack("id1", "김 ' OR 1=1; --", "<b>")
    store = AlertStore(tmp_path / "a.sqlite")
    store.put([alert(1, revision=1, severity="major")])
    assert store.get("id1")["ack"] == acked["ack"] and acked["ack"]["by"] == "김 ' OR 1=1; --"
    names = [[a["alert_id"] for a in store.list(s)] for s in ("open", "acked", "closed", "all")]
    assert names == [["id2"], ["id1"], [], ["id2", "id1"]]
    assert len(store.list("all", limit=1)) == 1


def test_errors_of_the_store_are_named(tmp_path):
    (tmp_path / "text").write_text("this is no database\n" * 100)
    assert code_of(AlertStore, tmp_path / "text") == "E102"
    assert code_of(AlertStore, tmp_path) == "E120"
    assert code_of(AlertStore, tmp_path / "text" / "a.sqlite") == "E120"
    store = AlertStore(tmp_path / "a.sqlite")
    assert code_of(store.ack, "nobody", "me") == "E104" and code_of(store.list, "unread") == "E301"


def test_two_processes_share_a_store(tmp_path):
    code = """import sys; from ai_suite.ocad.sinks import AlertStore
store, a = AlertStore(sys.argv[1]), {"endpoint": "d", "start": "s", "end": None, "severity": "minor", "kind": "k"}
print(sum(sum(store.put([{**a, "alert_id": str(n), "evidence": {"revision": r}} for n in range(20)])) for r in range(10)))"""
    command = [sys.executable, "-c", code, str(tmp_path / "a.sqlite")]
    run = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [int(p.communicate(timeout=60)[0]) for p in run]
    store = AlertStore(tmp_path / "a.sqlite")
    assert all(p.returncode == 0 for p in run) and 200 <= sum(counts) <= 400
    assert len(store.list()) == 20 and {a["evidence"]["revision"] for a in store.list()} == {9}


# ---- sinks


def test_json_lines_append_whole_lines(tmp_path, capsys):
    for n in range(2):
        json_lines(tmp_path / "a.jsonl")(alert(n))
    lines = (tmp_path / "a.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["endpoint"] for line in lines] == ["du-0", "du-1"] and "변화" in lines[0]
    json_lines()(alert(3))
    assert json.loads(capsys.readouterr().out) == alert(3)
    assert code_of(json_lines, tmp_path / "no" / "a.jsonl") == "E120"


def test_a_name_cannot_forge_a_line_of_the_log(capsys):
    log_line({**alert(1), "endpoint": "du\n\x1b[31mCRITICAL forged"})
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err and err.startswith("MINOR open")


@pytest.fixture
def receiver(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    seen, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((body, dict(self.headers)))
            code = answers.pop(0) if answers else 200
            if code == "hang":
                time.sleep(1.0)
                code = 200
            if code == "cut":
                self.wfile.write(b"nonsense\r\n")
                return
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_): pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", seen, answers
    server.shutdown()
    server.server_close()


def test_webhook_sends_in_order_with_a_key(receiver):
    url, seen, _ = receiver
    hook = Webhook(url, headers={"Authorization": "Bearer x"})
    for n in range(20): hook(alert(n, revision=n))
    assert hook.close() == {"sent": 20}
    assert [b["alert_id"] for b, _ in seen] == [f"id{n}" for n in range(20)]
    assert seen[3][1]["Idempotency-Key"] == "id3-3" and seen[3][1]["Authorization"] == "Bearer x"


@pytest.mark.parametrize("first, sent, attempts", [(503, 1, 2), (429, 1, 2), (400, 0, 1), (404, 0, 1), ("hang", 1, 2),
                                                  ("cut", 1, 2)])
def test_webhook_tries_again_only_where_it_helps(receiver, first, sent, attempts):
    url, seen, answers = receiver
    answers.append(first)
    hook = Webhook(url, timeout=0.3, pause=0.01)
    hook(alert(1))
    counts = hook.close()
    assert counts.get("sent", 0) == sent and counts.get("failed", 0) == 1 - sent and len(seen) == attempts


def test_webhook_never_holds_up_the_stream(receiver):
    url, seen, answers = receiver
    answers += ["hang"] * 100
    hook = Webhook(url, timeout=0.4, tries=2, pause=0.01, size=5)
    begun = time.perf_counter()
    for n in range(1000): hook(alert(n))
    assert time.perf_counter() - begun < 0.3 and hook.counts["dropped"] >= 990
    begun = time.perf_counter()
    counts = hook.close(0.5)
    assert time.perf_counter() - begun < 3 and sum(counts.get(k, 0) for k in ("sent", "failed", "dropped")) >= 995


def test_webhook_refuses_other_addresses():
    for url in ("file:///etc/passwd", "ftp://host/x", "example.org", "http://"):
        assert code_of(Webhook, url) == "E301"


def test_delivery_is_once_and_minds_acknowledgements(tmp_path):
    store, told, kept = AlertStore(tmp_path / "a.sqlite"), [], []
    send = lambda *alerts: deliver(alerts, store=store, records=[kept.append], notices=[told.append])
    assert send(alert(1), alert(2, notify=False)) == {"notified": 1, "grouped": 1}
    assert send(alert(1), alert(2)) == {"known": 2}
    store.ack("id1", "Kim")
    assert send(alert(1, "raised", 1, severity="major")) == {"acknowledged": 1}
    assert send(alert(1, "raised", 2, severity="critical")) == {"notified": 1}
    assert send(alert(1, "closed", 3, severity="critical")) == {"acknowledged": 1}
    assert [a["evidence"]["revision"] for a in told] == [0, 2] and len(kept) == 5


def test_a_crash_between_sink_and_store_repeats_rather_than_loses(tmp_path):
    store, told = AlertStore(tmp_path / "a.sqlite"), []

    def broken(alert):
        told.append(alert["alert_id"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt): deliver([alert(1)], store=store, notices=[broken])
    assert deliver([alert(1)], store=store, notices=[lambda a: told.append(a["alert_id"])]) == {"notified": 1}
    assert told == ["id1", "id1"]


# ---- settings


@pytest.mark.parametrize("config, code", [({"windows": 3}, "E300"), ({"needed": 6}, "E301"), ({"needed": 0}, "E301"),
                                          ({"quiet": 2.5}, "E301"), ({"cooldown_s": -1}, "E301"), ({"strong": "high"}, "E301"),
                                          ({"group_s": float("nan")}, "E301")])
def test_bad_settings_are_refused(config, code):
    assert code_of(AlertBook, config) == code


def test_a_forgotten_endpoint_counts_no_longer_and_harms_nothing():
    book = AlertBook()
    storm(book, 4)
    book.forget("du-0")
    book.forget("nobody")
    assert book.state("du-0") == {} and len(book.open_alerts()) == 3
    out = [a for i in range(3) for a in book.push("du-9", NOON + 20 + i, bad(kind="loss"))]
    assert out[0]["evidence"]["group"] is None
