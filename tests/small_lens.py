"""A museum and a model small enough for tests: a network of one layer, written as ONNX by hand."""

import hashlib
import json
from dataclasses import replace

import numpy as np
from PIL import Image

from ai_suite.core.onnx import session
from ai_suite.image.read import read_rgb
from ai_suite.lens.bundle import load_bundle
from ai_suite.lens.data import layout
from ai_suite.lens.gallery import Gallery, as_text, gallery_of

SIDE, WIDTH = 64, 48
CALIBRATED = {"scale": 20.0, "floor": 0.45, "other": 0.0, "background": 0.0}
LIMITS = {"*": {"T": 0.62, "M": 0.12, "D": 0.65}}


def museum(folder, places=3, items=2, photos=6, seed=0):
    "Photos of coloured panels, each from a little elsewhere and in another light: {place: {item: [path]}}."
    for place in range(places):
        for item in range(items):
            rng = np.random.default_rng([seed, place, item])
            panel = Image.fromarray(rng.integers(20, 236, (4, 5, 3), np.uint8)).resize((220, 176), Image.Resampling.BICUBIC)
            home = folder / f"{place + 1}층" / f"판 {'ㄱㄴㄷㄹ'[item]}"
            home.mkdir(parents=True)
            for k in range(photos):
                x, y = rng.integers(0, 20, 2)
                light = np.asarray(panel.crop((x, y, x + 200, y + 156)), float) * rng.uniform(0.85, 1.15)
                Image.fromarray(np.clip(light + rng.normal(0, 6, light.shape), 0, 255).astype(np.uint8)).save(home / f"{k}.jpg")
    return layout(folder)


def graph(weights, middle, classes):
    "Pixels to 12 × 12 colours to a direction."
    from onnx import TensorProto, helper, numpy_helper

    n = helper.make_node
    nodes = [
        n("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT),
        n("Transpose", ["f"], ["c"], perm=[0, 3, 1, 2]),
        n("Resize", ["c", "", "", "size"], ["r"], mode="linear", antialias=1, axes=[2, 3]),
        n("Flatten", ["r"], ["v"]),
        n("MatMul", ["v", "weights"], ["w"]),
        n("Sub", ["w", "middle"], ["m"]),
        n("LpNormalization", ["m"], ["embedding"], axis=1),
        n("MatMul", ["embedding", "classes"], ["l"]),
        n("Softmax", ["l"], ["softmax"], axis=1),
    ]
    arrays = {"size": np.array([12, 12], np.int64), "weights": weights, "middle": middle, "classes": classes}
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["B", "H", "W", 3])
    outs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, ["B", None]) for k in ("embedding", "softmax", "w")]
    g = helper.make_graph(nodes, "lens", [pixels], outs, [numpy_helper.from_array(a, k) for k, a in arrays.items()])
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write(path, model, gallery, schema=1):
    "Put the facts into the file, as an export does."
    name = hashlib.sha256(b"".join(t.raw_data for t in model.graph.initializer)).hexdigest()[:16]
    facts = {"config": {"train_hashes": []}, "gallery": as_text(gallery), "spec": {"img_size": SIDE, "name": "tests"}}
    told = {"kind": "lens", "schema": schema, "version": "1.0.0", "model_id": name, "facts": facts}
    del model.metadata_props[:]
    for key, value in told.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value, ensure_ascii=False)
    path.write_bytes(model.SerializeToString())
    return path


def small_onnx(path, places, known=4, limits=LIMITS, seed=0):
    "A model that knows the first photos of each exhibit."
    rng = np.random.default_rng(seed)
    items = [(p, i) for p, found in places.items() for i in found]
    photos = [(k, f) for k, (p, i) in enumerate(items) for f in places[p][i][:known]]
    weights = rng.normal(size=(432, WIDTH)).astype(np.float32)
    classes = rng.normal(size=(WIDTH, len(items))).astype(np.float32)
    nothing = Gallery((("x", "x"),), np.eye(1, WIDTH, dtype=np.float32), np.zeros(1, np.int64), np.zeros((0, WIDTH), np.float32))
    pictures = [read_rgb(f, SIDE)[None] for _, f in photos]
    first = session(write(path, graph(weights, np.zeros(WIDTH, np.float32), classes), nothing))
    middle = np.concatenate([first.run(["w"], {"pixels": x})[0] for x in pictures]).mean(0)
    model = graph(weights, middle, classes)
    bundle = load_bundle(write(path, model, nothing))
    e = np.concatenate([bundle.embed(x)[0] for x in pictures])
    gallery = replace(gallery_of(e, [k for k, _ in photos], items), calibration=CALIBRATED, thresholds=limits)
    return write(path, model, gallery)
