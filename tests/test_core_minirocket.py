"""MiniRocket: equal to its definition, safe to store, exported alike, and better than the mean of the features."""
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ai_suite.behavior.net import BehaviorNet, normalise
from ai_suite.core.errors import SuiteError
from ai_suite.core.fit import fit, logits_of
from ai_suite.core.minirocket import MOST, MiniRocketClassifier, dilations, kernels, ridge_path
from ai_suite.core.onnx import export_onnx, run_onnx, session, verify_onnx
from ai_suite.core.runs import load_pt, load_tensors, save_pt, save_tensors
from ai_suite.core.sequence import MODELS, build, scaler_of
from ai_suite.core.splits import check_disjoint, group_split
from ai_suite.core.windows import Rows

torch.set_num_threads(1)


def stops(code, f, *args, **kw):
    with pytest.raises(SuiteError) as e:
        f(*args, **kw)
    assert e.value.code == code, str(e.value)
    return e.value


def noise(n=60, window=30, features=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, window, features)).astype(np.float32)


def ready(X, n_classes=3, hidden=12, seed=0):
    torch.manual_seed(0)
    m = build(dict(name="minirocket", n_features=X.shape[2], n_classes=n_classes, window=X.shape[1], hidden=hidden))
    m.prepare(X, seed=seed)
    return m.eval()


def waves(recordings=24, per=12, window=30, seed=0):
    "Two classes that differ in how fast they swing; offsets and weights of the channels belong to the recording"
    rng, t = np.random.default_rng(seed), np.arange(window)
    y, groups = rng.integers(0, 2, recordings*per), np.repeat(np.arange(recordings), per)
    weight, offset = rng.normal(size=(recordings, 1, 4)), rng.normal(0, 2, (recordings, 1, 4))
    swing = np.sin(2*np.pi*t*np.array([.12, .2])[y][:, None] + rng.uniform(0, 6.3, (len(y), 1)))[..., None]
    x = swing*weight[groups] + offset[groups] + rng.normal(0, .5, (len(y), window, 4))
    return x.astype(np.float32), y, groups


# --- the published transform -----------------------------------------------------------------------------------------

def definition(m, x):
    "Count frames above each level, sharp edge, 64 bits; and by how much the width of the edge may differ"
    x, mix = (x.astype(float) - m.mean.numpy())/m.std.numpy(), m.mix.double().numpy()
    exact, slack, start, K = [], [], 0, kernels()
    for i, (d, n) in enumerate(m.plan):
        for half in (0, 1):
            levels = m.levels[start:start + 42*n].double().numpy().reshape(n, 42) + .5
            start += 42*n
            for j, k in enumerate(range((i + half) % 2, 84, 2)):
                signal = np.pad((x*mix[:, 84*i + 42*half + j]).sum(1), 4*d)
                c = sum(K[k, tap]*signal[tap*d:tap*d + len(x)] for tap in range(9))
                over = (c[4*d:len(x) - 4*d] if half else c)[:, None] - levels[:, j]
                exact.append((over > 0).mean(0))
                slack.append((np.abs(over) < .5).mean(0)/2)
    blocks = np.split(np.arange(84*len(m.plan)), 2*len(m.plan))
    order = lambda rows: np.concatenate([np.stack([rows[r] for r in b], 1).ravel() for b in blocks])
    return order(exact), order(slack)


@pytest.mark.parametrize("features,window", [(1, 9), (1, 41), (12, 30)])
def test_features_equal_the_definition(features, window):
    X = noise(40, window, features)*3 + 5
    m = ready(X, hidden=10)
    for x, got in zip(X[:2], m.transform(X[:2]), strict=True):
        exact, slack = definition(m, x)
        assert (np.abs(got - exact) <= slack + 1e-4).all() and (slack == 0).mean() > .5
        np.testing.assert_allclose(got[slack == 0], exact[slack == 0], atol=1e-6)


