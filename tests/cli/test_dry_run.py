"""`medunet train` without a bundle, and `--dry-run`, as a user types them."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from commands import Capture, Medunet, sets
from small import narrow, untrained_run

from medunet.bundle import plan_once
from medunet.planning.probe import StepCost

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def measured_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step need not be tried to test what is done with its plan."""
    cost = StepCost(fits=True, peak_bytes=1 << 29, step_seconds=0.1, data_seconds=0.05, image_seconds=0.1)
    module = importlib.import_module("medunet.planning.plan")  # the package has a function of this name
    monkeypatch.setattr(module, "measure_step", lambda *_, **__: cost)


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_train_without_a_bundle_plans_once_and_a_dry_run_writes_nothing(
    cells: Path, tmp_path: Path, medunet: Medunet, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", cells, "--device", "cpu"]
    assert medunet(*words, "--dry-run") == 0
    printed = capsys.readouterr()
    assert not list(tmp_path.iterdir())
    assert f"planning runs/{cells.name}_plan" in printed.err
    assert "fold 0: 3 cases for training, 1 for validation" in printed.out
    assert "time: " in printed.out

    plan = tmp_path / "runs" / f"{cells.name}_plan"
    assert plan_once(cells, plan, device="cpu")
    before = files(tmp_path)
    small = sets({**narrow(plan), "tracking_uri": ""})
    assert medunet(*words, *small) == 0
    assert f"using the plan runs/{cells.name}_plan" in capsys.readouterr().err
    assert files(plan) == {path: time for path, time in before.items() if plan in path.parents}
    assert medunet(*words, *small, "--epochs", 2, "--resume") == 0
    history = json.loads((tmp_path / "runs" / f"{cells.name}_fold0" / "eval" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    capsys.readouterr()

    before = files(tmp_path)
    assert medunet(*words, "--folds", "all", "--dry-run", "--epochs", 3) == 0
    printed = capsys.readouterr().out
    assert [line[:7] for line in printed.splitlines()[:4]] == [f"fold {fold}:" for fold in range(4)]
    assert "3 epochs" in printed
    assert "time: " not in printed  # the plan's time is for other steps
    assert medunet(*words, "--dry-run") == 2  # as without --dry-run: the folder has a trained run
    assert medunet(*words, "--time", "1h", "--output", "runs/b", "--dry-run") == 2
    assert "a plan with other options" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_plan_of_other_cases_is_not_reused(cells: Path, tmp_path: Path, medunet: Medunet, capsys: Capture) -> None:
    data = shutil.copytree(cells, tmp_path / "data")
    plan_once(data, tmp_path / "data_plan", device="cpu")
    manifest = json.loads((data / "dataset.json").read_text())
    manifest["training"] = manifest["training"][1:]
    (data / "dataset.json").write_text(json.dumps(manifest))
    words = ["train", "--data", data, "--output", tmp_path / "run", "--device", "cpu"]
    assert medunet(*words, "--dry-run") == 2
    assert "a plan for other cases" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["train unet_2d --time 1h", "train unet_2d --memory 8GB", "train --nnodes 2"])
def test_options_of_the_plan_need_a_plan(words: str, cells: Path, medunet: Medunet, capsys: Capture) -> None:
    assert medunet(*words.split(), "--data", cells) == 2
    assert "bundle" in capsys.readouterr().err


def test_a_dry_run_of_plan_prints_decisions_and_writes_nothing(
    cells: Path, tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    words = ["plan", cells, "--output", tmp_path / "plan", "--estimate", "--device", "cpu", "--dry-run"]
    assert medunet(*words) == 0
    assert "patch_size" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_predict_lists_what_the_command_writes(
    cells: Path, tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    run, out = untrained_run(tmp_path / "run", bundle="unet_2d"), tmp_path / "out"
    images = sorted((cells / "imagesTs").iterdir())
    assert medunet("predict", run, images[0], "--output", out) == 0
    weights = (run / "models" / "model.pt").rename(tmp_path / "away.pt")  # a dry run needs none
    (run / "models" / "model.safetensors").unlink(missing_ok=True)
    before, words = files(tmp_path), ["predict", run, cells / "imagesTs", "--output", out, "--dry-run"]
    capsys.readouterr()
    for options, action in (([], "fail"), (["--skip-existing"], "skip"), (["--force"], "replace")):
        assert medunet(*words, *options) == 0
        lines = capsys.readouterr().out.splitlines()
        expected = [f"{image} -> {out / image.name}" for image in images]
        assert lines[:2] == [f"{expected[0]}  {action}", f"{expected[1]}  write"]
    assert files(tmp_path) == before
    weights.rename(run / "models" / "model.pt")
    assert medunet("predict", run, cells / "imagesTs", "--output", out, "--skip-existing") == 0
    assert {path.name for path in out.iterdir()} == {image.name for image in images}
