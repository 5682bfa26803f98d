"""What a reader of CVAT files must survive, and what it must get right; the lesson is nbs/behavior/10_cvat.ipynb."""

import os
import random
import unicodedata
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from ai_suite.behavior.cvat import Interval, Job, elements, read_cvat
from ai_suite.behavior.pairs import merge_jobs, pair
from ai_suite.core.errors import SuiteError

JAAD = sorted(Path(os.environ.get("AI_SUITE_DATA", "AI_SUITE_DATA is not set"), "cvat_jaad").glob("*.xml"))


def box(frame, outside=0, **attributes):
    inner = "".join(f'<attribute name="{k}">{v}</attribute>' for k, v in attributes.items())
    return f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="1">{inner}</box>'


def track(label, *boxes, more=""):
    return f'<track label="{label}" {more}>{"".join(boxes)}</track>'


def task(size=100, start=None, step=None, source="clip.mp4", labels="", **more):
    start = "" if start is None else f"<start_frame>{start}</start_frame>"
    step = "" if step is None else f"<frame_filter>step={step}</frame_filter>"
    more = "".join(f"<{k}>{v}</{k}>" for k, v in more.items())
    return f"<task><size>{size}</size><source>{source}</source>{start}{step}{more}<labels>{labels}</labels></task>"


def declared(name, **attributes):
    one = "<attribute><name>{}</name><input_type>{}</input_type></attribute>"
    inner = "".join(one.format(*item) for item in attributes.items())
    return f"<label><name>{name}</name><attributes>{inner}</attributes></label>"


@pytest.fixture
def read(tmp_path):
    "Read `body` as the annotations of one task; give its only job."

    def f(body, meta=None) -> Job:
        head = task() if meta is None else meta
        (tmp_path / "a.xml").write_text(f"<annotations><meta>{head}</meta>{body}</annotations>")
        (job,) = read_cvat(tmp_path / "a.xml")
        return job

    return f


def plain(job, *origins):
    return [(e.label, e.start, e.end) for e in job.intervals if not origins or e.origin in origins]


# hostile and broken files


BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;">]><annotations>&c;</annotations>'


def around(body):
    return f"<annotations>{body}</annotations>"


BAD = {
    "bomb": (BOMB, "E102"),
    "external entity": ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>', "E102"),
    "external dtd": ('<!DOCTYPE annotations SYSTEM "http://localhost:9/x.dtd"><annotations/>', "E102"),
    "parameter entity": ('<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd">%p;]><annotations/>', "E102"),
    "empty file": ("", "E102"),
    "nothing inside": ("<annotations></annotations>", "E102"),
    "wrong root": ("<html><body/></html>", "E102"),
    "not xml": ("frame,label\n1,fall\n", "E102"),
    "no frame": (around(track("a", '<box frame=""/>')), "E102"),
    "negative frame": (around(track("a", box(-3))), "E102"),
    "huge frame": (around(track("a", box(10**12))), "E102"),
    "endless digits": (around(track("a", box("9" * 100_000))), "E102"),
    "image without id": ('<annotations><image name="a.png"><tag label="x"/></image></annotations>', "E102"),
    "legacy encoding": ('<?xml version="1.0" encoding="euc-kr"?><annotations/>', "E102"),
    "unknown encoding": ('<?xml version="1.0" encoding="no-such"?><annotations/>', "E102"),
    "deep nesting": ("<annotations>" + "<a>" * 200_000 + "</a>" * 200_000 + "</annotations>", "E102"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_stop_with_a_code(name, tmp_path):
    text, code = BAD[name]
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(SuiteError) as e:
        read_cvat(tmp_path / "x.xml")
    assert e.value.code == code and "root:" not in str(e.value)


def test_missing_file_and_size_limit(tmp_path):
    with pytest.raises(SuiteError, match="E101"):
        read_cvat(tmp_path / "none.xml")
    with pytest.raises(SuiteError, match="E101"):
        read_cvat(tmp_path)
    (tmp_path / "a.xml").write_text("<annotations>" + " " * 2000 + "</annotations>")
    with pytest.raises(SuiteError, match="E102.*larger"):
        list(elements(tmp_path / "a.xml", limit=1999))


def test_every_truncation_is_noticed(tmp_path):
    text = f"<annotations><meta>{task()}</meta>{track('fall', box(1), box(9, 1)) * 3}</annotations>"
    for cut in range(0, len(text) - 1, 7):
        (tmp_path / "x.xml").write_text(text[:cut])
        with pytest.raises(SuiteError, match="E102"):
            read_cvat(tmp_path / "x.xml")


def test_mutated_files_never_raise_anything_else(tmp_path):
    rng = random.Random(0)
    body = track("fall", box(1, action="walking"), box(9, 1))
    body += '<image id="3"><tag label="x"/></image><tag label="y" frame="4"/>'
    text = around(f"<meta>{task(start=5, step=2, labels=declared('fall', action='select'))}</meta>{body}")
    for _ in range(400):
        data = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            pieces = [b"", b"<", b'"', b"-", b"9999", b"\x00", b"\xff", b"NaN", b"step=0"]
            data[at : at + rng.randint(0, 3)] = rng.choice(pieces)
        (tmp_path / "x.xml").write_bytes(data)
        try:
            for job in read_cvat(tmp_path / "x.xml"):
                assert all(e.start < e.end for e in job.intervals)
        except SuiteError as e:
            assert e.code in ("E102",), e


def test_utf16_and_byte_order_marks(tmp_path):
    text = f"<annotations><meta>{task()}</meta>{track('낙상', box(3), box(5, 1))}</annotations>"
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "x.xml").write_bytes(text.encode(encoding))
        assert plain(read_cvat(tmp_path / "x.xml")[0]) == [("낙상", 3, 5)]


# tracks


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([box(10), box(20, 1)], [(10, 20)]),
        ([box(10), box(11), box(12)], [(10, 13)]),
        ([box(10)], [(10, 11)]),
        ([box(5, 1), box(10), box(20, 1)], [(10, 20)]),
        ([box(10), box(20, 1), box(30), box(40, 1)], [(10, 20), (30, 40)]),
        ([box(10), box(20, 1), box(20), box(25, 1)], [(10, 25)]),
        ([box(20, 1), box(10)], [(10, 20)]),
        ([box(10, 1)], []),
        ([box(10), box(50), box(60, 1)], [(10, 60)]),
    ],
)
def test_outside_ends_an_interval(read, boxes, expected):
    assert [(a, b) for _, a, b in plain(read(track("fall", *boxes)))] == expected