def test_a_sharp_edge_gives_the_count():
    X = noise(20, 30, 1)
    m = ready(X)
    m.mix *= 1e4
    m.levels.copy_((m.levels + .5)*1e4 - .5)
    exact, slack = definition(m, X[3])
    assert (slack > 0).mean() < .002
    np.testing.assert_allclose(m.transform(X[3:4])[0][slack == 0], exact[slack == 0], atol=1e-6)


def test_levels_are_quantiles_of_a_training_window():
    X = noise(1, 50, 1)  # one window only: every pair takes its levels from it
    m = ready(X, hidden=40)
    golden = np.arange(1, 84*40 + 1)*((5**.5 + 1)/2) % 1
    start, position = 0, 0
    for i, ((_, n), c) in enumerate(zip(m.plan, m.answers(torch.from_numpy(X)), strict=True)):
        q = golden[start:start + 84*n].reshape(84, n)
        for half in (0, 1):
            got = m.levels[position:position + 42*n].reshape(n, 42).numpy() + .5
            mine = range(84)[(i + half) % 2::2]
            want = np.stack([np.quantile(c[0, :, 42*half + j], q[k]) for j, k in enumerate(mine)], 1)
            np.testing.assert_allclose(got, want, atol=1e-2)
            position += 42*n
        start += 84*n


def test_dilations_fit_and_use_every_feature():
    for window in (9, 10, 17, 30, 100, 1000, 4096):
        for per_kernel in (1, 2, 7, 31, 32, 33, 119, 500):
            plan = dilations(window, per_kernel)
            sizes, shares = zip(*plan, strict=True)
            assert sum(shares) == per_kernel and min(shares) >= 1
            assert list(sizes) == sorted(set(sizes)) and 8*sizes[-1] < window
    assert dilations(9, 119) == [(1, 119)]


# --- shapes, determinism, storing ------------------------------------------------------------------------------------

def test_shapes_and_registry():
    assert "minirocket" in MODELS
    m = ready(noise(), n_classes=5, hidden=7)
    assert type(m) is MiniRocketClassifier and m.config() == build(m.config()).config()
    assert m.transform(noise(4)).shape == (4, 84*7) and m.transform(noise(4)[:0]).shape == (0, 84*7)
    assert logits_of(m, noise(4)).shape == (4, 5) and logits_of(m, noise(4)[:0]).shape == (0, 5)
    assert build(dict(name="minirocket", n_features=2, n_classes=2, window=30)).head.in_features == 9996


def test_the_seed_decides_and_chunks_do_not():
    X = noise(300)
    a, b, c = ready(X, seed=3), ready(X, seed=3), ready(X, seed=4)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items() if not k.startswith("head"))
    assert not torch.equal(a.mix, c.mix)
    np.testing.assert_allclose(a.transform(X, batch=7), a.transform(X), atol=1e-5)
    small = build(a.config())
    small.prepare(X, seed=3, batch=11)
    assert torch.allclose(small.centre, a.centre, atol=1e-6) and torch.allclose(small.spread, a.spread, atol=1e-5)


def test_memory_maps_and_rows(tmp_path):
    X = noise(80)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    rows = np.arange(5, 70)
    a, b, c = ready(X[rows]), ready(mapped[5:70]), ready(Rows(mapped, rows))
    assert torch.equal(a.levels, b.levels) and torch.equal(a.levels, c.levels) and torch.equal(a.spread, c.spread)


def test_stored_and_restored(tmp_path):
    X = noise()
    m, before = ready(X), None
    m.fit_head(X, np.arange(60) % 3)
    before = logits_of(m, X)
    tensors = {k: v.contiguous() for k, v in m.state_dict().items()}
    save_pt(tmp_path / "m.pt", {"state_dict": tensors, "config": m.config()})
    save_tensors(tmp_path / "m.safetensors", tensors, m.config())
    stored = load_pt(tmp_path / "m.pt")
    plain = torch.load(tmp_path / "m.pt", weights_only=True)
    for weights in (stored["state_dict"], plain["state_dict"], load_tensors(tmp_path / "m.safetensors")):
        twin = build(stored["config"])
        twin.load_state_dict(weights)
        np.testing.assert_array_equal(logits_of(twin, X), before)


# --- the last layer --------------------------------------------------------------------------------------------------

