"""Search among 100,000 embeddings of 512 numbers, one thread: every row, half precision with exact re-ranking, lists.

Where the rows come from: a frozen EfficientNet-Lite0 encodes photos of exhibits, each one rephotographed several times
under random perspective, light, glare, blur and noise. The photos are those of `grocery_packages/train` when AI_SUITE_DATA
has it, and parts of pictures that come with installed packages. A PCA of these rows brings 1,280 numbers to 512. All real
rows are in the index; the rest, up to 100,000, lie between two real rows of the same exhibit, nearer to the first. Queries
are two further rephotographs of each photo, never in the index and never interpolated. FAISS's own HNSW answers the same
queries for comparison. At the end, the seconds that enrolling an exhibit from five photos takes with a loaded model."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import paired, save, seconds

from ai_suite.core.cache import Store, key_of
from ai_suite.core.cli import progress
from ai_suite.core.errors import need
from ai_suite.image.degrade import jpeg, rephotograph
from ai_suite.image.encoder import build as backbone
from ai_suite.image.encoder import encoder, weights_key
from ai_suite.image.pictures import PACKAGES, picture
from ai_suite.image.read import read_rgb
from ai_suite.lens.bundle import load_bundle, save_model
from ai_suite.lens.data import layout
from ai_suite.lens.enroll import enroll, enroll_photos
from ai_suite.lens.gallery import gallery_of, unit
from ai_suite.lens.index import KINDS, Index, build, open_index, save_index, search
from ai_suite.lens.model import LensNet
from ai_suite.lens.samples import part

ROWS, WIDTH, SIDE = 100_000, 512, 160  # Rows, numbers a row, pixels that the network sees
VIEWS, ASKED = 12, 2  # Views of a photo in the index, and for queries
PARTS = 10  # Exhibits cut from each picture of a package


def photos(root: Path | None, parts: int = PARTS) -> tuple[list[np.ndarray], np.ndarray]:
    "Pictures of about `SIDE` pixels, and the exhibit of each."
    rng, found, owner = np.random.default_rng(0), [], []
    for name in PACKAGES:
        whole = picture(name)
        for _ in range(parts):
            x, y, w, h = part(whole, rng)
            owner.append(len(found))
            found.append(whole[y:y + h, x:x + w])
    for items in layout(root).values() if root else ():
        for paths in items.values():
            first = len(found)
            found += [read_rgb(p, SIDE) for p in paths]
            owner += [first] * len(paths)
    return found, np.unique(owner, return_inverse=True)[1]


def encoded_views(views: int, parts: int = PARTS) -> tuple[np.ndarray, np.ndarray, int]:
    "Features (P,views,1280) of rephotographs, the exhibit of each photo, and how many come from `grocery_packages`."
    data = Path(os.environ.get("AI_SUITE_DATA", "")) / "grocery_packages" / "train"
    root = data if data.is_dir() else None
    net, spec = backbone(img_size=SIDE)
    pictures, owner = photos(root, parts)

    def make() -> dict[str, np.ndarray]:
        rng, encode = np.random.default_rng(1), encoder(net, spec._replace(img_size=SIDE))
        seen = lambda p: encode(np.stack([rephotograph(p, rng) for _ in range(views)]))
        return {"rows": np.stack([seen(p) for p in progress(pictures, "encoding")])}

    key = key_of("lens index rows", weights_key(net), SIDE, views, parts, len(pictures), 2)
    return Store().array(key, make)["rows"], owner, len(pictures) - parts * len(PACKAGES)


def world(n: int = ROWS, views: int = VIEWS, parts: int = PARTS) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    "Rows (n,512), their exhibits, queries (Q,512), and a sentence on both."
    features, of, grocery = encoded_views(views + ASKED, parts)
    features = unit(features)
    known, asked = features[:, ASKED:].reshape(-1, features.shape[-1]), features[:, :ASKED].reshape(-1, features.shape[-1])
    middle = known.mean(0)
    axes = np.linalg.svd((known - middle).astype(np.float64).T @ (known - middle))[0][:, :WIDTH].astype(np.float32)
    real, queries = unit((known - middle) @ axes), unit((asked - middle) @ axes)
    owner, rng = np.repeat(of, views), np.random.default_rng(2)
    mine = [np.flatnonzero(owner == i) for i in range(owner.max() + 1)]
    a = rng.integers(0, len(real), max(n - len(real), 0))
    b = np.array([rng.choice(mine[owner[i]]) for i in a], int)
    w = rng.uniform(0, 0.5, (len(a), 1)).astype(np.float32)
    rows = np.concatenate([real[:n], unit((1 - w) * real[a] + w * real[b])])
    told = (f"{len(rows):,} rows of {rows.shape[1]}: {min(len(real), n):,} real ones ({views} views of {len(of)} photos, "
            f"{grocery} of them from grocery_packages) and {len(a):,} between two of the same exhibit")
    return rows, np.concatenate([owner[:len(real)][:n], owner[a]]), queries, told


def each(ask: Callable[[np.ndarray], object], queries: np.ndarray) -> dict[str, float]:
    "Milliseconds of single queries: median and 95th percentile."
    for q in queries[:5]:
        ask(q[None])
    ms = 1e3 * np.array([seconds(lambda q=q: ask(q[None]))[0] for q in queries])
    return {"p50_ms": float(np.median(ms)), "p95_ms": float(np.quantile(ms, 0.95))}


def on_all_cores(work: Callable[[], Any]) -> tuple[Any, float]:
    "What building gives, and its seconds; everything else here runs on one thread."
    faiss, began = need("faiss", "lens"), time.perf_counter()
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    made = work()
    faiss.omp_set_num_threads(1)
    return made, time.perf_counter() - began


def share(true: np.ndarray, found: np.ndarray) -> float:
    "Recall of the ten nearest, from cosines: rows as near as the tenth count, whichever of them it is."
    return float((found > true[:, -1:] - 1e-6).mean())


def opened(index: Index, folder: str) -> tuple[Index, dict[str, float]]:
    "The index from disk, seconds of the first opening with its checksums, and milliseconds of the later ones."
    path = save_index(f"{folder}/{index.facts['kind']}.index", index)
    time.sleep(2.1)
    first = seconds(lambda: open_index(path))[0]
    later = [1e3 * seconds(lambda: open_index(path))[0] for _ in range(9)]
    return open_index(path), {"first_open_s": first, "open_ms": float(np.median(later)), "megabytes": path.stat().st_size / 1e6}


def kinds(rows: np.ndarray, owner: np.ndarray, queries: np.ndarray, told: str) -> tuple[dict[str, dict], dict[str, Index]]:
    "Build, save, open and search with each kind."
    figures, there = {}, {}
    names = [str(i) for i in range(int(owner.max()) + 1)]
    true = search(build(rows, owner, names, kind="flat"), queries, 10).similarity
    with TemporaryDirectory() as folder:
        for kind in KINDS:
            index, took = on_all_cores(lambda kind=kind: build(rows, owner, names, kind=kind))
            f: dict = {"build_s": took}
            index, more = opened(index, folder)
            there[kind] = index
            timed = each(lambda q, index=index: search(index, q, 10), queries)
            f |= more | timed | {"recall": share(true, search(index, queries, 10).similarity)}
            lists = f", {index.facts['probes']} of {len(index.centres)} lists" if kind == "ivf" else ""
            f["note"] = (f"{f['p50_ms']:.2f} ms a query (p95 {f['p95_ms']:.2f}), recall of the 10 nearest {f['recall']:.4f} over "
                         f"{len(queries)} queries{lists}; built in {f['build_s']:.1f} s, opened in {f['open_ms']:.1f} ms (first "
                         f"time {f['first_open_s']:.2f} s, with checksums), {f['megabytes']:.0f} MB; {told}")
            figures[kind] = f
    return figures, there


def against_hnsw(index: Index, rows: np.ndarray, queries: np.ndarray, true: np.ndarray, ef: int = 64) -> dict:
    "Lists against FAISS's HNSW, a hundred queries a call."
    faiss = need("faiss", "lens")
    graph = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = 80, ef
    built = on_all_cores(lambda: graph.add(rows))[1]
    some = queries[:100]
    f = paired(lambda: [search(index, q[None], 10) for q in some], lambda: [graph.search(q[None], 10) for q in some])
    found = share(true, graph.search(queries, 10)[0])
    note = (f"{len(some)} single queries a call; ours {f['ours_s'] * 1e3 / len(some):.2f} ms each, HNSW (M 32, efConstruction "
            f"80, efSearch {ef}) {f['peer_s'] * 1e3 / len(some):.2f} ms with recall {found:.4f}, built in {built:.0f} s")
    return f | {"peer_recall": found, "peer_build_s": built, "note": note}


def enrolling(photos_each: int = 5) -> dict:
    "Seconds from five files to a gallery with one exhibit more; the backbone that is shipped, new heads, a loaded model."
    net, spec = backbone()
    model = LensNet(net, spec, 4).eval()
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.jpg" for i in range(photos_each)]
        rng, whole = np.random.default_rng(0), picture("china.jpg")
        for path in paths:
            path.write_bytes(jpeg(np.array(rephotograph(whole, rng)), 90))
        gallery = gallery_of(unit(rng.normal(size=(8, 512))), np.arange(8) % 4, [("홀", str(i)) for i in range(4)])
        file = save_model(f"{folder}/m.ckpt", model, gallery, {"spec": model.spec})
        load_s = seconds(lambda: load_bundle(file))[0]
        bundle = load_bundle(file)
        enroll_photos(bundle, "홀", "새것", paths)
        each_s = [seconds(lambda: enroll_photos(bundle, "홀", "새것", paths))[0] for _ in range(9)]
        whole_s = seconds(lambda: enroll(model=str(file), place="홀", item="새것", images=[str(p) for p in paths]))[0]
    s = float(np.median(each_s))
    return {"enroll_s": s, "load_s": load_s, "command_s": whole_s,
            "note": f"{photos_each} photos decoded, embedded at {spec.img_size} pixels and enrolled in {s:.2f} s on one thread; "
                    f"the whole command {whole_s:.2f} s, of which loading the model {load_s:.2f} s (without starting Python)"}


def main() -> None:
    rows, owner, queries, told = world()
    queries = queries[np.random.default_rng(3).permutation(len(queries))[:500]]
    figures, there = kinds(rows, owner, queries, told)
    true = search(there["flat"], queries, 10).similarity
    figures["lists against HNSW"] = against_hnsw(there["ivf"], rows, queries, true)
    save("lens_index", figures | {"enrolling": enrolling()})


if __name__ == "__main__":
    main()
