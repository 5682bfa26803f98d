"""The lens as one ONNX file on one thread: from pixels, from files of every size, and a batch on two threads; and how long
a frozen training takes."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import numpy as np
from paired import paired, save
from PIL import Image

from ai_suite.image.read import read_rgb
from ai_suite.lens.bundle import Bundle, load_bundle
from ai_suite.lens.decide import Thresholds, decide
from ai_suite.lens.gallery import gallery_of, score
from ai_suite.lens.samples import write_samples

SIZE = 320  # Side of the square that the network sees, pixels
TARGETS = {"pixels": 35, "small file": 50, "small file, not scaled": 50, "large file": 90}  # p95, ms


def model(folder: Path, size: int = SIZE, backbone: str = "efficientnet_lite0", pretrained: bool = True) -> Bundle:
    "The embedded default with fresh heads, 32 exhibits at 8 places, as a file."
    import torch

    from ai_suite.image.encoder import build
    from ai_suite.lens.export import to_onnx
    from ai_suite.lens.model import LensNet

    torch.manual_seed(0)
    net, spec = build(backbone, img_size=size, pretrained=pretrained)
    items = [(f"place {i // 4}", f"item {i % 4}") for i in range(32)]
    gallery = gallery_of(np.random.default_rng(0).normal(size=(32, 512)), np.arange(32), items)
    path = folder / f"lens_{size}.onnx"
    return load_bundle(to_onnx(LensNet(net, spec, 32).eval(), path, {"config": {}, "gallery": gallery, "version": "1.0.0"}))


def decided(bundle: Bundle, pixels: np.ndarray) -> object:
    "What one photo costs once it is decoded: embedding, scores, decision."
    return decide(score(bundle.gallery, bundle.embed(pixels[None])[0], "place 0"), Thresholds())


def files(folder: Path, megapixels: float = 12) -> dict[str, Path]:
    "Photos of a generated museum: 4:3, wide, PNG, and one as a phone takes it."
    base = next(Path(write_samples(folder / "museum", places=1, items=1, photos=1, size=1024)["data"]).rglob("*.jpg"))
    wide = round((megapixels * 1e6 * 4 / 3) ** .5)
    made = {}
    with Image.open(base) as im:
        photo = im.convert("RGB").resize((1024, 768))
        large = np.asarray(photo.resize((wide, wide * 3 // 4), Image.Resampling.BICUBIC), np.int16)
        grain = np.random.default_rng(0).integers(-4, 5, large.shape, dtype=np.int16)
        pictures = {"small file": photo, "small file, not scaled": photo.crop((0, 0, 1024, 638)), "PNG": photo,
                    "large file": Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))}
    for name, picture in pictures.items():
        made[name] = folder / f"{name}.{'png' if name == 'PNG' else 'jpg'}"
        picture.save(made[name], **({} if name == "PNG" else {"quality": 92}))
    return made


def latencies(bundle: Bundle, folder: Path, calls: int = 300, megapixels: float = 12) -> dict[str, dict]:
    "Single calls, one kind after the other in turn, so that a slow moment hits all of them."
    side, photos = bundle.config["spec"]["img_size"], files(folder, megapixels)
    pixels = read_rgb(photos["small file"], side)
    work: dict[str, Callable[[], object]] = {"pixels": lambda: decided(bundle, pixels)}
    work |= {name: lambda p=path: decided(bundle, read_rgb(p, side)) for name, path in photos.items()}
    times: dict[str, list[float]] = {name: [] for name in work}
    for k in range(-max(2, calls // 10), calls):
        for name, call in work.items():
            began = time.perf_counter()
            call()
            times[name] += [(time.perf_counter() - began) * 1000] if k >= 0 else []
    sizes = {"pixels": f"{pixels.shape[1]}×{pixels.shape[0]} pixels"}
    for name, path in photos.items():
        with Image.open(path) as im:
            sizes[name] = f"{im.width}×{im.height} pixels, {path.stat().st_size / 1e6:.1f} MB"
    figures = {}
    for name, ms in times.items():
        p50, p95 = np.quantile(ms, [.5, .95])
        aim = f", at most {TARGETS[name]} wanted" if name in TARGETS else ""
        figures[f"latency, {name}"] = {"p50_ms": float(p50), "p95_ms": float(p95), "calls": calls, "note":
                                       f"{sizes[name]}, network at {side}: p50 {p50:.1f} ms, p95 {p95:.1f} ms{aim}; one thread, "
                                       f"{calls} calls"}
    return figures


def batch(bundle: Bundle, folder: Path, photos: int = 48, pairs: int = 9) -> dict[str, dict]:
    "Reading and answering on two threads, against a loop on one."
    side, kinds = bundle.config["spec"]["img_size"], files(folder, 12 if photos > 20 else 1)
    paths = [p for k in range(-(-photos // 2)) for p in (kinds["small file"], kinds["large file"])][:photos]
    one = lambda p: decided(bundle, read_rgb(p, side))
    with ThreadPoolExecutor(2) as pool:
        f = paired(lambda: list(pool.map(one, paths)), lambda: [one(p) for p in paths], pairs)
    times = 1 / f["ratio"], 1 / f["high"], 1 / f["low"]
    note = (f"{photos} photos, half of them large, two threads {times[0]:.2f} times as fast as a loop "
            f"({times[1]:.2f} to {times[2]:.2f}), at least 1.7 wanted; {os.cpu_count()} cores")
    return {"batch, 2 threads": f | {"note": note}}


def int8(folder: Path, data_root: str, size: int = SIZE) -> dict[str, dict]:
    "The verdict on an int8 file: frozen default backbone, prototypes from the training photos, tested on others of them."
    import torch

    from ai_suite.image.encoder import build
    from ai_suite.lens.data import layout
    from ai_suite.lens.export import to_onnx
    from ai_suite.lens.model import LensNet
    from ai_suite.lens.quantize import shipped_int8

    torch.manual_seed(0)
    backbone, spec = build(img_size=size)
    places = layout(data_root)
    names = [(place, item) for place, items in places.items() for item in items]
    net = LensNet(backbone, spec, len(names)).eval()
    few = [(p, names.index((place, item))) for place, items in places.items() for item, fs in items.items() for p in fs[:5]]
    with torch.inference_mode():
        rows = np.concatenate([net(torch.from_numpy(read_rgb(p, size)[None]))[0].numpy() for p, _ in few])
    gallery = gallery_of(rows, np.array([i for _, i in few]), names)
    told = shipped_int8(to_onnx(net, folder / "float.onnx", {"config": {}, "gallery": gallery, "version": "1.0.0"}),
                        folder / "int8.onnx", data_root)
    s, tested = told["speed"], told["tested_on"]
    note = (f"{'kept' if told['written'] else 'refused'}: {s['ratio']:.2f} times faster ({s['low']:.2f} to {s['high']:.2f}), "
            f"{s['float_ms']:.1f} → {s['int8_ms']:.1f} ms; top-1 with place {told['float']['top1_place']:.3f} → "
            f"{told['int8']['top1_place']:.3f} on {tested['photos']} photos of {tested['groups']} groups; "
            f"{'; '.join(told['why'])}")
    return {"int8, default backbone": {k: v for k, v in told.items() if k not in ("path", "speed")} |
            {"faster": s, "note": note}}


def timed(work: Callable[[], object]) -> float:
    "Seconds."
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def training(folder: Path, data_root: str, size: int = 224) -> dict[str, dict]:
    "From photos to a tuned model with a frozen backbone, nothing cached; and what decoding is of an epoch of fine-tuning."
    import torch

    from ai_suite.lens.learn import learn
    from ai_suite.lens.shots import pixels_of, shots_of

    kept, cores = os.environ.get("AI_SUITE_CACHE"), os.cpu_count() or 1
    os.environ["AI_SUITE_CACHE"] = str(folder / "cache")
    torch.set_num_threads(cores)
    try:
        began = time.perf_counter()
        shots = shots_of(data_root)
        lesson = learn(shots, {"mode": "frozen", "img_size": size})
        frozen = time.perf_counter() - began
        few = shots.take(np.random.default_rng(0).permutation(len(shots.item))[:256])
        os.environ["AI_SUITE_CACHE"] = str(folder / "empty")
        read = lambda: [np.array(p) for p in pixels_of(few, round(1.15 * size))]
        first, again = timed(read), timed(read)
        short = learn(few, {"mode": "finetune", "img_size": size, "epochs": 1}, models=[])
        epoch = short.seconds * len(few.paths) / len(short.train)
    finally:
        torch.set_num_threads(1)
        os.environ.pop("AI_SUITE_CACHE") if kept is None else os.environ.update(AI_SUITE_CACHE=kept)
    note = (f"{len(shots.item)} photos of {len(shots.items)} exhibits, from files to a tuned model in {frozen:.0f} s on {cores} "
            f"cores, at most 120 wanted; of it {lesson.seconds:.0f} s fitting")
    told = (f"{len(few.paths)} photos: {again / epoch:.2%} of an epoch of fine-tuning is reading pixels from the cache, under "
            f"10 % wanted; decoding all of them once takes {first / epoch:.0%} of it")
    work = {"seconds": frozen, "fit_s": lesson.seconds, "photos": len(shots.item), "note": note}
    return {"frozen training": work,
            "reading in an epoch": {"first_s": first, "again_s": again, "epoch_s": epoch, "photos": len(few.paths), "note": told}}


def main() -> None:
    data = os.environ.get("AI_SUITE_DATA", "")
    train = Path(data) / "grocery_packages/train"
    with TemporaryDirectory() as folder:
        bundle = model(Path(folder))
        figures = latencies(bundle, Path(folder)) | batch(bundle, Path(folder))
        if data and train.is_dir():
            figures |= int8(Path(folder), str(train), 224) | training(Path(folder), str(train))
    save("lens_speed", figures)


if __name__ == "__main__":
    main()