def test_left_out_scores_are_those_of_a_model_without_the_window():
    rng = np.random.default_rng(0)
    for n, d in ((20, 50), (40, 8)):
        A, Y = rng.normal(size=(n, d)), rng.normal(size=(n, 2))
        for i in (0, n - 1):
            others = np.arange(n) != i
            for (_, _, _, scores), (_, w, b, _) in zip(ridge_path(A, Y), ridge_path(A[others], Y[others]), strict=True):
                np.testing.assert_allclose(scores[i], A[i] @ w + b, atol=1e-6)


def test_faster_or_slower_is_seen_where_means_see_nothing():
    X, y, groups = waves()
    train, valid, test = group_split(groups, y, (.5, .25, .25), seed=0)
    check_disjoint(groups, train, valid, test)
    mean, std = scaler_of(X, train)
    torch.manual_seed(0)
    m = build(dict(name="minirocket", n_features=4, n_classes=2, window=30, hidden=40, mean=mean, std=std))
    m.prepare(X[train])
    right = lambda: (logits_of(m, X[test]).argmax(1) == y[test]).mean()
    by_mean = LogisticRegression().fit(X[train].mean(1), y[train]).score(X[test].mean(1), y[test])
    fit(m, (X[train], y[train]), (X[valid], y[valid]), epochs=4, lr=3e-3, progress=False)
    assert right() > by_mean + .3
    for chosen_on in ((X[valid], y[valid]), None):
        m.head.weight.data.zero_()
        done = m.fit_head(X[train], y[train], chosen_on)
        assert right() > .9 > by_mean + .3 and done["loss"] < .4


def test_multi_hot_labels_are_learned_one_by_one():
    X, y, _ = waves(seed=1)
    Y = np.stack([y, 1 - y, (np.arange(len(y)) < 5)*0, y*0 + 1], 1).astype(np.float32)  # the last two never change
    m = ready(X[:200], n_classes=4, hidden=30)
    done = m.fit_head(X[:200], Y[:200], (X[200:], Y[200:]))
    p = 1/(1 + np.exp(-logits_of(m, X[200:])))
    assert ((p[:, :2] > .5) == (Y[200:, :2] > .5)).mean() > .85
    assert (p[:, 2] < .5).all() and (p[:, 3] > .5).all() and np.isfinite(list(done.values())).all()


def test_only_the_last_layer_learns():
    X = noise()
    m = ready(X)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    fit(m, (X, np.arange(60) % 3), (X, np.arange(60) % 3), epochs=2, progress=False)
    moved = {k for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"head.weight", "head.bias"} == {k for k, _ in m.named_parameters()}


# --- odd input -------------------------------------------------------------------------------------------------------

def test_constant_channels_and_blank_windows():
    X = noise(80, 30, 5)
    X[..., 1] = .1  # never changes
    X[::3] = .3  # nobody in the picture
    m = ready(X, hidden=30)
    f = m.transform(X)
    assert np.isfinite(f).all() and np.isfinite(logits_of(m, X)).all()
    one = np.concatenate([m.transform(X[i:i + 1]) for i in range(80)])
    np.testing.assert_allclose(f, one, atol=1e-3)
    still = ready(np.full((20, 30, 3), 7.7, np.float32))
    still.fit_head(np.full((20, 30, 3), 7.7, np.float32), np.arange(20) % 3)
    assert np.isfinite(logits_of(still, noise(5, 30, 3))).all()


def test_the_unit_of_a_feature_does_not_matter():
    X = noise(seed=5)
    a, b = ready(X), ready(X*np.float32(2**-20))
    np.testing.assert_allclose(a.transform(X), b.transform(X*np.float32(2**-20)), atol=1e-5)


def test_holes_are_named_and_not_answered():
    X = noise()
    m = ready(X)
    X[7, 3, 2] = np.nan
    for f in (m.prepare, m.transform, lambda x: logits_of(m, x)):
        stops("E103", f, X)
    assert m(torch.from_numpy(X[7:8])).isnan().all()


