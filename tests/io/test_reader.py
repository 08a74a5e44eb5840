from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, LoadImage, LoadImaged

from medunet.errors import DataError, GeometryError
from medunet.io import MedunetReader, output_name, read_header, read_volume, write_volume

AFFINE = np.diag([0.75, 0.5, 2.5, 1.0])


def ramp(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(np.int16)


@pytest.fixture
def item(tmp_path):
    image = write_volume(ramp(33, 34, 35), tmp_path / "case.nii.gz", affine=AFFINE)
    label = write_volume(ramp(33, 34, 35) % 3, tmp_path / "label.nii.gz", affine=AFFINE)
    return {"image": str(image), "label": str(label), "name": "case"}


def loader(reader: object = "medunet.io.MedunetReader") -> LoadImaged:
    return LoadImaged(["image", "label"], reader=reader, ensure_channel_first=True, image_only=True)


@pytest.mark.parametrize("reader", ["medunet.io.MedunetReader", MedunetReader, MedunetReader(channels=2)])
def test_loadimaged_gives_channel_first_float32_metatensors(item, reader):
    loaded = loader(reader)(item)
    for key in ("image", "label"):
        assert isinstance(loaded[key], MetaTensor)
        assert loaded[key].shape == (1, 33, 34, 35)
        assert loaded[key].dtype == torch.float32
        assert loaded[key].affine.tolist() == AFFINE.tolist()
        assert loaded[key].meta["original_affine"].tolist() == AFFINE.tolist()
        assert list(loaded[key].meta["spatial_shape"]) == [33, 34, 35]
    assert loaded["image"].meta["filename_or_obj"] == item["image"]
    assert loaded["image"].meta["name"] == "case"


def test_meta_data_survive_batches(item):
    data = Dataset([item, item], Compose([loader()]))
    items = [one for batch in DataLoader(data, batch_size=2) for one in decollate_batch(batch)]
    assert [one["image"].meta["filename_or_obj"] for one in items] == [item["image"]] * 2
    assert items[1]["image"].affine.tolist() == AFFINE.tolist()


def test_several_files_become_channels(tmp_path):
    files = [
        write_volume(ramp(5, 6, 7) + c, tmp_path / f"brats_000{c}.nii.gz", affine=AFFINE, dtype="int16") for c in (0, 1)
    ]
    image = LoadImage(reader=MedunetReader, ensure_channel_first=True, image_only=True)([str(f) for f in files])
    assert image.shape == (2, 5, 6, 7)
    assert np.array_equal(image[1].numpy(), ramp(5, 6, 7) + 1)
    assert image.meta["name"] == "brats"
    assert torch.equal(read_volume(files).image.as_tensor(), image.as_tensor())
    assert read_header(files).channels == 2


def test_channels_on_different_grids_are_refused(tmp_path):
    files = [write_volume(ramp(5, 6, 7), tmp_path / f"{k}.nii.gz", affine=np.diag([k, 1, 1, 1])) for k in (1, 2)]
    with pytest.raises(GeometryError, match=r"2.nii.gz: channels of one case lie on different grids"):
        read_volume(files)


def test_colour_picture_is_channel_first(tmp_path):
    from PIL import Image

    pixels = (ramp(33, 34, 3) % 251).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = LoadImage(reader=MedunetReader, ensure_channel_first=True, image_only=True)(tmp_path / "a.png")
    assert np.array_equal(image.numpy(), pixels.T)


def test_typed_error_passes_through_loadimaged(item, tmp_path):
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes((tmp_path / "case.nii.gz").read_bytes()[:-100])
    with pytest.raises(DataError, match=r"bad\.nii\.gz: truncated gzip file"):
        loader()(item | {"image": str(bad)})


def test_typed_error_is_the_cause_of_what_compose_raises(item, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        Compose([loader()])(item | {"image": str(tmp_path / "none.nii.gz")})
    assert isinstance(caught.value.__cause__, DataError)
    assert "none.nii.gz: does not exist" in str(caught.value.__cause__)


def test_readers_of_monai_do_not_get_what_ours_refuses(tmp_path):
    # MONAI's own readers would accept this file
    path = tmp_path / "picture.png"
    write_volume(ramp(5, 6) % 200, path, dtype="uint8")
    path = path.rename(tmp_path / "picture.nii")
    with pytest.raises(DataError, match="not a NIfTI file"):
        LoadImage(reader=MedunetReader, image_only=True)(path)


def test_suffixes_are_verified_by_name(tmp_path):
    reader = MedunetReader()
    assert reader.verify_suffix("a.NII.GZ")
    assert reader.verify_suffix(["a.png", tmp_path])
    assert not reader.verify_suffix("a.docx")


def test_lone_first_channel_loses_its_number_but_a_frame_keeps_it(tmp_path):
    (tmp_path / "liver_0000.nii.gz").touch()
    assert output_name(tmp_path / "liver_0000.nii.gz", ".nii.gz") == "liver.nii.gz"
    (tmp_path / "liver_0001.nii.gz").touch()
    assert output_name(tmp_path / "liver_0000.nii.gz") == "liver_0000"
    assert output_name("x/scan.v2.nii.gz") == "scan.v2"
