"""The index of a place: right answers of every kind, one file, damaged, hostile and stale files; the shortlist of a score."""

import importlib.util
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")

from ai_suite.core.errors import SuiteError
from ai_suite.lens import index as rooms
from ai_suite.lens.gallery import gallery_of, score, unit
from ai_suite.lens.index import KINDS, Index, build, open_index, save_index, search
from ai_suite.lens.shortlist import _place_folder, build_index, candidates, rows_of, score_with_index, scorer

HOME = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cluster() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Rows in 40 clusters, whose each one is, and new points of the clusters."
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(40, 48)))
    owner = rng.integers(0, 40, 3000)
    near = lambda of: unit(centres[of] + 0.1 * rng.normal(size=(len(of), 48)))
    return near(owner), owner, near(rng.integers(0, 40, 50))


def names(n: int) -> list[str]:
    return [f"유물 {i}" for i in range(n)]


def nearest(rows: np.ndarray, q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    "The answer by a matrix product and a sort."
    cosine = q.astype(np.float64) @ rows.astype(np.float64).T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, order, 1), order


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AI_SUITE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("kind", ["flat", "fp16"])
@pytest.mark.parametrize("k", [1, 10, 300, 5000])
def test_exact_kinds_are_exact(cluster, kind: str, k: int):
    rows, owner, new = cluster
    found = search(build(rows, owner, names(40), kind=kind), new[:10], k)
    cosine, order = nearest(rows, new[:10], min(k, 3000))
    assert np.allclose(found.similarity, cosine, atol=2e-6)
    assert (found.row == order).mean() > 0.999 and (found.owner == owner[found.row]).all()


def test_half_precision_looks_again_when_rounding_could_hide_a_row():
    "A thousand rows closer together than half precision can tell apart."
    rng = np.random.default_rng(1)
    rows = unit(unit(rng.normal(size=(1, 64))) + 1e-5 * rng.normal(size=(1000, 64)))
    q = unit(rows.mean(0, keepdims=True) + 0.2 * unit(rng.normal(size=(1, 64))))
    found = search(build(rows, np.zeros(1000, int), ["하나"], kind="fp16"), q, 3)
    assert np.abs(found.similarity - nearest(rows, q, 3)[0]).max() < 3e-7


def test_lists_find_nearly_all_and_sort_rows_back(cluster):
    rows, owner, new = cluster
    index = build(rows, owner, names(40), kind="ivf")
    found, (_, order) = search(index, new, 10), nearest(rows, new, 10)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(order, found.row, strict=True)]) > 0.98
    assert (owner[found.row] == found.owner).all()
    assert np.allclose(np.einsum("bke,be->bk", rows[found.row], new), found.similarity, atol=1e-6)
    assert index.facts["probes"] < len(index.centres) and index.facts["recall"] >= rooms.RECALL
    every = Index(**{**vars(index), "facts": index.facts | {"probes": len(index.centres)}})
    assert np.allclose(search(every, new, 10).similarity, nearest(rows, new, 10)[0], atol=1e-6)


def test_auto_takes_lists_only_for_many_rows(cluster, monkeypatch: pytest.MonkeyPatch):
    rows, owner, _ = cluster
    assert build(rows, owner, names(40)).facts["kind"] == "flat"
    monkeypatch.setattr(rooms, "EXACT", 2999)
    assert build(rows, owner, names(40)).facts["kind"] == "ivf"


@pytest.mark.parametrize("kind", KINDS)
def test_odd_sizes(kind: str):
    "One row, more asked for than there is, equal rows, a photo that could not be read."
    one = build(unit(np.ones((1, 5))), np.zeros(1, int), ["하나"], kind=kind)
    assert search(one, unit(np.ones((2, 5))), 9).row.tolist() == [[0], [0]]
    same = build(unit(np.ones((30, 5))), np.arange(30), names(30), kind=kind)
    assert sorted(search(same, unit(np.ones((1, 5))), 30).row[0].tolist()) == list(range(30))
    found = search(same, np.array([[np.nan] * 5, [1, 0, 0, 0, 0]], np.float32), 3)
    assert (found.owner[0] == -1).all() and (found.owner[1] >= 0).all()
    assert search(same, np.zeros((0, 5), np.float32), 3).row.shape == (0, 3)