def test_short_windows_and_wrong_shapes():
    for window in (0, 1, 8, 5000):
        stops("E301", build, dict(name="minirocket", n_features=2, n_classes=2, window=window))
    stops("E301", build, dict(name="minirocket", n_features=2, n_classes=2))
    stops("E301", build, dict(name="minirocket", n_features=2, n_classes=2, window=30, hidden=1001))
    m = ready(noise(20, 9, 2))  # the shortest
    assert logits_of(m, noise(3, 9, 2)).shape == (3, 3) and logits_of(m, noise(3, 20, 2)).shape == (3, 3)
    stops("E203", m, torch.zeros(2, 8, 2))
    stops("E203", m, torch.zeros(2, 9, 3))
    stops("E203", m, torch.zeros(9, 2))
    stops("E203", m.prepare, noise(20, 8, 2))
    stops("E110", m.prepare, noise(0, 9, 2))


def test_not_prepared():
    m = MiniRocketClassifier(6, 3, window=30, hidden=5)
    for f in (lambda: m(torch.zeros(1, 30, 6)), lambda: m.transform(noise()), lambda: m.fit_head(noise(), np.arange(60) % 3),
              lambda: fit(m, (noise(), np.arange(60) % 3), (noise(), np.arange(60) % 3))):
        assert "prepare" in stops("E203", f).fix


def test_labels_that_do_not_fit():
    X, m = noise(), ready(noise())
    stops("E105", m.fit_head, X, np.arange(60) % 4)
    stops("E105", m.fit_head, X, np.arange(60) % 3 - 1)
    stops("E103", m.fit_head, X, np.arange(59) % 3)
    stops("E103", m.fit_head, X, np.zeros((60, 2)))
    stops("E103", m.fit_head, X, np.full((60, 3), .5))
    stops("E103", m.fit_head, X, np.full(60, .5))
    stops("E110", m.fit_head, X, np.arange(60) % 3, (X[:0], np.arange(0)))
    stops("E301", m.fit_head, np.broadcast_to(X[:1], (MOST + 1, 30, 6)), np.zeros(MOST + 1, int))


# --- ONNX ------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_exported_inside_a_behavior_network(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.uniform(.2, .8, (1100, 1, 33, 4)) + np.cumsum(rng.normal(0, .02, (1100, 30, 33, 4)), 1)
    X[1::5, :15] = 0
    X[2::50] = 0
    X = X.reshape(1100, 30, 132).astype(np.float32)
    torch.manual_seed(0)
    net = BehaviorNet(132, 3, aspect=16/9, name="minirocket", window=30)
    normalise(net, X[:200])
    with torch.no_grad():
        Z = net.front(torch.from_numpy(X[:200])).numpy()
    net.sequence.prepare(Z)
    net.sequence.fit_head(Z, np.arange(200) % 3)
    path = export_onnx(net.eval(), tmp_path / "m.onnx", X[:2], {"labels": ["a", "b", "c"], "thresholds": [.5]*3})
    same = verify_onnx(path, net, X)
    assert same["max_abs_error"] <= 1e-4, same
    s = session(path)
    for n, frames in ((1, 30), (3, 30), (2, 61)):
        x = np.tile(X[:n], (1, 3, 1))[:, :frames]
        np.testing.assert_allclose(run_onnx(s, x), logits_of(net, x), atol=1e-4)
    stops("E203", run_onnx, s, X[:2, :net.sequence.reach - 1])


@pytest.mark.slow
def test_exported_alone(tmp_path):
    X = noise(1000)
    X[3] = 0
    m = ready(X[:200])
    m.fit_head(X[:200], (X[:200, :, 0].mean(1) > 0).astype(int))
    path = export_onnx(m, tmp_path / "m.onnx", X[:2], {"labels": ["a", "b", "c"]})
    same = verify_onnx(path, m, X, exclusive=True)
    assert same["max_abs_error"] <= 1e-4 and same["flipped"] == 0, same
    stops("E203", run_onnx, session(path), X[:2, :m.reach - 1])
    hole = X[:1].copy()
    hole[0, 4, 1] = np.nan
    assert np.isnan(run_onnx(session(path), hole)).all()
