"""A data set of DICOM alone trains, is evaluated and predicted without conversion, by the shipped configs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from small import SMALL_3D

from medunet.bundle import find_bundle
from medunet.datasets import open_dataset
from medunet.errors import GeometryError, find_cause
from medunet.io import label_names, read_header, read_label, write_volume
from medunet.io.dicom.references import read_planes, save_dataset
from medunet.io.dicom.rtstruct import make_rtstruct
from medunet.io.dicom.seg import make_dicom_seg
from medunet.io.segments import as_segments
from medunet.prediction import Predictor
from medunet.runs import evaluate_bundle, train_bundle

pytestmark = pytest.mark.filterwarnings("ignore")
LABELS = {"background": 0, "kidney": 1, "liver": 2}
SMALL = {**SMALL_3D, "patch_size": [16, 16, 8], "epochs": 1, "batch_size": 1, "tracking_uri": ""}


def test_dicom_alone_trains_evaluates_and_predicts(tmp_path: Path, make_series: Callable[..., Path]) -> None:
    pytest.importorskip("highdicom")
    data = tmp_path / "data"
    voxels = np.zeros((23, 19, 6), np.uint8)
    voxels[3:12, 4:15, 1:5] = 1
    voxels[14:20, 4:12, 0:5] = 2
    for name, make in (("a", make_dicom_seg), ("b", make_dicom_seg), ("c", make_rtstruct)):
        header = read_header(make_series(data / name / "ct"))
        planes = read_planes(header.frames, header.geometry)
        label = make(voxels, as_segments(LABELS), planes, algorithm={"name": "reader one", "version": "1"})
        save_dataset(label, data / name / "label.dcm", implicit=name == "c")
    run = train_bundle(find_bundle("unet_3d"), data, tmp_path / "run", changes=SMALL).run
    assert evaluate_bundle(run, data, tmp_path / "evaluation")["cases"] == 1
    written = Predictor(run, output_dir=tmp_path / "out").predict_case(data / "a" / "ct")
    assert written.suffix == ".dcm"
    result = read_label(written, reference=data / "a" / "ct", labels=open_dataset(data).labels)
    assert result.image.shape == (1, 23, 19, 6)
    assert set(label_names(written) or ()) <= set(LABELS)


def test_the_configs_reject_a_label_on_another_grid(tmp_path: Path) -> None:
    """`python -m monai.bundle` does not check the data set first, as `medunet train` does."""
    voxels = np.zeros((17, 18, 19), np.uint8)
    voxels[4:9] = 1
    affine, moved = np.diag([2.0, 2.0, 2.0, 1.0]), np.diag([2.0, 2.0, 2.0, 1.0])
    moved[:3, 3] = 3.0  # mm
    for name, label_affine in (("a", affine), ("b", moved)):
        write_volume(voxels.astype(np.float32), tmp_path / "images" / f"{name}.nii.gz", affine=affine)
        write_volume(voxels, tmp_path / "labels" / f"{name}.nii.gz", affine=label_affine)
    parser = ConfigParser()
    parser.read_config(str(find_bundle("unet_3d") / "configs" / "train.json"))
    parser.update({"dataset_dir": str(tmp_path), "label_values": [0, 1], "label_names": ["background", "x"]})
    parser.update({"train::preprocessing::transforms": "$[@steps#load, @steps#load_label]", "folds": 2})
    with pytest.raises(RuntimeError) as info:
        parser.get_parsed_content("train::dataset").prepare()
    error = find_cause(info.value)
    assert isinstance(error, GeometryError)
    assert "b.nii.gz" in str(error)
