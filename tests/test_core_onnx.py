"""ONNX: the file answers as the network does, says what it is, gives nothing away, and hostile files are refused."""
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from ai_suite.behavior.net import BehaviorNet, network, normalise
from ai_suite.core import onnx as core_onnx
from ai_suite.core.errors import SuiteError
from ai_suite.core.onnx import (bench_onnx, decisions, export_onnx, metadata_of, parts, read_onnx, run_onnx, session,
                                verify_onnx)
from ai_suite.core.sequence import LSTMClassifier, TCNClassifier, TransformerClassifier, build

LABELS = ["bend", "걷기", "fall \"x\""]


def stops(code, f, *args, **kw):
    with pytest.raises(SuiteError) as e:
        f(*args, **kw)
    assert e.value.code == code, str(e.value)
    return e.value


def landmarks(n, frames, seed=0):
    "Landmark windows that drift; in some nobody is found for a while, in some never"
    rng = np.random.default_rng(seed)
    x = rng.uniform(.2, .8, (n, 1, 33, 4)) + np.cumsum(rng.normal(0, .02, (n, frames, 33, 4)), 1)
    x[1::5, :frames//2] = 0
    x[2::50] = 0
    return x.reshape(n, frames, 132).astype(np.float32)


X = landmarks(1100, 30)


def net(kind, seed=0):
    torch.manual_seed(seed)
    m = BehaviorNet(132, 3, aspect=16/9 if kind == "lstm" else None, name=kind, hidden=24, layers=1 if kind == "lstm" else 2)
    normalise(m, X[:200])
    return m.eval()


@torch.inference_mode()
def medians(m):
    "A threshold per label with half of the windows on either side, and many close to it"
    return m(torch.from_numpy(X)).sigmoid().double().median(0).values.numpy() + 1e-5


class Plain(nn.Module):
    "The least that can be exported"
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(4, 2)

    def forward(self, x):
        return self.line(x).amax(1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return export_onnx(Plain(), tmp_path_factory.mktemp("small") / "small.onnx", np.zeros((2, 5, 4)), {"labels": ["a", "b"]})


# --- the same answers ------------------------------------------------------------------------------------------------

def answers_alike(m, path):
    same = verify_onnx(path, m, X)
    assert same["windows"] == 1100 and same["max_abs_error"] <= 1e-4 and same["flipped"] == 0, same
    s = session(path)
    for n, frames in [(1, 30), (7, 30), (1, 2), (3, 8), (2, 12), (2, 13), (5, 61)]:
        x = landmarks(n, frames, seed=frames)
        with torch.inference_mode():
            np.testing.assert_allclose(run_onnx(s, x), m(torch.from_numpy(x)).numpy(), atol=1e-4)
    assert run_onnx(s, X[:0]).shape == (0, 3)
    np.testing.assert_allclose(run_onnx(s, X[:50], batch=7), run_onnx(s, X[:50]), atol=1e-5)


def says_what_it_is_and_nothing_about_its_author(m, path):
    meta = metadata_of(session(path))
    assert meta["labels"] == LABELS and meta["thresholds"] == medians(m).tolist()
    assert network(meta["model"]).config() == m.config()
    data, graph = read_onnx(path)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 18)]
    for trace in (b"/site-packages/", b"train.py", b"sequence.py", os.getcwd().encode(), sys.prefix.encode()):
        assert trace not in data
    assert {p.name for p in path.parent.iterdir()} == {path.name}


def another_network_is_noticed(m, path):
    before = {k: v.clone() for k, v in m.state_dict().items()}
    other = network(m.config())
    other.load_state_dict(before)
    with torch.no_grad():
        other.sequence.head.bias[1] += .3
    found = verify_onnx(path, other, X)
    assert found["max_abs_error"] > .29 and found["flipped"] > 10
    stops("E110", verify_onnx, path, m, X[:999])


@pytest.mark.parametrize("kind", ["lstm", pytest.param("transformer", marks=pytest.mark.slow)])  # the notebook: TCN
def test_behavior_networks_survive_the_export(kind, tmp_path):
    m, path = net(kind), tmp_path / "파일 with space" / "m.onnx"  # one test: an export takes seconds
    export_onnx(m, path, X[:2], {"labels": LABELS, "thresholds": medians(m), "model": m.config()})
    answers_alike(m, path)
    says_what_it_is_and_nothing_about_its_author(m, path)
    another_network_is_noticed(m, path)


