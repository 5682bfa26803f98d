"""Export: the file answers as the network does, carries what it needs, and a worse or slower file is not kept."""
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ai_suite.core.errors import SuiteError
from ai_suite.core.onnx import read_onnx
from ai_suite.core.runs import run_file, write_run
from ai_suite.image.encoder import build
from ai_suite.image.read import read_rgb
from ai_suite.lens import export, mobile, quantize
from ai_suite.lens.bundle import load_bundle, save_gallery, save_model
from ai_suite.lens.export import Deployed, export_model, opset_of, to_onnx
from ai_suite.lens.gallery import gallery_of
from ai_suite.lens.model import LensNet, model_id
from ai_suite.lens.parity import answers, differences, photos_to_compare, require_parity
from ai_suite.lens.quantize import float_nodes, method_for, shares, shipped_int8, split_groups, times_faster, to_int8, verdict_on
from ai_suite.lens.samples import write_samples

ROOT = Path(__file__).resolve().parent.parent


def stops(code, f, *args, **kw):
    with pytest.raises(SuiteError) as e:
        f(*args, **kw)
    assert e.value.code == code, str(e.value)
    return e.value


def network(name="test_resnet.r160_in1k", size=64, items=4, seed=0, pretrained=False):
    torch.manual_seed(seed)
    backbone, spec = build(name, img_size=size, pretrained=pretrained)
    net = LensNet(backbone, spec, n_items=items, embedding=32).eval()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, torch.nn.BatchNorm2d) and not pretrained:
                m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 1.5)
    return net


def with_gallery(net, root):
    "A gallery from the museum's photos, with thresholds of its own"
    paths = sorted(Path(root).rglob("*.jpg"))
    names = [(p.parent.parent.name, p.parent.name) for p in paths]
    items = list(dict.fromkeys(names))
    with torch.inference_mode():
        e = np.concatenate([net(torch.from_numpy(read_rgb(p, net.spec["img_size"])[None]))[0].numpy() for p in paths])
    gallery = gallery_of(e, np.array([items.index(n) for n in names]), items)
    return replace(gallery, thresholds={"*": {"T": .3, "M": .01, "D": .2}})


@pytest.fixture(scope="module")
def museum(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("museum"), places=2, items=2, photos=9, size=160)["data"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, museum):
    "A run folder with best.ckpt, its network and gallery"
    net = network()
    gallery, home = with_gallery(net, museum), tmp_path_factory.mktemp("trained") / "실행 run"
    write_run(home, system="lens", config={}, metrics={}, seed=0,
              files={"best.ckpt": lambda p: save_model(p, net, gallery, {"epochs": 0}, "1.2.3")})
    return home, net, gallery


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained):
    home, net, gallery = trained
    facts = {"config": {"a": 1}, "gallery": gallery, "version": "1.2.3"}
    return to_onnx(net, tmp_path_factory.mktemp("file") / "lens.onnx", facts)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def outputs(net, pixels):
    with torch.inference_mode():
        return [r.numpy() for r in net(torch.from_numpy(pixels))]


# --- the graph ---------------------------------------------------------------------------------------------------------

SHAPES = [(1, 64, 64), (1, 63, 300), (2, 300, 40), (5, 16, 16), (1, 700, 900)]


def test_the_file_answers_as_the_network(exported, trained):
    bundle = load_bundle(exported)
    for shape in SHAPES:
        pixels = noise(*shape, 3)
        for ours, theirs in zip(bundle.embed(pixels), outputs(trained[1], pixels), strict=True):
            assert ours.shape == theirs.shape and ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("name", ["test_efficientnet.r160_in1k", "test_vit.r160_in1k", "test_convnext.r160_in1k"])
@pytest.mark.slow
def test_other_backbones(name, tmp_path, trained):
    net = network(name, size=96)
    bundle = load_bundle(to_onnx(net, tmp_path / "m.onnx", {"config": {}, "gallery": trained[2], "version": "1.0.0"}))
    for shape in SHAPES:
        pixels = noise(*shape, 3)
        for ours, theirs in zip(bundle.embed(pixels), outputs(net, pixels), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=5e-5)


def test_deployed_is_the_network():
    net = network()
    for shape in SHAPES:
        pixels = torch.from_numpy(noise(*shape, 3))
        with torch.inference_mode():
            for a, b in zip(net(pixels), Deployed(net)(pixels), strict=True):
                assert (a - b).abs().max() < 1e-5