def test_skeletons_polygons_and_masks_count_like_boxes(read):
    points = '<points label="knee" outside="{0}"/><points label="hip" outside="{0}"/>'
    skeleton = "".join(f'<skeleton frame="{f}">{points.format(gone)}</skeleton>' for f, gone in ((4, 0), (9, 1)))
    polygon = '<polygon frame="1" outside="0" points="1,1;2,2"/><polygon frame="3" outside="1" points="1,1;2,2"/>'
    job = read(track("body", skeleton) + track("area", polygon))
    assert plain(job) == [("area", 1, 3), ("body", 4, 9)]


def test_attributes_hold_until_the_next_shape(read):
    meta = task(labels=declared("person", falling="checkbox", action="select", look="radio", age="number", note="text"))
    boxes = [
        box(0, falling="false", action="walking", look="left", age="31", note="true"),
        box(10, falling="true", action="none", look="not-left", age="32", note="x"),
        box(15, falling="true", action="reach", look="left", age="1", note=""),
        box(30, 1, falling="true"),
    ]
    found = plain(read(track("person", *boxes), meta), "attribute")
    first = [("look=left", 0, 10), ("walking", 0, 10)]
    assert found == first + [("falling", 10, 30), ("look=left", 15, 30), ("reach", 15, 30)]


def test_attribute_types_of_old_exports_and_undeclared_ones(read):
    old = "<label><name>p</name><attributes><attribute>~select=action:standing,walking</attribute></attributes></label>"
    job = read(track("p", box(0, action="walking"), box(4, 1)), task(labels=old))
    assert plain(job, "attribute") == [("walking", 0, 4)]
    bare = read(track("p", box(0, fall="true", size="7"), box(4, 1)))
    assert plain(bare, "attribute") == [("fall", 0, 4)]


def test_unknown_labels_are_kept_and_noted(read):
    job = read(track("reach", box(1), box(5, 1)), task(labels=declared("fall")))
    assert plain(job) == [("reach", 1, 5)] and job.labels == ["fall", "reach"]
    assert any("not declared: reach" in n for n in job.notes)