def test_the_exported_network_stays_as_it_was(tmp_path):
    m = Plain().train()
    torch.nn.utils.parametrizations.weight_norm(m.line)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    first, second = (export_onnx(m, tmp_path / f"{i}.onnx", np.zeros((2, 5, 4)), {}) for i in range(2))
    assert first.read_bytes() == second.read_bytes()
    assert m.training and list(before) == list(m.state_dict()) and all(p.requires_grad for p in m.parameters())
    x = np.random.default_rng(0).normal(size=(1000, 6, 4)).astype(np.float32)
    assert verify_onnx(first, m, x)["max_abs_error"] < 1e-5


def test_decisions():
    logits = np.array([[0., 2., -800.], [900., -1., .1]], np.float32)
    assert decisions(logits, .5).tolist() == [[True, True, False], [True, False, True]]
    assert decisions(logits, [.6, .9, .5]).tolist() == [[False, False, False], [True, False, True]]
    assert decisions(logits, .5, exclusive=True).tolist() == [[False, True, False], [True, False, False]]


def test_bench(small):
    found = bench_onnx(small, Plain(), np.zeros((1, 5, 4)), pairs=7, calls=3)
    assert found["pairs"] == 7 and 0 < found["low"] <= found["ratio"] <= found["high"] and found["onnx_ms"] > 0


# --- loading ---------------------------------------------------------------------------------------------------------

def test_one_thread_and_no_torch(small):
    options = session(small).get_session_options()
    assert options.intra_op_num_threads == options.inter_op_num_threads == 1
    code = ("import sys, numpy as np; from ai_suite.core.onnx import session, run_onnx; "
            "print(run_onnx(session(sys.argv[1]), np.ones((3, 5, 4))).shape, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code, str(small)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(3, 2) False", done.stderr


def graph(nodes, initializers=(), opsets=(("", 18), ("mine", 1)), functions=()):
    "A model of one input and one output"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, None, 2]) for n in "xy")
    g = helper.make_graph(nodes, "g", [x], [y], list(initializers))
    return helper.make_model(g, opset_imports=[helper.make_opsetid(*o) for o in opsets], functions=list(functions))


def outside(**kw):
    "A tensor whose values lie in a file"
    t = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], **kw)
    t.external_data.add(key="location", value="../../etc/passwd")
    return t


def branch(node):
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    inner = helper.make_graph([node], "b", [], [out])
    return helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)


def hostile():
    relu, add = helper.make_node("Relu", ["x"], ["y"], domain="mine"), helper.make_node("Add", ["x", "w"], ["y"])
    ops = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1), helper.make_opsetid("theirs", 1)]
    body = helper.make_node("Relu", ["x"], ["y"], domain="theirs")
    yield "custom", graph([relu])
    yield "unknown", graph([helper.make_node("Relou", ["x"], ["y"])])
    yield "branch", graph([branch(helper.make_node("Relu", ["x"], ["z"], domain="mine"))])
    yield "nested", graph([branch(branch(helper.make_node("Relu", ["x"], ["z"], domain="mine")))])
    yield "function", graph([relu], functions=[helper.make_function("mine", "Relu", ["x"], ["y"], [body], ops)])
    yield "outside", graph([add], [outside(data_location=TensorProto.EXTERNAL)])
    yield "unmarked", graph([add], [outside()])
    yield "constant", graph([helper.make_node("Constant", [], ["y"], value=outside(data_location=TensorProto.EXTERNAL))])


@pytest.mark.parametrize("name,model", list(hostile()), ids=lambda v: v if isinstance(v, str) else "")
def test_hostile_files_are_refused(name, model, tmp_path):
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    stops("E202", session, tmp_path / "m.onnx")


def test_ordinary_files_pass(tmp_path):
    own = helper.make_function("mine", "Relu", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])],
                               [helper.make_opsetid("", 18)])
    for nodes, functions in [([helper.make_node("Relu", ["x"], ["y"])], []),
                             ([helper.make_node("Relu", ["x"], ["y"], domain="mine")], [own])]:
        model = graph(nodes, functions=functions)
        model.ir_version = 10
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        x = np.array([[[-1, 2]]], np.float32)
        assert run_onnx(session(tmp_path / "m.onnx"), x).tolist() == [[[0, 2]]]


