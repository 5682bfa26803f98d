"""Windows, splits, metrics and training: promises checked on many inputs, on a killed writer and on Ctrl-C."""
import _thread
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import metrics as sk
from torch.optim.optimizer import register_optimizer_step_post_hook

from ai_suite.core.calibrate import apply_temperature, best_thresholds, temperature
from ai_suite.core.errors import SuiteError
from ai_suite.core.events import event_match, hysteresis, intervals_of, merge, smooth
from ai_suite.core import fit as fit_module
from ai_suite.core.fit import balanced_weights, fit, logits_of, one_thread, predict
from ai_suite.core.metrics import confusion, ece, group_bootstrap, multilabel, paired_bootstrap, pr_curve
from ai_suite.core.sequence import LSTMClassifier, build, scaler_of
from ai_suite.core.splits import check_disjoint, group_kfold, group_split
from ai_suite.core.windows import Rows, WindowWriter, coverage, fingerprint, label_windows, pad_to, sliding, starts

many = settings(max_examples=40, deadline=None, derandomize=True, database=None)
sizes = (st.integers(0, 80), st.integers(1, 25), st.integers(1, 30))


def stops(code, f, *args, **kw):
    with pytest.raises(SuiteError) as e:
        f(*args, **kw)
    assert e.value.code == code, str(e.value)
    return e.value


# --- windows ---------------------------------------------------------------------------------------------------------

@many
@given(*sizes)
def test_windows_are_views_and_complete(n, size, stride):
    x = np.random.default_rng(0).random((n, 3), dtype=np.float32)
    windows, first = sliding(x, size, stride), starts(n, size, stride)
    assert len(windows) == len(first) == sum(s + size <= n for s in range(0, n, stride))
    for w, s in zip(windows, first, strict=True):
        assert_array_equal(w, x[s:s + size])
    assert not len(windows) or np.shares_memory(windows, x)
    assert len(sliding(pad_to(x, size), size, stride)) >= 1


@many
@given(*sizes, st.lists(st.tuples(st.integers(-5, 90), st.integers(-5, 90)), max_size=7))
def test_coverage_equals_counting(n, size, stride, intervals):
    inside = {f for a, b in intervals for f in range(a, b)}
    first = starts(n, size, stride)
    naive = [sum(f in inside for f in range(s, s + size)) / size for s in first]
    assert_allclose(coverage(first, size, intervals), naive, atol=1e-12)
    for overlap in (0, .3, .5, 1):
        Y = label_windows(first, size, {'a': intervals}, ['a', 'b'], overlap)
        assert_array_equal(Y[:, 0], [v > 0 and v >= overlap - 1e-9 for v in naive])
        assert not Y[:, 1].any()


def test_views_of_a_memory_map_stay_on_disk(tmp_path):
    np.save(tmp_path/'x.npy', np.arange(60, dtype=np.float32).reshape(30, 2))
    mapped = np.load(tmp_path/'x.npy', mmap_mode='r')
    assert np.shares_memory(sliding(mapped, 10, 5), mapped)


@many
@given(st.integers(1, 30), st.lists(st.integers(-30, 29), max_size=9), st.data())
def test_rows_are_the_copied_rows(n, chosen, draw):
    x = np.random.default_rng(0).random((n, 4, 2), dtype=np.float32)
    chosen = np.array([i for i in chosen if -n <= i < n], int)
    some, copied = Rows(x, chosen), x[chosen]
    assert some.shape == copied.shape and len(some) == len(copied) and some.dtype == x.dtype
    assert_array_equal(some[:], copied)
    assert_array_equal(some[1:4], copied[1:4])
    if len(chosen):
        part = np.array(draw.draw(st.lists(st.integers(0, len(chosen) - 1), max_size=5)), int)
        assert_array_equal(some[part], copied[part])
        assert_array_equal(Rows(some, part)[:], copied[part])
    assert_array_equal(Rows(x, np.arange(n) % 2 == 1)[:], x[1::2])
    assert fingerprint(some) == fingerprint(copied)
    stops('E103', Rows, x, [n])


