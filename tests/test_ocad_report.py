"""The page of a run: hostile names stay text, thousands of endpoints stay small, what is drawn is what was measured."""

import json
import re
import shutil
import subprocess
import zlib
from base64 import b64decode, b64encode
from hashlib import sha256

import numpy as np
import pytest
from support import code_of

pd = pytest.importorskip("pandas")
for module in ("matplotlib", "jinja2", "sklearn"): pytest.importorskip(module)

from ai_suite.core.report import POLICY, Report  # noqa: E402
from ai_suite.ocad.evaluate import events_table  # noqa: E402
from ai_suite.ocad.evidence import iso  # noqa: E402
from ai_suite.ocad.explorer import SCRIPT, allow, explorer_block  # noqa: E402
from ai_suite.ocad.packing import decimate, pack, page_data, quantise  # noqa: E402
from ai_suite.ocad.report import alert_rows, by_kind, curves, input_rows, ranked, report_page  # noqa: E402
from ai_suite.ocad.traces import Trace  # noqa: E402

NOON = 1.77e9
NAMES = ("udp_echo_rtt_us", "ecpri_delay_us", "lbm_rtt_us", "ccm_loss")
HOSTILE = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "../../etc/passwd", "a\"b'c{{7*7}}",
           "수원-기지국", "<!--<script>", "\u2028line", "=cmd|' /C calc'!A0"]


def alert(endpoint, start=NOON + 600, end=NOON + 1800.0, severity="major", kind="level_shift", score=0.97, group=None, n=0):
    plot = {"from": iso(start - 600), "onset": 600.0, "t": [60.0 * i for i in range(20)], "v": [float(i % 7) for i in range(20)]}
    return {"alert_id": f"{endpoint}{n}", "endpoint": endpoint, "start": iso(start), "end": end and iso(end),
            "severity": severity, "kind": kind, "metrics": ["lbm_rtt_us"], "score": score,
            "evidence": {"opened": iso(start + 120), "group": group, "plot": plot,
                         "reason": {"en": f"{endpoint}: <b>moved</b>", "ko": "수준이 바뀌었습니다"}}}


def traces_of(names, T=200, seed=0, label=False):
    rng = np.random.default_rng(seed)
    mark = np.zeros(T, np.uint8)
    mark[10:30] = label
    return [Trace(name, NOON + 60.0 * np.arange(T), rng.gamma(2, 9, (T, 4)), i * T + np.arange(T), mark if label else None,
                  np.where(mark, "reroute", "") if label else None) for i, name in enumerate(names)]


