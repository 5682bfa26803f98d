"""The rule, its edges, and the JSON that `ai-lens infer` prints."""

import json
from dataclasses import replace
from unicodedata import normalize

import numpy as np
import pytest

from ai_suite.core.errors import SuiteError
from ai_suite.lens.decide import MESSAGE, Evidence, Thresholds, answer, decide, evidence, roads, rounded, thresholds_for
from ai_suite.lens.gallery import Scores, gallery_of, score, unit

ITEMS = [("A", "ㄱ"), ("A", "ㄴ"), ("B", "탑")]


@pytest.fixture
def gallery():
    return gallery_of(np.eye(3, 8), np.arange(3), ITEMS)


def scores(p, p_reject, distance=1.0):
    p = np.atleast_2d(np.asarray(p, float))
    names = tuple(f"i{k}" for k in range(p.shape[1]))
    return Scores(names, p, p, np.atleast_1d(p_reject).astype(float), np.full(p.shape, distance), [""] * len(p), np.zeros(len(p)))


@pytest.mark.parametrize(("p", "p_reject", "distance", "reason"), [
    ([.62, .30], .08, 9, "score"),
    ([.6199, .30], .0801, 9, "recollect"),
    ([.62, .51], .0, 9, "recollect"),
    ([.50, .40], .10, .65, "second opinion"),
    ([.50, .40], .10, .6501, "recollect"),
    ([.30, .20], .50, .1, "recollect"),
    ([.31, .20], .49, .1, "second opinion"),
    ([.93, .01], .06, .1, "score"),
])
def test_the_rule_at_its_edges(p, p_reject, distance, reason):
    said = decide(scores(p, p_reject, distance), Thresholds())[0]
    assert said.reason == reason and said.accept == (reason != "recollect") and said.item == "i0"


def test_one_exhibit_is_compared_with_none_of_these():
    assert decide(scores([[.62]], .38, 9), Thresholds())[0].reason == "score"
    assert decide(scores([[.62]], .38, 9), Thresholds(M=.25))[0].reason == "recollect"
    assert decide(scores([[.4]], .6, .01), Thresholds())[0].reason == "recollect"


def test_rule_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5):
        p = rng.dirichlet(np.full(n + 1, .4), 300)
        s = scores(p[:, :-1], p[:, -1])._replace(distance=rng.uniform(0, 1.5, (300, n)))
        for k, said in enumerate(decide(s, Thresholds())):
            first = int(np.argmax(s.p[k]))
            rest = sorted(np.delete(s.p[k], first))
            lead = s.p[k, first] - (rest[-1] if rest else s.p_reject[k])
            near = s.distance[k, first] <= .65 and s.p_reject[k] < .5
            assert said.accept == ((s.p[k, first] >= .62 and lead >= .12) or near)
            assert said.item == s.items[first] and said.confidence == s.p[k, first]


def test_nan_and_nothing_are_never_accepted(gallery):
    wide = Thresholds(0, -1, 9)
    s = score(gallery, np.full((2, 8), np.nan), "A")
    assert [d[:4] for d in decide(s, wide)] == [(False, "", 0.0, "recollect")] * 2
    assert decide(score(gallery, np.zeros((0, 8)), "A"), wide) == []
    assert not np.logical_or(*roads(Evidence(*(np.array([np.nan]) for _ in range(4))), wide)).any()
    said = answer("A", s, 0, decide(s, wide)[0])
    assert json.loads(json.dumps(said, allow_nan=False))["decision"] == "recollect"


def test_thresholds_of_a_place(gallery):
    place = normalize("NFD", "A")
    tuned = replace(gallery, thresholds={"*": {"T": .7, "M": .1, "D": .6}, "A": {"T": .8, "M": .2, "D": .5}})
    assert thresholds_for(tuned, place) == (.8, .2, .5) and thresholds_for(tuned, "B") == (.7, .1, .6)
    assert thresholds_for(tuned, "A", .3) == (.3, .2, .5)
    assert thresholds_for(gallery, "A", .3) == (.3, .12, .65)


@pytest.mark.parametrize(("given", "code"), [(None, "E310"), (1.01, "E301"), (-.1, "E301"), (float("nan"), "E301"),
                                             (float("inf"), "E301")])
def test_bad_thresholds(gallery, given, code):
    with pytest.raises(SuiteError) as e:
        thresholds_for(gallery, "A", given)
    assert e.value.code == code


def test_answers_are_those_of_the_document(gallery):
    s = score(gallery, unit(np.array([[1, .1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0.]])), normalize("NFD", "A"))
    yes, no = decide(s, Thresholds())
    one = answer(normalize("NFD", "A"), s, 0, yes)
    assert list(one) == ["place", "predictions", "decision", "selected_item", "confidence"]
    assert one["selected_item"] == one["predictions"][0]["item"] == "ㄱ" and one["confidence"] == one["predictions"][0]["score"]
    assert [list(p) for p in one["predictions"]] == [["item", "score"]] * 2
    two = answer("A", s, 1, no, ["더 가까이 촬영"], topk=1)
    assert two == {"place": "A", "predictions": two["predictions"], "decision": "recollect", "message": MESSAGE,
                   "hints": ["더 가까이 촬영"]}
    assert len(two["predictions"]) == 1


def test_rounding_never_contradicts_the_decision():
    rng, t = np.random.default_rng(1), Thresholds()
    for p1 in np.r_[.62 + rng.normal(size=300) * 10.0 ** rng.integers(-9, -3, 300), .61999999, .62]:
        p = np.array([p1, p1 - .12 + rng.normal() * 10.0 ** rng.integers(-9, -4)])
        shown = np.array(rounded(p, max(0.0, 1 - p.sum()), t))
        assert (shown[0] >= t.T) == (p[0] >= t.T) and (shown[0] - shown[1] >= t.M) == (p[0] - p[1] >= t.M)
    assert rounded(np.array([.93, .0512345]), .0188, t) == [.93, .0512]


def test_topk_must_be_positive(gallery):
    s = score(gallery, np.eye(1, 8), "A")
    with pytest.raises(SuiteError, match="E301"):
        answer("A", s, 0, decide(s, Thresholds())[0], topk=0)


def test_evidence_follows_scores(gallery):
    s = score(gallery, unit(np.random.default_rng(0).normal(size=(50, 8))), "A")
    seen = evidence(s)
    assert (seen.distance == s.distance.min(1)).all() and np.allclose(seen.margin, np.abs(s.p[:, 0] - s.p[:, 1]))
