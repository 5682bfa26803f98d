"""Packaged groceries by phone: how well each way of learning names and refuses, on photos that nothing was chosen on.

`python benchmarks/lens.py baselines looks apart frozen finetune seeds unseen default` runs the named parts, or all of them. Each
row is kept in results/lens.json as soon as it is there, and a row that is there is not run again (`--again` does). Needs
AI_SUITE_DATA. Trained on `train`, where 20 % of the photos choose checkpoint and thresholds, near-duplicates (frozen: looks)
kept together; `test` and `ood` are only reported on. Ways of fine-tuning are compared over 8 epochs; `default` is what
`ai-lens train` does when it is told nothing. `seeds` takes the two ways that named most validation photos without being told
the place.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np

from ai_suite.core.config import plain
from ai_suite.core.errors import SuiteError, expect
from ai_suite.core.metrics import group_bootstrap
from ai_suite.image.encoder import build, encoded, encoder, weights_key
from ai_suite.image.read import ENDINGS

RESULTS = Path(__file__).resolve().parent / "results" / "lens.json"
KEEP = ("top1_place", "top3_place", "top1", "top3", "map", "ece", "correct_accept", "wrong_accept", "recollect")
LOSSES = {"cross-entropy": {"loss": "ce"}, "ArcFace": {"loss": "arcface"}, "triplet": {"loss": "triplet"},
          "ArcFace + MixUp": {"loss": "arcface", "augment": {"mixup": .5}}}
SEEDS = (42, 43, 44)
SHORT = 8  # Epochs of fine-tuning where ways are compared
CHOSEN = ("top1", "top1_place", "reject_auroc")  # Of the validation photos; in this order they choose among ways
ENROL = 5  # Photos from which an unseen product is enrolled


def data() -> Path:
    "The folder of the photos."
    root = Path(os.environ.get("AI_SUITE_DATA", "")) / "grocery_packages"
    expect(os.environ.get("AI_SUITE_DATA") and root.is_dir(), "E101", "grocery_packages is not here", "set AI_SUITE_DATA")
    return root


def kept(name: str, make: Callable[[], dict[str, Any]], again: bool = False) -> dict[str, Any]:
    "A row of the results, computed when it is not there."
    told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    if name not in told["rows"] or again:
        began = time.perf_counter()
        row = plain(make()) | {"seconds_in_all": round(time.perf_counter() - began)}
        told = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
        told["rows"][name] = row
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    print(name, json.dumps({k: v for k, v in told["rows"][name].items() if k in (*KEEP, "ood_auroc", "fit_seconds")}), flush=True)
    return told["rows"][name]


def strangers() -> list[Path]:
    "Things that are no product at all."
    return sorted(p for p in (data() / "ood").rglob("*") if p.suffix.lower() in ENDINGS)


def judged(gallery: Any, seen: np.ndarray, shots: Any, ood: np.ndarray, seed: int = 0) -> dict[str, Any]:
    "Figures of a gallery on test photos whose items it holds, and on strangers; intervals over groups of near-duplicates."
    from ai_suite.lens.answers import measure, open_scores, question
    from ai_suite.lens.tune import realised

    keys = [shots.items[i] for i in shots.item]
    where = {key: i for i, key in enumerate(gallery.items)}
    own = np.arange(len(ood)).astype(str)
    answers = question(gallery, seen, [p for p, _ in keys], [i for _, i in keys], shots.groups, ood, own, seed)
    rows = answers.photo[answers.kind == "known"].to_numpy(int)
    truth = np.array([where[keys[r]] for r in rows])
    found = measure(answers, open_scores(gallery, seen[rows]), truth, seed=seed)
    item = np.array([where.get(k, -1) for k in keys])
    row = {k: found[k] for k in KEEP} | {"intervals": {k: found["intervals"][k] for k in KEEP if k in found["intervals"]}}
    row |= {"reject": found["reject"], "realised": realised(gallery, seen, item, shots.groups, ood)[0], "photos": len(rows),
            "ood_auroc": found["reject"]["ood"]["auroc"], "chance": found["chance"], "groups": found["groups"]}
    return row | {"distance_alone": by_distance(gallery, seen, keys, ood)}


def by_distance(gallery: Any, seen: np.ndarray, keys: Sequence[tuple[str, str]], ood: np.ndarray) -> dict[str, float]:
    "Refusing strangers by the distance to the nearest exhibit of any place, with nothing else."
    from ai_suite.lens.gallery import item_similarity

    return refused_by(np.r_[item_similarity(gallery, seen).max(1), item_similarity(gallery, ood).max(1)], len(seen))


def refused_by(score: np.ndarray, known: int) -> dict[str, float]:
    "How well one number refuses strangers, which come after so many photos of exhibits."
    from ai_suite.lens.metrics import rejection

    return {k: float(v) for k, v in rejection(score, np.arange(len(score)) < known).items()}


def surest(net: Any, paths: Sequence[Path]) -> np.ndarray:
    "The highest softmax probability of each photo, over the exhibits of all places."
    import torch

    from ai_suite.lens.model import model_id

    def see(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return net(torch.from_numpy(pixels))[1].max(1, keepdim=True).values.numpy()

    return encoded(paths, see, side=net.spec["img_size"], key=f"surest {model_id(net.state_dict())}")[0][:, 0]


def shots(split: str) -> Any:
    "The photos of a split, with their groups."
    from ai_suite.lens.shots import shots_of

    return shots_of(data() / split)


def trained(settings: dict[str, Any], seed: int, without: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    "Learn on the train folder, report on test and ood."
    import torch

    from ai_suite.lens.learn import embed_all, learn

    whole, test, strange = shots("train"), shots("test"), strangers()
    rows = np.array([r for r, i in enumerate(whole.item) if whole.items[i] not in without])
    part, items = whole.take(rows), [i for i in whole.items if i not in without]
    number = np.array([items.index(k) if k in items else -1 for k in whole.items])
    part = part._replace(item=number[part.item], items=tuple(items))
    with tempfile.TemporaryDirectory() as folder:
        lesson = learn(part, settings | {"seed": seed}, path=Path(folder) / "last.pt", models=["top1"])
    m = lesson.models["top1"]
    see = lambda paths: embed_all(m.net, paths)
    seen, ood = see(test.paths), see(strange)
    sure = np.r_[surest(m.net, test.paths), surest(m.net, strange)]
    about = {"seed": seed, "settings": settings, **{k: lesson.settings[k] for k in ("mode", "epochs")}, "best_epoch": m.epoch,
             "fit_seconds": round(lesson.seconds), "threads": torch.get_num_threads(), "train": len(lesson.train),
             "valid": len(lesson.valid), **{f"valid_{k}": lesson.history[m.epoch - 1][k] for k in CHOSEN},
             "tuning": m.rows[0], "softmax_alone": refused_by(sure, len(seen))}
    if not without:
        return about | judged(m.gallery, seen, test, ood)
    return about | unseen(m, see, whole, test, seen, ood, without)


def unseen(m: Any, see: Callable[[Sequence[Path]], np.ndarray], whole: Any, test: Any, seen: np.ndarray, ood: np.ndarray,
           without: Sequence[tuple[str, str]]) -> dict[str, Any]:
    "Products that were never trained: refused before they are enrolled, named after 5 photos of each."
    from ai_suite.lens.answers import question
    from ai_suite.lens.enroll import enrolled
    from ai_suite.lens.metrics import rejection

    keys = [test.items[i] for i in test.item]
    answers = question(m.gallery, seen, [p for p, _ in keys], [i for _, i in keys], test.groups)
    two = answers[answers.kind.isin(["known", "new"])]
    refused = rejection(1 - two.p_reject.to_numpy(), (two.kind == "known").to_numpy())
    pick = lambda rows: group_bootstrap(lambda i: float(refusing(two.iloc[i])), rows.group.to_numpy(), n=500)
    gallery, rng = m.gallery, np.random.default_rng(0)
    for key in without:
        rows = np.flatnonzero(whole.item == whole.items.index(key))
        groups = rng.permutation(sorted(set(whole.groups[rows])))[:ENROL]
        first = [int(rows[whole.groups[rows] == g][0]) for g in groups]
        gallery = enrolled(gallery, see([whole.paths[i] for i in first]), *key)
    after = question(gallery, seen, [p for p, _ in keys], [i for _, i in keys], test.groups)
    new = np.array([keys[i] in without for i in after.photo]) & (after.kind == "known").to_numpy()
    named = after[new]
    hit = group_bootstrap(lambda i: float((named["rank"].to_numpy()[i] == 1).mean()), named.group.to_numpy(), n=500)
    wrong = two[two.kind == "new"]
    return {"without": [list(k) for k in without], "unseen": {k: float(v) for k, v in refused.items()}, "unseen_auroc": pick(two),
            "unseen_accepted": float(wrong.accepted.mean()), "unseen_photos": len(wrong), "enrolled_from": ENROL,
            "enrolled_top1_place": hit, "all_top1_place": float((after[after.kind == "known"]["rank"] == 1).mean())}


def refusing(two: Any) -> float:
    "Area under the ROC curve of 1 − p_reject, known against new."
    from ai_suite.lens.metrics import rejection

    known = (two.kind == "known").to_numpy()
    return rejection(1 - two.p_reject.to_numpy(), known)["auroc"] if 0 < known.sum() < len(known) else float("nan")


def baselines() -> dict[str, Any]:
    "The frozen backbone at 224 pixels: nearest photo, and logistic regression (penalty: 5 folds of the train folder)."
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.preprocessing import StandardScaler

    from ai_suite.core.splits import group_kfold

    train, test = shots("train"), shots("test")
    net, spec = build("efficientnet_lite0")
    rows = [encoded(s.paths, encoder(net, spec), side=224, key=f"{weights_key(net)} 224")[0] for s in (train, test)]
    place = np.array([p for p, _ in train.items], object)
    truth = np.array([train.items.index(test.items[i]) for i in test.item])
    here = place[None] == place[truth][:, None]
    scale = StandardScaler().fit(rows[0])
    a, b = (scale.transform(r) for r in rows)
    folds = group_kfold(train.groups, 5, train.item)
    fit = LogisticRegressionCV(Cs=10, cv=folds, max_iter=300, use_legacy_attributes=False, l1_ratios=(0,), scoring="accuracy")
    model = fit.fit(a, train.item)
    unit = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
    cosine = unit[1] @ unit[0].T
    near = np.stack([cosine[:, train.item == i].max(1) for i in range(len(place))], 1)
    scores = {"nearest photo": near, "logistic regression": model.predict_proba(b)}
    scores["chance"] = np.random.default_rng(0).random(near.shape)
    right = {name: (np.where(here, s, -9).argmax(1) == truth, s.argmax(1) == truth) for name, s in scores.items()}
    share = lambda hit: group_bootstrap(lambda i: float(hit[i].mean()), test.groups)
    return {name: {"top1_place": share(a), "top1": share(b)} for name, (a, b) in right.items()}


def looks() -> dict[str, Any]:
    """Which features a frozen backbone should give, chosen without the test photos: the train photos of an item form 4 clusters
    (average linkage of the pooled features), one of which is kept out, so that what is asked looks unlike what was learned."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from ai_suite.lens.model import levels

    train, rows = shots("train"), {}
    for size in (224, 320):
        net, spec = build("efficientnet_lite0", img_size=size)
        for name, (n, s) in {"pooled": (net, spec), "two levels": levels(net, spec)}.items():
            rows[f"{name}, {size}"] = encoded(train.paths, encoder(n, s), side=size, key=f"{weights_key(n)} {size}")[0]
    place, found = np.array([p for p, _ in train.items], object), {}
    draws = [kept_out(rows["pooled, 224"], train.item, seed) for seed in SEEDS]
    for name, x in rows.items():
        for out in draws:
            known, y, here = ~out, train.item[out], place[None] == place[train.item[out]][:, None]
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            cosine, scale = unit[out] @ unit[known].T, StandardScaler().fit(x[known])
            fit = LogisticRegression(C=.1, max_iter=300).fit(scale.transform(x[known]), train.item[known])
            scores = {"nearest photo": np.stack([cosine[:, train.item[known] == i].max(1) for i in range(len(place))], 1),
                      "logistic regression": fit.predict_proba(scale.transform(x[out])),
                      "our heads": heads(x, train.item, known, out)}
            for way, s in scores.items():
                right = [float((np.where(here, s, -9).argmax(1) == y).mean()), float((s.argmax(1) == y).mean())]
                found.setdefault(f"{name}, {way}", []).append(right)
    mean = lambda v: dict(zip(("top1_place", "top1"), np.mean(v, 0).tolist(), strict=True))
    return {name: mean(v) | {"draws": v} for name, v in found.items()} | {"photos": [int(o.sum()) for o in draws]}


