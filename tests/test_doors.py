"""The console scripts of every system: one good and two bad inputs each, exit codes, clean stdout, quick help."""

import gzip
import json
import os
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
Image = pytest.importorskip("PIL.Image")

from ai_suite.core import check  # noqa: E402
from ai_suite.core.errors import SuiteError  # noqa: E402
from ai_suite.core.runs import write_run  # noqa: E402
from ai_suite.lens import data as lens  # noqa: E402
from ai_suite.ocad import series  # noqa: E402
from ai_suite.ranking import data as ranking  # noqa: E402
from ai_suite.suite import doctor  # noqa: E402
from ai_suite.tasks import dataset as tasks  # noqa: E402

AWKWARD = "측정 폴더 (1) 'ü' 100%"
HERE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
DOORS = {"ocad": "ai_suite.ocad.cli", "ai-lens": "ai_suite.lens.cli", "ai-rank": "ai_suite.ranking.cli",
         "ai-tasks": "ai_suite.tasks.cli", "ai-suite": "ai_suite.suite.main"}


def run(prog, *words, **env):
    "Call a command as its console script does; (exit code, JSON or None, stderr)."
    source = f"import sys; sys.argv[0] = {prog!r}; from {DOORS[prog]} import main; main()"
    p = subprocess.run([sys.executable, "-c", source, *map(str, words)], capture_output=True, text=True, timeout=120,
                       cwd="/", env=HERE | env)
    assert "Traceback" not in p.stderr
    return p.returncode, json.loads(p.stdout) if p.stdout else None, p.stderr


def refused(prog, code, *words):
    "The command says nothing on stdout, one coded line on stderr, and exits 2."
    rc, answer, said = run(prog, *words)
    assert (rc, answer) == (2, None)
    assert said.splitlines()[-1].startswith(code) and "→" in said


@pytest.fixture
def home(tmp_path):
    "A folder with an awkward name."
    folder = tmp_path / AWKWARD
    folder.mkdir()
    return folder


def photos(root, counts):
    "Photos of noise: {place/item: number}."
    for item, n in counts.items():
        (root / item).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            name = root / item / f"{i}.jpg"
            Image.effect_noise((256, 240), 40 + i).convert("RGB").save(name)
            name.write_bytes(name.read_bytes() + f"{item}{i}".encode())
    return root


# ---- all of them


@pytest.mark.parametrize("prog", DOORS)
def test_help_is_quick_and_complete(prog):
    best = 9.0
    for _ in range(3):
        started = time.perf_counter()
        p = subprocess.run([sys.executable, "-c", f"from {DOORS[prog]} import main; main(['--help'])"],
                           capture_output=True, text=True, cwd="/", env=HERE)
        best = min(best, time.perf_counter() - started)
        assert p.returncode == 0 and p.stdout.startswith(f"usage: {prog} COMMAND")
    assert best < (0.5 if os.getloadavg()[0] < 2 else 2.5)


@pytest.mark.parametrize("prog", DOORS)
def test_help_loads_nothing_heavy(prog):
    heavy = "torch pandas cv2 mediapipe sklearn matplotlib PIL pyarrow".split()
    source = f"import sys\ntry:\n from {DOORS[prog]} import main; main(['--help'])\nexcept SystemExit: pass\n" \
             f"sys.exit(', '.join(set({heavy}) & set(sys.modules)) or 0)"
    p = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd="/", env=HERE)
    assert (p.returncode, p.stderr) == (0, "")


@pytest.mark.parametrize("prog", DOORS)
def test_unknown_command(prog):
    refused(prog, "E300", "chekc")


# ---- ocad


def test_ocad_good(home):
    log = home / "log.csv.gz"
    log.write_bytes(gzip.compress("timestamp;endpoint;rtt;label\n2016-10-14T21:00:00Z;가;5;0\n14/10/2016 21:01;가;-1;0\n"
                                  "1476478920;가;6;1\n1476478920;가;6;1\nnever;가;6;0\n".encode()))
    rc, answer, said = run("ocad", "check", "--data", log)
    assert (rc, said) == (0, "")
    assert answer["endpoints"] == ["가"] and answer["metrics"] == ["rtt"] and answer["rows"] == 5
    assert answer["timeouts"] == {"rtt": 1} and answer["duplicates"] == 1 and answer["unusable_rows"] == 1
    assert (answer["start"], answer["end"], answer["interval_s"]) == ("2016-10-14T21:00:00Z", "2016-10-14T21:02:00Z", 60)


def test_ocad_bad(home):
    refused("ocad", "E101", "check", "--data", home / "없음.csv")
    (home / "bad.csv").write_text("when,rtt\n1,2\n")
    refused("ocad", "E103", "check", "--data", home / "bad.csv")
    (home / "bad.csv").write_text("timestamp,rtt\n1,2,3\n")
    refused("ocad", "E102", "check", "--data", home / "bad.csv")


def test_ocad_settings_file(home):
    (home / "log.csv").write_text("t,host,a,b\n2024-01-01,x,1,2\n2024-01-02,x,1,2\n")
    (home / "c.yaml").write_text("endpoint_column: host\ntime-column: t\nmetrics: [b]\n")
    rc, answer, _ = run("ocad", "check", "--data", home / "log.csv", "--config", home / "c.yaml")
    assert (rc, answer["endpoints"], answer["metrics"]) == (0, ["x"], ["b"])