def test_fingerprint_reads_little_and_notices_other_windows():
    read = []

    class Counting(np.ndarray):
        def __getitem__(self, part):
            got = super().__getitem__(part)
            if isinstance(part, np.ndarray): read.append(got.nbytes)
            return got
    x = np.random.default_rng(0).random((3000, 30, 33), dtype=np.float32)
    assert fingerprint(x.view(Counting)) == fingerprint(x)
    assert 900_000 < sum(read) <= 1_000_000
    changed = x.copy()
    changed[-1, -1, -1] += 1
    others = [x[::-1], x[:-1], x[1:], x*2, changed, x[:, :, ::-1]]
    assert len({fingerprint(x), *map(fingerprint, others)}) == 7
    assert fingerprint(x[:0]) == fingerprint(x[:0])


WRITE = """
import sys, numpy as np
from ai_suite.core.windows import WindowWriter
if len(sys.argv) > 2:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
with WindowWriter(sys.argv[1], 30, 8) as w:
    for i in range(10**6):
        w.append(np.ones((200, 30, 8), np.float32))
        if i == 1: print('writing', flush=True)
"""


def test_killed_writer_leaves_no_file_that_looks_whole(tmp_path):
    p = subprocess.Popen([sys.executable, '-c', WRITE, str(tmp_path)], stdout=subprocess.PIPE)
    assert p.stdout.readline() == b'writing\n'
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert not (tmp_path/'X.npy').exists()
    with WindowWriter(tmp_path, 30, 8) as w:
        w.append(np.zeros((3, 30, 8)))
    assert np.load(tmp_path/'X.npy', mmap_mode='r').shape == (3, 30, 8)


def test_full_disk_is_e120_and_leaves_nothing(tmp_path):
    p = subprocess.run([sys.executable, '-c', WRITE, str(tmp_path), 'limit'], capture_output=True, text=True)
    assert 'E120' in p.stderr and p.returncode
    assert not list(tmp_path.iterdir())


@many
@given(st.lists(st.integers(0, 40), max_size=5))
def test_writer_writes_what_it_was_given(blocks):
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(len(blocks))
        parts = [rng.random((n, 5, 2), dtype=np.float32) for n in blocks]
        with WindowWriter(folder, 5, 2) as w:
            for p in parts: w.append(p)
        assert_array_equal(np.load(Path(folder)/'X.npy'), np.concatenate([np.empty((0, 5, 2), np.float32), *parts]))


# --- splits ----------------------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(st.sampled_from('abcdefghij'), st.integers(0, 3)), min_size=3, max_size=60)


@settings(many, max_examples=30)
@given(rows, st.integers(0, 5), st.sampled_from([(.7, .15, .15), (.8, .2), (.98, .01, .01)]))
def test_split_is_disjoint_whole_and_never_empty(rows, seed, ratios):
    groups, y = np.array([g for g, _ in rows]), np.array([v for _, v in rows])
    hot = np.eye(4)[y]
    if len(set(groups)) < len(ratios):
        stops('E110', group_split, groups, y, ratios, seed)
        return
    for labels in (None, y, hot):
        parts = group_split(groups, labels, ratios, seed)
        assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(groups)))
        assert min(check_disjoint(groups, *parts)) >= 1
        again = group_split(groups, labels, ratios, seed)
        assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@settings(many, max_examples=30)
@given(rows, st.integers(2, 4), st.integers(0, 3))
def test_folds_cover_every_row_once(rows, k, seed):
    groups, y = np.array([g for g, _ in rows]), np.array([v for _, v in rows])
    if len(set(groups)) < k:
        stops('E110', group_kfold, groups, k)
        return
    folds = group_kfold(groups, k, y, seed)
    assert_array_equal(np.sort(np.concatenate([t for _, t in folds])), np.arange(len(groups)))
    for train, test in folds:
        assert min(check_disjoint(groups, train, test)) >= 1 and len(train) + len(test) == len(groups)


