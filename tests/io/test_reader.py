"""`MedunetReader` in MONAI's transforms, channels of several files, and names of results."""

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage, LoadImaged

from medunet.errors import DataError, GeometryError
from medunet.io import MedunetReader, output_name, read_header, read_volume, write_volume

AFFINE = np.diag([0.75, 0.5, 2.5, 1.0])


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(np.int16)


@pytest.fixture
def item(tmp_path: Path) -> dict[str, str]:
    return {"image": str(write_volume(ramp(33, 34, 35), tmp_path / "case.nii.gz", affine=AFFINE)), "name": "case"}


def loader(reader: object = "medunet.io.MedunetReader") -> LoadImaged:
    return LoadImaged("image", reader=reader, ensure_channel_first=True, image_only=True)


@pytest.mark.parametrize("reader", ["medunet.io.MedunetReader", MedunetReader, MedunetReader(channels=2)])
def test_loadimaged_returns_channel_first_float32_metatensors(item: dict[str, str], reader: object) -> None:
    image = loader(reader)(item)["image"]
    assert isinstance(image, MetaTensor)
    assert (image.shape, image.dtype) == ((1, 33, 34, 35), torch.float32)
    assert image.affine.tolist() == image.meta["original_affine"].tolist() == AFFINE.tolist()
    assert list(image.meta["spatial_shape"]) == [33, 34, 35]
    assert (image.meta["filename_or_obj"], image.meta["name"]) == (item["image"], "case")


def test_several_files_become_channels_if_they_have_one_grid(tmp_path: Path) -> None:
    files = [write_volume(ramp(5, 6, 7) + c, tmp_path / f"brats_000{c}.nii.gz", affine=AFFINE) for c in (0, 1)]
    image = LoadImage(reader=MedunetReader, ensure_channel_first=True, image_only=True)([str(f) for f in files])
    assert image.shape == (2, 5, 6, 7)
    assert np.array_equal(image[1].numpy(), ramp(5, 6, 7) + 1)
    assert image.meta["name"] == "brats"
    assert torch.equal(read_volume(files).image.as_tensor(), image.as_tensor())
    assert read_header(files).channels == 2
    write_volume(ramp(5, 6, 7), files[1], affine=np.eye(4))
    with pytest.raises(GeometryError, match=r"1.nii.gz: channels of one case lie on different grids"):
        read_volume(files)


def test_a_typed_error_passes_through_monais_transforms(item: dict[str, str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(Path(item["image"]).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"bad\.nii\.gz: truncated gzip file"):
        loader()(item | {"image": str(bad)})
    with pytest.raises(RuntimeError) as caught:
        Compose([loader()])(item | {"image": str(tmp_path / "none.nii.gz")})
    assert isinstance(caught.value.__cause__, DataError)
    assert "none.nii.gz: does not exist" in str(caught.value.__cause__)


def test_rejected_files_are_not_passed_to_monais_readers(tmp_path: Path) -> None:
    path = write_volume(ramp(5, 6) % 200, tmp_path / "picture.png", dtype="uint8").rename(tmp_path / "picture.nii")
    with pytest.raises(DataError, match="not a NIfTI file"):
        LoadImage(reader=MedunetReader, image_only=True)(path)


def test_a_single_first_channel_loses_its_number_but_a_frame_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "liver_0000.nii.gz").touch()
    assert output_name(tmp_path / "liver_0000.nii.gz", ".nii.gz") == "liver.nii.gz"
    (tmp_path / "liver_0001.nii.gz").touch()
    assert output_name(tmp_path / "liver_0000.nii.gz") == "liver_0000"
    assert output_name("x/scan.v2.nii.gz") == "scan.v2"