def unlike() -> dict[str, Any]:
    """What fine-tuning loses when whole looks are put aside for validation, found without the test photos: a cluster of each item
    is kept out of everything (as in `looks`) and asked about by networks that were divided either way."""
    from ai_suite.lens import learn as room
    from ai_suite.lens.gallery import item_similarity
    from ai_suite.lens.model import levels
    from ai_suite.lens.shots import by_look
    from ai_suite.lens.tune import realised

    whole, (net, spec) = shots("train"), build("efficientnet_lite0", img_size=224)
    x, _ = encoded(whole.paths, encoder(net, spec), side=224, key=f"{weights_key(net)} 224")
    out, found = kept_out(x, whole.item, SEEDS[0]), {}
    part, asked = whole.take(np.flatnonzero(~out)), whole.take(np.flatnonzero(out))
    place = np.array([p for p, _ in whole.items], object)
    here = place[None] == place[asked.item][:, None]
    two, spec = levels(net, spec)
    seen, _ = encoded(part.paths, encoder(two, spec), side=224, key=f"{weights_key(two)} 224")
    ways = {"near-duplicates": part.groups, "looks": by_look(part, seen)}
    for name, groups in ways.items():
        for more in ({}, {"progressive": True}, {"augment": {"recolor": 0.}}):
            told = part._replace(groups=groups, visits=True)
            m = room.learn(told, {"mode": "finetune", "epochs": SHORT, "seed": SEEDS[0], **more}, models=["top1"]).models["top1"]
            e = room.embed_all(m.net, asked.paths)
            s = item_similarity(m.gallery, e)
            rate = realised(m.gallery, e, asked.item, asked.groups, None)[0]
            found[f"{name} {json.dumps(more)}"] = {
                "top1_place": float((np.where(here, s, -9).argmax(1) == asked.item).mean()),
                "top1": float((s.argmax(1) == asked.item).mean()), "photos": len(e), "realised": rate}
    return found