def test_split_sizes_and_labels_are_near_the_ratios():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(20, 60, 60))
    y = rng.random((len(groups), 3)) < [.5, .1, .02]
    for seed in range(5):
        for p, r in zip(group_split(groups, y, seed=seed), (.7, .15, .15), strict=True):
            assert abs(len(p)/len(groups) - r) < .03 and (abs(y[p].sum(0)/y.sum(0) - r) < .06).all()


def test_many_groups_split_fast():
    groups, begin = np.repeat(np.arange(1000), 3), time.perf_counter()
    group_split(groups, groups % 7)
    assert time.perf_counter() - begin < 5


def test_check_disjoint_finds_the_leak():
    stops('E105', check_disjoint, np.array(['a', 'b', 'a']), [0, 1], [2])


# --- metrics ---------------------------------------------------------------------------------------------------------

@settings(many, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 4))
def test_multilabel_is_scikit_learn(seed, n, c):
    rng = np.random.default_rng(seed)
    y, p, t = rng.integers(0, 2, (n, c)), rng.integers(0, 11, (n, c))/10, rng.random(c)
    pred, got = (p >= t).astype(int), multilabel(y, p, t, [str(i) for i in range(c)])
    want = sk.precision_recall_fscore_support(y.ravel() if c == 1 else y, pred.ravel() if c == 1 else pred,
                                              average='binary' if c == 1 else None, zero_division=np.nan)
    for i, row in enumerate(got['per_class'].values()):
        expected = [np.atleast_1d(v)[i] for v in want[:3]]
        assert_allclose([row['precision'], row['recall'], row['f1']], expected)
        assert row['support'] == y[:, i].sum()
        assert_allclose(row['ap'], sk.average_precision_score(y[:, i], p[:, i]) if y[:, i].any() else np.nan)
    assert_allclose(got['subset_accuracy'], sk.accuracy_score(y, pred))
    assert_allclose(got['micro_f1'], sk.f1_score(y.ravel(), pred.ravel(), zero_division=np.nan))
    f1 = [r['f1'] for r in got['per_class'].values()]
    assert_allclose(got['macro_f1'], np.nanmean(f1) if not np.isnan(f1).all() else np.nan)


def test_confusion_and_curve_are_scikit_learn():
    rng = np.random.default_rng(0)
    t, p = rng.integers(0, 5, (2, 200))
    assert_array_equal(confusion(t, p, 6), sk.confusion_matrix(t, p, labels=range(6)))
    y, score = rng.integers(0, 2, 300), rng.random(300).round(1)
    curve = pr_curve(y, score)
    k = np.searchsorted(curve['threshold'], .3)
    assert_allclose(curve['recall'][k], sk.recall_score(y, score >= .3))
    assert_allclose(curve['precision'][k], sk.precision_score(y, score >= .3))


def test_bootstrap_interval_covers_the_truth():
    def covers(seed):
        rng = np.random.default_rng(seed)
        hits = (rng.random((30, 10)) < rng.beta(6, 2, 30)[:, None]).ravel()
        ci = group_bootstrap(lambda i: hits[i].mean(), np.repeat(np.arange(30), 10), n=150, seed=seed)
        return ci['low'] <= .75 <= ci['high']
    assert .86 <= np.mean([covers(s) for s in range(60)]) <= 1


def test_bootstrap_resamples_groups_and_pairs():
    groups = np.repeat(np.arange(10), 20)
    same_inside = (groups % 2).astype(float)
    ci = group_bootstrap(lambda i: same_inside[i].mean(), groups, n=300)
    assert ci['high'] - ci['low'] > .4
    diff = paired_bootstrap(lambda i: same_inside[i].mean() + .1, lambda i: same_inside[i].mean(), groups, n=100)
    assert_allclose([diff['value'], diff['low'], diff['high']], .1)
    few = group_bootstrap(lambda i: same_inside[i].mean(), groups % 3, n=10)
    assert np.isnan(few['low']) and set(few['by_group']) == {'0', '1', '2'}


def test_calibration():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 2))
    y = rng.random(z.shape) < apply_temperature(z)
    assert abs(temperature(2*z, y) - 2) < .2
    assert ece(y, apply_temperature(z)) < .02 < ece(y, apply_temperature(z, .2))