def test_two_tracks_of_one_label_stay_apart(read):
    job = read(track("fall", box(0), box(9, 1), more='id="4"') + track("fall", box(5), box(12, 1), more='id="7"'))
    assert [(e.start, e.end, e.track) for e in job.intervals] == [(0, 9, 4), (5, 12, 7)]


# frames


def test_frames_of_a_task_with_start_and_step_are_source_frames(read):
    job = read(track("fall", box(110), box(115), box(120, 1)) + track("reach", box(190)), task(20, start=100, step=5))
    assert plain(job) == [("fall", 110, 120), ("reach", 190, 195)]
    assert (job.start_frame, job.stop_frame, job.frame_step, job.n_frames, job.notes) == (100, 195, 5, 20, [])


def test_frames_that_count_annotated_frames_are_mapped(read):
    job = read(track("fall", box(0), box(1), box(2), box(3, 1)), task(20, start=100, step=5))
    assert plain(job) == [("fall", 100, 115)] and "count the annotated" in job.notes[0]


def test_frames_that_fit_nothing_are_noted(read):
    job = read(track("fall", box(7), box(300), box(500, 1)), task(20, start=100, step=5))
    assert plain(job) == [("fall", 7, 500)] and "do not fit" in job.notes[0]
    off_grid_end = read(track("fall", box(110), box(115), box(118, 1)), task(20, start=100, step=5))
    assert plain(off_grid_end) == [("fall", 110, 118)] and off_grid_end.notes == []


def test_stop_frame_and_size_complete_each_other(read):
    assert read("", "<task><size>10</size><start_frame>4</start_frame></task>").stop_frame == 13
    step = "<frame_filter>step=10</frame_filter>"
    job = read("", f"<task><start_frame>0</start_frame><stop_frame>99</stop_frame>{step}</task>")
    assert (job.n_frames, job.frame_step) == (10, 10)


def test_a_project_lays_tasks_end_to_end_within_a_subset(tmp_path):
    tasks = [("1", "a.mp4", "train", 50, 0, 1), ("2", "b.mp4", "train", 40, 10, 2)]
    tasks += [("3", "c.mp4", "train", 30, 0, 1), ("4", "d.mp4", "val", 20, 0, 1)]
    head = "".join(task(n, a, s, v, id=i, subset=sub) for i, v, sub, n, a, s in tasks)
    offsets, body = {"1": 0, "2": 50, "3": 50 + 10 + 80, "4": 0}, ""
    for i, _, sub, *_ in tasks:
        body += track("fall", box(offsets[i] + 12), box(offsets[i] + 16, 1), more=f'task_id="{i}" subset="{sub}"')
    text = around(f"<meta><project><name>p</name><tasks>{head}</tasks></project></meta>{body}")
    (tmp_path / "p.xml").write_text(text)
    jobs = read_cvat(tmp_path / "p.xml")
    assert [(j.source, plain(j)) for j in jobs] == [(v, [("fall", 12, 16)]) for _, v, *_ in tasks]
    unnamed = text.replace('task_id="3"', "")
    (tmp_path / "p.xml").write_text(unnamed)
    assert plain(read_cvat(tmp_path / "p.xml")[2]) == [("fall", 12, 16)]


def test_several_jobs_in_one_file(tmp_path):
    one = "<job><id>{}</id><size>50</size><start_frame>{}</start_frame><stop_frame>{}</stop_frame></job>"
    jobs = one.format(1, 0, 49) + one.format(2, 50, 99)
    body = track("fall", box(10), box(20, 1)) + track("fall", box(70), box(80, 1), more='job_id="2"')
    body += track("lost", box(900))
    (tmp_path / "j.xml").write_text(f"<annotations><meta><jobs>{jobs}</jobs></meta>{body}</annotations>")
    first, second = read_cvat(tmp_path / "j.xml")
    assert plain(first) == [("fall", 10, 20)] and plain(second) == [("fall", 70, 80)]
    assert (first.stop_frame, second.start_frame) == (49, 50) and "no task" in first.notes[-1]


def test_a_job_export_has_neither_name_nor_source(tmp_path):
    meta = "<job><id>9</id><size>10</size><start_frame>30</start_frame><stop_frame>39</stop_frame></job>"
    body = track("fall", box(31), box(35, 1))
    (tmp_path / "j.xml").write_text(around(f"<meta>{meta}<source>v.mp4</source></meta>{body}"))
    (job,) = read_cvat(tmp_path / "j.xml")
    assert (job.source, job.start_frame, plain(job)) == ("v.mp4", 30, [("fall", 31, 35)])