def test_exporting_leaves_the_network_alone(trained):
    net = network()
    net.train()
    before = model_id(net.state_dict())
    Deployed(net)
    assert net.training and model_id(net.state_dict()) == before and all(p.requires_grad for p in net.parameters())


def test_one_graph_of_standard_operators(exported):
    data, model = read_onnx(exported)
    assert [i.name for i in model.graph.input] == ["pixels"] and [o.name for o in model.graph.output] == ["embedding", "softmax"]
    assert sum(n.op_type == "Resize" for n in model.graph.node) == 1
    assert model.ir_version == 8 and opset_of(exported) == 18
    onnx.checker.check_model(model)
    for trace in (b"site-packages", b"export.py", str(ROOT).encode(), sys.prefix.encode()):
        assert trace not in data


def test_the_file_alone_is_a_model(exported, trained, tmp_path):
    alone = tmp_path / "전시 copy.onnx"
    alone.write_bytes(exported.read_bytes())
    bundle, (_, net, gallery) = load_bundle(alone), trained
    assert bundle.gallery.items == gallery.items and bundle.gallery.thresholds == gallery.thresholds
    np.testing.assert_array_equal(bundle.gallery.prototypes, gallery.prototypes)
    assert bundle.model_id == model_id(net.state_dict()) and bundle.version == "1.2.3"
    assert bundle.config["spec"]["img_size"] == 64 and bundle.config["a"] == 1