@many
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_thresholds_are_the_best_there_are(seed, n):
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 2, (n, 1)), rng.integers(0, 8, (n, 1))/8
    t = best_thresholds(y, p, floor=0, default=-1)[0]
    if len(set(y.ravel())) == 1:
        assert t == -1
    else:
        f1 = lambda v: 2*(y & (p >= v)).sum() / (y.sum() + (p >= v).sum())
        assert_allclose(f1(t), max(f1(v) for v in np.linspace(-.05, .95, 21)))
        assert best_thresholds(y, p, floor=.4)[0] >= .4


# --- events ----------------------------------------------------------------------------------------------------------

@many
@given(st.lists(st.one_of(st.floats(0, 1), st.just(float('nan'))), max_size=60), st.integers(1, 12))
def test_events_do_not_look_ahead(values, width):
    p = np.array(values)
    calm = smooth(p, width)
    assert calm.shape == p.shape
    for t in range(len(p)):
        seen = p[max(0, t - width + 1):t + 1]
        assert_allclose(calm[t], np.nanmean(seen) if not np.isnan(seen).all() else np.nan, atol=1e-12)
    for cut in range(0, len(p), 7):
        assert_array_equal(smooth(p[:cut], width), calm[:cut])
        early = hysteresis(p[:cut], .6, .4)
        assert early == [(a, min(b, cut)) for a, b in hysteresis(p, .6, .4) if a < cut]


@many
@given(st.lists(st.booleans(), max_size=50))
def test_intervals_and_masks_are_the_same(mask):
    back = np.zeros(len(mask), bool)
    for a, b in intervals_of(np.array(mask, bool)): back[a:b] = True
    assert_array_equal(back, np.array(mask, bool))
    assert merge(intervals_of(np.array(mask, bool))) == intervals_of(np.array(mask, bool))


def test_event_match_is_one_to_one():
    r = event_match([(0, 10), (20, 30)], [(0, 10), (1, 10), (2, 10), (50, 60)])
    assert (r['tp'], r['fp'], r['fn']) == (1, 3, 1)
    assert event_match([], [(1, 2)])['fp'] == 1 and np.isnan(event_match([], [(1, 2)])['recall'])


# --- training --------------------------------------------------------------------------------------------------------

def data(n, seed):
    rng = np.random.default_rng(seed)
    Y = (rng.random((n, 2)) < .5).astype(np.float32)
    return rng.normal(size=(n, 8, 3)).astype(np.float32) + np.pad(Y, [(0, 0), (0, 1)])[:, None], Y


train, valid = data(200, 1), data(60, 2)


def net(seed=0):
    torch.manual_seed(seed)
    mean, std = scaler_of(train[0])
    return LSTMClassifier(3, 2, hidden=8, layers=2, mean=mean, std=std)


def jitter(x, noise): return x + .1*torch.randn(x.shape, generator=noise)


def equal(a, b): return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def go(model, **kw): return fit(model, train, valid, **{'epochs': 6, 'lr': .01, 'batch': 32, 'progress': False, **kw})


@pytest.fixture(scope='module', autouse=True)
def single_thread():
    with one_thread(): yield


@pytest.fixture(scope='module')
def straight():
    model = net()
    return model, go(model, augment=jitter)


def test_seed_repeats_exactly(straight):
    model, result = straight
    again, other = net(), net()
    assert go(again, augment=jitter)['history'] == result['history'] and equal(again, model)
    go(other, augment=jitter, seed=1)
    assert not equal(other, model)
    assert len({row['valid_loss'] for row in result['history']}) == 6


def test_best_weights_are_kept(straight):
    model, result = straight
    row = result['history'][result['best_epoch'] - 1]
    assert row['valid_loss'] == min(r['valid_loss'] for r in result['history'])
    loss = torch.nn.BCEWithLogitsLoss()(torch.from_numpy(logits_of(model, valid[0])), torch.from_numpy(valid[1]))
    assert_allclose(float(loss), row['valid_loss'], rtol=1e-5)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # Ctrl-C inside a finalizer