def kept_out(x: np.ndarray, item: np.ndarray, seed: int) -> np.ndarray:
    "One cluster of each item, of at least 2 photos and at most 60 % of them."
    from sklearn.cluster import AgglomerativeClustering

    rng, out = np.random.default_rng(seed), np.zeros(len(x), bool)
    for i in range(int(item.max()) + 1):
        rows = np.flatnonzero(item == i)
        cluster = AgglomerativeClustering(4, linkage="average", metric="cosine").fit_predict(x[rows])
        counts = np.bincount(cluster)
        fit = np.flatnonzero((counts >= 2) & (counts < .6 * len(rows)))
        if len(fit):
            out[rows[cluster == rng.choice(fit)]] = True
    return out


def heads(x: np.ndarray, item: np.ndarray, known: np.ndarray, out: np.ndarray) -> np.ndarray:
    "Cosines of the photos kept out to the means of all exhibits, after our heads have learned from the others."
    import torch
    from torch import nn

    from ai_suite.image.encoder import Spec
    from ai_suite.lens.fit import Task, fit
    from ai_suite.lens.gallery import gallery_of, item_similarity
    from ai_suite.lens.learn import DEFAULTS
    from ai_suite.lens.model import LensNet

    n, rows = int(item.max()) + 1, np.flatnonzero(known)
    torch.manual_seed(0)
    net = LensNet(nn.Identity(), Spec("ready", "ready", 0, (0.,) * 3, (1.,) * 3, x.shape[1], ""), n)
    nothing = lambda _: {"top1_place": 0., "reject_auroc": 0.}
    task = Task(item[rows], lambda r, _: torch.from_numpy(x[rows[r]]), nothing, whole=False)
    state = fit(net, task, DEFAULTS["frozen"] | {"seed": 0, "balance": True})
    net.load_state_dict(state.best["last"]["state"])
    with torch.inference_mode():
        e = net.eval().heads.embed(torch.from_numpy(x)).numpy()
    return item_similarity(gallery_of(e[known], item[known], [("", str(i)) for i in range(n)]), e[out])


