"""The command line, as a user types it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medunet.cli.app import main
from medunet.config import parse_settings
from medunet.datasets import open_dataset
from medunet.errors import ConfigError
from medunet.io import read_volume, write_volume

# MONAI and ignite warn about themselves; the command line silences them in its own process
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ["--set", "network_def::channels=[4,8]", "--set", "steps_per_epoch=2", "--set", "batch_size=2"]
SMALL_2D = [*SMALL, "--set", "patch_size=[32,32]", "--set", "val_interval=1"]


MISTYPED = (
    "predict nosuch . -o new",
    "predict unet_3d nosuch -o new",
    "predict unet_3d . -o new --ensemble nosuch",
    "predict unet_3d . -o new --set x",
    "predict unet_3d . -o file",
    "train nosuch --data .",
    "train unet_3d --data nosuch",
    "train unet_3d --data . --output other",
    "train unet_3d --data . --folds all --output other",
    "train unet_3d --data . --init-from nosuch",
    "train unet_3d --data . --set x",
    "tune unet_3d --data nosuch --trials 1 --set-range epochs=1|2",
    "plan nosuch -o new",
    "plan . -o other",
    "plan . -o new --dims 4",
    "check nosuch",
    "evaluate nosuch --data .",
    "evaluate unet_3d --data nosuch",
    "evaluate --pred nosuch --ref .",
    "evaluate",
    "report nosuch",
    "bundle init nosuch -o new",
    "bundle init unet_3d -o other",
    "bundle export nosuch --to onnx -o new",
    "bundle package nosuch -o new",
    "bundle verify nosuch",
    "label nosuch",
)
"""Each rejected for its words alone, by a typed error in one line."""


def test_help_and_the_rejection_of_mistyped_words_import_no_pytorch(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").touch()
    (tmp_path / "file").touch()
    script = "import sys\nfrom medunet.cli.app import main\n"
    script += f"for words in {('--help', *MISTYPED)}:\n    sys.argv = ['medunet', *words.split()]\n    try: main()\n"
    script += "    except SystemExit as end: assert end.code == (0 if words == '--help' else 2), words\n"
    script += "    else: assert False, words\n"
    script += "    assert not {'torch', 'monai', 'numpy'} & set(sys.modules), words\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(MISTYPED)
    assert all(line.startswith("error ") for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == {"other", "file"}


def test_plan_says_why_and_its_bundle_trains(
    cells: Path, tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path / "cache"))
    bundle = tmp_path / "planned"
    assert medunet("plan", cells, "--output", bundle, "--estimate", "--device", "cpu") == 0
    out = capsys.readouterr().out
    for word in ("patch_size", "augment::deform::flip_axes", f"medunet train {bundle}"):
        assert word in out
    assert list((tmp_path / "cache" / "fingerprints").glob("*/*.json"))
    levels = len(json.loads((bundle / "configs" / "train.json").read_text())["network_def"]["channels"])
    narrow = ["--set", f"network_def::channels={[4] * levels}", "--set", "steps_per_epoch=2", "--tracking-uri", ""]
    assert medunet("train", bundle, "--data", cells, "--output", tmp_path / "run", "--epochs", 1, *narrow) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--dims", "4"], "dims"), (["--time", "soon"], "duration"), (["--memory", "much"], "memory size")],
)
def test_plan_refuses_what_it_cannot_understand(
    tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert medunet("plan", tmp_path, "--output", tmp_path / "planned", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "planned").exists()


def test_a_run_is_a_bundle_with_weights_history_and_tracking(run_2d: Path) -> None:
    names = {path.relative_to(run_2d).as_posix() for path in run_2d.rglob("*") if path.is_file()}
    assert {"configs/train.json", "configs/inference.json", "LICENSE", "docs/README.md"} <= names
    assert {"models/model.pt", "models/last.pt", "eval/history.json"} <= names
    assert (run_2d.parent / "mlruns.db").is_file()  # one store for all runs of a folder


def test_resuming_with_more_to_do_goes_on(
    run_2d: Path, cells: Path, tmp_path: Path, medunet: Callable[..., int]
) -> None:
    start = shutil.copytree(run_2d, tmp_path / "start")
    options = ["--data", cells, "--output", tmp_path / "run", "--epochs", 2, *SMALL_2D, "--init-from", start]
    options += ["--tracking-uri", ""]
    assert medunet("train", "unet_2d", *options) == 0
    shutil.rmtree(start)  # it was needed for the first step alone
    # as after a crash between the epochs: the second is lost, the first is whole
    last = torch.load(tmp_path / "run" / "models" / "last.pt", weights_only=True)
    assert last["epoch"] == 2
    assert medunet("train", "unet_2d", *options, "--resume") == 0
    history = json.loads((tmp_path / "run" / "eval" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]


def test_a_trained_run_is_not_overwritten(run_2d: Path, cells: Path, medunet: Callable[..., int], capsys) -> None:
    before = (run_2d / "models" / "model.pt").read_bytes()
    code = medunet("train", "unet_2d", "--data", cells, "--output", run_2d, "--epochs", 1, *SMALL_2D)
    assert code == 2
    assert "--resume" in capsys.readouterr().err
    assert (run_2d / "models" / "model.pt").read_bytes() == before


def test_predictions_bear_the_input_names_and_the_values_of_the_data(
    run_2d: Path, cells: Path, tmp_path: Path, medunet: Callable[..., int]
) -> None:
    inputs = sorted((cells / "imagesTr").iterdir())[:2]
    assert medunet("predict", run_2d, *inputs, "--output", tmp_path, "--probabilities") == 0
    for image in inputs:
        label = read_volume(tmp_path / image.name).image
        probabilities = np.load(tmp_path / f"{image.stem}_prob.npy")
        assert set(np.unique(label)) <= {0, 255}
        assert probabilities.shape == (2, 48, 48)
        np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
        # the label is the class that is most probable
        np.testing.assert_array_equal(np.asarray(label[0]) > 0, probabilities[1] > probabilities[0])


def test_evaluate_writes_a_row_a_case_and_the_em_scores(
    run_2d: Path, cells: Path, tmp_path: Path, medunet: Callable[..., int]
) -> None:
    assert medunet("evaluate", run_2d, "--data", cells, "--section", "all", "--output", tmp_path) == 0
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    summary = json.loads((tmp_path / "metrics.json").read_text())["summary"]
    assert 0 <= summary["em"]["v_rand"]["mean"] <= 1
    # the same files measured as two folders give the same Dice
    assert (
        medunet("evaluate", "--pred", tmp_path / "predictions", "--ref", cells / "labelsTr", "-o", tmp_path / "b") == 0
    )
    again = json.loads((tmp_path / "b" / "metrics.json").read_text())["summary"]
    assert again["mean_dice"] == summary["mean_dice"]


def test_predictions_of_a_volume_lie_on_the_source_grid(tmp_path: Path, medunet: Callable[..., int]) -> None:
    # axes L, P, S at 2 x 1.5 x 3 mm: reorientation and resampling must both be undone
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        label = np.zeros((30, 33, 17), np.uint8)
        label[8:20, 10:22, 5:12] = 4
        image = label * 50.0 + rng.normal(size=label.shape)
        write_volume(image.astype(np.float32), tmp_path / "data" / "images" / f"{name}.nii.gz", affine=affine)
        write_volume(label, tmp_path / "data" / "labels" / f"{name}.nii.gz", affine=affine)
    settings = [*SMALL, "--set", "patch_size=[16,16,16]", "--set", "spacing_mm=[2,2,2]", "--epochs", 1]
    settings += ["--tracking-uri", ""]
    run = tmp_path / "run"
    assert medunet("train", "unet_3d", "--data", tmp_path / "data", "--output", run, *settings) == 0
    assert medunet("predict", run, tmp_path / "data" / "images", "-o", tmp_path / "out", "--probabilities") == 0
    for name in ("a", "b", "c"):
        pred = read_volume(tmp_path / "out" / f"{name}.nii.gz")
        assert pred.record.geometry.shape == (30, 33, 17)
        np.testing.assert_allclose(pred.record.geometry.affine, affine, atol=1e-5)
        assert set(np.unique(pred.image)) <= {0, 4}
        assert read_volume(tmp_path / "out" / f"{name}_prob.nii.gz", channels=2).image.shape == (2, 30, 33, 17)


def test_one_broken_image_does_not_stop_the_others(
    run_2d: Path, cells: Path, tmp_path: Path, medunet: Callable[..., int], capsys
) -> None:
    good = sorted((cells / "imagesTr").iterdir())[0]
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:100])
    assert medunet("predict", run_2d, broken, good, "-o", tmp_path / "out") == 3
    assert (tmp_path / "out" / good.name).is_file()
    error = capsys.readouterr().err
    assert "broken.png" in error
    assert "Traceback" not in error


class TestBadInput:
    """One line with file, cause and remedy; exit code 2; no traceback."""

    @pytest.fixture
    def refused(self, medunet: Callable[..., int], capsys) -> Callable[..., str]:
        def run(*words: object) -> str:
            assert medunet(*words) == 2
            error = capsys.readouterr().err
            lines = [line for line in error.splitlines() if line.strip()]
            assert "Traceback" not in error
            assert sum(line.startswith("error") for line in lines) == 1
            return next(line for line in lines if line.startswith("error"))

        return run

    @pytest.fixture
    def data(self, cells: Path, tmp_path: Path) -> Path:
        for old, new in (("imagesTr", "images"), ("labelsTr", "labels")):
            shutil.copytree(cells / old, tmp_path / "data" / new)
        return tmp_path / "data"

    def train(self, data: Path, tmp_path: Path) -> list[object]:
        return ["train", "unet_2d", "--data", data, "--output", tmp_path / "run", "--epochs", 1, *SMALL_2D]

    def test_image_without_label(self, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        victim = sorted((data / "labels").iterdir())[1]
        victim.unlink()
        assert victim.stem in refused(*self.train(data, tmp_path))

    def test_wrong_label_values(self, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        victim = sorted((data / "labels").iterdir())[1]
        label = np.asarray(read_volume(victim).image[0]).astype(np.uint8)
        label[0, 0] = 77
        write_volume(label, victim)
        settings = ["--set", "label_values=[0,255]", "--set", "label_names=[background,cell]"]
        line = refused(*self.train(data, tmp_path), *settings)
        assert victim.name in line
        assert "77" in line

    def test_different_shapes(self, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        victim = sorted((data / "labels").iterdir())[1]
        write_volume(np.zeros((48, 47), np.uint8), victim)
        assert victim.stem in refused(*self.train(data, tmp_path))

    def test_unreadable_file(self, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        victim = sorted((data / "images").iterdir())[1]
        victim.write_bytes(b"no image")
        assert victim.name in refused(*self.train(data, tmp_path))

    def test_no_such_data(self, tmp_path: Path, refused: Callable[..., str]) -> None:
        assert "nowhere" in refused("train", "unet_2d", "--data", tmp_path / "nowhere")

    def test_unknown_config_key(self, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        line = refused(*self.train(data, tmp_path), "--set", "epoch=3")
        assert "epoch" in line
        assert "epochs" in line

    def test_no_checkpoint_in_the_bundle(self, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        line = refused("predict", "unet_2d", data / "images", "-o", tmp_path / "out")
        assert "no checkpoint" in line
        assert "medunet train" in line
        assert "no checkpoint" in refused("evaluate", "unet_2d", "--data", data)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_cuda_asked_for_and_absent(self, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        assert "--device cpu" in refused(*self.train(data, tmp_path), "--device", "cuda")

    def test_data_of_other_dimensions(self, data: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
        assert "unet_2d" in refused("train", "unet_3d", "--data", data, "--output", tmp_path / "run")

    def test_evaluate_without_anything_to_evaluate(self, refused: Callable[..., str]) -> None:
        assert "--pred DIR --ref DIR" in refused("evaluate")


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["medunet", "train", "unet_2d", "--data", str(tmp_path / "x"), "--debug"])
    with pytest.raises(Exception, match="x"):
        main()


def test_bundle_init_makes_a_bundle_that_verifies(tmp_path: Path, medunet: Callable[..., int], capsys) -> None:
    settings = ["--set", "network_def::channels=[4,8,16]", "--set", "label_names=[background,liver]"]
    settings += ["--set", "label_values=[0,1]"]
    assert medunet("bundle", "init", "unet_3d", "--output", tmp_path / "own", *settings) == 0
    assert medunet("bundle", "verify", tmp_path / "own") == 0
    (tmp_path / "own" / "configs" / "inference.json").unlink()
    assert medunet("bundle", "verify", tmp_path / "own") == 4
    assert "configs/inference.json" in capsys.readouterr().out


def test_settings_are_yaml_numbers_lists_and_expressions() -> None:
    texts = ["a=1e-3", "b=[1, 2e1]", "c=true", "d=$torch.device('cpu')", "e=@x", "f=cpu", "g="]
    parsed = parse_settings(texts)
    assert parsed == {"a": 1e-3, "b": [1, 20.0], "c": True, "d": "$torch.device('cpu')", "e": "@x", "f": "cpu", "g": ""}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_settings(["epochs"])


@pytest.mark.data
def test_real_case_is_predicted_under_its_own_name(
    test_data: Path, tmp_path: Path, medunet: Callable[..., int]
) -> None:
    data = test_data / "Task04_Hippocampus"
    dataset = open_dataset(data)
    settings = ["--epochs", 1, *SMALL, "--set", "patch_size=[16,16,16]", "--tracking-uri", ""]
    # three cases are enough to see real headers, intensities and names
    small = tmp_path / "data"
    for folder in ("images", "labels"):
        (small / folder).mkdir(parents=True)
    for case in dataset.cases[:3]:
        (small / "images" / case.images[0].name).symlink_to(case.images[0])
        (small / "labels" / case.images[0].name).symlink_to(case.label)
    assert medunet("train", "unet_3d", "--data", small, "--output", tmp_path / "run", *settings) == 0
    image = dataset.cases[0].images[0]
    assert medunet("predict", tmp_path / "run", image, "--output", tmp_path / "out") == 0
    pred, source = read_volume(tmp_path / "out" / image.name), read_volume(image)
    assert pred.record.geometry.is_close(source.record.geometry)
    assert set(np.unique(pred.image)) <= {0, 1, 2}
