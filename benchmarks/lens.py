"""Packaged groceries by phone: how well each way of learning names and refuses, on photos that nothing was chosen on.

`python benchmarks/lens.py baselines frozen finetune seeds unseen` runs the named parts, or all of them. Each row is kept in
results/lens.json as soon as it is there, and a row that is there is not run again (`--again` does). Needs AI_SUITE_DATA.
Trained on `train`, where 20 % of the groups of near-duplicates choose checkpoint, calibration and thresholds; `test` and `ood`
are only reported on.
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
from ai_suite.image.read import ENDINGS

RESULTS = Path(__file__).resolve().parent / "results" / "lens.json"
KEEP = ("top1_place", "top3_place", "top1", "top3", "map", "ece", "correct_accept", "wrong_accept", "recollect")
LOSSES = {"cross-entropy": {"loss": "ce"}, "ArcFace": {"loss": "arcface"}, "triplet": {"loss": "triplet"},
          "ArcFace + MixUp": {"loss": "arcface", "augment": {"mixup": .5}}}
SEEDS = (42, 43, 44)
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
    from ai_suite.lens.metrics import rejection

    near = np.r_[item_similarity(gallery, seen).max(1), item_similarity(gallery, ood).max(1)]
    return {k: float(v) for k, v in rejection(near, np.r_[np.ones(len(seen), bool), np.zeros(len(ood), bool)]).items()}


def shots(split: str) -> Any:
    "The photos of a split, with their groups."
    from ai_suite.lens.shots import shots_of

    return shots_of(data() / split)


def trained(settings: dict[str, Any], seed: int, without: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    "Learn on the train folder, report on test and ood."
    import torch

    from ai_suite.lens.learn import embed_all, learn
    from ai_suite.lens.shots import Shots

    whole, test, strange = shots("train"), shots("test"), strangers()
    rows = np.array([r for r, i in enumerate(whole.item) if whole.items[i] not in without])
    part, items = whole.take(rows), [i for i in whole.items if i not in without]
    number = np.array([items.index(k) if k in items else -1 for k in whole.items])
    part = part._replace(item=number[part.item], items=tuple(items))
    with tempfile.TemporaryDirectory() as folder:
        lesson = learn(part, settings | {"seed": seed}, path=Path(folder) / "last.pt")
    m = lesson.models["top1"]
    see = lambda paths: embed_all(m.net, Shots(list(paths), np.zeros(0), np.zeros(0), [], (), False, []))
    seen, ood = see(test.paths), see(strange)
    about = {"seed": seed, "settings": settings, **{k: lesson.settings[k] for k in ("mode", "epochs")}, "best_epoch": m.epoch,
             "fit_seconds": round(lesson.seconds), "threads": torch.get_num_threads(), "train": len(lesson.train),
             "valid": len(lesson.valid), "valid_top1_place": max(r.get("top1_place", 0) for r in lesson.history),
             "tuning": m.rows[0]}
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
    from ai_suite.image.encoder import build, encoded, encoder, weights_key

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
    every = ("baselines", "frozen", "finetune", "seeds", "unseen")
    for part in parts or every:
        expect(part in every, "E301", f"no part {part}", f"choose from {', '.join(every)}")
    run = lambda name, make: kept(name, make, again)
    if not parts or "baselines" in parts:
        run("baselines", baselines)
    if not parts or "frozen" in parts:
        for name, s in LOSSES.items():
            for seed in SEEDS:
                run(f"frozen, {name}, seed {seed}", lambda s=s, seed=seed: trained(s | {"mode": "frozen"}, seed))
    if not parts or "finetune" in parts:
        for name, s in LOSSES.items():
            run(f"fine-tuned, {name}, 224, seed 42", lambda s=s: trained(s | {"mode": "finetune"}, 42))
    if not parts or "seeds" in parts:
        for name in ("ArcFace", "ArcFace + MixUp"):
            for size in (224, 320):
                for seed in SEEDS:
                    s = LOSSES[name] | {"mode": "finetune", "img_size": size}
                    run(f"fine-tuned, {name}, {size}, seed {seed}", lambda s=s, seed=seed: trained(s, seed))
    if not parts or "unseen" in parts:
        s = {"loss": "arcface", "mode": "finetune"}
        run("fine-tuned without a third, ArcFace, 224, seed 42", lambda: trained(s, 42, third()))


if __name__ == "__main__":
    try:
        main([a for a in sys.argv[1:] if not a.startswith("--")], "--again" in sys.argv)
    except SuiteError as e:
        sys.exit(f"not run: {e}")