def test_ctrl_c_at_any_moment_then_resume(straight, tmp_path):
    model, result = straight
    rng, delay = np.random.default_rng(0), .03

    def attempt(delay):
        resumed, timer = net(seed=7 if (tmp_path/'checkpoint.pt').exists() else 0), threading.Timer(
            delay*rng.uniform(.5, 1.5), _thread.interrupt_main)
        try:
            timer.start()
            try: return resumed, go(resumed, augment=jitter, folder=tmp_path, resume=True)
            finally:
                timer.cancel()
                timer.join()
        except KeyboardInterrupt: return None
        except SuiteError as e:
            assert e.code == 'E130', str(e)
            return None

    tries = [attempt(delay)]
    while not tries[-1] and len(tries) < 60: tries.append(attempt(delay*1.15**len(tries)))
    done = tries[-1]
    assert done
    assert done[1]['history'] == result['history'] and equal(done[0], model)
    assert [p.name for p in tmp_path.iterdir()] == ['checkpoint.pt']


def test_interrupt_keeps_the_best_weights_so_far(straight, tmp_path):
    left = [7*3 + 2]

    def presses(x, noise):
        left[0] -= 1
        if not left[0]: signal.raise_signal(signal.SIGINT)
        return jitter(x, noise)
    model = net()
    error = stops('E130', go, model, augment=presses, folder=tmp_path)
    kept = torch.load(tmp_path/'checkpoint.pt', weights_only=True)
    assert 'epoch 4 of 6' in error.what and 'resume' in error.fix
    assert kept['history'] == straight[1]['history'][:3]
    assert all(torch.equal(v, kept['best'][k]) for k, v in model.state_dict().items())
    assert pickle.loads(pickle.dumps(error)).as_dict() == error.as_dict()


def test_early_stop():
    stubborn = fit(net(), train, (valid[0], 1 - valid[1]), epochs=30, lr=.02, patience=2, progress=False)
    assert len(stubborn['history']) == stubborn['best_epoch'] + 2 < 30


def test_no_number_stops_with_its_cause():
    holes = train[0].copy()
    holes[123, 2, 1] = np.inf
    assert 'training window 123' in stops('E103', fit, net(), (holes, train[1]), valid, progress=False).what
    bad_valid = valid[0].copy()
    bad_valid[5] = np.nan
    assert 'validation window 5' in stops('E103', fit, net(), train, (bad_valid, valid[1]), progress=False).what
    model = net()
    stops('E301', go, model, lr=1e30)
    assert all(v.isfinite().all() for v in model.state_dict().values())
    stops('E103', predict, model, holes)


def test_data_that_does_not_fit():
    y = train[1][:, 0].astype(int)
    for code, bad in [('E110', (train[0][:0], train[1][:0])), ('E103', (train[0], train[1][:-1])),
                      ('E103', (train[0], train[1][:, :1])), ('E103', (train[0], train[1]*2)),
                      ('E105', (train[0], y + 1)), ('E103', (train[0], y.astype(float))),
                      ('E203', (train[0][..., :2], train[1]))]:
        stops(code, fit, net(), bad, valid, progress=False)
    for bad in ({'epochs': 0}, {'lr': -1}, {'batch': 0}, {'seed': -1}, {'device': 'abacus'}, {'patience': 0},
                {'pos_weight': [1.]}):
        stops('E301', fit, net(), train, valid, progress=False, **bad)


def test_memory_map_and_other_types_train_the_same(straight, tmp_path):
    np.save(tmp_path/'X.npy', train[0])
    for X, Y in [(np.load(tmp_path/'X.npy', mmap_mode='r'), train[1]), (train[0].astype('f8'), train[1] > 0)]:
        model = net()
        fit(model, (X, Y), valid, epochs=6, lr=.01, batch=32, progress=False, augment=jitter)
        assert equal(model, straight[0])


