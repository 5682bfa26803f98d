"""Ranking against simple ways, on people's votes about websites and on photos that get worse in known steps.

`python benchmarks/ranking.py website degraded active resizing` runs the named parts, or all of them; each is kept in
results/ranking.json as soon as it is there. `website`, `active` and `resizing` need AI_SUITE_DATA. In `website` and `degraded`
the pictures (photos) of a test took no part in anything that was chosen; all rows get the same training and validation pictures.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import save

from ai_suite.core.errors import SuiteError, expect
from ai_suite.ranking.active import prior, replay
from ai_suite.ranking.baselines import handmade_all
from ai_suite.ranking.config import TrainingConfig
from ai_suite.ranking.evaluate import agreement, right_pairs, vote_ceiling
from ai_suite.ranking.learn import Material, material, scores_of
from ai_suite.ranking.linear import fitted, strengths
from ai_suite.ranking.pairs import PairwiseDataset, Pairs
from ai_suite.ranking.samples import KINDS, photo_of, write_samples

ENCODER = "efficientnet_lite0"  # The embedded default
SPLITS = 100  # Seeds 0 to 99
L2 = (.01, .03, .1, .3, 1., 3., 10., 30.)  # Variances of the scores of a linear head, from which 5 folds inside training choose


def eyes() -> Any:
    "The encoder of all rows."
    from ai_suite.ranking.extractor import DINOv2FeatureExtractor

    return DINOv2FeatureExtractor(ENCODER)


def websites() -> tuple[Path, Material]:
    "Screenshots, votes and features."
    root = Path(os.environ.get("AI_SUITE_DATA", "")) / "website_pairs"
    expect(os.environ.get("AI_SUITE_DATA") and root.is_dir(), "E101", "website_pairs is not here", "set AI_SUITE_DATA")
    return root / "images", material(root / "images", eyes(), pairs=root / "comparisons.csv")


def ours(found: Material, train: np.ndarray, valid: np.ndarray, seed: int) -> tuple[np.ndarray, list[int]]:
    "Scores of all pictures by the model that `ai-rank train` makes, and the epoch that each head was kept at."
    from ai_suite.ranking.model import PairwiseRankingModel
    from ai_suite.ranking.train import Trainer

    config = TrainingConfig(seed=seed, device="cpu")
    model = PairwiseRankingModel(features=found.features.shape[1], members=config.members)
    trainer = Trainer(model, config)
    trainer.fit(found.features, *(PairwiseDataset(found.pictures, r, found.votes) for r in (train, valid)))
    return scores_of(model, found.features)[0], trainer.epochs


def linear(features: np.ndarray, data: PairwiseDataset, folds: int = 5, seed: int = 0) -> np.ndarray:
    "A linear head: logistic regression on differences of standardised features; 5 folds over the pictures choose its L2."
    rows, p = data.rows, data.all(30_000)
    z = (features - features[rows].mean(0)) / (features[rows].std(0) + 1e-6)
    gram = z[rows] @ z[rows].T / z.shape[1]
    where = np.full(len(z), -1)
    where[rows] = np.arange(len(rows))
    i, j, a, b = where[p.left], where[p.right], p.weight * p.target, p.weight * (1 - p.target)
    fold = np.random.default_rng(seed).permutation(len(rows)) % folds

    def loss(size: float) -> float:
        total = 0.
        for k in range(folds):
            known = (fold[i] != k) & (fold[j] != k)
            asked = (fold[i] == k) & (fold[j] == k)
            f = fitted(size * gram + 1e-9 * np.eye(len(rows)), i[known], j[known], a[known], b[known])
            d = (size * gram @ f.alpha)[i[asked]] - (size * gram @ f.alpha)[j[asked]]
            total += float((a[asked] * np.logaddexp(0, -d) + b[asked] * np.logaddexp(0, d)).sum())
        return total

    size = min(L2, key=loss)
    return size * z @ (z[rows].T @ fitted(size * gram + 1e-9 * np.eye(len(rows)), i, j, a, b).alpha) / z.shape[1]


def over(values: np.ndarray, draws: int = 4000) -> dict[str, float]:
    "Mean over splits with the interval of a bootstrap of them."
    drawn = values[np.random.default_rng(0).integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(drawn, [.025, .975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def right(score: np.ndarray, pairs: Pairs) -> float:
    "Share of right pairs."
    return float(np.nanmean(right_pairs(score, pairs)[0]))


def website() -> dict[str, Any]:
    "100 divisions of 50 websites: 35 teach, 5 choose, 10 test."
    folder, found = websites()
    assert found.votes is not None
    hand, _ = handmade_all([folder / f for f in found.pictures.files])
    n, v = len(found.pictures.files), found.votes
    whole = strengths(n, v.left, v.right, v.left_wins + v.ties / 2, v.right_wins + v.ties / 2).score
    ceiling, told, kept = vote_ceiling(v), {}, []
    said: dict[str, list[np.ndarray]] = {"ours": [], "linear head": [], "handmade": []}
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(n)
        test, valid, train = np.sort(order[:10]), np.sort(order[10:15]), np.sort(order[15:])
        pairs = PairwiseDataset(found.pictures, test, v).all()
        known = PairwiseDataset(found.pictures, np.sort(order[10:]), v)
        mine, epochs = ours(found, train, valid, seed)
        scores = {"ours": mine, "linear head": linear(found.features, known), "handmade": linear(hand, known),
                  "chance": np.random.default_rng(seed).random(n)}
        for name, s in scores.items():
            told.setdefault(name, []).append(right(s, pairs))
            if name in said: said[name].append(np.stack([s[test], whole[test]]))
        inside = np.isin(v.left, test) & np.isin(v.right, test)
        told.setdefault("vote ceiling", []).append(float(np.nanmean(ceiling[inside])))
        kept.append(epochs)
        print(seed, {k: round(float(np.mean(x)), 4) for k, x in told.items()}, epochs, flush=True)
    rows = {name: over(np.array(x)) | {"splits": x} for name, x in told.items()}
    gap = over(np.array(told["ours"]) - np.array(told["linear head"]))
    pearson = {name: agreement(*np.concatenate(x, 1))["pearson"] for name, x in said.items()}
    networks = sum(e > 0 for es in kept for e in es)
    note = (f"pairwise accuracy between unseen websites, mean of {SPLITS} splits: ours {rows['ours']['mean']:.4f} "
            f"({rows['ours']['low']:.4f} to {rows['ours']['high']:.4f}; .67 wanted), linear head "
            f"{rows['linear head']['mean']:.4f}, handmade "
            f"features {rows['handmade']['mean']:.4f}, chance {rows['chance']['mean']:.4f}, "
            f"vote ceiling {rows['vote ceiling']['mean']:.4f}; ours − linear head {gap['mean']:+.4f} "
            f"({gap['low']:+.4f} to {gap['high']:+.4f}; lower end 0 wanted); pooled Pearson with the strengths of "
            f"all votes: {pearson['ours']:.3f}, linear head {pearson['linear head']:.3f}; "
            f"{networks} of {3 * SPLITS} heads use their network")
    return {"website_pairs": {"rows": rows, "ours_minus_linear": gap, "pearson": pearson, "networks": networks, "note": note}}


def degraded(per_photo: int = 4, steps: tuple[int, ...] = (1, 2, 3, 4, 5)) -> dict[str, Any]:
    "Four folds over a dozen photos; two photos of the others choose."
    with tempfile.TemporaryDirectory() as folder:
        made = write_samples(folder, per_photo=per_photo, steps=steps)
        found = material(made["images"], eyes(), pairs=made["pairs"])
        hand, _ = handmade_all([Path(made["images"]) / f for f in found.pictures.files])
    photo = np.array([photo_of(f) for f in found.pictures.files])
    kind = np.array([next((k for k in KINDS if k in f), "") for f in found.pictures.files])
    names, told = np.random.default_rng(0).permutation(made["photos"]), {}
    for fold in range(4):
        asked, rest = names[fold::4], [x for x in names if x not in names[fold::4]]
        test, valid, train = (np.flatnonzero(np.isin(photo, part)) for part in (asked, rest[:2], rest[2:]))
        pairs = PairwiseDataset(found.pictures, test, found.votes).all()
        known = PairwiseDataset(found.pictures, np.sort(np.r_[train, valid]), found.votes)
        mine, epochs = ours(found, train, valid, fold)
        for name, s in {"ours": mine, "linear head": linear(found.features, known), "handmade": linear(hand, known),
                        "chance": np.random.default_rng(fold).random(len(photo))}.items():
            ok = right_pairs(s, pairs)[0]
            for p in asked:
                here = photo[pairs.left] == p
                row = told.setdefault(name, {}).setdefault(str(p), {"all": float(ok[here].mean())})
                row |= {k: float(ok[here & ((kind[pairs.left] == k) | (kind[pairs.right] == k))].mean()) for k in KINDS}
        print(fold, list(asked), epochs, {n: [round(r[p]["all"], 3) for p in asked] for n, r in told.items()}, flush=True)
    rows = {name: over(np.array([r["all"] for r in per.values()])) | {"photos": per} |
            {k: float(np.mean([r[k] for r in per.values()])) for k in KINDS} for name, per in told.items()}
    o = rows["ours"]
    note = (f"{made['pictures']} pictures of {len(names)} photos, {made['answers']} known answers, photos of the test "
            f"unseen: ours {o['mean']:.4f} ({o['low']:.4f} to {o['high']:.4f} over photos; .95 wanted), linear head "
            f"{rows['linear head']['mean']:.4f}, handmade "
            f"features {rows['handmade']['mean']:.4f}, chance "
            f"{rows['chance']['mean']:.4f}; ours by fault: " + ", ".join(f"{k} {o[k]:.3f}" for k in KINDS))
    return {"degraded photos": {"rows": rows, "note": note}}


def reached(count: np.ndarray, share: np.ndarray, goal: float, width: int = 5) -> int:
    "Votes from which the running mean of a course stays at the goal or above."
    kernel = np.ones(width) / width
    smooth = np.convolve(np.pad(share, width // 2, mode="edge"), kernel, "valid")
    below = np.flatnonzero(smooth < goal)
    return int(count[min(below[-1] + 1, len(count) - 1)]) if len(below) else 0


def active(seeds: int = 10) -> dict[str, Any]:
    "Votes until 95 % of the gain over chance, for pairs that were chosen and pairs in random order."
    _, found = websites()
    assert found.votes is not None
    told: dict[str, Any] = {}
    n = len(found.features)
    for name, known in {"no features": prior(None, n), "features": prior(found.features, n)}.items():
        course = {}
        for way in ("active", "random"):
            runs = [replay(found.votes, known, way, seed) for seed in range(seeds)]
            course[way] = runs[0][0], np.mean([r[1] for r in runs], 0)
        end = float(np.mean([c[1][-5:].mean() for c in course.values()]))
        goal = .5 + .95 * (end - .5)
        votes = {way: reached(*c, goal) for way, c in course.items()}
        told[name] = {"votes": votes, "ratio": votes["active"] / max(votes["random"], 1), "goal": goal, "end": end,
                      "course": {way: {"votes": c[0], "share": c[1]} for way, c in course.items()}}
        print(name, votes, round(end, 4), flush=True)
    notes = [f"{name}: {t['votes']['active']} chosen against {t['votes']['random']} random votes ({t['ratio']:.2f}; .5 wanted)"
             for name, t in told.items()]
    note = f"mean of {seeds} seeds, 95 % of the gain over chance on held-out votes: " + "; ".join(notes)
    return {"active": told | {"note": note}}


def resizing() -> dict[str, Any]:
    "The order of scores when files of twice the input size are made smaller; model and files are of other parts of the photos."
    from PIL import Image
    from scipy.stats import spearmanr

    from ai_suite.ranking.extractor import embed
    from ai_suite.ranking.model import PairwiseRankingModel
    from ai_suite.ranking.train import Trainer

    look, told = eyes(), {}
    side, config = max(look.described().sizes), TrainingConfig(seed=0, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        made = write_samples(Path(folder) / "small", per_photo=2, steps=(1, 3, 5), seed=1)
        found = material(made["images"], look, pairs=made["pairs"])
        large = write_samples(Path(folder) / "large", per_photo=1, steps=(1, 3, 5), seed=2, size=2 * side)
        photo = np.array([photo_of(f) for f in found.pictures.files])
        valid = np.isin(photo, made["photos"][:3])
        model = PairwiseRankingModel(look, features=found.features.shape[1], members=config.members)
        parts = (PairwiseDataset(found.pictures, np.flatnonzero(r), found.votes) for r in (~valid, valid))
        Trainer(model, config).fit(found.features, *parts)
        files = sorted(Path(large["images"]).iterdir())
        before = scores_of(model.eval(), embed(look, files)[0])[0]
        for share in (.75, .5):
            small = []
            for path in files:
                with Image.open(path) as im:
                    size = (round(im.width * share), round(im.height * share))
                    small.append(Path(folder) / f"{share}-{path.stem}.png")
                    im.resize(size, Image.Resampling.LANCZOS).save(small[-1])
            after = scores_of(model, embed(look, small)[0])[0]
            told[f"{share:.0%}"] = {"spearman": float(spearmanr(before, after).statistic), "pictures": len(files)}
    note = ", ".join(f"at {k} {t['spearman']:.4f}" for k, t in told.items())
    return {"resizing": told | {"note": f"{len(files)} files of {2 * side} pixels made smaller, rank correlation of their scores "
                                        f"before and after, .98 wanted: {note}"}}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"degraded": degraded, "resizing": resizing, "active": active,
                                                  "website": website}


def main(parts: list[str]) -> None:
    from ai_suite.core.config import plain

    for name in parts or PARTS:
        expect(name in PARTS, "E301", f"no part {name}", f"choose from {', '.join(PARTS)}")
        save("ranking", plain(PARTS[name]()))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SuiteError as e:
        sys.exit(f"not run: {e}")