def test_a_file_without_meta(tmp_path):
    (tmp_path / "x.xml").write_text(f"<annotations>{track('fall', box(3), box(8, 1))}</annotations>")
    (job,) = read_cvat(tmp_path / "x.xml")
    assert (plain(job), job.stop_frame, job.n_frames) == ([("fall", 3, 8)], 8, 9)


# marks


def test_start_and_end_marks(read):
    marks = [track("theft_start", box(10), box(11, 1)), track("theft_end", box(20), box(21, 1))]
    job = read("".join(marks))
    assert plain(job) == [("theft", 10, 21)] and job.labels == ["theft"] and job.intervals[0].origin == "mark"


def test_marks_as_tags_with_step_and_forgotten_outside(read):
    tags = '<tag label="fall_start" frame="20"/><tag label="fall_end" frame="40"/><tag label="other" frame="60"/>'
    assert plain(read(tags, task(20, step=5))) == [("fall", 20, 45), ("other", 60, 65)]
    endless = [track(label, *[box(f) for f in range(at, 100)]) for label, at in (("fall_start", 30), ("fall_end", 40))]
    assert plain(read("".join(endless))) == [("fall", 30, 41)]


def test_marks_pair_in_order_and_unpaired_ones_are_noted(read):
    def mark(label, *frames):
        return "".join(track(label, box(f), box(f + 1, 1)) for f in frames)

    assert plain(read(mark("a_start", 10, 30) + mark("a_end", 19, 39))) == [("a", 10, 20), ("a", 30, 40)]
    open_end = read(mark("a_start", 90) + mark("a_end", 5))
    assert plain(open_end) == [("a", 90, 100)] and len(open_end.notes) == 2
    assert plain(read(mark("bus_stop", 5) + mark("week-end", 7))) == [("bus_stop", 5, 6), ("week-end", 7, 8)]


def test_hangul_marks(read):
    marks = track("낙상_시작", box(4), box(5, 1)) + track("낙상_종료", box(9), box(10, 1))
    assert plain(read(marks)) == [("낙상", 4, 10)]


# images


def test_images_become_runs(read):
    def image(i, *things):
        return f'<image id="{i}" name="frame_{i:06d}">{"".join(things)}</image>'

    person = '<box label="person"><attribute name="falling">{}</attribute></box>'
    body = image(0, person.format("false")) + image(1, person.format("true"), person.format("false"))
    body += image(2, person.format("true")) + image(3, '<tag label="crowd"/>') + image(7, '<tag label="crowd"/>')
    meta = task(10, labels=declared("person", falling="checkbox") + declared("crowd"))
    job = read(body, meta)
    assert plain(job) == [("person", 0, 3), ("falling", 1, 3), ("crowd", 3, 4), ("crowd", 7, 8)]


# real files


@pytest.mark.skipif(not JAAD, reason="data set cvat_jaad is missing: AI_SUITE_DATA does not name it")
@pytest.mark.parametrize("file", JAAD, ids=lambda f: f.stem)
def test_jaad_agrees_with_a_plain_reading(file):
    (job,) = read_cvat(file)
    root = ET.parse(file).getroot()
    assert job.source.endswith(f"{file.stem}.mp4") and job.n_frames == int(root.findtext("meta/task/size"))
    tracks = [[(int(b.get("frame")), {a.get("name"): a.text for a in b}) for b in t] for t in root.iter("track")]
    shown = sorted((t[0][0], t[-1][0] + 1) for t in tracks)
    assert sorted((e.start, e.end) for e in job.intervals if e.origin == "track") == shown
    events = [("walking", "action", "walking"), ("look=looking", "look", "looking")]
    events += [("cross=crossing", "cross", "crossing"), ("nod=nodding", "nod", "nodding")]
    for label, name, value in events:
        states = [[False] + [a.get(name) == value for _, a in t] for t in tracks]
        begins = sum(now and not before for s in states for before, now in pairwise(s))
        assert sum(e.label == label for e in job.intervals) == begins, label
    assert all(0 <= e.start < e.end <= job.n_frames for e in job.intervals)
    assert not any(e.label.endswith(("__undefined__", "not-looking", "none")) for e in job.intervals)


# pairing


@pytest.fixture
def tree(tmp_path):
    "Make videos (empty files) and XML files; give their roots."

    def f(videos, xmls):
        for root, names in (("v", dict.fromkeys(videos, "")), ("x", xmls)):
            (tmp_path / root).mkdir()
            for name, text in names.items():
                file = tmp_path / root / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        return tmp_path / "v", tmp_path / "x"

    return f