def test_ocad_folder_passes_over_what_has_no_times(home, capsys):
    (home / "a.csv").write_text("timestamp,rtt\n1,1\n2,2\n")
    (home / "b").mkdir()
    (home / "b/a.csv").write_text("timestamp,loss\n1,0\n4,\n")
    (home / "events.csv").write_text("endpoint,start,end,kind\na,1,2,spike\n")
    frame, timeouts = series.read_series(home)
    assert series.summary(frame, timeouts)["endpoints"] == ["a", "b/a"] and timeouts == {"rtt": 0, "loss": 1}
    assert "events.csv" in capsys.readouterr().err
    (home / "events.csv").write_text("timestamp,rtt\n1,2,3\n")
    with pytest.raises(SuiteError, match="E102"):
        series.read_series(home)


def test_ocad_wide_and_long_agree(home):
    stamps = ["2024-01-01T00:00:00Z", "2024-01-01T00:01:00Z"]
    wide = pd.DataFrame({"timestamp": stamps, "endpoint": "e", "a": ["1", "-1"], "b": ["3", "4"]})
    wide.to_csv(home / "wide.csv", index=False)
    wide.melt(["timestamp", "endpoint"], var_name="metric_type").to_csv(home / "long.csv", index=False)
    one, two = (series.summary(*series.read_series(home / f"{k}.csv")) for k in ("wide", "long"))
    assert one == two and one["timeouts"] == {"a": 1, "b": 0}


@pytest.mark.parametrize("text", ["2016-13-01", "10/14/2016 10:00", "32/01/2016", "", "nan", "inf", "-inf", "1e30", "٣",
                                  "2016-10-14T25:00", "5000000000", "2016-10-14 10:00 Mars/Base", "9" * 400])
def test_no_time(text):
    assert series.times(pd.Series([text])).isna().all()


@pytest.mark.parametrize("zone", ["+09:00", "+0900", " +09:00"])
def test_zones_become_utc(zone):
    assert str(series.times(pd.Series([f"2016-10-15 06:17{zone}"]))[0]) == "2016-10-14 21:17:00+00:00"


# ---- lens


def test_lens_good(home):
    photos(home, {"홀/ㄱ": 4, unicodedata.normalize("NFD", "홀/꽃병"): 3, ".git/x": 1})
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    rc, answer, said = run("ai-lens", "validate-data", "--data-root", home, "--min-images", "4")
    assert (rc, answer["errors"]) == (0, []) and "photos" in said
    assert answer["places"] == {"홀": {"ㄱ": 4, "꽃병": 3}} and (answer["items"], answer["images"]) == (2, 7)
    assert {w["code"] for w in answer["warnings"]} - {"E100"} == {"E110"}
    assert before == {p: p.stat().st_mtime_ns for p in home.rglob("*")}


def test_lens_bad(home):
    refused("ai-lens", "E101", "validate-data", "--data-root", home / "no")
    photos(home, {"flat": 2})
    refused("ai-lens", "E100", "validate-data", "--data-root", home)


def test_lens_findings_are_on_stdout_and_exit_is_2(home):
    photos(home, {"A/a": 3, "A/b": 3})
    (home / "A/a/1.jpg").write_bytes((home / "A/a/1.jpg").read_bytes()[:2000])
    (home / "A/a/page.html").write_text("x")
    rc, answer, said = run("ai-lens", "validate-data", "--data-root", home)
    assert (rc, [e["code"] for e in answer["errors"]]) == (2, ["E110", "E102"])
    assert "A/a/1.jpg" in answer["errors"][1]["what"] and said.splitlines()[-1].startswith("E110")


@pytest.mark.parametrize("make", [
    lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"GIF89a"), lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    lambda p: p.write_bytes(b"\xff\xd8\xff\xe0" + b"\0" * 99), lambda p: os.mkfifo(p), lambda p: p.symlink_to("/dev/zero"),
    lambda p: Image.new("1", (16_384, 8_193)).save(p, "PNG")])
def test_lens_hostile_photo(tmp_path, make):
    make(tmp_path / "x.jpg")
    with pytest.raises(SuiteError, match="E10[12]"):
        lens.look(tmp_path / "x.jpg")


# ---- ranking


def test_rank_good(home):
    for name in ("봄.jpg", "b.png", "c.jpg"):
        (home / unicodedata.normalize("NFD", name)).touch()
    (home / "votes.csv").write_text("im1,im2,w1,w2,t\n봄,b,2,1,3\nb,c,0,1,1\n")
    rc, answer, said = run("ai-rank", "check", "--data-dir", home, "--pairs", home / "votes.csv")
    assert (rc, said) == (0, "")
    assert [answer[k] for k in ("images", "votes", "ties", "contradicted", "missing")] == [3, 4, 0, 1, []]
    (home / "m.csv").write_text("filename,tier,group\n봄.jpg,S,1\nb,A,1\nc,A,2\n")
    rc, answer, _ = run("ai-rank", "check", "--data-dir", home, "--metadata", home / "m.csv", "--tier-order", "S,A")
    assert (rc, answer["tiers"], answer["groups"], answer["comparisons"]) == (0, {"S": 1, "A": 2}, {"1": 2, "2": 1}, 2)