def test_resume_refuses_what_does_not_belong(tmp_path):
    go(net(), folder=tmp_path, epochs=1)
    assert 'lr' in stops('E301', go, net(), folder=tmp_path, epochs=1, lr=.5, resume=True).what
    assert 'pos_weight' in stops('E301', go, net(), folder=tmp_path, epochs=1, pos_weight=[1, 2], resume=True).what
    stops('E203', go, LSTMClassifier(3, 2, hidden=4), folder=tmp_path, epochs=1, resume=True)

    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path/'owned',)
    torch.save({'model': Evil()}, tmp_path/'checkpoint.pt')
    stops('E202', go, net(), folder=tmp_path, epochs=1, resume=True)
    assert not (tmp_path/'owned').exists()


def test_checkpoint_that_cannot_be_written_stops_with_e120(tmp_path):
    def takes_the_place(x, noise):
        if not (tmp_path/'checkpoint.pt').is_dir():
            (tmp_path/'checkpoint.pt').unlink()
            (tmp_path/'checkpoint.pt').mkdir()
        return x
    error = stops('E120', go, net(), folder=tmp_path, augment=takes_the_place)
    assert pickle.loads(pickle.dumps(error)).as_dict() == error.as_dict()


def test_exclusive_classes_and_building():
    y = (train[1] @ [1, 2]).astype(int)
    torch.manual_seed(0)
    model = build({'name': 'lstm', 'n_features': 3, 'n_classes': 4, 'hidden': 16, 'layers': 1})
    fit(model, (train[0], y), (train[0][:50], y[:50]), epochs=8, lr=.02, batch=32, progress=False)
    p = predict(model, train[0], exclusive=True)
    assert_allclose(p.sum(1), 1, rtol=1e-5)
    assert (p.argmax(1) == y).mean() > .6
    assert_allclose(p, predict(model, train[0], batch=7, exclusive=True), atol=1e-6)


def stepwise(run):
    "All weights after each step of a training"
    seen, parameters = [], []

    def keep(optimizer, *_):
        parameters[:] = [p for g in optimizer.param_groups for p in g['params']]
        seen.append([p.detach().clone() for p in parameters])
    hook = register_optimizer_step_post_hook(keep)
    try: return run(), seen
    finally: hook.remove()


def test_ema_is_what_is_validated_and_kept():
    model, plain = net(), net()
    result, steps = stepwise(lambda: go(model, augment=jitter, ema=.9))
    assert_array_equal(steps[-1][0], stepwise(lambda: go(plain, augment=jitter))[1][-1][0])
    average, per_epoch = steps[0], -(-len(train[0])//32)
    for step in steps[1:per_epoch*result['best_epoch']]:
        average = [.9*a + .1*w for a, w in zip(average, step, strict=True)]
    for a, w in zip(average, model.parameters(), strict=True): assert_allclose(a, w.detach(), atol=1e-6)
    assert torch.equal(model.mean, net().mean) and not equal(model, plain)
    loss = torch.nn.BCEWithLogitsLoss()(torch.from_numpy(logits_of(model, valid[0])), torch.from_numpy(valid[1]))
    assert_allclose(float(loss), result['history'][result['best_epoch'] - 1]['valid_loss'], rtol=1e-5)
    for bad in (0, 1, -.5, 1.5, float('nan')): stops('E301', go, net(), ema=bad)


@pytest.mark.parametrize('how', [{'ema': .9}, {'amp': True}, {'ema': .95, 'amp': True, 'pos_weight': 'balanced'}])
def test_interrupted_and_resumed_is_the_same(how, tmp_path):
    left = [4*7 + 3]

    def presses(x, noise):
        left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
        return jitter(x, noise)
    straight, model = net(), net()
    result = go(straight, augment=jitter, **how)
    stops('E130', go, model, augment=presses, folder=tmp_path, **how)
    assert_array_equal(model.head.weight.detach(), torch.load(tmp_path/'checkpoint.pt')['best']['head.weight'])
    resumed = net(seed=3)
    ends = go(resumed, augment=jitter, folder=tmp_path, resume=True, **how)
    assert ends['history'] == result['history'] and equal(resumed, straight)
    assert {k for k in how if k in stops('E301', go, net(), folder=tmp_path, resume=True).what} == set(how)


def test_balanced_weights():
    Y = np.repeat([[1, 1, 0], [0, 1, 0]], [5, 95], 0).astype(np.float32)
    assert_allclose(balanced_weights(Y, most=50), [19, 1/50, 50])
    assert_allclose(balanced_weights(Y), [10, .1, 10])
    assert_allclose(balanced_weights(np.repeat([0, 2], [30, 10]), n_classes=4), [1/3, 10, 1, 10])
    stops('E301', balanced_weights, Y, most=.5)
    rare = train[1]*(np.arange(200)[:, None] % 5 == 0)
    by_name, by_hand, plain = net(), net(), net()
    for model, weight in ((by_name, 'balanced'), (by_hand, balanced_weights(rare)), (plain, None)):
        fit(model, (train[0], rare), valid, epochs=2, lr=.01, progress=False, pos_weight=weight)
    assert equal(by_name, by_hand) and not equal(by_name, plain)
    classes = (train[1] @ [1, 2]).astype(int)
    model = LSTMClassifier(3, 4, hidden=8, layers=1)
    fit(model, (train[0], classes % 3), (train[0], classes % 3), epochs=1, progress=False, pos_weight='balanced')
    stops('E301', fit, model, (train[0], classes), (train[0], classes), progress=False, pos_weight=[1., 2.])
    stops('E301', go, net(), pos_weight='rare')


class Watched(torch.nn.Module):
    "Notes the type of number that its first layer gives, in training and outside"
    def __init__(self):
        super().__init__()
        self.first, self.last, self.seen = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2), {True: set(), False: set()}

    def forward(self, x):
        z = self.first(x)
        self.seen[self.training].add(z.dtype)
        return self.last(z.relu().mean(1))


