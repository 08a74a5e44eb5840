"""Label maps of objects keep every object."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.data import MetaTensor
from PIL import Image

from medunet.errors import DataError
from medunet.io import SavePredictiond, read_volume, write_volume
from medunet.io.objects import object_numbers

LABELS = {"background": 0, "nucleus": 1}


def numbered(count: int) -> np.ndarray:
    """Objects of one pixel, so that none can be lost without notice."""
    label = np.zeros((301, 303), np.int32)
    label[:300].flat[:count] = np.arange(1, count + 1)
    return label


def dtype(count: int, suffix: str) -> str:
    if suffix == ".nii.gz":  # programs read signed integers best
        return "int16" if count < 1 << 15 else "int32"
    return "uint16" if count < 1 << 16 else "uint32"


def save(source: Path, label: np.ndarray, **options: object) -> Path:
    image = read_volume(source).image
    pred = MetaTensor(torch.as_tensor(label[None]), affine=image.affine)
    step = SavePredictiond(output_dir=source.parent / "out", labels=LABELS, instances=True, **options)
    return Path(step({"image": image, "pred": pred})["pred_path"])


@pytest.mark.parametrize("count", [1, 300, 40_000, 70_000])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".nii.gz"])
def test_no_object_is_lost_in_a_file(tmp_path, count, suffix, caplog):
    label = numbered(count)
    path = save(write_volume((label > 0).astype(np.uint8), tmp_path / f"a{suffix}"), label)
    volume = read_volume(path, spatial_dims=2 if suffix != ".nii.gz" else None)
    assert np.array_equal(object_numbers(volume.image.numpy(), path)[0].reshape(label.shape), label)
    assert volume.record.dtype == dtype(count, suffix)
    is_tif = suffix == ".png" and count > 65_535
    assert path.name == ("a.tif" if is_tif else f"a{suffix}")
    assert ("PNG numbers at most 65535 objects" in caplog.text) is is_tif


def test_other_programs_read_the_numbers(tmp_path):
    label = numbered(70_000)
    write_volume(label[:200], tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")).T, label[:200])
    write_volume(label, tmp_path / "a.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "a.tif").T, label)
    with pytest.raises(DataError, match=r"a.png: label values are too large .*70000.*; remedy: write .tif or .nii.gz"):
        write_volume(label, tmp_path / "a.png")


def test_a_volume_of_70000_objects_keeps_them(tmp_path):
    label = np.arange(42 * 41 * 43, dtype=np.int32).reshape(42, 41, 43)
    for suffix in (".nii.gz", ".tif"):
        path = save(write_volume(np.ones(label.shape, np.uint8), tmp_path / f"a{suffix}"), label)
        assert np.array_equal(read_volume(path).image[0].numpy(), label)


def test_an_image_without_objects_is_logged(tmp_path, caplog):
    label = numbered(0)
    path = save(write_volume(label, tmp_path / "a.png", dtype="uint8"), label)
    assert "no object was found" in caplog.text
    assert not read_volume(path).image.any()


@pytest.mark.skipif(find_spec("highdicom") is None, reason="highdicom is not installed")
def test_dicom_lists_few_objects_as_segments_and_many_become_nifti(tmp_path, make_series, caplog):
    series = make_series(tmp_path / "ct")
    shape = tuple(read_volume(series).image.shape[1:])
    few, many = np.zeros(shape, np.int32), np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    few[1, 1, 0], few[2:4, 2, 0] = 4, 9
    path = save(series, few)
    assert path.suffix == ".dcm"
    from pydicom import dcmread

    assert [item.SegmentLabel for item in dcmread(path).SegmentSequence] == ["nucleus 4", "nucleus 9"]
    assert many.max() > 255
    path = save(series, many, overwrite=True)
    assert path.name == "ct.nii.gz"
    assert np.array_equal(read_volume(path).image[0].numpy(), many)
    assert "too many for a DICOM SEG" in caplog.text
    with pytest.raises(DataError, match=r"too many objects .*received \d+, expected at most 255.*write .nii.gz"):
        save(series, many, format="dicom-seg", overwrite=True)