def third() -> list[tuple[str, str]]:
    "A third of the items, so drawn that half of them are in the test folder; every place keeps one."
    items, rng = shots("train").items, np.random.default_rng(0)
    test = set(shots("test").items)
    left = {p: sum(q == p for q, _ in items) for p, _ in items}
    taken: list[tuple[str, str]] = []
    for wanted in (True, False):
        for i in rng.permutation(len(items)):
            key = items[i]
            if (key in test) == wanted and left[key[0]] > 1 and sum((k in test) == wanted for k in taken) < 5:
                taken.append(key)
                left[key[0]] -= 1
    return taken


def main(parts: Sequence[str], again: bool = False) -> None:
    "Run the named parts."
    every = ("baselines", "looks", "apart", "frozen", "finetune", "seeds", "unseen", "default")
    for part in parts or every:
        expect(part in every, "E301", f"no part {part}", f"choose from {', '.join(every)}")
    run = lambda name, make: kept(name, make, again)
    if not parts or "baselines" in parts:
        run("baselines", baselines)
    if not parts or "looks" in parts:
        run("frozen backbone, unlike looks of the train folder", looks)
    if not parts or "apart" in parts:
        run("fine-tuned, unlike looks of the train folder", unlike)
    if not parts or "frozen" in parts:
        for name, s in LOSSES.items():
            for seed in SEEDS:
                run(f"frozen, {name}, seed {seed}", lambda s=s, seed=seed: trained(s | {"mode": "frozen"}, seed))
    short = {"mode": "finetune", "epochs": SHORT}
    tune = lambda name, size, seed, **more: run(f"fine-tuned, {name}, {size}, {more.get('epochs', SHORT)} epochs, seed {seed}",
                                                lambda: trained(short | LOSSES[name] | {"img_size": size} | more, seed))
    if not parts or "finetune" in parts:
        for name in LOSSES:
            tune(name, 224, 42)
    if not parts or "seeds" in parts:
        found = {name: tune(name, 224, 42) for name in LOSSES}
        best = sorted(LOSSES, key=lambda name: [found[name][f"valid_{k}"] for k in CHOSEN])[-2:]
        for size in (224, 320):
            for seed in SEEDS:
                for name in reversed(best):
                    tune(name, size, seed)
    if not parts or "unseen" in parts:
        run(f"fine-tuned without a third, ArcFace, 224, {SHORT} epochs, seed 42",
            lambda: trained(short | LOSSES["ArcFace"], 42, third()))
    if not parts or "default" in parts:
        tune("ArcFace", 224, 42, epochs=20)


if __name__ == "__main__":
    try:
        main([a for a in sys.argv[1:] if not a.startswith("--")], "--again" in sys.argv)
    except SuiteError as e:
        sys.exit(f"not run: {e}")
