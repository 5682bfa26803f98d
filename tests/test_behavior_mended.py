"""Training and testing of behavior models: datasets that lie, folders that are not ours, figures that say too much."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_suite.behavior.evaluate import evaluate, split_of
from ai_suite.behavior.join import content, read_dataset, read_datasets
from ai_suite.behavior.model import load_model
from ai_suite.behavior.train import train
from ai_suite.core.errors import SuiteError
from ai_suite.core.runs import load_pt, save_pt
from ai_suite.video.features import FEATURE_NAMES

SHA = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def dataset(folder: Path, count: int = 6, names: tuple[str, ...] = ("rise", "sink"), rare: bool = False, prefix: str = "v",
            frames: int = 12, F: int = 3, **meta: Any) -> Path:
    "A folder of made-up windows, ten a video; with `rare`, the first label occurs in the first video only."
    rng, n = np.random.default_rng(0), 10 * count
    y = np.eye(len(names), dtype=np.float32)[rng.integers(0, len(names), n)]
    if rare:
        y[10:, 0] = 0
        y[:5, 0] = 1
    X = rng.normal(size=(n, frames, F)) + np.linspace(-1, 1, frames)[:, None] * (2 * y[:, :1, None] - 1)
    folder.mkdir(parents=True)
    np.save(folder / "X.npy", X.astype(np.float32))
    np.save(folder / "Y.npy", y)
    np.save(folder / "groups.npy", np.repeat([f"{prefix}{i}" for i in range(count)], 10))
    facts = {"labels": list(names), "label_kinds": {}, "feature_names": list("abc"), "window_size": frames, "stride": 4}
    (folder / "meta.json").write_text(json.dumps(facts | meta))
    return folder


def trained(folder: Path, *data: Path, **settings: Any) -> dict[str, Any]:
    "A short training; the model is m.pt in the folder."
    return train(list(data), **{"epochs": 1, "hidden": 8, "save": folder / "m.pt", "device": "cpu", "val_ratio": 0.3} | settings)


# datasets

BAD = [("fps", 0), ("fps", "30"), ("fps", float("nan")), ("fps", float("inf")), ("fps", True), ("fps", None), ("aspect", -1),
       ("stride", 0), ("stride", True), ("stride", 1.5), ("window_size", "12"), ("labels", "rise"), ("labels", []),
       ("labels", ["rise", "rise"]), ("labels", ["rise", 3]), ("label_kinds", []), ("label_kinds", {"rise": "odd"}),
       ("label_kinds", {"rise": ["normal"]}), ("videos", {}), ("videos", [{"name": "v0"}]),
       ("videos", [{"video": "v0", "sha256": 3}])]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_meta_without_sense_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(SuiteError, match="E102.*build the dataset again"):
        read_dataset(dataset(tmp_path / "d", **{key: value}))


def test_meta_that_is_no_object(tmp_path: Path) -> None:
    (dataset(tmp_path / "d") / "meta.json").write_text("[1]")
    with pytest.raises(SuiteError, match="E102"):
        read_dataset(tmp_path / "d")


def test_landmarks_need_a_frame_rate(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="E102.*fps"):
        read_dataset(dataset(tmp_path / "a", F=132, feature_names=FEATURE_NAMES))
    read_dataset(dataset(tmp_path / "b", F=132, feature_names=FEATURE_NAMES, fps=30))
    read_dataset(dataset(tmp_path / "c"))


def numbered(d: Path) -> None:
    np.save(d / "groups.npy", np.repeat(np.arange(6), 10))


def worded(d: Path) -> None:
    np.save(d / "X.npy", np.load(d / "X.npy").astype(str))


def shorter(d: Path) -> None:
    np.save(d / "X.npy", np.load(d / "X.npy")[:, 1:])


@pytest.mark.parametrize("spoil", [numbered, worded, shorter])
def test_arrays_unlike_their_description(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(dataset(tmp_path / "d"))
    with pytest.raises(SuiteError, match="E103"):
        read_dataset(tmp_path / "d")


def test_a_colon_in_a_name_is_no_hash(tmp_path: Path) -> None:
    assert content("shop:1.mp4") == "shop:1.mp4" and content("shop:2.mp4") != content("shop:1.mp4")
    assert content("0123456789ab:a:b.mp4") == "0123456789ab"
    assert len(trained(tmp_path, dataset(tmp_path / "d", prefix="shop:"))["labels"]) == 2


def videos_of(*rates: float, prefix: str = "v", shas: tuple[str, ...] = SHA) -> list[dict[str, Any]]:
    return [{"video": f"{prefix}{i}", "sha256": s, "fps": f, "width": 640, "height": 480 if f < 50 else 320}
            for i, (f, s) in enumerate(zip(rates, shas, strict=False))]


def test_joined_meta_speaks_of_all_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = dataset(tmp_path / "a", 1, fps=30, aspect=4 / 3, overlap=0.5, kind="normal", background=1.0, seed=0, resize_w=640,
                windows_per_label={"rise": 99}, videos=videos_of(30), skipped=[{"video": "x"}], notes=["one"])
    b = dataset(tmp_path / "b", 3, ("sink", "fall"), prefix="w", fps=60, aspect=2.0, overlap=0.3, stride=6, kind="anomaly",
                background=0.0, seed=0, resize_w=640, label_kinds={"fall": "anomaly"}, notes=["two"],
                videos=videos_of(60, 60, 60, prefix="w", shas=SHA[1:]))
    _, Y, _, meta = read_datasets([a, b])
    assert meta["labels"] == ["fall", "rise", "sink"] and meta["label_kinds"]["fall"] == "anomaly"
    assert meta["windows_per_label"] == dict(zip(meta["labels"], Y.sum(0).astype(int).tolist(), strict=True))
    assert meta["fps"] == 60 and meta["aspect"] == 2 and meta["stride"] == 4 and meta["overlap"] == 0.5
    assert "kind" not in meta and "background" not in meta and meta["seed"] == 0 and meta["resize_w"] == 640
    assert len(meta["videos"]) == 4 and meta["notes"] == ["one", "two"] and len(meta["skipped"]) == 1
    said = capsys.readouterr().err
    assert all(f"another {key} than" in said for key in ("fps", "aspect", "stride", "overlap"))


def test_rates_are_compared_only_where_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = dataset(tmp_path / "a"), dataset(tmp_path / "b", prefix="w", fps=30.0, aspect=1.5)
    for first, second in ((a, b), (b, a)):
        assert read_datasets([first, second])[3].get("fps") == (30 if first == b else None)
    assert capsys.readouterr().err == ""


def test_one_folder_keeps_its_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = read_datasets([dataset(tmp_path / "a", 4, fps=25.0, kind="normal", videos=videos_of(30, 30))])[3]
    assert meta["fps"] == 25 and meta["kind"] == "normal" and meta["label_kinds"] == {"rise": "normal", "sink": "normal"}
    assert capsys.readouterr().err == ""


# training


def test_files_beside_the_checkpoint_stay(tmp_path: Path) -> None:
    mine = tmp_path / "m/checkpoint/thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (mine.parent / "weights.pt").write_bytes(b"mine")
    (mine.parent / ".tmp-0123456789ab.pt").write_bytes(b"half a checkpoint")
    data = dataset(tmp_path / "d")
    trained(tmp_path, data)
    assert sorted(p.name for p in mine.parent.iterdir()) == ["thesis.txt", "weights.pt"]
    trained(tmp_path, data, save=tmp_path / "n.pt")
    assert not (tmp_path / "n/checkpoint").exists() and (tmp_path / "n/run.json").exists()


@pytest.mark.parametrize("asked", [{"balance": True}, {"ema": 0.9}, {"resume": True}])
def test_minirocket_refuses_what_it_would_ignore(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(SuiteError, match=f"E301.*--{next(iter(asked))}"):
        trained(tmp_path, dataset(tmp_path / "d"), model="minirocket", **asked)
    assert not list(tmp_path.glob("m*"))


def test_minirocket_stores_what_it_used(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d")
    trained(tmp_path, data, model="minirocket")
    kept = load_pt(tmp_path / "m.pt")
    assert set(kept["config"]) == {"seed", "val_ratio", "model"} and "best_epoch" not in kept["metrics"]
    assert kept["metrics"]["penalty"] > 0 and "penalty" in kept["metrics"]["note"] and "epoch" not in kept["metrics"]["note"]
    page = (tmp_path / "m/report.html").read_text()
    assert "best epoch" not in page and "The penalty and the thresholds were chosen" in page
    trained(tmp_path, data, save=tmp_path / "l.pt", ema=0.9, balance=True)
    kept = load_pt(tmp_path / "l.pt")
    assert kept["config"]["ema"] == 0.9 and kept["config"]["balance"] is True and kept["config"]["epochs"] == 1
    assert kept["metrics"]["best_epoch"] == 1 and "epoch" in kept["metrics"]["note"]
    assert "The best epoch and the thresholds were chosen" in (tmp_path / "l/report.html").read_text()


def test_a_larger_minirocket_goes_through_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ai_suite.behavior.train.SOLVED", 10)
    trained(tmp_path, dataset(tmp_path / "d"), model="minirocket", ema=0.9)
    kept = load_pt(tmp_path / "m.pt")
    assert kept["config"]["ema"] == 0.9 and "best_epoch" in kept["metrics"]


def test_a_threshold_that_nothing_chose_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = dataset(tmp_path / "d", rare=True)
    answer = trained(tmp_path, data)
    (note,) = answer["metrics"]["notes"]
    assert "'rise'" in note and answer["thresholds"][answer["labels"].index("rise")] == 0.5 and note in capsys.readouterr().err
    assert load_pt(tmp_path / "m.pt")["metrics"]["notes"] == [note]
    assert "its threshold is 0.5" in (tmp_path / "m/report.html").read_text()
    assert trained(tmp_path, dataset(tmp_path / "e"))["metrics"]["notes"] == []


def test_an_older_onnx_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = dataset(tmp_path / "d")
    trained(tmp_path, data, export_onnx=True)
    trained(tmp_path, data)
    assert "belongs to another model" not in capsys.readouterr().err, "the same seed gives the same model"
    trained(tmp_path, data, seed=1)
    assert "m.onnx belongs to another model" in capsys.readouterr().err
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    trained(tmp_path, data)
    assert "m.onnx belongs to another model" in capsys.readouterr().err


# tests


def test_a_model_that_does_not_say_its_videos(tmp_path: Path) -> None:
    data, test = dataset(tmp_path / "d"), dataset(tmp_path / "t", prefix="t")
    trained(tmp_path, data)
    kept = load_pt(tmp_path / "m.pt")
    for n, metrics in enumerate(({}, None, {"split": []}, {"split": {"train": ["v0"]}})):
        old = save_pt(tmp_path / f"old{n}.pt", kept | {"metrics": metrics})
        assert load_model(old)[1]["labels"] == ["rise", "sink"]
        with pytest.raises(SuiteError, match="E200.*train-lstm-model"):
            evaluate(old, [data], test, n=10)
    save_pt(tmp_path / "none.pt", {k: v for k, v in kept.items() if k != "metrics"})
    with pytest.raises(SuiteError, match="E200"):
        split_of(tmp_path / "none.pt")
    assert split_of(tmp_path / "m") == split_of(tmp_path / "m.pt")


def test_a_test_set_of_other_windows(tmp_path: Path) -> None:
    data = dataset(tmp_path / "d")
    trained(tmp_path, data)
    for name, other in {"window_size": {"frames": 11}, "feature_names": {"feature_names": list("xyz")}}.items():
        with pytest.raises(SuiteError, match=f"E203.*{name}"):
            evaluate(tmp_path / "m.pt", [data], dataset(tmp_path / name, prefix="t", **other), n=10)
    assert evaluate(tmp_path / "m.pt", [data], dataset(tmp_path / "t", prefix="t"), n=10)["videos"] == 6