def test_rank_bad(home):
    (home / "a.jpg").touch()
    (home / "p.csv").write_text("left,right,preferred\na,../../etc/passwd,left\n")
    refused("ai-rank", "E301", "check", "--data-dir", home)
    refused("ai-rank", "E101", "check", "--data-dir", home, "--pairs", home / "no.csv")
    refused("ai-rank", "E103", "check", "--data-dir", home, "--metadata", home / "p.csv")
    rc, answer, said = run("ai-rank", "check", "--data-dir", home, "--pairs", home / "p.csv")
    assert (rc, answer["missing"], answer["unknown_pairs"]) == (2, ["../../etc/passwd"], 1) and said.startswith("E101")


def test_rank_short_names_must_be_unique(tmp_path):
    for name in ("x/a.jpg", "y/a.jpg", "y/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    there = ranking.index(tmp_path)
    assert "a.jpg" not in there and "a" not in there and there["b"] == "y/b.jpg" and there["x/a"] == "x/a.jpg"


# ---- tasks


def test_tasks_good(home):
    from ai_suite.video.frames import write_video
    import numpy as np

    clip = write_video(home / "영상.mp4", [np.full((48, 64, 3), i, np.uint8) for i in range(40)], 10)
    rows = [f"{i},{'작업' if i > 9 else '대기'}\n" for i in range(30)]
    (home / "labels.csv").write_text("frame_index,label\n" + "".join(rows), "cp949")
    rc, answer, said = run("ai-tasks", "check", "--labels", home / "labels.csv", "--video", clip)
    assert (rc, said, answer["labels"]) == (0, "", {"작업": 20, "대기": 10})
    assert answer["segments"][0] == {"label": "대기", "start": 0, "end": 10} and answer["gaps"] == [{"start": 30, "end": 40}]
    (home / "labels.csv").write_text("frame_index,label\n39,a\n40,a\n41,a\n39,b\n")
    rc, answer, said = run("ai-tasks", "check", "--labels", home / "labels.csv", "--video", clip)
    assert (rc, answer["beyond"], answer["conflicts"]) == (2, 2, [39]) and said.startswith("E105")


def test_tasks_bad(home):
    (home / "l.csv").write_text("frame,label\n0,a\n")
    refused("ai-tasks", "E103", "check", "--labels", home / "l.csv")
    (home / "l.csv").write_text("frame_index,label\n-1,a\n")
    refused("ai-tasks", "E103", "check", "--labels", home / "l.csv")
    refused("ai-tasks", "E101", "check", "--labels", home)


@pytest.mark.parametrize("row", ["1e99,a", "nan,a", "0x10,a", "99999999999999999999,a", '"1,5",a', "-0.5,a"])
def test_tasks_frame_numbers(tmp_path, row):
    (tmp_path / "l.csv").write_text(f"frame_index,label\n{row}\n")
    with pytest.raises(SuiteError, match="E103"):
        tasks.check(tmp_path / "l.csv")


# ---- tables


def test_tables_have_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "MAX_BYTES", 1000)
    bomb = tmp_path / "t.csv.gz"
    bomb.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 1_000_000))
    with pytest.raises(SuiteError, match="E102"):
        check.read_bytes(bomb, 1000)
    (tmp_path / "wide.csv").write_text("," * 5000 + "\n1\n")
    with pytest.raises(SuiteError, match="E103"):
        check.read_table(tmp_path / "wide.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(SuiteError, match="E101"):
        check.read_table(tmp_path / "pipe.csv")


def test_cells_stay_text(tmp_path):
    (tmp_path / "t.csv").write_text('a,b\n007,NA\n"x, y",=1+1\n\n')
    assert check.read_table(tmp_path / "t.csv").to_numpy().tolist() == [["007", "NA"], ["x, y", "=1+1"]]


# ---- suite


def test_suite_info_and_doctor(home):
    rc, answer, _ = run("ai-suite", "info")
    assert rc == 0 and set(DOORS) <= set(answer["commands"])
    rc, answer, _ = run("ai-suite", "doctor", AI_SUITE_CACHE=str(home / "cache"))
    assert rc == 0 and answer["cache"]["folder"].startswith(str(home)) and all(isinstance(a, str) for a in answer["advice"])
    assert set(answer["libraries"]) == set(doctor.LIBRARIES) and not (home / "cache").exists()


def test_suite_verify(home):
    folder = write_run(home / "실행", system="ocad", config={}, metrics={}, files={"a.bin": b"1"}, seed=0)
    rc, answer, _ = run("ai-suite", "verify", folder)
    assert (rc, answer["system"], answer["files"]) == (0, "ocad", ["a.bin", "metrics.json"])
    (folder / "a.bin").write_bytes(b"2")
    refused("ai-suite", "E202", "verify", folder)
    refused("ai-suite", "E101", "verify", home / "no")
