"""Isolation forest and subspaces: equal to scikit-learn, the same in a stream, unharmed by bad input and forged files."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.ensemble import IsolationForest, RandomForestClassifier

from ai_suite.core.errors import SuiteError
from ai_suite.core.runs import add_part, read_run
from ai_suite.ocad.iforest import (
    SKOPS,
    Forest,
    checked,
    features,
    flat,
    load_iforest,
    packed,
    score_one,
    score_samples,
    standardised,
    train_iforest,
)
from ai_suite.ocad.subspace import REASONS, Relations, Windowed, kmeans_ad, knots_of, sub_pca, windows_of
from ai_suite.ocad.traces import Trace


def link(n: int = 1500, seed: int = 0, share: float = 0.8, fault: str = "", M: int = 4) -> Trace:
    "Residuals that share a queue; the fault lasts from 1000 to 1120."
    rng = np.random.default_rng(seed)
    queue = rng.normal(size=(n, 1)) * np.ones(M)
    label = np.zeros(n, np.uint8)
    if fault:
        label[1000:1120] = 1
    if fault == "relation":
        queue[1000:1120, 1] = rng.normal(size=120)
    z = np.expm1(0.25 * (share * queue + np.sqrt(1 - share**2) * rng.normal(size=(n, M)))) / 0.25
    if fault == "shift":
        z[1000:1120, 2] += 2.0
    return Trace(f"link-{seed}", np.arange(n) * 60.0, z, np.arange(n), label)


def torn(seed: int, M: int = 4) -> Trace:
    "A trace with missing values, rows without any, gaps and uneven times."
    rng, trace = np.random.default_rng(seed), link(seed=seed, M=M)
    z = np.where(rng.random(trace.values.shape) < 0.15, np.nan, trace.values)
    z[rng.integers(0, len(z), 40)] = np.nan
    z[700:760, 2] = np.nan
    z[5], z[9, 0], z[11, 1] = 40.0, -1e9, 1e300
    seconds = np.cumsum(rng.exponential(60, len(z)) + (rng.random(len(z)) < 0.01) * 7200)
    return trace._replace(values=z, seconds=seconds)


TRAIN = [link(seed=s) for s in range(1, 4)]
FITTED = {"forest": Forest(n_estimators=30).fit(TRAIN), "relations": Relations().fit(TRAIN)}
BOTH = pytest.mark.parametrize("detector", FITTED.values(), ids=FITTED)


def online(detector: Any, trace: Trace) -> np.ndarray:
    "One sample at a time."
    state = detector.start(trace.values.shape[1])
    return np.stack([detector.update(state, s, x) for s, x in zip(trace.seconds, trace.values, strict=True)])


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_stream_equals_batch_bit_for_bit(detector, seed):
    trace = torn(seed)
    whole = detector.score(trace.seconds, trace.values)
    assert whole.shape == (len(trace.values), len(detector.names), 1)
    np.testing.assert_array_equal(online(detector, trace), whole)
    np.testing.assert_array_equal(np.isnan(whole[:, 0, 0]), np.isnan(trace.values).all(1))
    assert (whole[~np.isnan(whole)] >= 0).all() and np.isfinite(whole[~np.isnan(whole)]).all()


@BOTH
def test_scores_look_back_only_and_continue_from_a_copied_state(detector):
    trace = torn(7)
    whole = detector.score(trace.seconds, trace.values)
    np.testing.assert_array_equal(detector.score(trace.seconds[:600], trace.values[:600]), whole[:600])
    state = detector.start(4)
    for s, x in zip(trace.seconds[:600], trace.values[:600], strict=True):
        detector.update(state, s, x)
    kept = np.frombuffer(state.tobytes()).copy()
    rest = [detector.update(kept, s, x) for s, x in zip(trace.seconds[600:], trace.values[600:], strict=True)]
    np.testing.assert_array_equal(np.stack(rest), whole[600:])
    assert state.dtype == np.float64 and state.ndim == 1 and state.nbytes < 40_000


@BOTH
def test_saved_and_loaded_is_the_same(detector, tmp_path):
    np.savez(tmp_path / "d.npz", **detector.arrays())
    config = json.loads(json.dumps(detector.config()))
    with np.load(tmp_path / "d.npz") as arrays:
        again = type(detector).load(dict(arrays), config)
    trace = torn(3)
    np.testing.assert_array_equal(again.score(trace.seconds, trace.values), detector.score(trace.seconds, trace.values))
    assert again.config() == detector.config()


@BOTH
@pytest.mark.parametrize("M", [1, 3, 5])
def test_another_number_of_metrics_is_refused(detector, M):
    for act in (lambda: detector.start(M), lambda: detector.score(np.zeros(2), np.zeros((2, M))),
                lambda: detector.update(detector.start(4), 0.0, np.zeros(M))):
        with pytest.raises(SuiteError) as e:
            act()
        assert e.value.code == "E203" and str(M) in e.value.what


@BOTH
def test_one_row_no_row_and_nothing_known(detector):
    assert detector.score(np.zeros(0), np.zeros((0, 4))).shape == (0, len(detector.names), 1)
    assert np.isfinite(detector.score(np.zeros(1), np.zeros((1, 4)))).all()
    assert np.isnan(detector.score(np.zeros(3), np.full((3, 4), np.nan))).all()


@pytest.mark.parametrize("kind", [Forest, Relations])
def test_constant_and_missing_metrics_do_no_harm(kind):
    traces = [link(seed=s) for s in range(3)]
    for t in traces:
        t.values[:, 1], t.values[:, 3] = 0.0, np.nan
    detector, calm = kind().fit(traces), link(seed=9)
    calm.values[:, 1], calm.values[:, 3] = 0.0, np.nan
    score = detector.score(calm.seconds, calm.values)
    assert np.isfinite(score).all() and (score > 6).mean() < 0.01
    if kind is Relations:  # A forest has no cut in a metric that never moved
        moved = calm.values.copy()
        moved[1000:1050, 1] = 8.0
        assert detector.score(calm.seconds, moved)[1005:1050].max(1).min() > score.max()


@pytest.mark.parametrize("kind", [Forest, Relations])
def test_nothing_to_learn_from_and_unlike_traces(kind):
    faulty = link()._replace(label=np.ones(1500, np.uint8))
    for traces, code in (([faulty], "E110"), ([], "E110"), ([link(n=3)], "E110"), ([link(), link(M=3)], "E103")):
        with pytest.raises(SuiteError) as e:
            kind().fit(traces)
        assert e.value.code == code
    with pytest.raises(SuiteError) as e:
        kind().start(4)
    assert e.value.code == "E200"


@pytest.mark.parametrize("kind", [Forest, Relations])
def test_labelled_faults_teach_nothing(kind):
    clean, dirty = link(seed=4), link(seed=4)
    dirty.values[1000:1120] += 50
    dirty.label[1000:1120] = 1
    a, b = (kind().fit([t]) for t in (clean._replace(label=dirty.label), dirty))
    same = ("knots", "covariance") if kind is Relations else ()  # The forest's memories still know of a fault after it
    for name in same:
        np.testing.assert_array_equal(a.arrays()[name], b.arrays()[name])
    assert b.score(dirty.seconds, dirty.values)[1010:1110].min(0).max() > 3


@BOTH
def test_every_statistic_has_its_sentence(detector):
    for name in detector.names:
        assert detector.reason(name, "lbm_rtt_us").endswith(".") and "lbm_rtt_us" in detector.reason(name, "lbm_rtt_us")


# The forest

@pytest.mark.parametrize("settings", [dict(n_estimators=100), dict(max_samples=2), dict(max_samples=1), dict(max_features=0.5),
                                      dict(bootstrap=True), dict(contamination=0.2), dict(n_estimators=1, max_samples=500)])
def test_equal_to_scikit_learn(settings):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(600, 6)), rng.normal(size=(200, 6)) * 3
    Y[:20, 2], Y[5] = np.nan, 0.0
    forest = IsolationForest(random_state=1, **settings).fit(X)
    arrays = checked(flat(forest))
    theirs = forest.score_samples(Y)
    assert np.abs(score_samples(arrays, Y) - theirs).max() < 1e-12
    assert abs(score_one(packed(arrays), arrays, Y[3]) - theirs[3]) < 1e-12


def test_equal_to_scikit_learn_when_trained_with_missing_values_and_ties():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 4, (500, 5)).astype(float)
    X[rng.random(X.shape) < 0.2] = np.nan
    forest = IsolationForest(random_state=0).fit(X)
    assert np.abs(score_samples(flat(forest), X) - forest.score_samples(X)).max() < 1e-12
    exact = forest.estimators_[0].tree_.threshold[0]
    edge = np.full((3, 5), [[exact], [np.nextafter(exact, 9)], [np.nextafter(exact, -9)]])
    assert np.abs(score_samples(flat(forest), edge) - forest.score_samples(edge)).max() < 1e-12


def test_the_forest_sees_what_lasts():
    trace = link(seed=8, fault="shift")
    score = FITTED["forest"].score(trace.seconds, trace.values)[:, 0, 0]
    point = Forest(n_estimators=30, rates=(1.0, 1.0)).fit(TRAIN).score(trace.seconds, trace.values)[:, 0, 0]
    rank = lambda s: (s[1010:1120, None] > s[None, :1000]).mean()
    assert rank(score) > rank(point) + 0.05


def table(folder: Path, name: str, traces: list[Trace], **columns: Any) -> str:
    "Traces as a CSV of measurements."
    frames = [pd.DataFrame(10 * t.values + 200, columns=list("abcd")).assign(
        timestamp=t.seconds.astype(int), endpoint=t.endpoint, label=t.label, **columns) for t in traces]
    pd.concat(frames).to_csv(folder / name, index=False)
    return str(folder / name)


def trained(folder: Path, **settings: Any) -> dict[str, Any]:
    return train_iforest(train_data=table(folder, "train.csv", TRAIN), output=str(folder / "run"), n_estimators=10, **settings)


def test_training_adds_a_part_and_loads_the_same(tmp_path):
    test = table(tmp_path, "test.csv", [link(seed=8, fault="shift")])
    told = trained(tmp_path, test_data=test, contamination="0.1")
    assert told["rows"] == 4500 and told["endpoints"] == 3 and 0 < told["auc_pr"] <= 1
    run = read_run(tmp_path / "run")
    assert run["system"] == "ocad" and sorted(run["parts"]["isolation_forest"]["files"]) == sorted(
        [told["model"], told["model"].replace(".skops", ".json")])
    forest, detector, info = load_iforest(tmp_path / "run")
    trace = link(seed=8, fault="shift")
    X = features(standardised(trace.values, trace.label == 0))
    assert np.abs(score_samples(detector.arrays(), X) - forest.score_samples(X)).max() < 1e-12
    assert info["contamination"] == 0.1 and detector.n_estimators == 10
    other = trained(tmp_path, version="v2.1.0", contamination="0.4")
    _, second, _ = load_iforest(tmp_path / "run", "v2.1.0")
    np.testing.assert_array_equal(second.score(trace.seconds, trace.values), detector.score(trace.seconds, trace.values))
    assert other["model"].endswith("multivariate_v2.1.0.skops")


def test_parquet_rows_train_the_same_forest(tmp_path):
    pytest.importorskip("pyarrow")
    csv = table(tmp_path, "train.csv", TRAIN)
    frame = pd.read_csv(csv)
    frame["timestamp"] = pd.to_datetime(frame.timestamp, unit="s", utc=True)
    frame.to_parquet(tmp_path / "multivariate_train.parquet")
    for name, data in (("a", csv), ("b", str(tmp_path / "multivariate_train.parquet"))):
        train_iforest(train_data=data, output=str(tmp_path / name), n_estimators=5)
    a, b = (load_iforest(tmp_path / name)[1].arrays() for name in "ab")
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("settings, code", [
    (dict(contamination="many"), "E301"), (dict(contamination="0.7"), "E301"), (dict(version="../x"), "E301"),
    (dict(max_samples=1), "E301"), (dict(version=""), "E301"),
])
def test_bad_settings_are_refused_and_leave_no_run(tmp_path, settings, code):
    with pytest.raises(SuiteError) as e:
        trained(tmp_path, **settings)
    assert e.value.code == code and not (tmp_path / "run" / "run.json").exists()


def test_a_table_without_normal_rows_or_with_one(tmp_path):
    one = link(n=1)
    for traces in ([one], [link()._replace(label=np.ones(1500, np.uint8))]):
        with pytest.raises(SuiteError) as e:
            train_iforest(train_data=table(tmp_path, "t.csv", traces), output=str(tmp_path / "run"))
        assert e.value.code == "E110"


class Evil:
    "Would run code when it is unpickled."
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("run",))


def forged(folder: Path, content: bytes) -> None:
    "A run whose checksums are right and whose forest is not."
    trained(folder)
    info = read_run(folder / "run")["parts"]["isolation_forest"]
    name = SKOPS.format(version="v2.0.0")
    facts = (folder / "run" / name.replace(".skops", ".json")).read_bytes()
    add_part(folder / "run", "isolation_forest", {name: content, name.replace(".skops", ".json"): facts}, info)


def hostile() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    other = RandomForestClassifier(3).fit(rng.normal(size=(30, 16)), np.arange(30) % 2)
    forest = IsolationForest(n_estimators=5).fit(rng.normal(size=(100, 16)))
    whole = skops.io.dumps(forest)
    schema = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(schema, "w") as new:
        for item in old.namelist():
            content = old.read(item)
            if item == "schema.json":
                content = content.replace(b'"sklearn.ensemble._iforest"', b'"posix"').replace(b'"IsolationForest"', b'"system"')
            new.writestr(item, content)
    return {"no zip": b"x" * 100, "empty": b"", "pickle": pickle.dumps(Evil()), "cut": whole[:len(whole) // 2],
            "system call": schema.getvalue(), "another estimator": skops.io.dumps(other), "plain": skops.io.dumps({"a": 1}),
            "unfitted": skops.io.dumps(IsolationForest()), "function": skops.io.dumps({"f": os.path.expanduser}),
            "other size": skops.io.dumps(IsolationForest(n_estimators=5).fit(rng.normal(size=(100, 7))))}


@pytest.mark.parametrize("name", list(hostile()))
def test_hostile_skops_files_are_refused(tmp_path, capsys, name):
    forged(tmp_path, hostile()[name])
    with pytest.raises(SuiteError) as e:
        load_iforest(tmp_path / "run")
    assert e.value.code in ("E202", "E203") and capsys.readouterr().out == ""


def test_changed_and_missing_files_are_refused(tmp_path):
    with pytest.raises(SuiteError) as e:
        load_iforest(tmp_path)
    assert e.value.code == "E200"
    told = trained(tmp_path)
    with pytest.raises(SuiteError) as e:
        load_iforest(tmp_path / "run", "v9.9.9")
    assert e.value.code == "E200"
    file = tmp_path / "run" / told["model"].replace(".skops", ".json")
    file.write_text(file.read_text().replace("v2.0.0", "v2.0.1"))
    with pytest.raises(SuiteError) as e:
        load_iforest(tmp_path / "run")
    assert e.value.code == "E202"


@pytest.mark.parametrize("damage", [
    lambda a: a | {"right": np.zeros_like(a["right"])}, lambda a: a | {"right": a["right"] + 10**6},
    lambda a: a | {"feature": a["feature"] + 99}, lambda a: a | {"roots": a["roots"][:-1]},
    lambda a: a | {"roots": np.zeros(0, np.int32)}, lambda a: {k: v for k, v in a.items() if k != "missing"},
    lambda a: a | {"threshold": a["threshold"][:5]}, lambda a: {k: v[:0] for k, v in a.items()},
    lambda a: a | {"feature": np.array(["x"])}, lambda a: a | {"roots": a["roots"][::-1]},
    lambda a: a | {"threshold": np.full_like(a["threshold"], np.nan)},
])
def test_damaged_arrays_are_refused(damage):
    arrays = FITTED["forest"].arrays()
    with pytest.raises(SuiteError) as e:
        Forest.load(damage(arrays), {})
    assert e.value.code == "E202"


def test_standardising_bears_constant_and_missing_metrics():
    x = np.c_[np.full(50, 7.0), np.full(50, np.nan), np.arange(50.0), np.r_[np.zeros(45), np.ones(5)], np.full(50, 0.1)]
    z = standardised(x)
    assert np.isnan(z[:, 1]).all() and np.isfinite(z[:, [0, 2, 3, 4]]).all() and np.abs(z[:, [0, 4]]).max() == 0
    assert abs(np.median(z[:, 2])) < 1e-12 and z[:, 3].max() < 20
    assert np.isfinite(standardised(x[:1], np.zeros(1, bool))[:, 0]).all()


# Relations

def share_above(name: str, trace: Trace, limit: float = 4.0) -> tuple[float, float]:
    "Shares of the fault and of the calm samples before it beyond a limit."
    s = FITTED["relations"].score(trace.seconds, trace.values)[:, list(REASONS).index(name), 0]
    return float((s[1000:1120] > limit).mean()), float((s[:1000] > limit).mean())


def test_a_relation_that_breaks_is_found_though_each_metric_stays_usual():
    trace = link(seed=5, fault="relation")
    inside, outside = share_above("decoupled", trace)
    assert inside > 0.4 and outside == 0
    assert FITTED["relations"].attributions(trace.values)[1060:1120].argmax(1).tolist().count(1) > 50
    assert np.abs(trace.values[1000:1120]).max() <= np.abs(trace.values[:1000]).max() + 1


def test_one_metric_alone_is_found_and_forgotten_soon():
    trace = link(seed=6, fault="shift")
    inside, outside = share_above("apart_long", trace)
    assert inside > 0.7 and outside < 0.005
    s = FITTED["relations"].score(trace.seconds, trace.values)[:, :, 0]
    assert s[1120 + 60:].max(0)[[0, 1, 2, 3, 4, 5]].max() < 6
    assert np.bincount(FITTED["relations"].attributions(trace.values)[1020:1120].argmax(1)).argmax() == 2


def test_one_outlier_holds_nothing_up():
    calm, hit = link(seed=2), link(seed=2)
    hit.values[600, 0] = 1e6
    a, b = (FITTED["relations"].score(t.seconds, t.values)[:, :, 0] for t in (calm, hit))
    assert b[600].max() > 3
    assert b[640:].max() < max(a.max(), 4) + 1


def test_metrics_that_begin_to_move_together_are_seen():
    apart = [link(seed=s, share=0.05) for s in range(3)]
    detector = Relations().fit(apart)
    s = np.concatenate([link(seed=8, share=0.05).values, link(seed=9, share=0.9).values])
    found = detector.score(np.arange(3000.0), s)[:, list(REASONS).index("correlation"), 0]
    assert found[1550:1700].min() > 6 > np.quantile(found[:1500], 0.999)


def test_a_weaker_relation_of_an_endpoint_becomes_its_normal():
    weak = link(n=8000, seed=3, share=0.5)
    s = FITTED["relations"].score(weak.seconds, weak.values)[:, list(REASONS).index("decoupled"), 0]
    assert (s[-2000:] > 4).mean() < 0.01


def test_a_fault_of_an_hour_does_not_become_normal():
    state, calm, trace = FITTED["relations"].start(4), link(seed=5), link(seed=5, fault="relation")
    before = state.copy()
    for t in (calm, trace):
        for s, x in zip(t.seconds, t.values, strict=True):
            FITTED["relations"].update(state, s, x)
    C = state[37:37 + 16].reshape(4, 4)
    assert abs(C[0, 1] / np.sqrt(C[0, 0] * C[1, 1]) - before[37:53].reshape(4, 4)[0, 1]) < 0.15


def test_one_metric_has_no_others():
    detector = Relations().fit([link(seed=s, M=1) for s in range(3)])
    s = detector.score(np.arange(1500.0), link(seed=6, M=1).values)[:, :, 0]
    assert np.isfinite(s).all() and s[:, [1, 3, 5, 6, 7, 8]].max() == 0 and s[:, 0].max() > 0


def test_normal_scores_do_not_stretch():
    knots, heights = knots_of(np.c_[np.zeros(100), np.full(100, np.nan)])
    assert np.isfinite(knots).all() and (knots[1] == heights).all()


@pytest.mark.parametrize("damage", [lambda a: a | {"knots": a["knots"][:2]}, lambda a: a | {"unit": a["unit"][:, :3]},
                                    lambda a: {}, lambda a: a | {"covariance": a["covariance"][:1]}])
def test_damaged_relations_are_refused(damage):
    with pytest.raises(SuiteError) as e:
        Relations.load(damage(FITTED["relations"].arrays()), {})
    assert e.value.code == "E202"


# Windows of one series

def wave(n: int = 1600, seed: int = 0, fault: bool = True) -> np.ndarray:
    rng, t = np.random.default_rng(seed), np.arange(n)
    x = 100 + np.sin(2 * np.pi * t / 40) + 0.1 * rng.normal(size=n)
    if fault:
        x[1200:1240] = x[1200:1240][::-1] + 0.3
    return x


LEARNERS = pytest.mark.parametrize("learn", [
    sub_pca, kmeans_ad, lambda x, **k: sub_pca(x, each=True, **k), lambda x, **k: kmeans_ad(x, each=True, **k),
], ids=["pca", "kmeans", "pca each", "kmeans each"])


@LEARNERS
def test_windows_stream_as_in_batch_and_are_found(learn):
    x = wave()
    model = learn(x[:800])
    x[np.random.default_rng(1).integers(0, 1100, 60)] = np.nan
    x[900:930] = np.nan
    whole, state = model.follow(model.start(), x), model.start()
    np.testing.assert_array_equal(np.concatenate([model.follow(state, x[i:i + 1]) for i in range(len(x))]), whole)
    assert np.isnan(whole[:31]).all() and np.isnan(whole[920:930]).all() and np.isfinite(whole[960:]).all()
    offline = model.score(x)
    assert offline.shape == x.shape and np.isfinite(offline).all() and (offline >= 0).all()
    assert 1190 < offline[960:].argmax() + 960 < 1250 and 1200 <= np.nanargmax(whole[960:]) + 960 < 1275
    ends, usable = windows_of(x, model.window, model.each)
    each = model._windows(x)[0]
    np.testing.assert_allclose(whole[31:][usable], each[usable], rtol=1e-9, atol=1e-9)
    by_hand = np.mean([each[i] for i in range(1300 - 31, 1301)])
    assert abs(offline[1300] - by_hand) < 1e-9


@LEARNERS
def test_short_constant_and_empty_series(learn):
    model = learn(np.full(300, 5.0))
    hit = np.full(100, 5.0)
    hit[50] = 6.0
    assert np.isfinite(model.score(hit)).all() and (model.score(hit)[50] > model.score(hit)[0])
    assert model.score(np.full(100, np.nan)).max() == 0 and model.score(hit[:5]).tolist() == [0] * 5
    assert len(model.score(hit[:0])) == 0
    assert learn(wave()[:20]).window == 5
    for bad in (np.ones(15), np.full(500, np.nan), np.zeros(0)):
        with pytest.raises(SuiteError) as e:
            learn(bad)
        assert e.value.code == "E110"
    with pytest.raises(SuiteError) as e:
        learn(np.ones((50, 2)))
    assert e.value.code == "E103"


def test_windows_saved_and_loaded_are_the_same():
    for model in (sub_pca(wave()), kmeans_ad(wave(), each=True)):
        again = Windowed.load(model.arrays(), json.loads(json.dumps(model.config())))
        np.testing.assert_array_equal(again.score(wave()), model.score(wave()))
        with pytest.raises(SuiteError) as e:
            Windowed.load({k: v[:3] for k, v in model.arrays().items()}, model.config())
        assert e.value.code == "E202"


def test_kmeans_is_scikit_learns_distance():
    from sklearn.cluster import KMeans

    x = wave()
    X, _ = windows_of(x, 32)
    model = kmeans_ad(x, clusters=5)
    theirs = KMeans(5, n_init=3, random_state=0).fit(X)
    np.testing.assert_allclose(model._windows(x)[0] * model.scale, theirs.transform(X).min(1), rtol=1e-9)
