"""Labels, probabilities and regions on the grid of the file, compared with MONAI's chain of transforms."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import SimpleInferer
from monai.transforms import Compose, CropForegroundd, Invertd, LoadImaged, Orientationd, Spacingd

from medunet.errors import ConfigError, GeometryError
from medunet.inferers import LabelInferer, OverlapTileInferer, ProbabilityInferer
from medunet.io import MedunetReader, write_volume
from medunet.networks import UNet
from medunet.transforms import AboveThreshold, DecideLabelsd, paint_regions

pytestmark = pytest.mark.filterwarnings("ignore")


def make_network(spatial_dims: int = 3, *, classes: int = 4) -> UNet:
    torch.manual_seed(3)
    network = UNet(spatial_dims, 1, classes, channels=(4, 6), norm="batch").eval()
    with torch.no_grad():
        network.head.weight *= 20
    return network


def preprocessing(spacing: tuple[float, ...]) -> Compose:
    return Compose(
        [
            LoadImaged("image", reader=MedunetReader(), ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=spacing, mode="bilinear", padding_mode="border"),
        ]
    )


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    affine = np.array([[0, -0.8, 0, 5], [-1.3, 0, 0, 7], [0, 0, 2.5, -9], [0, 0, 0, 1.0]])
    coarse = torch.randn(1, 1, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    voxels = torch.nn.functional.interpolate(coarse, (33, 38, 21), mode="trilinear")[0, 0]
    return write_volume(voxels.numpy(), tmp_path / "a.nii.gz", affine=affine)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.5, 2.0)])
@pytest.mark.parametrize("tile_size", [None, 32])
def test_labels_and_probabilities_match_monais_inversion(scan, spacing, tile_size):
    network, transform = make_network(), preprocessing(spacing)
    item = transform({"image": str(scan)})
    batch = item["image"][None]
    with torch.inference_mode():
        labels = LabelInferer(OverlapTileInferer(tile_size))(batch, network)[0]
        probabilities = ProbabilityInferer(OverlapTileInferer(tile_size))(batch, network)[0]
        item["pred"] = MetaTensor(OverlapTileInferer(None)(batch, network)[0]).copy_meta_from(item["image"])
    invert = Invertd("pred", transform=transform, orig_keys="image", nearest_interp=False, to_tensor=True)
    theirs = invert(item)["pred"]
    assert len(torch.unique(labels)) > 2
    assert (labels[0] != theirs.argmax(dim=0)).float().mean() < 1e-3  # MONAI resamples along axes of rounded length
    torch.testing.assert_close(labels.affine, theirs.affine, check_dtype=False)
    # MONAI samples a hair off the voxels' centres (its affine goes through float32)
    expected = torch.softmax(theirs, dim=0)
    torch.testing.assert_close(probabilities.as_tensor(), expected.as_tensor(), atol=2e-3, rtol=0)
    torch.testing.assert_close(probabilities.affine, theirs.affine, check_dtype=False)
    assert torch.equal(DecideLabelsd("pred")({"pred": probabilities})["pred"], labels)


def test_a_batch_of_monais_loader_is_decollated(scan):
    item = preprocessing((1.0, 1.0, 1.0))({"image": str(scan)})
    batch = list_data_collate([item])
    with torch.inference_mode():
        batch["pred"] = LabelInferer(OverlapTileInferer(32))(batch["image"], make_network())
        alone = LabelInferer(OverlapTileInferer(32))(item["image"][None], make_network())[0]
    (single,) = decollate_batch(batch)
    assert torch.equal(single["pred"].as_tensor(), alone.as_tensor())
    np.testing.assert_allclose(single["pred"].affine, item["image"].meta["original_affine"])


@pytest.mark.parametrize("inferer", [SimpleInferer(), OverlapTileInferer(None), OverlapTileInferer((32, 28))])
def test_labels_of_a_picture_are_on_its_own_grid_with_any_inferer(tmp_path, inferer):
    path = write_volume(np.random.default_rng(0).integers(0, 255, (34, 36), np.uint8), tmp_path / "a.png")
    image = LoadImaged("image", reader=MedunetReader(), ensure_channel_first=True)({"image": str(path)})["image"]
    with torch.inference_mode():
        network = make_network(2)
        labels = LabelInferer(inferer)(image[None], network)
        expected = network(image[None].as_tensor()).argmax(1, keepdim=True)
    assert torch.equal(labels.as_tensor(), expected.to(torch.uint8))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(33, 34), (41, 22, 23)], ids=str)
def test_tiling_leaves_no_seam_on_the_networks_own_grid(padding, size):
    torch.manual_seed(1)
    network = UNet(len(size), 1, 3, channels=(4, 6), padding=padding).eval()
    image = torch.rand(2, 1, *size)
    tiles = OverlapTileInferer(28 if padding == "valid" else 24)
    with torch.inference_mode():
        logits = OverlapTileInferer(None)(image, network)
        labels = LabelInferer(tiles, to_source=False)(image, network)
        probabilities = ProbabilityInferer(tiles, to_source=False)(image, network)
        assert sum(1 for _ in tiles.tiles(image, network)) > 2
    torch.testing.assert_close(probabilities, logits.softmax(1), atol=1e-5, rtol=0)
    assert (labels[:, 0] != logits.argmax(1)).float().mean() < 1e-4  # rounding where two classes are equal


@pytest.mark.parametrize("grid", ["own", "parallel", "oblique"])
@pytest.mark.parametrize("inferer", [LabelInferer, ProbabilityInferer])
def test_every_voxel_of_the_source_is_written(scan, grid, inferer, monkeypatch):
    spacing = (0.8, 1.3, 2.5) if grid == "own" else (1.1, 0.9, 2.0)
    image = preprocessing(spacing)({"image": str(scan)})["image"]
    if grid == "oblique":
        cosine, sine = np.cos(0.2), np.sin(0.2)
        turn = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        image.meta["original_affine"] = turn @ np.asarray(image.meta["original_affine"])
    empty, poison = inferer._empty, 255 if inferer is LabelInferer else float("nan")
    monkeypatch.setattr(inferer, "_empty", lambda *args: empty(*args).fill_(poison))
    with torch.inference_mode():
        assert inferer(OverlapTileInferer(32))(image[None], make_network()).max() < 4  # not NaN either


def test_an_image_without_a_source_grid_is_rejected():
    with pytest.raises(GeometryError, match="lacks the grid"):
        LabelInferer(SimpleInferer())(MetaTensor(torch.zeros(1, 1, 8, 8)), make_network(2))
    with pytest.raises(ConfigError, match="threshold"):
        LabelInferer(SimpleInferer(), threshold=1.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_probabilities_are_in_a_mapped_file_of_the_temporary_folder(scan, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    batch = preprocessing((1.0, 1.0, 1.0))({"image": str(scan)})["image"][None]
    with torch.inference_mode():
        found = ProbabilityInferer(OverlapTileInferer(None))(batch, make_network())
    assert any(part.path.startswith(str(tmp_path)) for part in psutil.Process().memory_maps())
    assert found.nbytes


@pytest.mark.parametrize("inferer", [LabelInferer, ProbabilityInferer])
def test_voxels_that_were_cropped_are_background(tmp_path, inferer):
    voxels = np.full((20, 22, 24), -1000, dtype=np.float32)
    voxels[6:12, 7:15, 9:20] = 40
    path = write_volume(voxels, tmp_path / "a.nii.gz", affine=np.diag([-1.5, 1.5, 1.5, 1]))
    crop = CropForegroundd(
        "image", source_key="image", select_fn=AboveThreshold(-500), margin=2, allow_smaller=True, start_coord_key=None
    )
    batch = Compose([*preprocessing((1.5, 1.5, 1.5)).transforms, crop])({"image": str(path)})["image"][None]
    assert tuple(batch.shape[2:]) == (10, 12, 15)
    found = inferer(OverlapTileInferer(None))(batch, lambda image: torch.cat([-image, image], dim=1))[0]
    labels = found if len(found) == 1 else found.argmax(dim=0, keepdim=True)
    np.testing.assert_array_equal(labels[0], voxels > 0)
    if len(found) == 2:
        torch.testing.assert_close(found.sum(dim=0).as_tensor(), torch.ones(20, 22, 24))


ORDER = [1, 3, 2]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.5, 2.0)])
@pytest.mark.parametrize("tile_size", [None, 32])
def test_labels_equal_those_of_full_interpolation_threshold_and_order(
    scan: Path, spacing: tuple[float, ...], tile_size: int | None
) -> None:
    transform = preprocessing(spacing)
    item = transform({"image": str(scan)})
    batch = item["image"][None]
    network = make_network(classes=3)
    with torch.inference_mode():
        # each channel is above 0 in about half of the image
        network.head.bias.sub_(OverlapTileInferer(None)(batch.as_tensor(), network)[0].flatten(1).median(dim=1).values)
        ours = LabelInferer(OverlapTileInferer(tile_size), order=ORDER)(batch, network)[0]
        probabilities = ProbabilityInferer(OverlapTileInferer(tile_size), activation="sigmoid")(batch, network)[0]
        item["pred"] = MetaTensor(OverlapTileInferer(None)(batch, network)[0]).copy_meta_from(item["image"])
    invert = Invertd("pred", transform=transform, orig_keys="image", nearest_interp=False, to_tensor=True)
    theirs = paint_regions(invert(item)["pred"].sigmoid(), ORDER, threshold=0.5)
    assert ours.shape == (1, 33, 38, 21)
    assert set(ours.unique().tolist()) == {0, 1, 2, 3}
    assert (ours[0].as_tensor() != theirs).float().mean() < 1e-3  # MONAI resamples along axes of rounded length
    decided = DecideLabelsd("pred", order=ORDER)({"pred": probabilities})["pred"]
    assert (decided.as_tensor() != ours.as_tensor()).float().mean() < 1e-5  # a sigmoid of 0.5 within float32
    np.testing.assert_allclose(ours.affine, item["image"].meta["original_affine"])


@pytest.mark.parametrize("order", [[1, 1], [0, 1], [255]])
def test_orders_with_equal_or_impossible_indices_are_rejected(order: list[int]) -> None:
    with pytest.raises(ConfigError, match="different class indices"):
        LabelInferer(SimpleInferer(), order=order)