def xml(source="", name="", size=100, start=0):
    head = task(size, start=start, source=source, name=name)
    return around(f"<meta>{head}</meta>{track('fall', box(start + 1), box(start + 5, 1))}")


NFC, NFD = unicodedata.normalize("NFC", "상점 녹화"), unicodedata.normalize("NFD", "상점 녹화")


@pytest.mark.parametrize(
    ("video", "file", "text"),
    [
        ("a.mp4", "anything.xml", xml("a.mp4")),
        ("a.mp4", "anything.xml", xml("data\\A.MP4")),
        ("a.avi", "anything.xml", xml("a.mp4")),
        ("a.mp4", "anything.xml", xml("", "a")),
        ("a.mp4", "a.xml", xml()),
        ("sub/a.MOV", "other/a.XML", xml()),
        ("a.mp4", "a/annotations.xml", xml()),
        (f"{NFC}.mp4", "anything.xml", xml(f"{NFD}.mp4")),
        (f"{NFD}.mp4", f"{NFC}.xml", xml()),
        (f"{NFC}.mp4", f"{NFD}.xml", xml()),
    ],
)
def test_pairs_by_source_task_and_file_name(tree, video, file, text):
    pairs, problems = pair(*tree([video], {file: text}))
    assert [(v.name, plain(j)) for v, j in pairs] == [(Path(video).name, [("fall", 1, 5)])] and problems == []


def test_source_wins_over_file_name(tree):
    pairs, problems = pair(*tree(["a.mp4", "b.mp4"], {"b.xml": xml("a.mp4")}))
    assert [v.name for v, _ in pairs] == ["a.mp4"] and [p["file"] for p in problems] == ["b.mp4"]


def test_equal_names_are_told_apart_by_folder_or_refused(tree):
    videos = ["one/a.mp4", "two/a.mp4"]
    pairs, problems = pair(*tree(videos, {"one/a.xml": xml("a.mp4"), "a.xml": xml("a.mp4")}))
    assert [v.parent.name for v, _ in pairs] == ["one"]
    assert {p["file"]: p["code"] for p in problems} == {"a.xml": "E100", "two/a.mp4": "E104"}


def test_one_bad_file_never_stops_the_rest(tree):
    files = {"a.xml": xml(), "bad.xml": BOMB, "cut.xml": xml()[:50], "lost.xml": xml("nowhere.mp4")}
    files |= {"._a.xml": "x", "note.txt": "x"}
    pairs, problems = pair(*tree(["a.mp4", "notes.txt"], files))
    assert [v.name for v, _ in pairs] == ["a.mp4"]
    assert {p["file"]: p["code"] for p in problems} == {"bad.xml": "E102", "cut.xml": "E102", "lost.xml": "E101"}
    assert all(set(p) == {"file", "code", "what", "fix"} for p in problems)


def test_a_source_never_leads_out_of_the_video_folder(tree, tmp_path):
    (tmp_path / "secret.mp4").touch()
    files = {"q.xml": xml("../secret.mp4"), "r.xml": xml(str(tmp_path / "secret.mp4"))}
    pairs, problems = pair(*tree(["a.mp4"], files))
    assert pairs == [] and {p["code"] for p in problems} == {"E101", "E104"}


def test_jobs_of_one_video_are_merged_where_they_touch(tree):
    files = {f"{i}.xml": xml("a.mp4", size=100, start=start) for i, start in enumerate((0, 95, 500))}
    pairs, _ = pair(*tree(["a.mp4"], files))
    assert [(j.start_frame, j.stop_frame, len(j.intervals)) for _, j in pairs] == [(0, 194, 2), (500, 599, 1)]


def test_merging_keeps_equal_intervals_once():
    jobs = [Job("a.mp4", 0, 9, 1, 10, ["x"], [Interval("x", 1, 3, track=t)]) for t in (0, 5)]
    (merged,) = merge_jobs(jobs)
    assert plain(merged) == [("x", 1, 3)] and merged.n_frames == 10


def test_missing_roots(tmp_path):
    with pytest.raises(SuiteError, match="E101"):
        pair(tmp_path / "none", tmp_path)
    with pytest.raises(SuiteError, match="E101"):
        pair(tmp_path, tmp_path / "none")
