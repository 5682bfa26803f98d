"""ai-rank vote: votes that survive, pairs nobody is asked twice, and a page that only this machine's browser gets."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from support import code_of
from test_ranking import home, rank  # noqa: F401

from ai_suite.core.cache import locked
from ai_suite.core.errors import SuiteError
from ai_suite.ranking import vote as module
from ai_suite.ranking.data import read_pairs
from ai_suite.ranking.vote import Ballot, Booth, opened, showable

HEADER = "left,right,preferred,annotator\n"
NAMES = [f"{k}.jpg" for k in range(5)]


def rows(path: Path) -> list[list[str]]:
    "The rows of a file of votes."
    return list(csv.reader(path.read_text("utf-8").splitlines()))[1:]


@pytest.fixture
def folder(tmp_path) -> Path:
    "Five pictures, one large and with a place in its EXIF, a broken one, a copy, and a name that CSV would change."
    root = tmp_path / "작품"
    root.mkdir()
    rng = np.random.default_rng(0)
    picture = lambda *size: Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8))
    for k in range(4): picture(60, 80).save(root / f"{k}.png")
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "secret", 6
    picture(900, 1500).save(root / "달, 밤.jpg", exif=exif)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    picture(60, 80).save(root / "a\\b.png")
    return root


# ---- the ballot


def test_every_answer_is_in_the_file_at_once_and_sides_change(tmp_path):
    ballot = Ballot(NAMES, tmp_path / "p.csv", "민수")
    seen = []
    while (pair := ballot.next()) is not None:
        ballot.say(("left", "tie", "right")[len(seen) % 3])
        seen.append(pair)
        assert rows(ballot.path)[-1][:2] == [NAMES[i] for i in pair] and len(rows(ballot.path)) == len(seen)
    assert len({frozenset(p) for p in seen}) == len(seen) == 10
    assert 0 < sum(a < b for a, b in seen) < 10
    assert code_of(ballot.say, "left") == "E110" and len(rows(ballot.path)) == 10
    table = read_pairs(ballot.path)
    assert table[["left_votes", "right_votes", "ties"]].sum().tolist() == [4, 3, 3] and set(table.annotator) == {"민수"}


def test_the_next_session_goes_on_and_other_people_begin_anew(tmp_path):
    first = Ballot(NAMES, tmp_path / "p.csv", "a")
    for _ in range(6): first.next(), first.say("left")
    again, other = Ballot(NAMES, tmp_path / "p.csv", "a"), Ballot(NAMES, tmp_path / "p.csv", "b")
    assert (len(again.unasked()[0]), len(other.unasked()[0])) == (4, 10)
    assert not again.undo() and len(again.votes) == len(other.votes) == 6
    assert np.allclose(again.belief().mean, first.belief().mean)


def test_undo_restores_the_file_and_the_pair(tmp_path):
    ballot = Ballot(NAMES, tmp_path / "p.csv")
    ballot.next(), ballot.say("tie")
    before, pair = ballot.path.read_bytes(), ballot.next()
    ballot.say("right")
    assert ballot.undo() and ballot.path.read_bytes() == before and ballot.next() == pair
    assert ballot.undo() and ballot.path.read_text() == HEADER and not ballot.undo() and not ballot.votes
    ballot.say("left")
    with ballot.path.open("a") as f: f.write("x.jpg,y.jpg,left,somebody\n")
    assert code_of(ballot.undo) == "E102" and len(rows(ballot.path)) == 2


@pytest.mark.parametrize("cut, kept", [("2.jpg,0.jpg,lef", 1), ("2.jpg,0.jpg,left,mi", 1), ("2.jpg,0.jpg,left,minsu", 2),
                                       ('2.jpg,"0', 1)])
def test_a_cut_last_line_is_mended_with_a_note(tmp_path, capsys, cut, kept):
    path = tmp_path / "p.csv"
    path.write_text(f"{HEADER}0.jpg,1.jpg,tie,minsu\n{cut}")
    ballot = Ballot(NAMES, path, "minsu")
    assert len(ballot.votes) == kept and (cut in capsys.readouterr().err) == (kept == 1)
    ballot.say("left")
    assert len(rows(path)) == kept + 1 and {len(r) for r in rows(path)} == {4}


def test_a_name_cut_inside_a_letter_is_mended(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes((HEADER + "0.jpg,1.jpg,tie,민수\n2.jpg,0.jpg,left,민").encode()[:-1])
    assert len(Ballot(NAMES, path, "민수").votes) == 1 and len(rows(path)) == 1


def test_columns_in_another_order_and_files_of_other_programs(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(b"\xef\xbb\xbfannotator,preferred,left,right\r\nminsu,left,0.jpg,1.jpg\r\n")
    ballot = Ballot(NAMES, path, "minsu")
    pair = ballot.next()
    ballot.say("tie")
    assert rows(path)[-1] == ["minsu", "tie", *(NAMES[i] for i in pair)] and len(Ballot(NAMES, path, "minsu").asked) == 2


@pytest.mark.parametrize("content, code", [
    ("left,right,preferred\na,b,left\n", "E103"), ("left,right,left_votes,right_votes\na,b,1,0\n", "E103"),
    (HEADER.replace(",", ";") + "a;b;left;c\n", "E103"), (HEADER + "a,b,maybe,c\n", "E105"), ("\n", "E103")])
def test_a_file_of_another_kind_is_refused_and_not_touched(tmp_path, content, code):
    path = tmp_path / "p.csv"
    path.write_text(content)
    assert code_of(opened, path) == code and path.read_text() == content


def test_bad_settings_are_refused(tmp_path):
    for name in ("", " a", "=1+1", "a\nb", "x" * 65): assert code_of(Ballot, NAMES, tmp_path / "p.csv", name) == "E301"
    assert code_of(Ballot, NAMES[:1], tmp_path / "p.csv") == "E110"
    assert code_of(Ballot, NAMES, tmp_path / "p.parquet") == "E301"
    (tmp_path / "c.csv").write_bytes(HEADER.encode() + "달,해,left,a\n".encode("cp949"))
    assert code_of(Ballot, NAMES, tmp_path / "c.csv") == "E102"
    ballot = Ballot(NAMES, tmp_path / "p.csv")
    assert code_of(ballot.say, "both") == "E301"
    assert code_of(Booth, ballot, tmp_path, votes=0) == code_of(Booth, ballot, tmp_path, port=-1) == "E301"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_full_disk_loses_no_line_and_counts_no_vote(tmp_path):
    import resource

    ballot = Ballot(NAMES, tmp_path / "p.csv")
    ballot.say("left")
    before, limits = ballot.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, limits[1]))
        assert code_of(ballot.say, "left") == "E120"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert ballot.path.read_bytes() == before and len(ballot.mine) == len(ballot.votes) == 1
    ballot.say("right")
    assert len(rows(ballot.path)) == 2


def test_more_than_two_hundred_pictures_are_asked_about_in_handfuls(tmp_path):
    ballot = Ballot([f"{k}.jpg" for k in range(230)], tmp_path / "p.csv")
    assert len({frozenset(p) for p in [ballot.next(), *ballot.queue]}) == module.AHEAD
    shown = ballot.next()
    ballot.leave_out(shown[0])
    assert shown[0] not in {i for p in [ballot.next(), *ballot.queue] for i in p}
    assert shown[0] not in np.concatenate(ballot.unasked())


def test_features_spread_what_a_vote_tells(tmp_path):
    features = np.random.default_rng(0).normal(size=(5, 40))
    features[1] = features[0]
    ballot = Ballot(NAMES, tmp_path / "p.csv", features=features)
    ballot.queue = [(0, 4)]
    ballot.say("left")
    mean = ballot.belief().mean
    assert mean[0] > mean[1] > mean[2:4].max() and mean[4] == mean.min()


def test_broken_pictures_copies_and_strange_names_are_listed(folder):
    files = sorted(p.name for p in folder.iterdir())
    kept, lost = showable(folder, files)
    assert kept == ["0.png", "1.png", "2.png", "3.png", "달, 밤.jpg"]
    assert set(lost) == {"broken.jpg", "copy.png", "a\\b.png"} and "copy of 0.png" in lost["copy.png"]


def test_of_too_many_pictures_those_with_votes_take_part(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    (tmp_path / "p.csv").write_text(f"{HEADER}1,4.jpg,left,a\n")
    few = module._few(NAMES, tmp_path / "p.csv", {"1": "1.jpg"})
    assert len(few) == 3 and {"1.jpg", "4.jpg"} < set(few)


# ---- the server


class Visitor:
    "Requests as any program could send them."

    def __init__(self, address: str):
        self.at = urlsplit(address)

    def __call__(self, path, told=None, method=None, body=None, **headers):
        "Status, headers and content."
        to = HTTPConnection("127.0.0.1", self.at.port, timeout=20)
        body = body if body is not None else None if told is None else json.dumps(told)
        how = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        path = path if path.startswith("/") else self.at.path + path
        to.request(method or ("GET" if body is None else "POST"), path, body, how)
        answer = to.getresponse()
        with contextlib.closing(to): return answer.status, answer.headers, answer.read()

    def state(self):
        return json.loads(self("state")[2])

    def say(self, answer, pair):
        return json.loads(self("answer", {"answer": answer, "pair": pair})[2])


@contextlib.contextmanager
def serving(ballot, folder, **settings):
    "A booth that is open, and a visitor."
    with Booth(ballot, folder, **settings) as booth:
        thread = Thread(target=booth.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield booth, Visitor(booth.address), thread
        finally:
            if thread.is_alive(): booth.shutdown()
            thread.join(10)


@pytest.fixture
def booth(folder, tmp_path):
    files, _ = showable(folder, sorted(p.name for p in folder.iterdir()))
    with serving(Ballot(files, tmp_path / "p.csv"), folder) as found: yield found


def test_votes_over_http(folder, tmp_path):
    ballot = Ballot([f"{k}.png" for k in range(4)], tmp_path / "p.csv", "민수")
    with serving(ballot, folder, votes=3) as (_, ask, thread):
        first = ask.state()
        assert first["given"] == 0 and first["wanted"] == 3 and not first["undo"]
        second = ask.say("left", first["pair"])
        assert second["given"] == 1 == len(rows(ballot.path))
        assert ask.say("left", first["pair"]) == second and len(rows(ballot.path)) == 1
        back = ask.say("undo", second["pair"])
        assert back["pair"] == first["pair"] and back["given"] == 0 == len(rows(ballot.path))
        now = ask.say("tie", back["pair"])
        now = ask.say("right", now["pair"])
        assert ask.say("left", now["pair"])["pair"] is None
        thread.join(10)
        assert not thread.is_alive()
    assert [r[2] for r in rows(ballot.path)] == ["tie", "right", "left"]


def test_the_page_loads_nothing_from_elsewhere(booth):
    _, ask, _ = booth
    status, headers, page = ask("")
    text, policy = page.decode(), headers["Content-Security-Policy"]
    assert status == 200 and "어느 쪽이 더 낫습니까?" in text and "Which is better?" in text
    assert "http://" not in text and "https://" not in text and "unsafe" not in policy and "default-src 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]


def test_pictures_are_new_small_files_without_metadata(booth, folder):
    found, ask, _ = booth
    row = found.ballot.files.index("달, 밤.jpg")
    status, headers, data = ask(f"picture/{row}")
    im = Image.open(io.BytesIO(data))
    assert status == 200 and headers["Content-Type"] == "image/jpeg" and im.format == "JPEG"
    assert max(im.size) == 1024 and im.size[0] < im.size[1] and not im.getexif() and b"secret" not in data


def test_a_picture_that_is_gone_is_left_out(booth, folder):
    found, ask, _ = booth
    pair = ask.state()["pair"]
    (folder / found.ballot.files[pair[0]]).unlink()
    assert ask(f"picture/{pair[0]}")[0] == 404
    assert pair[0] not in ask.state()["pair"] and set(found.skipped) == {found.ballot.files[pair[0]]}


@pytest.mark.parametrize("path", ["picture/-1", "picture/99", "picture/0.png", "picture/٣", "picture/../p.csv",
                                  "picture/..%2fp.csv", "picture/", "../", "p.csv", "answer", "picture/1/2",
                                  "picture/99999999999999999999"])
def test_no_way_to_other_files(booth, path):
    assert booth[1](path.replace("٣", "%D9%A3"))[0] == 404


def test_only_this_page_of_this_machine_is_answered(booth):
    found, ask, _ = booth
    port, word = found.server_port, found.word
    told = {"answer": "left", "pair": ask.state()["pair"]}
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"0.0.0.0:{port}"):
        assert ask("state", Host=host)[0] == 403
    for path in ("/", "/state", f"/{word[:-1]}/state", f"/{word}x/state", "/%00/"):
        assert ask(path)[0] == 404
    for head in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": f"http://127.0.0.1:{port + 1}"},
                 {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}):
        assert ask("answer", told, **head)[0] == 403
    assert not rows(found.ballot.path)
    assert ask("state", Host=f"localhost:{port}")[0] == 200
    assert ask("answer", told, Origin=f"http://127.0.0.1:{port}", Sec_Fetch_Site="same-origin")[0] == 200
    assert found.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("body, status", [
    ("x" * 1025, 413), ("x" * 90_000, 413), ("{", 400), ("[" * 1000, 400), ("[]", 400), ('{"answer": "left"}', 400),
    ('{"answer": "both", "pair": [0, 1]}', 400), ('{"answer": ["left"], "pair": [0, 1]}', 400), (b"\xff\xfe", 400)])
def test_bad_bodies_change_nothing(booth, body, status):
    found, ask, _ = booth
    try:
        assert ask("answer", body=body)[0] == status
    except ConnectionError:
        assert status == 413  # The server hung up on what it will not read
    assert not rows(found.ballot.path) and ask("state")[0] == 200


def test_other_methods_kinds_and_missing_lengths(booth):
    found, ask, _ = booth
    told = json.dumps({"answer": "left", "pair": ask.state()["pair"]})
    assert ask("answer", body=told, Content_Type="text/plain")[0] == 415
    assert ask("answer", body=iter([told.encode()]), Transfer_Encoding="chunked")[0] == 411
    assert ask("state", body=told)[0] == 404
    assert ask("state", method="DELETE")[0] == 501 and not rows(found.ballot.path)


def test_an_answer_that_cannot_be_written_is_said(booth, monkeypatch):
    found, ask, _ = booth
    pair = ask.state()["pair"]
    def full(*_): raise SuiteError("E120", "p.csv cannot be written: No space left on device")

    with monkeypatch.context() as m:
        m.setattr(module, "append", full)
        status, _, told = ask("answer", {"answer": "left", "pair": pair})
    assert status == 507 and "No space left" in json.loads(told)["error"] and ask.state()["pair"] == pair


# ---- the command


@contextlib.contextmanager
def running(folder, pairs, *words):
    "ai-rank vote as a program of its own, and a visitor."
    code = "from ai_suite.ranking.cli import main; main()"
    command = [sys.executable, "-c", code, "vote", "--data-dir", folder, "--pairs", pairs, *words]
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONIOENCODING": "utf-8"}) as program:
        try:
            said = ""
            for line in program.stderr:
                said += line
                if "voting page" in line: break
            assert "voting page" in said, said
            yield program, Visitor(next(w for w in said.split() if w.startswith("http://"))), said
        finally:
            program.kill()


def test_ctrl_c_ends_with_an_answer_and_a_crash_loses_nothing(folder, tmp_path):
    pairs = tmp_path / "p.csv"
    with running(folder, pairs, "--encoder", "none", "--annotator", "민수") as (program, ask, said):
        assert "left out: broken.jpg" in said
        pair = ask.state()["pair"]
        for answer in ("left", "tie"): pair = ask.say(answer, pair)["pair"]
        _, err = rank("vote", "--data-dir", folder, "--pairs", pairs, "--encoder", "none", code=2)
        assert "E120" in err and "another process" in err
        program.send_signal(signal.SIGINT)
        out, _ = program.communicate(timeout=20)
        assert program.returncode == 0
    told = json.loads(out)
    assert set(told.pop("skipped")) == {"broken.jpg", "copy.png", "a\\b.png"}
    assert told == {"pairs": str(pairs), "votes": 2, "ties": 1, "pictures": 5, "annotator": "민수"}
    with running(folder, pairs, "--encoder", "none", "--annotator", "민수") as (program, ask, _):
        ask.say("right", ask.state()["pair"])
        program.kill()
    assert [r[2] for r in rows(pairs)] == ["left", "tie", "right"]
    assert len({frozenset(r[:2]) for r in rows(pairs)}) == 3


def test_the_command_ends_after_the_votes_and_with_features(folder, tmp_path):
    pairs = tmp_path / "p.csv"
    with running(folder, pairs, "--encoder", "efficientnet_lite0", "--votes", 1, "--device", "cpu") as (program, ask, _):
        ask.say("left", ask.state()["pair"])
        out, _ = program.communicate(timeout=20)
    assert json.loads(out)["votes"] == 1 and program.returncode == 0 and len(rows(pairs)) == 1


def test_a_checkpoint_lends_its_encoder(home, folder):  # noqa: F811
    root, told = home
    paths = [folder / "0.png", folder / "broken.jpg"]
    rows, errors = module._features(paths, told["checkpoint"], None, "cpu")
    plain, _ = module._features(paths[:1], None, "efficientnet_lite0", "cpu")
    assert set(errors) == {1} and np.isfinite(rows[0]).all() and rows.shape[1] == 1280
    assert not np.allclose(rows[0], plain[0, :1280])  # Of another size


def test_nothing_left_to_ask(tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    for k in range(2): Image.new("RGB", (40, 40), (90 * k, 0, 0)).save(folder / f"{k}.png")
    (tmp_path / "p.csv").write_text(f"{HEADER}0.png,1,left,anonymous\n")
    told, err = rank("vote", "--data-dir", folder, "--pairs", tmp_path / "p.csv", "--encoder", "none")
    assert told["votes"] == 0 and "has answered every pair" in err


def test_what_stops_the_command(folder, tmp_path):
    go = lambda *words: rank("vote", "--data-dir", folder, "--pairs", tmp_path / "p.csv", *words, code=2)[1]
    assert "E301" in go("--encoder", "none", "--checkpoint", "x.pt") and "E301" in go("--encoder", "none", "--port", 70000)
    assert "E301" in go("--encoder", "none", "--votes", 0)
    assert "E101" in rank("vote", "--data-dir", tmp_path / "no", "--pairs", tmp_path / "p.csv", code=2)[1]
    with Booth(Ballot(NAMES, tmp_path / "q.csv"), folder) as other:
        assert "E301" in go("--encoder", "none", "--port", other.server_port)
    with locked(tmp_path / ".p.csv.lock"):
        assert code_of(module.vote, data_dir=str(folder), pairs=str(tmp_path / "p.csv")) == "E120"


def test_the_file_is_what_ai_rank_reads(folder, tmp_path):
    ballot = Ballot(["0.png", "1.png", "2.png", "달, 밤.jpg"], tmp_path / "p.csv", "지우")
    for _ in range(4): ballot.next(), ballot.say("left")
    told, _ = rank("check", "--data-dir", folder, "--pairs", ballot.path)
    assert told["votes"] == 4 and not told["errors"]