def watched():
    torch.manual_seed(0)
    return Watched()


def test_half_precision_in_the_forward_pass_of_the_training(monkeypatch):
    half, full, plain = watched(), watched(), watched()
    go(half, amp=True), go(full, amp=False), go(plain)
    assert half.seen == {True: {torch.bfloat16}, False: {torch.float32}}
    assert full.seen == {True: {torch.float32}, False: {torch.float32}}
    assert equal(full, plain) and not equal(half, full)
    assert all(v.dtype == torch.float32 for v in half.state_dict().values())
    assert_allclose(predict(half, valid[0]), predict(full, valid[0]), atol=.03)
    stops('E301', fit_module._half, 'mps', True)
    assert fit_module._half('mps', None) is None and fit_module._half('cpu', None) is None
    for bf16, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation=True, bf16=bf16: bf16)
        assert fit_module._half('cuda', None) == wanted and fit_module._half('cuda', False) is None


def test_float16_scales_its_gradients_and_resumes(monkeypatch, tmp_path):
    monkeypatch.setattr(fit_module, '_half', lambda device, amp: torch.float16 if amp else None)
    half, full = watched(), watched()
    result = go(half, amp=True, folder=tmp_path)
    go(full)
    assert half.seen[True] == {torch.float16}
    assert_allclose(predict(half, valid[0]), predict(full, valid[0]), atol=.03)
    kept = torch.load(tmp_path/'checkpoint.pt')['scaler']
    assert kept['scale'] >= 1 and kept['_growth_tracker'] == 6*7
    left, stopped, resumed = [30], watched(), watched()

    def presses(x, noise):
        left[0] -= 1
        if not left[0]: raise KeyboardInterrupt
        return x
    stops('E130', go, stopped, amp=True, augment=presses, folder=tmp_path)
    assert go(resumed, amp=True, folder=tmp_path, resume=True)['history'] == result['history'] and equal(resumed, half)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a graphics card')
def test_on_a_graphics_card(tmp_path):
    half, again, full = watched(), watched(), watched()
    result = go(half, device='cuda', ema=.9, folder=tmp_path)
    assert half.seen[True] <= {torch.bfloat16, torch.float16} and half.seen[False] == {torch.float32}
    assert next(half.parameters()).device.type == 'cpu'
    assert go(again, device='cuda', ema=.9)['history'] == result['history'] and equal(again, half)
    go(full, device='cuda', ema=.9, amp=False)
    assert full.seen[True] == {torch.float32}
    assert_allclose(predict(half, valid[0], device='cuda'), predict(full, valid[0]), atol=.03)


