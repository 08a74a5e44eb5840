from __future__ import annotations

import os
import stat
import tracemalloc

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


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii.gz")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"a.nii.gz: cannot be written: No space left"):
        write_volume(ramp(9, 9, 9), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_existing_file_is_kept_where_overwriting_is_forbidden(tmp_path):
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="exists already"):
        write_volume(ramp(5, 6, 7), path, overwrite=False)


def test_folder_is_made_and_permissions_are_ordinary(tmp_path):
    path = write_volume(ramp(5, 6, 7), tmp_path / "new" / "deep" / "a.nii.gz")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_equal_volumes_make_equal_files(tmp_path):
    first, second = (write_volume(ramp(5, 6, 7), tmp_path / name, affine=AFFINE) for name in ("a.nii.gz", "b.nii.gz"))
    assert first.read_bytes() == second.read_bytes()


def test_nibabel_sees_both_forms_and_millimetres(tmp_path):
    image = nib.load(write_volume(ramp(33, 34, 35), tmp_path / "a.nii.gz", affine=AFFINE))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(image.get_sform(), AFFINE)
    assert np.allclose(image.get_qform(), AFFINE, atol=1e-5)
    assert np.array_equal(np.asarray(image.dataobj), ramp(33, 34, 35))
    assert image.get_data_dtype() == np.uint8


@pytest.mark.parametrize(("value", "dtype"), [(300, "uint8"), (-1, "uint8"), (0.5, "int16"), (np.nan, "int16")])
def test_values_that_a_type_cannot_hold_are_refused(tmp_path, value, dtype):
    with pytest.raises(DataError, match=f"do not fit {dtype}"):
        write_volume(np.full((3, 3, 3), value), tmp_path / "a.nii.gz", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_volume_in_a_png_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a.png: wrong number of axes"):
        write_volume(ramp(3, 4, 5), tmp_path / "a.png")


def test_unknown_ending_is_refused(tmp_path):
    with pytest.raises(DataError, match="unknown format"):
        write_volume(ramp(3, 4, 5), tmp_path / "a.xyz")


def test_npy_round_trip(tmp_path):
    path = write_volume(torch.full((2, 5, 6), 0.25), tmp_path / "a.npy")
    assert np.array_equal(np.load(path), np.full((2, 5, 6), 0.25, np.float32))


def loaded(path, label: np.ndarray) -> dict:
    """An item as it comes out of a network: the image as read, a prediction on its grid."""
    image = read_volume(path).image
    return {"image": image, "pred": MetaTensor(torch.as_tensor(label[None]), affine=image.affine)}


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("hippocampus_001.nii.gz", "hippocampus_001.nii.gz"),
        ("liver_0000.nii.gz", "liver.nii.gz"),
        ("a.b.nii", "a.b.nii"),
        ("scan.nrrd", "scan.nii.gz"),
        ("stack.tif", "stack.tif"),
    ],
)
def test_volume_prediction_bears_its_inputs_name_and_grid(tmp_path, source, result):
    label = ramp(33, 34, 35)
    affine = np.eye(4) if source.endswith(".tif") else AFFINE
    path = write_volume(
        label.astype(np.int16), tmp_path / source, affine=affine, dtype=None if "tif" not in source else "uint8"
    )
    item = SavePredictiond(output_dir=tmp_path / "out")(loaded(path, label.astype(np.float32)))
    assert item["pred_path"] == str(tmp_path / "out" / result)
    written = read_volume(item["pred_path"])
    assert np.array_equal(written.image[0].numpy(), label)
    assert np.allclose(written.record.geometry.affine, affine, atol=1e-6)
    assert written.record.dtype == "uint8"


@pytest.mark.parametrize(("source", "result"), [("em_16.png", "em_16.png"), ("em_16.tif", "em_16.tif")])
def test_picture_prediction_keeps_the_data_sets_values(tmp_path, source, result):
    label = np.where(ramp(33, 35) > 0, 255, 0).astype(np.float32)
    path = write_volume(ramp(33, 35), tmp_path / source)
    SavePredictiond(output_dir=tmp_path / "out")(loaded(path, label))
    assert np.array_equal(read_volume(tmp_path / "out" / result).image[0].numpy(), label)


def test_name_in_the_item_wins(tmp_path):
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii.gz")
    item = SavePredictiond(output_dir=tmp_path)({**loaded(path, ramp(5, 6, 7)), "name": "patient_7"})
    assert item["pred_path"].endswith("patient_7.nii.gz")


def test_probabilities_are_written_channels_last_in_3d_and_first_in_2d(tmp_path):
    save = SavePredictiond(output_dir=tmp_path / "out", prob_key="prob")
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii.gz", affine=AFFINE)
    prob = torch.rand(2, 5, 6, 7)
    save({**loaded(path, ramp(5, 6, 7)), "prob": prob})
    image = nib.load(tmp_path / "out" / "a_prob.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), prob.movedim(0, -1).numpy())
    assert np.allclose(image.affine, AFFINE)
    assert np.array_equal(read_volume(tmp_path / "out" / "a_prob.nii.gz", channels=2).image.numpy(), prob.numpy())

    path = write_volume(ramp(5, 6), tmp_path / "b.png")
    save({**loaded(path, ramp(5, 6)), "prob": prob[..., 0]})
    assert np.array_equal(np.load(tmp_path / "out" / "b_prob.npy"), prob[..., 0].numpy())


def test_prediction_on_another_grid_is_refused_unless_allowed(tmp_path):
    path = write_volume(ramp(6, 6, 6), tmp_path / "a.nii.gz", affine=AFFINE)
    item = loaded(path, ramp(6, 6, 6))
    item["pred"] = MetaTensor(torch.zeros(1, 3, 3, 3), affine=torch.as_tensor(AFFINE * [2, 2, 2, 1]))
    with pytest.raises(GeometryError, match=r"a.nii.gz: prediction does not lie on the input's grid"):
        SavePredictiond(output_dir=tmp_path / "out")(item)
    item = SavePredictiond(output_dir=tmp_path / "out", source_grid=False)(item)
    assert read_volume(item["pred_path"]).image.shape == (1, 3, 3, 3)


def test_one_hot_prediction_is_refused(tmp_path):
    path = write_volume(ramp(5, 6, 7), tmp_path / "a.nii.gz", affine=AFFINE)
    item = loaded(path, ramp(5, 6, 7))
    item["pred"] = MetaTensor(torch.zeros(2, 5, 6, 7), affine=torch.as_tensor(AFFINE))
    with pytest.raises(DataError, match="not a label map"):
        SavePredictiond(output_dir=tmp_path)(item)


def test_prediction_without_a_file_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="no file name"):
        SavePredictiond(output_dir=tmp_path)({"pred": torch.zeros(1, 3, 3)})


def test_a_large_volume_is_written_without_a_copy_of_it(tmp_path):
    shape = (128, 128, 96, 24)
    mapped = np.memmap(tmp_path / "voxels", dtype=np.float32, mode="w+", shape=(24, 128, 128, 96))  # channels first
    mapped[5, 7] = 0.25
    tracemalloc.start()
    path = write_volume(np.moveaxis(mapped, 0, -1), tmp_path / "large.nii.gz", affine=np.eye(4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.75 * mapped.nbytes
    voxels = np.asarray(nib.load(path).dataobj)
    assert voxels.shape == shape
    assert voxels[7, :, :, 5].min() == 0.25
    assert voxels.sum() == 0.25 * 128 * 96
