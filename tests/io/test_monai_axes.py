"""Pictures have the same axes in medunet and in MONAI's readers and writers, both ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.data import ITKReader, MetaTensor, PILReader
from monai.transforms import LoadImage, LoadImaged, SaveImage
from PIL import Image

from medunet.io import LoadLabeld, MedunetReader, SavePredictiond, read_volume, write_volume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SWIG's, when ITK is imported

GREY = np.arange(33 * 35, dtype=np.uint8).reshape(33, 35)


def by_monai(path: Path, reader: object) -> MetaTensor:
    return LoadImage(reader=reader, image_only=True, ensure_channel_first=True)(path)


def by_medunet(path: Path) -> MetaTensor:
    return LoadImage(reader=MedunetReader(), image_only=True, ensure_channel_first=True)(path)


@pytest.mark.parametrize("reader", [PILReader, ITKReader])
@pytest.mark.parametrize("name", ["grey.png", "colour.png", "grey.tif"])
def test_a_picture_of_another_program_is_the_same_array_for_both(name: str, reader: type, tmp_path: Path) -> None:
    colour = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
    Image.fromarray(colour if name.startswith("colour") else GREY).save(tmp_path / name)
    found, expected = by_medunet(tmp_path / name), by_monai(tmp_path / name, reader())
    assert found.shape == expected.shape == (3 if name.startswith("colour") else 1, 35, 33)
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert list(found.meta["spatial_shape"]) == list(expected.meta["spatial_shape"])


def test_a_stack_of_another_program_is_the_same_array_for_both(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY, GREY + 1, GREY + 2]), photometric="minisblack")
    found, expected = by_medunet(tmp_path / "a.tif"), by_monai(tmp_path / "a.tif", ITKReader())
    assert found.shape == (1, 35, 33, 3)
    assert torch.equal(found.as_tensor(), expected.as_tensor())


def test_a_plane_in_nrrd_is_the_same_array_for_both(tmp_path: Path) -> None:
    path = write_volume(GREY, tmp_path / "a.nrrd")
    assert torch.equal(by_medunet(path).as_tensor(), by_monai(path, ITKReader()).as_tensor())


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_what_monai_saves_is_what_medunet_reads(ending: str, tmp_path: Path) -> None:
    writer = {".png": "PILWriter", ".tif": "ITKWriter"}[ending]
    save = SaveImage(
        tmp_path,
        output_ext=ending,
        output_postfix="",
        separate_folder=False,
        writer=writer,
        print_log=False,
        output_dtype=np.uint8,
        resample=False,
    )
    Image.fromarray(GREY).save(tmp_path / "source.bmp")
    image = by_medunet(tmp_path / "source.bmp")
    save(image)
    saved = tmp_path / f"source{ending}"
    assert torch.equal(by_medunet(saved).as_tensor(), image.as_tensor())
    with Image.open(saved) as picture:
        assert np.array_equal(np.asarray(picture), GREY)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_what_medunet_writes_is_what_monai_reads(ending: str, tmp_path: Path) -> None:
    path = write_volume(GREY, tmp_path / f"a{ending}")
    for reader in (PILReader(), ITKReader()):
        assert np.array_equal(by_monai(path, reader)[0].numpy(), GREY)


def test_a_prediction_lies_on_its_picture_and_on_the_label_that_both_read(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    bright = (GREY > 128).astype(np.uint8)
    (tmp_path / "labels").mkdir()
    Image.fromarray(bright).save(tmp_path / "labels" / "a.png")
    load = LoadImaged("image", reader=MedunetReader(), image_only=True, ensure_channel_first=True)
    item = LoadLabeld()(load({"image": tmp_path / "a.png", "label": tmp_path / "labels" / "a.png"}))
    assert torch.equal(item["label"].as_tensor() > 0, item["image"].as_tensor() > 128)
    assert torch.equal(item["label"].as_tensor(), by_monai(tmp_path / "labels" / "a.png", PILReader()).as_tensor())
    item["pred"] = (item["image"] > 128).to(torch.uint8)
    written = SavePredictiond(output_dir=tmp_path / "out")(item)["pred_path"]
    with Image.open(written) as picture:
        assert np.array_equal(np.asarray(picture), bright)
    assert read_volume(written).record.geometry.shape == (35, 33)
