"""The command line, as a user types it."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Capture, Medunet, sets
from small import SMALL_3D, untrained_run

from medunet.cli.app import main
from medunet.datasets import open_dataset
from medunet.io import read_volume, write_volume

# MONAI and ignite warn about themselves; the command line silences them in its own process
pytestmark = pytest.mark.filterwarnings("ignore")


def test_plan_prints_reasons_and_the_next_command(
    cells: Path, tmp_path: Path, medunet: Medunet, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path / "cache"))
    bundle = tmp_path / "planned"
    for wrong, message in (
        ("--time=soon", "'--time': invalid duration"),
        ("--memory=much", "'--memory': invalid size"),
    ):
        assert medunet("plan", cells, "--output", bundle, wrong) == 2
        assert message in capsys.readouterr().err
    assert not bundle.exists()
    assert medunet("plan", cells, "--output", bundle, "--estimate", "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("patch_size", "augment::deform::flip_axes", f"medunet train {bundle}"))
    assert list((tmp_path / "cache" / "fingerprints").glob("*/*.json"))


def test_evaluate_writes_one_row_per_case_and_the_em_scores(
    run_2d: Path, cells: Path, tmp_path: Path, medunet: Medunet
) -> None:
    assert medunet("evaluate", run_2d, "--data", cells, "--cases", "all", "--output", tmp_path) == 0
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    summary = json.loads((tmp_path / "metrics.json").read_text())["summary"]
    assert 0 <= summary["em"]["v_rand"]["mean"] <= 1
    # the same files compared as two folders give the same Dice
    words = ["--pred", tmp_path / "predictions", "--ref", cells / "labelsTr", "-o", tmp_path / "b"]
    assert medunet("evaluate", *words) == 0
    again = json.loads((tmp_path / "b" / "metrics.json").read_text())["summary"]
    assert again["mean_dice"] == summary["mean_dice"]


def test_predictions_of_a_volume_are_on_the_source_grid(tmp_path: Path, medunet: Medunet) -> None:
    # axes L, P, S at 2 x 1.5 x 3 mm: reorientation and resampling must both be undone
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])
    voxels = np.random.default_rng(0).normal(size=(30, 33, 17)).astype(np.float32)
    write_volume(voxels, tmp_path / "a.nii.gz", affine=affine)
    classes = {"label_values": [0, 4], "label_names": ["background", "liver"]}
    run = untrained_run(tmp_path / "run", spacing_mm=[2, 2, 2], **classes)
    assert medunet("predict", run, tmp_path / "a.nii.gz", "-o", tmp_path / "out", "--probabilities") == 0
    pred = read_volume(tmp_path / "out" / "a.nii.gz")
    assert pred.record.geometry.shape == (30, 33, 17)
    np.testing.assert_allclose(pred.record.geometry.affine, affine, atol=1e-5)
    assert set(np.unique(pred.image)) == {0, 4}
    assert read_volume(tmp_path / "out" / "a_prob.nii.gz", channels=2).image.shape == (2, 30, 33, 17)


def test_incompatible_arguments_are_rejected_in_one_line(
    cells: Path, tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    def error(*words: object) -> str:
        assert medunet(*words) == 2
        text = capsys.readouterr().err
        [line] = [line for line in text.splitlines() if line.startswith("error")]
        assert "Traceback" not in text
        return line

    words = ["--data", cells, "--output", tmp_path / "run"]
    assert "unet_2d" in error("train", "unet_3d", *words)
    assert "epochs" in error("train", "unet_2d", *words, "--set", "epoch=3")
    assert "medunet train" in error("predict", "unet_2d", cells / "imagesTr", "-o", tmp_path / "out")
    assert "checkpoint is missing" in error("evaluate", "unet_2d", "--data", cells)
    if not torch.cuda.is_available():
        assert "--device cpu" in error("train", "unet_2d", *words, "--device", "cuda")


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["medunet", "train", "unet_2d", "--data", str(tmp_path / "x"), "--debug"])
    with pytest.raises(Exception, match="x"):
        main()


def test_bundle_init_makes_a_bundle_that_verifies(tmp_path: Path, medunet: Medunet, capsys: Capture) -> None:
    classes = {"label_names": "[background, liver]", "label_values": [0, 1]}
    settings = sets({"network_def::channels": [4, 8, 16], **classes})
    assert medunet("bundle", "init", "unet_3d", "--output", tmp_path / "own", *settings) == 0
    assert medunet("bundle", "verify", tmp_path / "own") == 0
    (tmp_path / "own" / "configs" / "inference.json").unlink()
    assert medunet("bundle", "verify", tmp_path / "own") == 4
    assert "configs/inference.json" in capsys.readouterr().out


@pytest.mark.data
def test_real_cases_train_and_are_predicted_on_their_grid(test_data: Path, tmp_path: Path, medunet: Medunet) -> None:
    cases = open_dataset(test_data / "Task04_Hippocampus").cases[:3]  # enough to see real headers and intensities
    for case in cases:
        for folder, source in (("images", case.images[0]), ("labels", case.label)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / folder / case.images[0].name).symlink_to(str(source))
    words = ["--data", tmp_path / "data", "--output", tmp_path / "run", *sets(SMALL_3D), "--no-tracking"]
    assert medunet("train", "unet_3d", *words, "--epochs", 1) == 0
    image = cases[0].images[0]
    assert medunet("predict", tmp_path / "run", image, "--output", tmp_path / "out") == 0
    pred, source = read_volume(tmp_path / "out" / image.name), read_volume(image)
    assert pred.record.geometry.is_close(source.record.geometry)
    assert set(np.unique(pred.image)) <= {0, 1, 2}