def test_bad_questions(cluster):
    rows, owner, new = cluster
    index = build(rows, owner, names(40))
    for ask, code in ((lambda: search(index, new[:, :9]), "E203"), (lambda: search(index, new[0]), "E203"),
                      (lambda: search(index, new, 0), "E301"), (lambda: build(rows, owner, names(39)), "E103"),
                      (lambda: build(rows, owner[1:], names(40)), "E103"),
                      (lambda: build(rows * np.nan, owner, names(40)), "E103"),
                      (lambda: build(rows, owner, names(40), kind="x"), "E301")):
        with pytest.raises(SuiteError) as e:
            ask()
        assert e.value.code == code


def test_threads_search_side_by_side_and_leave_the_setting_alone(cluster):
    import faiss

    rows, owner, new = cluster
    before = faiss.omp_get_max_threads()
    for kind in ("fp16", "ivf"):
        index, wrong = build(rows, owner, names(40), kind=kind), []
        true = search(index, new, 5).row

        def work(index: Index = index, true: np.ndarray = true, wrong: list = wrong) -> None:
            wrong.extend(i for i in range(len(new)) if (search(index, new[i:i + 1], 5).row != true[i]).any())

        threads = [threading.Thread(target=work) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not wrong
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_answers_as_memory_did(cluster, cache: Path, kind: str):
    rows, owner, new = cluster
    made = build(rows, owner, names(40), kind=kind, place="수장고", model_id="aa", revision=7)
    path = save_index(cache / "수장고.index", made)
    index = open_index(path, model_id="aa", revision=7, place="수장고")
    assert (search(index, new, 10).row == search(made, new, 10).row).all()
    assert not index.vectors.flags.writeable and not index.vectors.flags.owndata
    assert {p.name for p in cache.iterdir()} <= {"수장고.index", "cache"}
    assert index.facts["items"] == names(40) and index.facts["place"] == "수장고"


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed(cluster, cache: Path, kind: str):
    rows, owner, _ = cluster
    path = save_index(cache / "a.index", build(rows, owner, names(40), kind=kind))
    data, rng = path.read_bytes(), np.random.default_rng(2)
    for n in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:n])
        with pytest.raises(SuiteError) as e:
            open_index(path)
        assert e.value.code == "E200"
    head = 8 + int.from_bytes(data[:8], "little")
    for at in rng.integers(head, len(data), 12):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1:])
        with pytest.raises(SuiteError) as e:
            open_index(path)
        assert e.value.code in ("E200", "E202")
    path.write_bytes(data + b"more")
    with pytest.raises(SuiteError):
        open_index(path)


def forged(path: Path, arrays: dict[str, np.ndarray], facts: dict) -> Path:
    "A file whose checksums are right and whose content is not."
    from safetensors.numpy import save_file

    sums = {k: rooms._sum(v) for k, v in arrays.items()}
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, {"config": json.dumps({**facts, "sha256": sums})})
    return path


def test_hostile_files_cannot_lead_a_search_out_of_the_file(cluster, cache: Path):
    rows, owner, _ = cluster
    made = build(rows, owner, names(40), kind="ivf")
    whole = {k: getattr(made, k) for k in rooms._PARTS["ivf"]}
    facts = dict(made.facts)
    open_index(forged(cache / "good.index", whole, facts))
    start = made.start.copy()
    start[5] = 10**9
    back = made.start.copy()
    back[3], back[4] = back[4] + 1, back[3]
    bad = [(whole | {"start": start}, {}), (whole | {"start": back}, {}), (whole | {"start": made.start[:-1]}, {}),
           (whole | {"owner": made.owner + 40}, {}), (whole | {"owner": made.owner - 1}, {}), (whole | {"row": made.row + 1}, {}),
           (whole | {"centres": made.centres[:, :-1]}, {}), (whole | {"owner": made.owner[:-1]}, {}), (whole, {"probes": 0}),
           (whole, {"probes": 10**6}), (whole, {"probes": "8"}), (whole, {"kind": "fp16"}), (whole, {"kind": ["ivf"]}),
           (whole, {"items": 3}), (whole, {"items": []}), (whole, {"count": 1}), (whole, {"schema": 2}),
           (whole, {"revision": "x"}),
           ({**whole, "vectors": made.vectors.astype(np.float64)}, {}), ({k: v for k, v in whole.items() if k != "row"}, {})]
    for arrays, told in bad:
        with pytest.raises(SuiteError) as e:
            open_index(forged(cache / "bad.index", arrays, facts | told))
        assert e.value.code == "E200", told
    for junk in (b"\x80\x04\x95garbage" * 40, (2**62).to_bytes(8, "little") + b"{}", json.dumps({"a": 1}).encode() * 9):
        (cache / "junk.index").write_bytes(junk)
        with pytest.raises(SuiteError) as e:
            open_index(cache / "junk.index")
        assert e.value.code == "E200"
    for path in (cache / "none.index", cache):
        with pytest.raises(SuiteError) as e:
            open_index(path)
        assert e.value.code == "E200"