def test_progress_bar_lines_or_silence(capsys, monkeypatch):
    go(net())
    assert capsys.readouterr() == ('', '')
    go(net(), progress=True)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == '' and len(lines) == 6 and lines[0].startswith('epoch 1/6  train 0.') and 'best' in lines[-1]
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    go(net(), progress=True)
    err = capsys.readouterr().err
    assert 'training' in err and '42/42' in err and 'epoch 6/6' in err and '\nepoch' not in err
    go(net())
    assert capsys.readouterr() == ('', '')


def test_resume_notices_other_windows(tmp_path):
    go(net(), folder=tmp_path)
    for other, part in ((({0: train[0] + 1e-3}), 'train'), ({1: valid[0][::-1]}, 'valid')):
        sets = (other.get(0, train[0]), train[1]), (other.get(1, valid[0]), valid[1])
        error = stops('E301', fit, net(), *sets, epochs=6, lr=.01, batch=32, progress=False, folder=tmp_path, resume=True)
        assert f'checksum of {part} windows' in error.what and 'labels' not in error.what
    error = stops('E301', fit, net(), train, (valid[0], 1 - valid[1]), epochs=6, lr=.01, batch=32, progress=False,
                  folder=tmp_path, resume=True)
    assert 'checksum of valid labels' in error.what


def test_rows_of_a_memory_map_train_the_same(straight, tmp_path):
    shuffled = np.random.default_rng(0).permutation(400)
    whole = np.zeros((400, 8, 3), np.float32)
    whole[shuffled[:200]], whole[shuffled[200:260]] = train[0], valid[0]
    np.save(tmp_path/'X.npy', whole)
    mapped, model = np.load(tmp_path/'X.npy', mmap_mode='r'), net()
    some = Rows(mapped, shuffled[200:260])
    result = fit(model, (Rows(mapped, shuffled[:200]), train[1]), (some, valid[1]), epochs=6, lr=.01, batch=32,
                 progress=False, augment=jitter)
    assert result['history'] == straight[1]['history'] and equal(model, straight[0])
    assert_array_equal(predict(model, some, exclusive=True), predict(model, valid[0], exclusive=True))
    whole[shuffled[7]] = np.nan
    assert 'training window 7' in stops('E103', fit, net(), (Rows(whole, shuffled[:200]), train[1]), valid, progress=False).what


def anonymous():
    "Megabytes of this process that belong to no file"
    lines = Path('/proc/self/smaps_rollup').read_text().splitlines()
    return next(int(line.split()[1])/1e3 for line in lines if line.startswith('Anonymous'))


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='reads the memory from /proc')
def test_training_on_ten_gigabytes_copies_no_more_than_batches(tmp_path):
    X = np.lib.format.open_memmap(tmp_path/'X.npy', 'w+', np.float32, (631_000, 30, 132))
    X[::70_000] = 1
    rows = np.random.default_rng(0).permutation(np.r_[:6000, 625_000:631_000])
    train, valid, Y = rows[:10_000], rows[10_000:], np.stack([rows % 2, rows > 9000], 1).astype(np.float32)
    settings = dict(epochs=1, batch=256, progress=False)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30*132, 2))
    fit(model, (X[:512], Y[:512]), (X[:512], Y[:512]), **settings)
    before, most = anonymous(), [0.]

    def look(x, noise):
        most.append(anonymous())
        return x
    fit(model, (Rows(X, train), Y[:10_000]), (Rows(X, valid), Y[10_000:]), augment=look, **settings)
    most.append(anonymous())
    p = predict(model, Rows(X, rows))
    most.append(anonymous())
    assert p.shape == (12_000, 2) and (tmp_path/'X.npy').stat().st_blocks*512 < 10e6
    assert max(most) - before < 40 < X[:10_000].nbytes/1e6/3, (before, max(most))
    copied = X[train]
    assert anonymous() - before > 120, len(copied)
    (tmp_path/'X.npy').unlink()
