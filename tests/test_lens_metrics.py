"The figures of recognition and refusal, against hand-worked cases and scikit-learn."

import numpy as np
import pytest
from sklearn import metrics as sk

from ai_suite.core.errors import SuiteError
from ai_suite.lens.metrics import (aurc, chance, exact_ends, intervals, mean_ap, often, ranks, rates, rejection, reliability,
                                   risk_coverage, roc, share)

rng = np.random.default_rng(0)


def test_a_tie_counts_against():
    assert ranks(np.ones((2, 4)), np.array([0, 3])).tolist() == [4, 4]
    assert ranks(np.array([[0.5, 0.5, 0.1]]), np.array([2])).tolist() == [3]
    assert ranks(np.array([[-np.inf, 0.2, -np.inf]]), np.array([1])).tolist() == [1]


@pytest.mark.parametrize("decimals", [1, 2, 9])
def test_mean_ap_is_that_of_scikit_learn(decimals):
    scores, truth = rng.random((200, 7)).round(decimals), rng.integers(0, 7, 200)
    assert mean_ap(scores, truth) == pytest.approx(sk.average_precision_score(np.eye(7)[truth], scores, average="macro"))


def test_mean_ap_leaves_out_items_without_photos():
    scores, truth = rng.random((50, 4)), rng.integers(0, 3, 50)
    assert mean_ap(scores, truth) == pytest.approx(mean_ap(scores[:, :3], truth))
    assert np.isnan(mean_ap(np.zeros((0, 3)), np.zeros(0, int)))


@pytest.mark.parametrize("decimals", [1, 9])
def test_roc_is_that_of_scikit_learn(decimals):
    known = rng.random(500) < 0.4
    scores = (rng.normal(size=500) + known).round(decimals)
    fpr, tpr, threshold = sk.roc_curve(known, scores, drop_intermediate=False)
    mine = roc(scores, known)
    assert np.allclose(mine["fpr"], fpr) and np.allclose(mine["tpr"], tpr) and np.allclose(mine["threshold"][1:], threshold[1:])
    found = rejection(scores, known)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(known, scores))
    assert found["fpr_at_95tpr"] == fpr[tpr >= 0.95].min()
    near = np.argmin(np.abs(fpr - (1 - tpr)))
    assert abs(found["eer"] - fpr[near]) < 0.1


def test_rejection_by_hand():
    known = np.array([True] * 4 + [False] * 4)
    assert rejection(np.array([9, 8, 7, 3, 6, 4, 2, 1.0]), known) == {"auroc": 14 / 16, "eer": 0.25, "fpr_at_95tpr": 0.5}
    perfect = rejection(np.r_[np.ones(4), np.zeros(4)], known)
    assert perfect == {"auroc": 1.0, "eer": 0.0, "fpr_at_95tpr": 0.0}
    assert rejection(np.r_[np.zeros(4), np.ones(4)], known) == {"auroc": 0.0, "eer": 1.0, "fpr_at_95tpr": 1.0}
    assert all(np.isnan(v) for v in rejection(np.ones(4), np.ones(4, bool)).values())


def test_risk_coverage_by_hand():
    curve = risk_coverage(np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 0, 1, 0]))
    assert curve["coverage"].tolist() == [0.25, 0.75, 1] and np.allclose(curve["risk"], [0, 1 / 3, 0.5])
    assert aurc(np.array([0.9, 0.8, 0.8, 0.1]), np.array([1, 0, 1, 0])) == pytest.approx(0 / 4 + 2 / 4 / 3 + 0.5 / 4)
    right = rng.random(100) < 0.8
    assert aurc(np.ones(100), right) == pytest.approx(1 - right.mean())


def test_rates_add_up():
    accepted, right, known = (rng.random(300) < q for q in (0.7, 0.8, 0.6))
    r = rates(accepted, right, known)
    assert r["correct_accept"] + r["wrong_accept"] + r["recollect"] == pytest.approx(1)
    assert r["false_accept"] == accepted[~known].mean()
    assert np.isnan(rates(accepted[:0], right[:0], known[:0])["false_accept"])


def test_reliability_keeps_every_photo():
    p = np.array([0.0, 0.05, 0.5, 0.99, 1.0])
    d = reliability(p, np.array([0, 1, 1, 1, 0]))
    assert d["n"].sum() == 5 and d["n"].tolist() == [2, 1, 2]
    assert np.allclose(d["accuracy"], [0.5, 1, 0.5]) and np.allclose(d["confidence"], [0.025, 0.5, 0.995])


def test_intervals_resample_groups_and_cover():
    hit, inside = rng.random(40) < 0.7, 0
    groups = np.repeat(np.arange(40), 10)
    wide = intervals(lambda rows: {"a": share(np.repeat(hit, 10)[rows])}, groups, n=200)["a"]
    narrow = intervals(lambda rows: {"a": share(np.repeat(hit, 10)[rows])}, np.arange(400), n=200)["a"]
    assert wide["high"] - wide["low"] > 2 * (narrow["high"] - narrow["low"]) and wide["groups"] == 40
    for trial in range(60):
        x = np.random.default_rng(trial).random(50) < 0.8
        f = intervals(lambda rows, x=x: {"a": share(x[rows])}, np.arange(50), n=200, seed=trial)["a"]
        inside += f["low"] <= 0.8 <= f["high"]
    assert inside >= 50


def test_a_share_of_nought_has_an_upper_end():
    from scipy.stats import beta
    assert exact_ends(0, 40)[1] == pytest.approx(beta.ppf(0.975, 1, 40))
    assert exact_ends(1, 40) == (pytest.approx(1 - exact_ends(0, 40)[1]), 1.0)


def test_chance_is_what_guessing_gives():
    truth = rng.integers(0, 5, 4000)
    guess = rng.random((4000, 5))
    floor = chance(np.full(4000, 5), truth, 5)
    assert abs(share(ranks(guess, truth) == 1) - floor["top1_place"]) < 0.03
    assert abs(mean_ap(guess, truth) - floor["map"]) < 0.03
    assert chance(np.array([1, 1]), np.array([0, 0]), 3)["top1_place"] == 1
    assert often(["a"] * 3 + ["b"], np.array([0, 0, 1, 2])) == 0.75


@pytest.mark.parametrize("wrong", [lambda: ranks(np.full((2, 2), np.nan), np.zeros(2, int)),
                                   lambda: ranks(np.ones(3), np.zeros(3, int)),
                                   lambda: roc(np.array([np.nan]), np.array([True])), lambda: roc(np.ones(3), np.ones(2, bool))])
def test_broken_scores_are_refused(wrong):
    with pytest.raises(SuiteError, match="E103"):
        wrong()