def scores_of(traces, seed=0):
    rng = np.random.default_rng(seed)
    sizes, seconds = [len(t.seconds) for t in traces], np.concatenate([t.seconds for t in traces])
    table = pd.DataFrame({"timestamp": pd.to_datetime(np.round(seconds * 1000), unit="ms", utc=True),
                          "endpoint": np.repeat([t.endpoint for t in traces], sizes), "score": rng.beta(1, 9, sum(sizes)),
                          "is_anomaly": np.concatenate([np.arange(n) // 15 == 1 for n in sizes]).astype(int)})
    return table.assign(rule=table.score, note="")


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="explorer-data">(.*?)</script>', page, re.S)[1])


def unpacked(e):
    "What the script of the page makes of an endpoint."
    raw, n = zlib.decompress(b64decode(e["d"])), e["n"]
    seconds = e["t0"] + np.cumsum(np.frombuffer(raw, "<u4", n)) / 1000
    planes = np.frombuffer(raw, np.uint8, offset=4 * n).reshape(-1, n).astype(int)
    score = np.where(planes[0] == 255, np.nan, planes[0] / 250)
    codes = planes[2::2] * 256 + planes[3::2]
    values = [np.where(c > 0, offset + step * c, np.nan) for c, (offset, step) in zip(codes, e["m"], strict=True)]
    return seconds, np.array(values).T, score, planes[1]


# ---- packing


@pytest.mark.parametrize("v", [[1.0, 2, 3], [np.nan, 5], [np.nan], [], [0.0] * 9, [1e-12, 2e-12], [-1e9, 1e9], [5.0, 5, 5, 1e6],
                               [0.05, 0, 0.1]])
def test_quantise_keeps_every_value_within_half_a_step(v):
    v = np.array(v, float)
    codes, offset, step = quantise(v)
    known = np.isfinite(v)
    assert ((codes > 0) == known).all() and step > 0
    assert np.allclose((offset + step * codes)[known], v[known], rtol=1e-9, atol=0.5001 * step)
    assert codes.dtype == np.uint16


def test_noise_beside_a_huge_outlier_is_still_noise():
    v = np.random.default_rng(0).normal(100, 1, 2000)
    v[7] = 1000.0
    codes, _, step = quantise(v)
    assert step < 0.08 and len(np.unique(codes)) > 50


def test_what_goes_in_comes_out():
    rng = np.random.default_rng(1)
    seconds = NOON + np.cumsum(rng.choice([1.0, 60.0, 3600.5], 300))
    values, score, flag = rng.normal(0, [1, 100], (300, 2)), rng.random(300), rng.integers(0, 2, 300)
    values[3:9, 1], score[5] = np.nan, np.nan
    t, v, s, f = unpacked(pack(seconds, values, score, flag))
    assert np.allclose(t, seconds, atol=2e-3) and (f == flag).all() and np.allclose(s, score, atol=0.0021, equal_nan=True)
    assert (np.isnan(v) == np.isnan(values)).all() and np.nanmax(np.abs(v - values), 0).max() < 100 / 20


@pytest.mark.parametrize("T", [1, 2, 239, 240, 241, 1000, 1439])
def test_thinning_keeps_extremes_and_the_order_of_time(T):
    rng = np.random.default_rng(T)
    x = rng.normal(size=(T, 3))
    x[rng.random((T, 3)) < 0.1] = np.nan
    x[:, 2] = np.nan
    seconds = NOON + 60 * np.arange(T)
    at, few = decimate(seconds, x)
    assert len(at) == len(few) <= 240 and (np.diff(at) >= 0).all() and at[0] == seconds[0] and at[-1] <= seconds[-1]
    assert np.array_equal(np.nanmax(few[:, :2], 0), np.nanmax(x[:, :2], 0)) or T == 1
    assert np.isnan(few[:, 2]).all()


def test_loud_endpoints_come_first_and_the_budget_holds():
    traces = traces_of([f"du-{i}" for i in range(40)], T=500)
    scores = {t.endpoint: (np.zeros(500), np.zeros(500)) for t in traces}
    alerts = [alert("du-30", severity="critical"), alert("du-31"), alert("du-32", severity="info"), alert("nobody")]
    whole = page_data(traces, NAMES, scores, alerts, {}, sample=5)
    assert whole["full"] == 8 and whole["thinned"] == 32 and all(whole["endpoints"][i]["full"] for i in (30, 31, 32))
    assert page_data(traces, NAMES, scores, alerts, {}, sample=5) == whole
    one = len(whole["endpoints"][30]["d"])
    tight = page_data(traces, NAMES, scores, alerts, {}, sample=5, budget=one + 10)
    assert [i for i, e in enumerate(tight["endpoints"]) if e["full"]] == [30]
    assert all(e["n"] == 500 if e["full"] else e["n"] <= 240 for e in tight["endpoints"])


# ---- the page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    traces = traces_of([*HOSTILE, *(f"du-{i}" for i in range(30))], T=600, label=True)
    alerts = [alert(t.endpoint, group={"id": "g1", "kind": "loss", "count": 8, "since": iso(NOON)}) for t in traces[:8]]
    path = tmp_path_factory.mktemp("page") / "r.html"
    counts = {"duplicates": 3, "timeouts": {"a<b": 1}}
    text = report_page(scores_of(traces), traces, NAMES, alerts, latency={"p50, ms": 0.2}, counts=counts,
                       settings={"<i>": "</td>"}, output=path)
    assert path.read_text("utf-8") == text
    return text


def test_hostile_names_stay_text(page):
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert "<img src=x" not in page and "<b>moved" not in page and "49" not in re.findall(r"a&#34;b&#39;c(.{0,8})", page)
    assert [e["name"] for e in embedded(page)["endpoints"][: len(HOSTILE)]] == HOSTILE
    assert embedded(page)["endpoints"][0]["a"][0][6].endswith("<b>moved</b>")


def test_the_policy_allows_this_script_and_nothing_else(page):
    digest = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert policy == f"{POLICY}; script-src 'sha256-{digest}'" and "<script>" + SCRIPT + "</script>" in page
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page.replace(SCRIPT, ""))
    assert not re.search(r"\son\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.S).replace("onerror=alert", ""))
    assert "script-src" not in Report("other").html()


def test_allow_refuses_a_page_without_a_policy():
    assert code_of(allow, "<html></html>") == "E103"


def test_hangul_brings_its_font_and_korean_reasons_are_there():
    if "@font-face" not in Report("한글").html(): pytest.skip("no Hangul font is installed")
    traces = traces_of(["du-1"])
    text = report_page(scores_of(traces), traces, NAMES, [alert("du-1")], lang="ko")
    assert "@font-face" in text and "수준이 바뀌었습니다" in text and '<html lang="ko">' in text
    assert "@font-face" in report_page(scores_of(traces), traces, ["지연", *NAMES[1:]], [])


def test_every_part_is_there(page):
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert heads == ["Endpoints", "Alerts", "Against the labels", "Speed", "Settings", "Input"]
    for text in ("Incidents", "event precision", "What the first alert of each event called it",
                 "the same endpoint and time again", "time-outs of a&lt;b", "p50, ms", "&lt;i&gt;", "&lt;/td&gt;"):
        assert text in page
    data = embedded(page)
    assert data["metrics"] == list(NAMES) and data["endpoints"][9]["y"] == [[NOON + 600, NOON + 1800, "reroute"]]


def test_scores_are_drawn_where_they_were_measured():
    traces = traces_of(["a", "b"])
    table = scores_of(traces).sample(frac=0.7, random_state=0)
    table.loc[table.index[0], "score"] = np.nan
    data = embedded(report_page(table, traces, NAMES, []))
    for t, e in zip(traces, data["endpoints"], strict=True):
        _, _, score, flag = unpacked(e)
        own = table[(table.endpoint == t.endpoint) & table.score.notna()].index.to_numpy() - t.rows[0]
        assert set(np.flatnonzero(np.isfinite(score))) == set(own)
        assert np.allclose(score[np.sort(own)], table.score[np.sort(own) + t.rows[0]], atol=0.0021)


def test_without_labels_alerts_or_scores_there_is_still_a_page():
    traces = traces_of(["a"])
    silent = scores_of(traces).assign(score=np.nan, is_anomaly=0, note="warming up")
    text = report_page(silent, traces, NAMES, [])
    assert "No alerts." in text and "Against the labels" not in text and "rows without a score: warming up" in text
    assert code_of(report_page, silent, [], NAMES, []) == "E104"


def test_a_metric_without_values_and_one_sample_are_drawn():
    t = traces_of(["a"])[0]
    t.values[:, 2] = np.nan
    one = Trace("b", t.seconds[:1], t.values[:1], np.array([200]))
    data = embedded(report_page(scores_of([t, one]), [t, one], NAMES, []))
    assert data["endpoints"][1]["n"] == 1 and np.isnan(unpacked(data["endpoints"][0])[1][:, 2]).all()


# ---- tables


def test_alerts_are_ranked_and_cut():
    worst = [alert("b", severity="critical", score=0.5), alert("c", severity="critical", score=0.9, end=None)]
    alerts = [alert("a", severity="info"), *worst]
    assert [a["endpoint"] for a in ranked(alerts)] == ["c", "b", "a"]
    rows = alert_rows(alerts, {"b": 4}, limit=2)
    assert [r["lasting"] for r in rows] == ["open", "20 min"] and 'data-endpoint="4"' in rows[1]["endpoint"] and len(rows) == 2
    twice = alert_rows([alert("b", n=0), alert("b", n=1, severity="critical")], {"b": 0})
    assert 'data-alert="1"' in twice[0]["endpoint"] and 'data-alert="0"' in twice[1]["endpoint"]


def test_by_kind_counts_alerts_raised_before_the_end():
    events = events_table(pd.DataFrame({"endpoint": ["a", "a", "b"], "start": [NOON + 500, NOON + 90_000, NOON + 500],
                                        "end": [NOON + 1000, NOON + 91_000, NOON + 700], "kind": ["reroute", "reroute", "loss"]}))
    rows = {r["kind"]: r for r in by_kind([alert("a"), alert("b")], events)}
    assert rows["reroute"]["alerted"] == 0.5 and rows["reroute"]["delay_s"] == 220
    assert rows["reroute"]["called"] == {"level_shift": 1}
    assert rows["loss"]["alerted"] == 0 and np.isnan(rows["loss"]["delay_s"])


def test_curves_and_confusion_count_every_sample():
    traces = traces_of(["a", "b"], label=True)
    table = scores_of(traces)
    found, counts = curves(table, events_table(traces))
    assert counts.sum() == len(table) and counts[1].sum() == 40 and counts[1, 1] == 30 and counts[0, 1] == 0
    assert set(found) == {"score", "rule"} and all(len(c["recall"]) <= 300 for c in found.values())
    perfect = table.assign(score=table.is_anomaly.astype(float))
    exact, _ = curves(perfect, events_table(traces))
    assert 1.0 in exact["score"]["precision"] and np.isclose(exact["score"]["recall"], 0.75).any()


def test_oddities_are_listed_even_when_zero():
    rows = input_rows({"gaps": 0, "timeouts": {"m": 0}}, pd.DataFrame({"score": [1.0, np.nan], "endpoint": "a"}))
    found = {r["what"]: r["count"] for r in rows}
    assert found == {"gaps in time": 0, "time-outs of m": 0, "rows without a score: no reason given": 1}


# ---- in a browser


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")


def drawn(text, tmp_path):
    "The page after its script ran, and what the browser complained about."
    (tmp_path / "p.html").write_text(text, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr", "--log-level=0",
             "--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,1200"]
    command = [CHROMIUM, *flags, "--dump-dom", (tmp_path / "p.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_the_browser_draws_the_page_and_runs_no_other_script(page, tmp_path):
    dom, complaints = drawn(page, tmp_path)
    assert not complaints
    assert "38 of 38 endpoints" in dom and len(re.findall(r'role="option"', dom)) >= 10
    assert '<span class="name">&lt;script&gt;alert(1)&lt;/script&gt;</span>' in dom
    assert "<title>Fronthaul anomalies</title>" in dom
    assert "UTC" in re.search(r'id="x-span">(.*?)</p>', dom)[1] and re.search(r'<canvas id="x-chart"[^>]* height="\d{3,}"', dom)
    changed = page.replace("'use strict';(() => {", "'use strict';(() => { document.title = 'changed';", 1)
    dom, complaints = drawn(changed, tmp_path)
    assert "endpoints</p>" not in dom and complaints and "Content Security Policy" in " ".join(complaints)


def many(n=2000, T=1440):
    rng = np.random.default_rng(0)
    diurnal, seconds = 10 * np.sin(np.arange(T) / 229), NOON + 60.0 * np.arange(T)
    noise = rng.gamma(2, 2, (n, T, 4)) * [1.0, 0.3, 2.0, 0.0] + diurnal[:, None] * [1, 0.2, 1, 0]
    noise[..., 3] = rng.binomial(20, 0.002, (n, T)) / 20
    traces = [Trace(f"기지국-{i:04d}", seconds, noise[i] + 100, i * T + np.arange(T)) for i in range(n)]
    score = rng.beta(1, 9, (n, T))
    return traces, {t.endpoint: (score[i], (score[i] > 0.6).astype(float)) for i, t in enumerate(traces)}


@pytest.mark.slow
def test_two_thousand_endpoints_stay_below_fifteen_megabytes(tmp_path):
    traces, scores = many()
    alerts = [alert(traces[i * 3].endpoint) for i in range(600)]
    data = page_data(traces, NAMES, scores, alerts, {})
    text = allow(Report("many").text(explorer_block(data)).html())
    assert data["full"] >= 600 and data["full"] + data["thinned"] == 2000 and len(text.encode()) < 15e6
    if CHROMIUM:
        dom, complaints = drawn(text, tmp_path)
        assert not complaints and "2,000 of 2,000 endpoints" in dom and len(re.findall(r'role="option"', dom)) < 60
