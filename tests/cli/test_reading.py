"""Options for files that can be interpreted in more than one way, from the command line to the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from commands import Capture, Medunet, sets
from monai.bundle import ConfigParser
from small import SMALL_3D, narrow, untrained_run

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
CHOSEN: dict[str, Any] = {"series_uid": "1.2.3", "phase": 1, "uneven": "resample", "tilt": "resample"}
CHOSEN |= {"form": "pixdim", "fill_value": -1024.0, "skip_unreadable": True}


def test_each_read_option_is_a_command_line_option_and_a_config_id() -> None:
    assert set(READING) == set(READING_IDS) == set(CHOSEN)
    assert ReadOptions(**CHOSEN).chosen == CHOSEN
    assert ReadOptions(channels=3, spatial_dims=2).chosen == {}


@pytest.mark.parametrize("bundle", shipped_bundles())
def test_read_options_reach_every_reader_of_every_shipped_bundle(bundle: str, tmp_path: Path) -> None:
    folder = specialise(find_bundle(bundle), tmp_path / "own", CHOSEN)
    count = 0
    for workflow in ("train", "evaluate", "inference"):
        config = ConfigParser()
        config.read_config(str(folder / "configs" / f"{workflow}.json"))
        for key in ("preprocessing", "train::preprocessing", "validate::preprocessing"):
            if key in config:
                readers = config.get_parsed_content(key).transforms[0]._loader.readers
                options = [reader.options.chosen for reader in readers if isinstance(reader, MedunetReader)]
                assert options == [CHOSEN]
                count += 1
    assert count == 4


@pytest.mark.parametrize(("name", "value"), [("phase", "one"), ("fill_value", "zero"), ("series_uid", 1.2)], ids=str)
def test_values_of_another_type_are_rejected(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        ReadOptions(**{name: value})


def test_a_chosen_series_is_predicted_and_written_as_dicom_seg(
    tmp_path: Path, make_series: Callable[..., Path], medunet: Medunet, capsys: Capture
) -> None:
    pytest.importorskip("highdicom")
    folder, run, out = tmp_path / "ct", untrained_run(tmp_path / "run"), tmp_path / "out"
    for uid in ("1.2.3.4", "1.2.3.5"):
        make_series(folder, series_uid=uid)
    assert medunet("predict", run, folder, "-o", out, "--uneven", "guess") == 2
    assert "'guess' is not one of 'refuse', 'resample'" in capsys.readouterr().err
    assert medunet("predict", run, folder, "-o", out) == 3
    assert "--series-uid 1.2.3.4" in capsys.readouterr().err
    assert medunet("predict", run, folder, "-o", out, "--series-uid", "1.2.3.5") == 0
    (result,) = out.glob("*.dcm")
    grid = read_header(folder, series_uid="1.2.3.5").geometry
    assert read_label(result, reference=grid).image.shape[1:] == grid.shape
    (reference,) = pydicom.dcmread(result).ReferencedSeriesSequence
    assert reference.SeriesInstanceUID == "1.2.3.5"
    predictor = Predictor(run, output_dir=out, read=ReadOptions(series_uid="1.2.3.4"), ensemble=[run])
    assert predictor.decide(folder)["pred"].shape[1:] == (23, 19, 6)


def test_a_read_option_applies_to_planning_training_evaluation_and_prediction(tmp_path: Path, medunet: Medunet) -> None:
    data, planned = tmp_path / "data", tmp_path / "planned"
    write_phantom_dataset(data, kind="ct", cases=3, size=(32, 32, 24))
    for path in (data / "imagesTr").iterdir():
        image = nib.load(path)
        voxels = image.get_fdata(dtype=np.float32)
        voxels[3, 4, 5] = np.nan
        nib.Nifti1Image(voxels, image.affine).to_filename(path)
    assert medunet("check", data) == 4
    assert medunet("check", data, "--fill-value", "-1024") == 0
    assert medunet("plan", data, "-o", planned, "--estimate") == 2
    assert medunet("plan", data, "-o", planned, "--estimate", "--fill-value", "-1024") == 0
    short = {"epochs": 1, "steps_per_epoch": 1, "val_interval": 1, "batch_size": 1}
    run = train_bundle(planned, data, tmp_path / "run", changes=narrow(planned, **short), tracking_uri="").run
    assert evaluate_bundle(run, data, tmp_path / "evaluation")["cases"] == 1
    assert medunet("predict", run, data / "imagesTr", "-o", tmp_path / "out") == 0
    assert medunet("report", run, "--no-figures") == 0
    strict = Predictor(run, output_dir=tmp_path / "strict", overrides={"fill_value": None})
    assert all("NaN" in str(result.error) for result in strict.predict(list((data / "imagesTr").iterdir())))
    # a shipped bundle takes the choice by its id
    words = ["train", "unet_3d", "--data", data, "--no-tracking", *sets({**SMALL_3D, **short})]
    assert medunet(*words, "--output", tmp_path / "without") == 2
    assert medunet(*words, "--output", tmp_path / "own", "--set", "fill_value=-1024") == 0
    assert json.loads((tmp_path / "own" / "configs" / "inference.json").read_text())["fill_value"] == -1024