def test_damaged_files_are_refused(small, tmp_path, monkeypatch):
    data, bad = small.read_bytes(), tmp_path / "bad.onnx"
    stops("E200", session, tmp_path / "absent.onnx")
    stops("E200", session, tmp_path)
    for content in (b"", b"hello", data[:100], data[:-3], b"\x80\x04K\x01.", b"\x3a" * 10_000):
        bad.write_bytes(content)
        assert stops("E200", session, bad).what
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        bad.write_bytes(broken)
        try:
            read_onnx(bad)
        except SuiteError as e:
            assert e.code in ("E200", "E202")
    monkeypatch.setattr(core_onnx, "MAX_ONNX", 100)
    assert "larger" in stops("E200", session, small).what


def test_walking_reaches_every_tensor(small):
    model = onnx.load(small)
    found = [p.name for p in parts(model) if isinstance(p, TensorProto)]
    assert {t.name for t in model.graph.initializer} <= set(found)


def test_foreign_metadata(small, tmp_path):
    model = onnx.load(small)
    model.metadata_props[0].value = "{not json"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    stops("E200", metadata_of, session(tmp_path / "m.onnx"))
    model.metadata_props[0].key, model.metadata_props[0].value = "thresholds", "[0.5, null, 0.1]"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    stops("E203", verify_onnx, tmp_path / "m.onnx", Plain(), np.zeros((1000, 5, 4)))


def test_wrong_windows(small):
    s = session(small)
    for shape in [(3, 5, 5), (5, 4), (3, 5, 4, 1), (4,)]:
        stops("E203", run_onnx, s, np.zeros(shape))
    stops("E301", run_onnx, s, np.zeros((3, 5, 4)), batch=0)


# --- writing ---------------------------------------------------------------------------------------------------------

def test_a_failed_export_leaves_the_old_file(small, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    for example in (np.zeros((1, 5, 4)), np.zeros((2, 1, 4)), np.zeros((5, 4))):
        stops("E103", export_onnx, Plain(), path, example, {})
    stops("E301", export_onnx, Plain(), path, np.zeros((2, 5, 4)), {}, opset=12)
    stops("E203", export_onnx, LSTMClassifier(3, 2, 4), path, np.zeros((2, 5, 4)), {})
    (tmp_path / "file").write_text("")
    stops("E120", export_onnx, Plain(), tmp_path / "file" / "m.onnx", np.zeros((2, 5, 4)), {})
    assert path.read_bytes() == b"old" and {p.name for p in tmp_path.iterdir()} == {"m.onnx", "file"}


def test_what_cannot_be_exported_is_named(tmp_path):
    class Branching(Plain):
        def forward(self, x):
            return self.line(x).amax(1) if x.sum() > 0 else self.line(-x).amax(1)
    assert "Branching" in stops("E301", export_onnx, Branching(), tmp_path / "m.onnx", np.zeros((2, 5, 4)), {}).what
    assert not list(tmp_path.iterdir())


# --- the networks ----------------------------------------------------------------------------------------------------

def test_tcn_looks_back_as_far_as_it_says():
    torch.manual_seed(0)
    for layers in (1, 2, 4):
        m = TCNClassifier(3, 2, hidden=8, layers=layers).eval()
        x = torch.randn(1, 3, 100)
        y = x.clone()
        y[..., 20] += 50
        with torch.inference_mode():
            moved = torch.nonzero((m.blocks(x) != m.blocks(y)).any(1)[0]).flatten()
        assert moved[0] == 20 and moved[-1] == 20 + m.reach - 1


def test_networks_come_back_from_their_description():
    x = torch.randn(4, 17, 5)
    for name in ("lstm", "tcn", "transformer"):
        for hidden in (1, 6, 8, 9):
            m = build(dict(name=name, n_features=5, n_classes=2, hidden=hidden, layers=2)).eval()
            twin = build(m.config())
            twin.load_state_dict(m.state_dict())
            with torch.inference_mode():
                assert torch.equal(twin.eval()(x), m(x)) and m(x).shape == (4, 2)
        assert list(m.state_dict())[:2] == ["mean", "std"]
        stops("E301", build, m.config() | {"layers": 17})
        stops("E203", m, torch.zeros(4, 17, 6))


def test_transformer_knows_the_order_at_any_length():
    torch.manual_seed(0)
    m = TransformerClassifier(3, 2, hidden=16).eval()
    with torch.inference_mode():
        for frames in (2, 30, 500):
            x = torch.randn(2, frames, 3)
            assert (m(x) - m(x.flip(1))).abs().max() > 1e-3
