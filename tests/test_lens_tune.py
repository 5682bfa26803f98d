"""Calibration and tuning: the questions asked, the rate that comes out, and input that cannot be used."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from ai_suite.core.errors import SuiteError
from ai_suite.core.runs import save_tensors, write_run
from ai_suite.lens.calibrate import calibrate, drawn, fitted, judged, museum, shares, trials
from ai_suite.lens.decide import Thresholds, evidence, roads
from ai_suite.lens.gallery import CALIBRATION, gallery_of, score
from ai_suite.lens.tune import candidates, chosen, interval, realised, smallest_t, tune, upward
from ai_suite.lens.tune_page import curves, page, tune_command


@pytest.fixture(scope="module")
def made():
    m = museum(5, places=5, noise=.11)
    learned, item, _ = m.shots(4, 2, seed=1)
    photos, things = m.shots(3, 2, seed=2), m.things(60, seed=3)
    return m, calibrate(gallery_of(learned, item, m.items), *photos, things), photos, things


def without(gallery, index):
    kept = gallery.owner != index
    owner = gallery.owner[kept]
    return replace(gallery, items=gallery.items[:index] + gallery.items[index + 1:], prototypes=gallery.prototypes[kept],
                   owner=owner - (owner > index))


def test_questions_give_what_score_gives(made):
    _, gallery, (x, item, visit), things = made
    asked = trials(gallery, x, item, visit, things)
    seen, right = judged(asked, gallery.calibration)
    k = 0
    for i, place in enumerate(p for p, _ in gallery.items):
        for row in np.flatnonzero(item == i)[:2]:
            for kind, g in (("known", gallery), ("held_out", without(gallery, i))):
                if kind == "held_out" and len(gallery.of(place)) == 1:
                    continue
                want = evidence(score(g, x[row:row + 1], place))
                rows = (asked.kind == kind) & (asked.group == str(visit[row])) & (asked.place == place)
                near = np.abs(seen.p1[rows] - want.p1[0]).argmin()
                for a, b in zip(seen, want, strict=True):
                    assert abs(a[rows][near] - b[0]) < 1e-5
                k += 1
    assert k > 10 and not right[asked.kind != "known"].any() and (asked.truth[asked.kind != "known"] == -1).all()


def test_weights_count_visits(made):
    _, gallery, (x, item, visit), things = made
    asked = trials(gallery, x, item, visit, things)
    w = shares(asked.kind, asked.group)
    assert w.sum() == pytest.approx(1) and w[asked.kind == "known"].sum() == pytest.approx(.5)
    once = shares(np.array(["known"] * 5), np.array(["a", "a", "a", "a", "b"]))
    assert once[:4].sum() == pytest.approx(.5) == once[4]


def test_places_are_spread_over_photos():
    assert len(set(drawn(30, 0))) == 8 and set(np.concatenate([drawn(30, k) for k in range(30)])) == set(range(30))
    assert sorted(drawn(3, 5)) == [0, 1, 2] and len(drawn(0, 1)) == 0


def test_calibration_is_repeatable_and_better(made):
    m, gallery, photos, things = made
    again = calibrate(gallery, *photos, things)
    assert dict(again.calibration) == dict(gallery.calibration)
    fresh = trials(gallery, *m.shots(3, 2, seed=9), m.things(40, seed=10))

    def loss(c):
        seen, right = judged(fresh, c)
        w = shares(fresh.kind, fresh.group)
        known = fresh.kind == "known"
        p = np.where(known, np.where(right, seen.p1, 1e-3), seen.p_reject)
        return -(w * np.log(np.maximum(p, 1e-12))).sum()

    assert loss(gallery.calibration) < loss(CALIBRATION)


def test_only_known_photos_leave_the_calibration(made):
    _, gallery, (x, item, visit), _ = made
    one = item == 0
    lonely = gallery_of(x[one], np.zeros(one.sum(), int), gallery.items[:1])
    asked = trials(lonely, x[one], np.zeros(one.sum(), int), visit[one])
    assert fitted(asked, CALIBRATION) == CALIBRATION
    with pytest.raises(SuiteError, match="E110"):
        tune(lonely, x[one], np.zeros(one.sum(), int), visit[one])


def test_interval_is_exact_where_photos_are_visits():
    kind = np.repeat("ood", 60)
    _, low, high = interval(np.arange(60) < 5, kind, np.arange(60))
    exact = binomtest(5, 60).proportion_ci(.95, "exact")
    assert low == pytest.approx(exact.low, abs=.006) and high == pytest.approx(exact.high, abs=.012)
    assert interval(np.zeros(60, bool), kind, np.arange(60))[2] == pytest.approx(1 - .025 ** (1 / 60))
    wide = interval(np.arange(60) % 12 < 1, kind, np.arange(60) // 20)
    tied = interval(np.arange(60) < 20, kind, np.arange(60) // 20)
    assert tied[2] - tied[1] > wide[2] - wide[1]
    assert np.isnan(interval(np.zeros(0, bool), kind[:0], kind[:0])).all()


@pytest.mark.parametrize("p", [0., .5, .7, .123456, .99, .9999, 1 - 1e-13, 1.])
def test_a_threshold_lies_above_the_score(p):
    assert p < upward(p) <= max(1, np.nextafter(1, 2)) and upward(p) - p <= 1e-4


def test_smallest_threshold_keeps_the_budget():
    rng = np.random.default_rng(0)
    p, w = rng.random(200), rng.dirichlet(np.ones(200))
    for budget in (0, .01, .05, .5):
        t = smallest_t(p, w, budget)
        assert w[p >= t].sum() <= budget + 1e-9 < w[p >= t - 1.1e-2].sum() + .05
    assert smallest_t(p, w, 1.) == 0


def test_candidates_keep_the_rate_and_twins_do_not_break_them(made):
    _, gallery, (x, item, visit), things = made
    asked = trials(gallery, x, item, visit, things)
    found = candidates(asked, gallery.calibration, .05)
    assert found and max(c["false_accept"] for c in found) <= .05 + 1e-9
    assert chosen(found) == chosen(found[::-1])
    twin = gallery_of(np.r_[x[:2], x[:2]], np.array([0, 0, 1, 1]), [("A", "a"), ("A", "b")])
    made_of = np.r_[x[:1], x[:1]]
    tuned, rows = tune(twin, made_of, np.array([0, 1]), np.array([0, 1]), target_far=.05)
    assert rows[0]["place"] == "*" and np.isfinite(list(tuned.thresholds["*"].values())).all()


@pytest.mark.parametrize("target", [.05, .1])
def test_the_target_is_aimed_at(target):
    found = []
    for seed in range(3):
        m = museum(seed, noise=.1)
        learned, item, _ = m.shots(3, 2, seed=1)
        gallery = gallery_of(learned, item, m.items)
        tuned, rows = tune(gallery, *m.shots(6, 1, seed=2), target_far=target)
        found.append(realised(tuned, *m.shots(6, 1, seed=3))[0]["false_accept"])
        assert rows[0]["low"] <= target <= rows[0]["high"]
    assert target / 2 < np.mean(found) < target * 1.6


def test_places_with_enough_visits_get_their_own(made):
    _, gallery, photos, things = made
    tuned, rows = tune(gallery, *photos, background=things, min_negatives=9)
    own = {r["place"] for r in rows if r["own"]}
    assert own == set(tuned.thresholds) and len(own) > 1
    assert list(tune(gallery, *photos, background=things, min_negatives=999)[0].thresholds) == ["*"]
    alone, rows = tune(tuned, *photos, background=things, place="P0")
    assert [r["place"] for r in rows] == ["P0"] and alone.thresholds["*"] == tuned.thresholds["*"]


def test_realised_judges_by_the_rule(made):
    _, gallery, (x, item, visit), things = made
    open_door = replace(gallery, thresholds={"*": Thresholds(0, -1, 9)._asdict()})
    assert realised(open_door, x, item, visit, things)[0]["false_accept"] == pytest.approx(1)
    shut = replace(gallery, thresholds={"*": Thresholds(2, 0, -1)._asdict()})
    assert realised(shut, x, item, visit, things)[0]["recollected"] == pytest.approx(1)


@pytest.mark.parametrize("target", [0, 1, -1, 2, float("nan")])
def test_targets_that_are_no_rate(made, target):
    _, gallery, photos, _ = made
    with pytest.raises(SuiteError, match="E301"):
        tune(gallery, *photos, target_far=target)


def test_photos_that_cannot_be_used(made):
    _, gallery, (x, item, visit), things = made
    for given, code in (((x[:0], item[:0], visit[:0]), "E110"), ((np.full_like(x, np.nan), item, visit), "E110"),
                        ((x, np.full_like(item, -1), visit), "E110"), ((x, item[:3], visit), "E103"),
                        ((x, item + 99, visit), "E103"), ((x[:, :9], item, visit), "E203")):
        for run in (calibrate, tune):
            with pytest.raises(SuiteError) as e:
                run(gallery, *given)
            assert e.value.code == code
    with pytest.raises(SuiteError, match="E203"):
        calibrate(gallery, x, item, visit, things[:, :5])
    holes = x.copy()
    holes[::5] = np.nan
    assert np.isfinite(list(tune(gallery, holes, item, visit)[0].thresholds["*"].values())).all()


def test_one_place_with_one_exhibit_and_photos_of_walls(made):
    m, gallery, (x, item, visit), things = made
    one = item == 0
    lonely = gallery_of(x[one], np.zeros(one.sum(), int), gallery.items[:1])
    given = x[one], np.zeros(one.sum(), int), visit[one]
    tuned, rows = tune(calibrate(lonely, *given, things), *given, background=things)
    assert rows[0]["false_accept"] < .2 and rows[0]["correct_accept"] > .5
    walls = m.things(50, seed=99)
    said = score(tuned, walls, gallery.items[0][0])
    assert np.logical_or(*roads(evidence(said), Thresholds(**tuned.thresholds["*"]))).mean() < .2


def test_page_and_curves(made, tmp_path):
    _, gallery, photos, things = made
    tuned, rows = tune(gallery, *photos, background=things)
    asked = trials(tuned, *photos, things)
    found = curves(asked, tuned.calibration, Thresholds(**tuned.thresholds["*"]))
    assert (np.diff(found["false_accept"]) <= 1e-12).all() and found["T"][-1] == 1
    html = page(rows, asked, tuned.calibration, .05).save(tmp_path / "p.html").read_text()
    assert html.count("<svg") == 3 and "The bargain" in html and "http://" not in html.replace("http://www.w3.org", "")


def test_command(made, tmp_path):
    pytest.importorskip("timm")
    from ai_suite.image.encoder import build
    from ai_suite.lens.bundle import load_bundle, save_model
    from ai_suite.lens.model import LensNet

    m, gallery, (x, item, visit), _ = made
    net = LensNet(*build(pretrained=False), n_items=len(m.items), embedding=64).eval()
    aside = {"embeddings": x, "item": item}, {"groups": [str(v) for v in visit]}
    run = write_run(tmp_path / "run", system="lens", config={}, metrics={}, seed=0, files={
        "best.ckpt": lambda p: save_model(p, net, gallery, {}), "validation.safetensors": lambda p: save_tensors(p, *aside)})
    said = tune_command(model=str(run), output=str(tmp_path / "t.html"))
    assert load_bundle(run).gallery.thresholds == said["thresholds"] and (tmp_path / "t.html").stat().st_size > 20_000
    assert {"place", "T", "M", "D", "false_accept", "low", "high"} <= set(said["rows"][0])
    (tmp_path / "lone.ckpt").write_bytes((run / "best.ckpt").read_bytes())
    for wrong, code in (({"target_far": 0}, "E301"), ({"place": "nowhere"}, "E301"),
                        ({"data_root": str(tmp_path / "no")}, "E101"),
                        ({"model": str(tmp_path / "lone.ckpt")}, "E110"), ({"model": str(tmp_path / "none")}, "E200")):
        with pytest.raises(SuiteError) as e:
            tune_command(**{"model": str(run), **wrong})
        assert e.value.code == code
