"""Writing volumes, and the files of predictions."""

import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import DataError, GeometryError
from medunet.io import SavePredictiond, read_volume, write_volume

AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]])


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 3).astype(np.uint8)


def test_files_have_both_forms_and_units_and_are_reproducible(tmp_path: Path) -> None:
    first, second = (write_volume(ramp(33, 34, 35), tmp_path / f"{n}.nii.gz", affine=AFFINE) for n in "ab")
    assert first.read_bytes() == second.read_bytes()
    image = nib.load(first)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(image.get_sform(), AFFINE)
    assert np.allclose(image.get_qform(), AFFINE, atol=1e-5)
    assert np.array_equal(np.asarray(image.dataobj), ramp(33, 34, 35))
    assert image.get_data_dtype() == np.uint8


def test_a_long_axis_is_written_as_nifti_2(tmp_path: Path) -> None:
    path = write_volume(ramp(40_000, 2, 1), tmp_path / "a.nii", labels={"liver": 1})
    assert isinstance(nib.load(path), nib.Nifti2Image)
    assert np.array_equal(read_volume(path).image[0].numpy(), ramp(40_000, 2, 1))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6)])
def test_itk_formats_return_what_was_written(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    affine = AFFINE.copy()
    if len(shape) == 2:
        affine[2, 2:] = 1, 0  # two axes store nothing of the third
    volume = read_volume(write_volume(ramp(*shape), tmp_path / f"a{suffix}", affine=affine))
    assert np.array_equal(volume.image[0].numpy(), ramp(*shape))
    assert np.allclose(volume.record.geometry.affine, affine)


@pytest.mark.parametrize(("value", "dtype"), [(300, "uint8"), (-1, "uint8"), (0.5, "int16"), (np.nan, "int16")])
def test_values_that_a_type_cannot_represent_are_rejected(tmp_path: Path, value: float, dtype: str) -> None:
    with pytest.raises(DataError, match=f"do not fit {dtype}"):
        write_volume(np.full((3, 3, 3), value), tmp_path / "a.nii.gz", dtype=dtype)


@pytest.mark.parametrize(
    ("name", "shape", "cause"),
    [
        ("a.png", (3, 4, 5), "wrong number of axes"),
        ("a.seg.nrrd", (3, 4), "wrong number"),
        ("a.xyz", (3, 4), "unknown"),
    ],
)
def test_an_array_that_a_format_cannot_store_is_rejected(
    tmp_path: Path, name: str, shape: tuple[int, ...], cause: str
) -> None:
    with pytest.raises(DataError, match=rf"{name}: {cause}"):
        write_volume(ramp(*shape), tmp_path / name)
    assert not list(tmp_path.iterdir())


def loaded(path: Path, label: np.ndarray, **changes: Any) -> dict[str, Any]:
    """Return an item after the network: the image as read, a prediction on its grid."""
    image = read_volume(path).image
    return {"image": image, "pred": MetaTensor(torch.as_tensor(label[None]), affine=image.affine), **changes}


@pytest.mark.parametrize(
    ("source", "result"),
    [("liver_0000.nii.gz", "liver.nii.gz"), ("a.b.nii", "a.b.nii"), ("scan.nrrd", "scan.nii.gz"), ("a.tif", "a.tif")],
)
def test_a_prediction_has_its_inputs_name_and_grid(tmp_path: Path, source: str, result: str) -> None:
    label = ramp(33, 34, 35)
    affine = np.eye(4) if source.endswith(".tif") else AFFINE
    path = write_volume(label, tmp_path / source, affine=affine)
    item = SavePredictiond(output_dir=tmp_path / "out")(loaded(path, label.astype(np.float32)))
    assert item["pred_path"] == str(tmp_path / "out" / result)
    written = read_volume(item["pred_path"])
    assert np.array_equal(written.image[0].numpy(), label)
    assert np.allclose(written.record.geometry.affine, affine, atol=1e-6)
    assert written.record.dtype == "uint8"


@pytest.mark.parametrize("name", ["em_16.png", "em_16.tif"])
def test_a_2d_prediction_keeps_the_data_sets_values_and_the_items_name(tmp_path: Path, name: str) -> None:
    label = np.where(ramp(33, 35) > 0, 255, 0).astype(np.float32)
    path = write_volume(ramp(33, 35), tmp_path / name)
    SavePredictiond(output_dir=tmp_path / "out")(loaded(path, label, name="patient_7"))
    assert np.array_equal(read_volume(tmp_path / "out" / name.replace("em_16", "patient_7")).image[0].numpy(), label)


def test_probabilities_are_written_channels_last_in_3d_and_first_in_2d(tmp_path: Path) -> None:
    save = SavePredictiond(output_dir=tmp_path / "out", prob_key="prob")
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii.gz", affine=AFFINE)
    prob = torch.rand(2, 5, 6, 7)
    save(loaded(path, ramp(5, 6, 7), prob=prob))
    image = nib.load(tmp_path / "out" / "a_prob.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), prob.movedim(0, -1).numpy())
    assert np.allclose(image.affine, AFFINE)
    path = write_volume(ramp(5, 6), tmp_path / "b.png")
    save(loaded(path, ramp(5, 6), prob=prob[..., 0]))
    assert np.array_equal(np.load(tmp_path / "out" / "b_prob.npy"), prob[..., 0].numpy())


def test_a_prediction_on_another_grid_is_rejected(tmp_path: Path) -> None:
    path = write_volume(ramp(6, 6, 6), tmp_path / "a.nii.gz", affine=AFFINE)
    other = MetaTensor(torch.zeros(1, 3, 3, 3), affine=torch.as_tensor(AFFINE * [2, 2, 2, 1]))
    with pytest.raises(GeometryError, match=r"a.nii.gz: prediction does not lie on the input's grid"):
        SavePredictiond(output_dir=tmp_path / "out")(loaded(path, ramp(6, 6, 6), pred=other))


def test_a_prediction_with_channels_or_without_a_file_name_is_rejected(tmp_path: Path) -> None:
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii.gz", affine=AFFINE)
    one_hot = MetaTensor(torch.zeros(2, 5, 6, 7), affine=torch.as_tensor(AFFINE))
    with pytest.raises(DataError, match="not a label map"):
        SavePredictiond(output_dir=tmp_path)(loaded(path, ramp(5, 6, 7), pred=one_hot))
    with pytest.raises(DataError, match="no file name"):
        SavePredictiond(output_dir=tmp_path)({"pred": torch.zeros(1, 3, 3)})


def test_a_large_volume_is_written_without_a_copy_of_it(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "voxels", dtype=np.float32, mode="w+", shape=(24, 128, 128, 96))  # channels first
    mapped[5, 7] = 0.25
    tracemalloc.start()
    path = write_volume(np.moveaxis(mapped, 0, -1), tmp_path / "large.nii.gz", affine=np.eye(4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.75 * mapped.nbytes
    voxels = np.asarray(nib.load(path).dataobj)
    assert voxels.shape == (128, 128, 96, 24)
    assert voxels[7, :, :, 5].min() == 0.25
    assert voxels.sum() == 0.25 * 128 * 96
