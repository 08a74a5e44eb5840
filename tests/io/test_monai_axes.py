"""Pictures have the same axes in medunet and in MONAI's readers and writers, for reading and writing."""

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
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def load(path: Path, reader: object) -> MetaTensor:
    return LoadImage(reader=reader, image_only=True, ensure_channel_first=True)(path)


@pytest.mark.parametrize("name", ["grey.png", "colour.png", "grey.tif", "stack.tif", "plane.nrrd"])
def test_all_readers_return_the_same_array(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "stack.tif":
        tifffile.imwrite(path, np.stack([GREY, GREY + 1, GREY + 2]), photometric="minisblack")
    elif name == "plane.nrrd":
        write_volume(GREY, path)
    else:
        Image.fromarray(COLOUR if name == "colour.png" else GREY).save(path)
    image = load(path, MedunetReader())
    for reader in (ITKReader(), PILReader())[: 2 if name.startswith(("grey", "colour")) else 1]:
        expected = load(path, reader)
        assert torch.equal(image.as_tensor(), expected.as_tensor())
        assert list(image.meta["spatial_shape"]) == list(expected.meta["spatial_shape"])


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_medunet_and_monai_read_each_others_files(ending: str, tmp_path: Path) -> None:
    for reader in (PILReader(), ITKReader()):
        assert np.array_equal(load(write_volume(GREY, tmp_path / f"a{ending}"), reader)[0].numpy(), GREY)
    options = {"output_ext": ending, "output_postfix": "", "output_dtype": np.uint8, "separate_folder": False}
    writer = {".png": "PILWriter", ".tif": "ITKWriter"}[ending]
    Image.fromarray(GREY).save(tmp_path / "source.bmp")
    image = load(tmp_path / "source.bmp", MedunetReader())
    SaveImage(tmp_path, writer=writer, print_log=False, resample=False, **options)(image)
    assert torch.equal(load(tmp_path / f"source{ending}", MedunetReader()).as_tensor(), image.as_tensor())


def test_a_prediction_is_aligned_with_its_picture_and_label(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    bright = (GREY > 128).astype(np.uint8)
    (tmp_path / "labels").mkdir()
    Image.fromarray(bright).save(tmp_path / "labels" / "a.png")
    loader = LoadImaged("image", reader=MedunetReader(), image_only=True, ensure_channel_first=True)
    item = LoadLabeld()(loader({"image": tmp_path / "a.png", "label": tmp_path / "labels" / "a.png"}))
    assert torch.equal(item["label"].as_tensor() > 0, item["image"].as_tensor() > 128)
    assert torch.equal(item["label"].as_tensor(), load(tmp_path / "labels" / "a.png", PILReader()).as_tensor())
    item["pred"] = (item["image"] > 128).to(torch.uint8)
    written = SavePredictiond(output_dir=tmp_path / "out")(item)["pred_path"]
    with Image.open(written) as picture:
        assert np.array_equal(np.asarray(picture), bright)
    assert read_volume(written).record.geometry.shape == (35, 33)