def test_a_file_found_good_is_not_read_again_until_it_changes(cluster, cache: Path, monkeypatch: pytest.MonkeyPatch):
    rows, owner, _ = cluster
    path = save_index(cache / "a.index", build(rows, owner, names(40)))
    monkeypatch.setattr(rooms.time, "time_ns", lambda: os.stat(path).st_ctime_ns + 3_000_000_000)
    open_index(path)
    read = []
    monkeypatch.setattr(rooms, "_sum", lambda a: read.append(a.shape) or "wrong")
    open_index(path)
    assert not read
    data = path.read_bytes()
    before = os.stat(path)
    with path.open("r+b") as f:
        f.seek(len(data) - 9)
        f.write(bytes([data[-9] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SuiteError) as e:
        open_index(path)
    assert e.value.code == "E202" and read


def test_a_stale_index_says_how_to_make_it_anew(cluster, cache: Path):
    rows, owner, _ = cluster
    path = save_index(cache / "a.index", build(rows, owner, names(40), place="홀", model_id="aa", revision=2))
    for asked, code in (({"model_id": "bb"}, "E200"), ({"revision": 3}, "E200"), ({"place": "방"}, "E203")):
        with pytest.raises(SuiteError) as e:
            open_index(path, **asked)
        assert e.value.code == code
        assert code != "E200" or ("build-index" in e.value.fix and "stale" in e.value.what and "홀" in e.value.fix)


@pytest.fixture(scope="module")
def archive():
    "A gallery with 400 exhibits at one place and three at another, photos of all, and visitors."
    rng = np.random.default_rng(3)
    families = unit(rng.normal(size=(12, 64)))
    centres = unit(np.r_[families[np.arange(400) % 12] + 0.07 * rng.normal(size=(400, 64)), rng.normal(size=(3, 64))])
    items = [("창고", f"유물 {i}") for i in range(400)] + [("홀", name) for name in "종탑불"]
    item = np.repeat(np.arange(403), 4)
    photos = unit(centres[item] + 0.03 * rng.normal(size=(len(item), 64)))
    from dataclasses import replace

    background = unit(rng.normal(size=(5, 64)))
    calibration = {"scale": 25.0, "floor": 0.6, "other": 0.02, "background": 0.01}
    gallery = replace(gallery_of(photos, item, items), calibration=calibration, background=background)
    shots = centres[rng.integers(0, 403, 40)] + 0.03 * rng.normal(size=(40, 64))
    new = unit(np.r_[shots, background[:1], rng.normal(size=(4, 64))])
    return gallery, photos, np.where(item < 400, item, -1), new


@pytest.mark.parametrize("kind", ["flat", "fp16", "ivf"])
def test_a_shortlist_changes_no_answer(archive, kind: str):
    gallery, photos, item, new = archive
    rows, owner, here = rows_of(gallery, "창고", photos, item)
    index = build(rows, owner, here, place="창고", kind=kind)
    exact, short = score(gallery, new, "창고"), score_with_index(gallery, index, new, "창고", k=16)
    top, r = exact.p.argmax(1), np.arange(len(new))
    assert np.abs(exact.p - short.p).max() <= 1.001e-3 and np.abs(exact.p_reject - short.p_reject).max() <= 1.001e-3
    assert np.allclose(short.p.sum(1) + short.p_reject, 1)
    sure = exact.p.max(1) > 0.05
    assert (short.p.argmax(1) == top)[sure].all() and sure.sum() > 25
    assert np.allclose(exact.distance[r, top][sure], short.distance[r, top][sure], atol=1e-9)
    assert short.elsewhere == exact.elsewhere and np.allclose(short.elsewhere_similarity, exact.elsewhere_similarity)
    assert short.items == exact.items


def test_a_shortlist_grows_when_one_exhibit_fills_it(archive):
    "The 16 nearest rows all show one exhibit; the second one still gets its probability."
    gallery, photos, item, _ = archive
    many = unit(gallery.prototypes[7] + 0.001 * np.random.default_rng(4).normal(size=(200, 64)))
    rows, owner, here = rows_of(gallery, "창고", np.r_[photos, many], np.r_[item, np.full(200, 7)])
    index = build(rows, owner, here, place="창고")
    asked = gallery.prototypes[7:8]
    assert [few.tolist() for few in candidates(index, asked, 16)] == [[7]]
    exact, short = score(gallery, asked, "창고"), scorer(gallery, index, k=16)(asked)
    assert np.abs(np.sort(exact.p[0])[-5:] - np.sort(short.p[0])[-5:]).max() <= 1e-3


def test_a_shortlist_is_of_one_gallery_and_place(archive):
    gallery, photos, item, new = archive
    rows, owner, here = rows_of(gallery, "창고", photos, item)
    index = build(rows, owner, here, place="창고")
    with pytest.raises(SuiteError, match="E203"):
        score_with_index(gallery, index, new, "홀")
    with pytest.raises(SuiteError, match="E200.*stale"):
        scorer(gallery, build(rows[:3], owner[:3], here[:7], place="창고"))
    blind = np.full((1, 64), np.nan, np.float32)
    assert np.isnan(score_with_index(gallery, index, blind, "창고").p).all()


def test_the_folder_of_a_place_is_found_from_above_and_from_inside(tmp_path: Path):
    from unicodedata import normalize

    (tmp_path / normalize("NFD", "가람") / "종").mkdir(parents=True)
    assert _place_folder(tmp_path, "가람").name == _place_folder(tmp_path / normalize("NFD", "가람"), "가람").name
    with pytest.raises(SuiteError, match="E301.*'가랑'"):
        _place_folder(tmp_path, "가랑")
    with pytest.raises(SuiteError, match="E101"):
        _place_folder(tmp_path / "x", "가람")


@pytest.fixture
def museum(cache: Path) -> tuple[Path, Path, str, list[str]]:
    "A model file, the photos it learned from, a place, and its exhibits."
    pytest.importorskip("onnxruntime")
    from small_lens import museum as photos
    from small_lens import small_onnx

    places = photos(cache / "data", places=2, items=2, photos=4)
    place = next(iter(places))
    return small_onnx(cache / "m.onnx", places), cache / "data", place, list(places[place])


def test_build_index_from_a_model_and_a_folder(museum, cache: Path):
    model, data, place, items = museum
    said = build_index(model=str(model), data_root=str(data), place=place, save=str(cache / "a.index"))
    inside = build_index(model=str(model), data_root=str(data / place), place=place, save=str(cache / "b.index"))
    assert said["rows"] == said["photos"] + said["items"] and said["items"] == len(items) and said["kind"] == "flat"
    assert not said["warnings"] and said | {"index": ""} == inside | {"index": ""}
    index = open_index(cache / "a.index", model_id=said["model_id"], revision=said["revision"], place=place)
    assert index.facts["items"] == sorted(items)
    json.dumps(said, allow_nan=False)
    for change, code in (({"place": "없는 곳"}, "E301"), ({"data_root": str(data / "none")}, "E101"),
                         ({"model": str(data)}, "E200"), ({"kind": "x"}, "E301"), ({"save": str(data)}, "E120")):
        given = {"model": str(model), "data_root": str(data), "place": place, "save": str(cache / "c.index")} | change
        with pytest.raises(SuiteError) as e:
            build_index(**given)
        assert e.value.code == code, change
    (data / place / "새것").mkdir()
    photo = next((data / place / items[0]).glob("*.jpg"))
    (data / place / "새것" / "1.jpg").write_bytes(photo.read_bytes())
    (data / place / items[0] / "broken.jpg").write_bytes(photo.read_bytes()[:50])
    warned = build_index(model=str(model), data_root=str(data), place=place, save=str(cache / "a.index"))
    assert [w["code"] for w in warned["warnings"]] == ["E105", "E102"] and warned["rows"] == said["rows"]


def test_the_benchmark_can_be_imported_and_makes_rows():
    for folder in ("tools", "benchmarks"):
        sys.path.insert(0, str(HOME / folder))
    spec = importlib.util.spec_from_file_location("bench_lens_index", HOME / "benchmarks/lens_index.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rng = np.random.default_rng(0)
    rows = unit(rng.normal(size=(400, 16)))
    assert bench.share(np.array([[0.9, 0.8]]), np.array([[0.9, 0.7]])) == 0.5
    index = build(rows, np.zeros(400, int), ["하나"])
    assert bench.each(lambda q: search(index, q, 3), rows[:6])["p50_ms"] > 0
    assert bench.VIEWS > 0 and callable(bench.main)