def test_a_loaded_file_needs_no_torch(exported, museum):
    code = ("import sys; from ai_suite.lens.bundle import load_bundle; from ai_suite.image.read import read_rgb; "
            "b = load_bundle(sys.argv[1]); print(b.embed(read_rgb(sys.argv[2], 64)[None])[0].shape, 'torch' in sys.modules)")
    photo = next(Path(museum).rglob("*.jpg"))
    done = subprocess.run([sys.executable, "-c", code, str(exported), str(photo)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(1, 32) False", done.stderr


def test_opsets(trained, tmp_path):
    _, net, gallery = trained
    facts = {"config": {}, "gallery": gallery, "version": "1.0.0"}
    for opset in (6, 24, 99):
        stops("E301", to_onnx, net, tmp_path / "m.onnx", facts, opset)


@pytest.mark.slow
def test_a_newer_opset(trained, tmp_path):
    _, net, gallery = trained
    facts = {"config": {}, "gallery": gallery, "version": "1.0.0"}
    assert opset_of(to_onnx(net, tmp_path / "m.onnx", facts, 20)) == 20
    load_bundle(tmp_path / "m.onnx").embed(noise(1, 64, 64, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_network_that_cannot_be_exported(tmp_path, trained, monkeypatch):
    def refuse(*args, **kw):
        raise RuntimeError("no such operator") from ValueError("the true reason")
    monkeypatch.setattr(torch.onnx, "export", refuse)
    e = stops("E203", to_onnx, trained[1], tmp_path / "m.onnx", {"config": {}, "gallery": trained[2], "version": "1"})
    assert "the true reason" in e.what and not list(tmp_path.iterdir())


# --- parity ------------------------------------------------------------------------------------------------------------

def test_another_network_is_noticed(trained, exported):
    pictures = [noise(70 + i, 90 - i, 3, seed=i) for i in range(20)]
    ours, gallery = answers(load_bundle(exported).embed, pictures), trained[2]
    same = differences(gallery, ours, answers(lambda p: outputs(trained[1], p), pictures))
    assert same["photos"] == 20 and same["decisions"] == 40 and same["max_abs_error"] < 1e-4 and not same["flipped"]
    require_parity(same, "x")
    other = differences(gallery, ours, answers(lambda p: outputs(network(seed=1), p), pictures))
    assert other["max_abs_error"] > 1e-3
    stops("E203", require_parity, other, "x")
    stops("E203", require_parity, same | {"flipped": 1}, "x")
    stops("E203", require_parity, same | {"max_abs_error": float("nan")}, "x")
    stops("E203", differences, gallery, ours, (ours[0][:, :5], ours[1]))


def test_a_tiny_change_that_flips_a_decision_is_noticed(trained):
    gallery = trained[2]
    e = gallery.prototypes[:1].astype(np.float64)
    from ai_suite.lens.gallery import score
    place = gallery.items[0][0]
    p = score(gallery, e, place).p.max()
    on_edge = replace(gallery, thresholds={"*": {"T": p - 1e-9, "M": -1., "D": -1.}})
    nudged = e + 1e-6 * gallery.prototypes[1:2]
    nudged /= np.linalg.norm(nudged)
    assert score(gallery, nudged, place).p.max() < p - 1e-9
    softmax = np.ones((1, 4)) / 4
    found = differences(on_edge, (e, softmax), (nudged, softmax))
    assert found["flipped"] >= 1 and found["max_abs_error"] < 1e-4


def test_photos_to_compare(museum, tmp_path):
    pictures, source = photos_to_compare(64, museum)
    assert len(pictures) == 200 and source == {"given": 36, "generated": 0, "varied": 164}
    assert all(p.dtype == np.uint8 and p.ndim == 3 and p.shape[2] == 3 and min(p.shape[:2]) >= 16 for p in pictures)
    assert len({p.tobytes() for p in pictures}) > 195
    again = photos_to_compare(64, museum)[0]
    assert all(np.array_equal(a, b) for a, b in zip(pictures, again, strict=True))
    (tmp_path / "A/b").mkdir(parents=True)
    (tmp_path / "A/b/x.jpg").write_text("no photo")
    stops("E104", photos_to_compare, 64, tmp_path)
    stops("E101", photos_to_compare, 64, tmp_path / "absent")


# --- the command -------------------------------------------------------------------------------------------------------

def test_export_from_a_run_folder(trained, museum, tmp_path):
    home, net, gallery = trained
    grown = replace(gallery, revision=gallery.revision + 1, items=(*gallery.items, ("본관", "새 것")),
                    prototypes=np.r_[gallery.prototypes, gallery.prototypes[:1]], owner=np.r_[gallery.owner, len(gallery.items)])
    save_gallery(home, grown, model_id(net.state_dict()))
    told = export_model(ckpt=str(home), onnx=str(tmp_path / "out.onnx"), opset=17, ort=str(tmp_path / "out.ort"),
                        torchscript=str(tmp_path / "out.pt"), data_root=museum)
    assert told["onnx"]["opset"] == 18 and told["onnx"]["opset_asked"] == 17 and "18" in told["onnx"]["note"]
    assert told["photos"] == {"given": 36, "generated": 0, "varied": 164}
    for kind in ("onnx", "ort", "torchscript"):
        assert told[kind]["parity"]["photos"] == 200 and told[kind]["parity"]["flipped"] == 0
        assert Path(told[kind]["path"]).stat().st_size == told[kind]["bytes"] > 10_000
    assert ("본관", "새 것") in load_bundle(tmp_path / "out.onnx").gallery.items
    beside = json.loads(Path(told["ort"]["facts"]).read_text(encoding="utf-8"))
    assert beside["kind"] == "lens" and ["본관", "새 것"] in beside["facts"]["gallery"]["items"]
    assert {p.name for p in tmp_path.iterdir()} == {"out.onnx", "out.ort", "out.ort.json", "out.pt"}
    json.dumps(told)


def test_into_the_run_folder_it_is_entered(trained, exported, museum, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "to_onnx", lambda net, path, *more: path.write_bytes(exported.read_bytes()))  # Saves 5 s
    _, net, gallery = trained
    for name in ("own", "other"):
        write_run(tmp_path / name, system="lens", config={}, metrics={}, seed=0,
                  files={"best.ckpt": lambda p: save_model(p, net, gallery, {})})
    own, other = tmp_path / "own", tmp_path / "other"
    export_model(ckpt=str(own / "best.ckpt"), onnx=str(own / "best.onnx"), data_root=museum)
    assert run_file(own, "best.onnx").is_file() and load_bundle(own).path.name == "best.onnx"
    stops("E120", export_model, ckpt=str(own), onnx=str(other / "best.onnx"))
    assert not (other / "best.onnx").exists()


def test_a_file_that_differs_is_not_kept(trained, exported, museum, tmp_path, monkeypatch):
    wrong = onnx.load(exported)
    weights = next(i for i in wrong.graph.initializer if i.name.endswith("heads.metric.weight"))
    changed = onnx.numpy_helper.to_array(weights).copy()
    changed[:, :4] += .5
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    monkeypatch.setattr(export, "to_onnx", lambda net, path, *more: path.write_bytes(wrong.SerializeToString()))
    (tmp_path / "out.onnx").write_bytes(b"an older good file")
    stops("E203", export_model, ckpt=str(trained[0]), onnx=str(tmp_path / "out.onnx"), data_root=museum)
    assert (tmp_path / "out.onnx").read_bytes() == b"an older good file" and len(list(tmp_path.iterdir())) == 1


def test_wishes(trained, exported, tmp_path):
    home = str(trained[0])
    for wish in ({}, {"onnx": "x.bin"}, {"ort": "x.onnx"}, {"torchscript": "x.zip"}, {"coreml": "x.mlmodel"},
                 {"onnx": "x.onnx", "int8": True}, {"ort": "x.ort", "int8": True, "data_root": "d"}):
        stops("E301", export_model, ckpt=home, **wish)
    for ckpt in (str(exported), str(tmp_path / "absent.ckpt"), str(tmp_path)):
        stops("E200", export_model, ckpt=ckpt, onnx=str(tmp_path / "x.onnx"))
    (tmp_path / "broken.ckpt").write_bytes((trained[0] / "best.ckpt").read_bytes()[:5000])
    stops("E200", export_model, ckpt=str(tmp_path / "broken.ckpt"), onnx=str(tmp_path / "x.onnx"))
    assert not (tmp_path / "x.onnx").exists()


# --- other kinds -------------------------------------------------------------------------------------------------------

def test_torch_export(trained, tmp_path):
    _, net, gallery = trained
    embed = mobile.to_torch(net, tmp_path / "m.pt2", {"config": {}, "gallery": gallery, "version": "1.0.0"})
    for shape in SHAPES:
        pixels = noise(*shape, 3)
        for ours, theirs in zip(embed(pixels), outputs(net, pixels), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    told = {"lens.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=told)
    assert json.loads(told["lens.json"])["model_id"] == model_id(net.state_dict())


def test_core_ml(trained, tmp_path):
    facts = {"config": {}, "gallery": trained[2], "version": "1.0.0"}
    try:
        import coremltools as ct
    except ImportError:
        assert "coremltools" in stops("E601", mobile.to_coreml, trained[1], tmp_path / "m.mlpackage", facts).fix
        return
    told = mobile.to_coreml(trained[1], tmp_path / "m.mlpackage", facts)
    spec = ct.models.MLModel(told["path"], skip_model_load=True).get_spec().description
    assert spec.input[0].type.imageType.width == 64 and [o.name for o in spec.output] == ["embedding", "softmax"]
    assert spec.metadata.userDefined["kind"] == '"lens"'
    stops("E120", mobile.to_coreml, trained[1], tmp_path / "m.mlpackage", facts)


# --- int8 --------------------------------------------------------------------------------------------------------------

def test_int8_is_a_model_of_its_own(exported, tmp_path):
    pictures = [noise(80, 80, 3, seed=i) for i in range(8)]
    assert to_int8(exported, tmp_path / "q.onnx", pictures) == "static"
    slow, fast = load_bundle(exported), load_bundle(tmp_path / "q.onnx")
    assert fast.model_id != slow.model_id and fast.config["int8"] == {"method": "static", "from": slow.model_id}
    assert fast.gallery.items == slow.gallery.items and fast.gallery.thresholds == slow.gallery.thresholds
    _, model = read_onnx(tmp_path / "q.onnx")
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("DequantizeLinear") > 10 and len(float_nodes(model)) == 2
    a, b = (answers(m.embed, pictures)[0] for m in (slow, fast))
    assert (a * b).sum(1).min() > .9 and np.abs(a - b).max() > 1e-4
    speed = times_faster(slow, fast, pictures, pairs=7)
    assert speed["pairs"] == 7 and 0 < speed["low"] <= speed["ratio"] <= speed["high"]
    to_int8(exported, tmp_path / "again.onnx", pictures)
    assert load_bundle(tmp_path / "again.onnx").model_id == fast.model_id


@pytest.mark.slow
def test_transformers_are_dynamic(trained, tmp_path):
    net = network("test_vit.r160_in1k", size=96)
    file = to_onnx(net, tmp_path / "v.onnx", {"config": {}, "gallery": trained[2], "version": "1.0.0"})
    assert method_for(read_onnx(file)[1]) == "dynamic"
    assert to_int8(file, tmp_path / "q.onnx", []) == "dynamic"
    _, model = read_onnx(tmp_path / "q.onnx")
    assert sum(n.op_type == "MatMulInteger" for n in model.graph.node) > 8
    pictures = [noise(96, 96, 3, seed=i) for i in range(4)]
    a, b = (answers(load_bundle(f).embed, pictures)[0] for f in (file, tmp_path / "q.onnx"))
    assert (a * b).sum(1).min() > .95


def test_shares_by_hand(trained):
    gallery = replace(trained[2], prototypes=np.eye(4, 32, dtype=np.float32), owner=np.arange(4),
                      calibration={"scale": 20., "floor": .5, "other": 0., "background": 0.})
    places, items = (np.array(c, object) for c in zip(*gallery.items, strict=True))
    assert shares(gallery, gallery.prototypes, places, items) == {"top1_place": 1., "accepted_right": 1., "accepted_wrong": 0.}
    two, rows = places == gallery.items[0][0], np.arange(4)
    turned = gallery.prototypes[np.r_[np.flatnonzero(two)[::-1], np.flatnonzero(~two)]]
    order = np.r_[np.flatnonzero(two), np.flatnonzero(~two)]
    found = shares(gallery, turned[np.argsort(order)], places, items)
    assert found == {"top1_place": .5, "accepted_right": .5, "accepted_wrong": 2 / 8} and len(rows) == 4


def test_verdicts():
    good = {"top1_place": .9, "accepted_right": .8, "accepted_wrong": .01}
    quick = {"ratio": 1.3, "low": 1.2, "high": 1.4}
    assert verdict_on(quick, good, good) == [] == verdict_on(quick, good, {k: v + .004 for k, v in good.items()})
    assert verdict_on(quick, good, good | {"top1_place": .895}) == []
    for change in ({"top1_place": .894}, {"accepted_right": .77}, {"accepted_wrong": .016}):
        assert len(verdict_on(quick, good, good | change)) == 1
    assert "1.29 times faster" in verdict_on(quick | {"ratio": 1.29}, good, good)[0]


def test_groups_are_not_shared(exported, museum):
    photos = quantize._known(load_bundle(exported), museum)
    calibration, test = split_groups(photos)
    assert len(calibration) and len(test) and not set(photos.groups[calibration]) & set(photos.groups[test])
    one = photos._replace(groups=np.array(["same"] * len(photos.groups), object))
    stops("E110", split_groups, one)


@pytest.mark.parametrize("ratio,lost,kept", [(2., 0., True), (1.1, 0., False), (2., .01, False)])
def test_int8_is_kept_or_refused(ratio, lost, kept, exported, museum, tmp_path, monkeypatch):
    speed = {"pairs": 7, "float_ms": 2., "int8_ms": 1., "ratio": ratio, "low": ratio, "high": ratio}
    monkeypatch.setattr(quantize, "times_faster", lambda *a, **kw: speed)
    seen = iter([{"top1_place": v, "accepted_right": .5, "accepted_wrong": 0.} for v in (.9, .9 - lost)])
    monkeypatch.setattr(quantize, "shares", lambda *a: next(seen))
    told = shipped_int8(exported, tmp_path / "q.onnx", museum)
    assert told["written"] is kept and (tmp_path / "q.onnx").exists() is kept and bool(told["why"]) is not kept
    assert told["tested_on"]["photos"] + told["tested_on"]["calibration_photos"] <= 36 and told["tested_on"]["groups"] >= 2
    assert not kept or told["path"] == str(tmp_path / "q.onnx")
    json.dumps(told)


def test_unknown_photos(exported, tmp_path):
    (tmp_path / "nowhere/thing").mkdir(parents=True)
    stops("E203", shipped_int8, exported, tmp_path / "q.onnx", str(tmp_path))


# --- the default backbone, and the benchmark ---------------------------------------------------------------------------

@pytest.mark.slow
def test_the_default_backbone(tmp_path, museum):
    net = network("efficientnet_lite0", size=128, pretrained=True)
    ckpt = save_model(tmp_path / "best.ckpt", net, with_gallery(net, museum), {})
    told = export_model(ckpt=str(ckpt), onnx=str(tmp_path / "out.onnx"), int8=True, data_root=museum)
    assert told["onnx"]["parity"]["flipped"] == 0 and told["onnx"]["parity"]["max_abs_error"] < 1e-4
    assert told["int8"]["cosine"] > .95 and told["int8"]["method"] == "static"
    assert told["int8"]["written"] == (tmp_path / "out.int8.onnx").exists()


def test_benchmark(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    spec = spec_from_file_location("bench_lens_speed", ROOT / "benchmarks/lens_speed.py")
    bench = module_from_spec(spec)
    spec.loader.exec_module(bench)
    bundle = bench.model(tmp_path, size=64, backbone="test_resnet.r160_in1k", pretrained=False)
    figures = bench.latencies(bundle, tmp_path, calls=4, megapixels=1) | bench.batch(bundle, tmp_path, photos=6, pairs=3)
    assert len(figures) == 6 and all(f["note"] for f in figures.values())
    for name in ("latency, pixels", "latency, small file", "latency, large file"):
        assert 0 < figures[name]["p50_ms"] <= figures[name]["p95_ms"]
    assert figures["batch, 2 threads"]["ratio"] > 0
