"""Options for files that can be interpreted in more than one way, from the command line to the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.bundle import ConfigParser
from small import untrained_run

from medunet.bundle import find_bundle, specialise
from medunet.cli.options import READING
from medunet.datasets import write_phantom_dataset
from medunet.errors import ConfigError
from medunet.io import MedunetReader, ReadOptions, read_header, read_label
from medunet.io.options import READING_IDS
from medunet.prediction import Predictor
from medunet.resources import shipped_bundles
from medunet.runs import evaluate_bundle, train_bundle

pytestmark = pytest.mark.filterwarnings("ignore")

CHOSEN: dict[str, Any] = {
    "series_uid": "1.2.3",
    "phase": 1,
    "uneven": "resample",
    "tilt": "resample",
    "form": "pixdim",
    "fill_value": -1024.0,
    "skip_unreadable": True,
}


def readers(config: ConfigParser) -> Iterator[MedunetReader]:
    for key in ("preprocessing", "train::preprocessing", "validate::preprocessing"):
        if key in config:
            loader = config.get_parsed_content(key).transforms[0]._loader
            yield from (reader for reader in loader.readers if isinstance(reader, MedunetReader))


def test_each_choice_of_a_user_is_an_option_of_the_commands_and_an_id() -> None:
    assert set(READING) == set(READING_IDS) == set(CHOSEN)
    assert ReadOptions(**CHOSEN).chosen == CHOSEN
    assert ReadOptions(channels=3, spatial_dims=2).chosen == {}


@pytest.mark.parametrize("workflow", ["train", "evaluate", "inference"])
@pytest.mark.parametrize("bundle", shipped_bundles())
def test_ids_reach_the_reader_of_every_shipped_bundle(bundle: str, workflow: str, tmp_path: Path) -> None:
    folder = specialise(find_bundle(bundle), tmp_path / "own", CHOSEN)
    config = ConfigParser()
    config.read_config(str(folder / "configs" / f"{workflow}.json"))
    found = [reader.options.chosen for reader in readers(config)]
    assert found
    assert all(chosen == CHOSEN for chosen in found)


@pytest.mark.parametrize(
    ("choice", "said"),
    [({"phase": "one"}, "phase"), ({"fill_value": "zero"}, "fill_value"), ({"series_uid": 1.2}, "series_uid")],
)
def test_values_of_another_type_are_rejected(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said} must be"):
        ReadOptions(**choice)


@pytest.fixture
def two_kernels(tmp_path: Path, make_series: Callable[..., Path]) -> Path:
    for uid in ("1.2.3.4", "1.2.3.5"):
        make_series(tmp_path / "ct", series_uid=uid)
    return tmp_path / "ct"


def test_a_chosen_series_is_predicted_and_written_as_dicom_seg(
    two_kernels: Path, tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("highdicom")
    run, out = untrained_run(tmp_path / "run"), tmp_path / "out"
    assert medunet("predict", run, two_kernels, "-o", out, "--uneven", "guess") == 2
    assert "unknown uneven (received guess, expected refuse, resample)" in capsys.readouterr().err
    assert medunet("predict", run, two_kernels, "-o", out) == 3
    assert "--series-uid 1.2.3.4" in capsys.readouterr().err
    assert medunet("predict", run, two_kernels, "-o", out, "--series-uid", "1.2.3.5") == 0
    (result,) = out.glob("*.dcm")
    grid = read_header(two_kernels, series_uid="1.2.3.5").geometry
    assert read_label(result, reference=grid).image.shape[1:] == grid.shape
    (reference,) = pydicom.dcmread(result).ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == "1.2.3.5"


def test_a_predictor_reads_as_it_is_told(two_kernels: Path, tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run")
    predictor = Predictor(run, output_dir=tmp_path / "out", read=ReadOptions(series_uid="1.2.3.4"), ensemble=[run])
    assert predictor.decide(two_kernels)["pred"].shape[1:] == (23, 19, 6)


@pytest.fixture
def with_nan(tmp_path: Path) -> Path:
    """Three labelled volumes, each with one NaN voxel."""
    write_phantom_dataset(tmp_path / "data", kind="ct", cases=3, size=(32, 32, 24))
    for path in (tmp_path / "data" / "imagesTr").iterdir():
        image = nib.load(path)
        voxels = image.get_fdata(dtype=np.float32)
        voxels[3, 4, 5] = np.nan
        nib.Nifti1Image(voxels, image.affine).to_filename(path)
    return tmp_path / "data"


def test_a_choice_made_for_a_plan_holds_for_training_evaluation_and_prediction(
    with_nan: Path, tmp_path: Path, medunet: Callable[..., int]
) -> None:
    planned = tmp_path / "planned"
    assert medunet("check", with_nan) == 4
    assert medunet("check", with_nan, "--fill-value", "-1024") == 0
    assert medunet("plan", with_nan, "-o", planned, "--estimate") == 2
    assert medunet("plan", with_nan, "-o", planned, "--estimate", "--fill-value", "-1024") == 0
    short = {"epochs": 1, "steps_per_epoch": 1, "val_interval": 1, "batch_size": 1}
    run = train_bundle(planned, with_nan, tmp_path / "run", changes=short, tracking_uri="").run
    assert evaluate_bundle(run, with_nan, tmp_path / "evaluation")["cases"] == 1
    assert medunet("predict", run, with_nan / "imagesTr", "-o", tmp_path / "out") == 0
    assert medunet("report", run, "--no-figures") == 0
    strict = Predictor(run, output_dir=tmp_path / "strict", overrides={"fill_value": None})
    assert all("NaN" in str(result.error) for result in strict.predict(list((with_nan / "imagesTr").iterdir())))


def test_training_takes_a_choice_by_its_id(with_nan: Path, tmp_path: Path, medunet: Callable[..., int]) -> None:
    small = ["network_def::channels=[4,8]", "patch_size=[16,16,16]", "epochs=1", "steps_per_epoch=1", "batch_size=1"]
    words = ["train", "unet_3d", "--data", with_nan, "--tracking-uri", ""]
    words += [word for value in small for word in ("--set", value)]
    assert medunet(*words, "--output", tmp_path / "without") == 2
    assert medunet(*words, "--output", tmp_path / "run", "--set", "fill_value=-1024") == 0
    assert json.loads((tmp_path / "run" / "configs" / "inference.json").read_text())["fill_value"] == -1024
