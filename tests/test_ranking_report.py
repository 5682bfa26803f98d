"""The report of a ranking: a page from figures, and plots that mark what they should."""

import numpy as np
import pytest

from ai_suite.core.errors import SuiteError
from ai_suite.core.report import Report
from ai_suite.ranking.report import figures, gallery, plot_calibration, plot_losses, report

TOLD = {"pairwise_accuracy": .9, "ci_low": .8, "ci_high": .95, "n_pairs": 50, "n_images": 12, "split": "test",
        "baselines": {"chance": {"pairwise_accuracy": .5}}, "auc_per_tier": {"above 0": .97},
        "per_gap": {"1": {"accuracy": .75, "ci_low": None, "ci_high": None, "n_pairs": 20}}}


def test_the_figures_stand_beside_chance(tmp_path):
    figures(Report("page"), TOLD).save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert all(word in text for word in ("90.0 %", "80.0 % to 95.0 %", "50.0 %", "75.0 %", "above 0"))


def test_the_gallery_shows_names_and_no_paths_and_none_twice(tmp_path):
    from PIL import Image

    files = [f"방 {k % 2}/그림 {k}.png" for k in range(5)]
    for k, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 40 * k, np.uint8)).save(tmp_path / name)
    (tmp_path / files[4]).unlink()
    gallery(Report("page"), tmp_path, files, np.arange(5.), ["test"] * 5).save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert text.count("data:image/jpeg") == 3 and "gone" in text and str(tmp_path) not in text
    assert "그림 2" not in text and text.index("방 0/그림 4") < text.index("방 0/그림 0")


def test_the_chosen_epoch_is_marked():
    rows = [{"head": "0", "epoch": str(e), "train_loss": "", "valid_loss": str(v)} for e, v in enumerate((3., 1., 2.))]
    mark = plot_losses(rows, [1]).axes[0].lines[-1]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (1, 1.)
    assert len(plot_calibration([{"predicted": .5, "observed": .4, "pairs": 3}]).axes[0].lines) == 2


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(SuiteError, match="E200|run.json"):
        report(run=str(tmp_path), data_dir=str(tmp_path), output=str(tmp_path / "page.html"))


def test_a_training_leaves_a_report_that_can_be_written_again(tmp_path):
    import pandas as pd
    from PIL import Image

    from ai_suite.core.runs import check_run
    from ai_suite.image.degrade import degrade
    from ai_suite.ranking.learn import train

    rng, rows = np.random.default_rng(0), []
    for k in range(12):
        flat = np.kron(rng.integers(0, 255, (6, 6, 3)), np.ones((20, 20, 1))).astype(np.uint8)
        for tier in range(3):
            rows.append((f"작품 {k}-{tier}.png", tier, k))
            Image.fromarray(degrade(flat, "blur", 4 - 2 * tier, k)).save(tmp_path / rows[-1][0])
    pd.DataFrame(rows, columns=["filename", "tier", "group"]).to_csv(tmp_path / "known.csv", index=False)
    small = {"metadata": str(tmp_path / "known.csv"), "encoder": "efficientnet_lite0", "img_size": 64, "epochs": 2, "members": 1,
             "train_ratio": .5, "val_ratio": .2, "test_ratio": .3, "device": "cpu"}
    run = str(tmp_path / "run")
    told = train(data_dir=str(tmp_path), output_dir=run, **small)
    assert told["report"] == str(tmp_path / "run/report.html") and "report.html" in check_run(run)["files"]
    text = (tmp_path / "run/report.html").read_text("utf-8")
    assert "작품" in text and "suite-hangul" in text and str(tmp_path) not in text
    (tmp_path / rows[0][0]).unlink()
    again = report(run=run, data_dir=str(tmp_path), output=str(tmp_path / "page.html"), device="cpu")
    assert again["missing"] == [rows[0][0]] and again["images"] == 35
    assert train(data_dir=str(tmp_path), output_dir=str(tmp_path / "plain"), report=False, **small)["report"] is None
    assert not (tmp_path / "plain/report.html").exists()
