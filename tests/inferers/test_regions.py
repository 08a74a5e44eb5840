"""Regions on the grid of the file: sigmoid, threshold and order as after full interpolation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose, Invertd, LoadImaged, Orientationd, Spacingd

from medunet.errors import ConfigError
from medunet.inferers import (
    GridMap,
    LabelInferer,
    MirrorInferer,
    OverlapTileInferer,
    ProbabilityInferer,
    restore_labels,
)
from medunet.io import MedunetReader, write_volume
from medunet.networks import UNet
from medunet.runtime import ensemble_of
from medunet.transforms import DecideLabelsd, paint_regions

pytestmark = pytest.mark.filterwarnings("ignore")

ORDER = [1, 3, 2]


def make_network(image: torch.Tensor | None = None) -> UNet:
    """Each channel about half above 0 in the image."""
    torch.manual_seed(3)
    network = UNet(3, 1, 3, channels=(4, 6), norm="batch").eval()
    with torch.no_grad():
        network.head.weight *= 20
        if image is not None:
            found = OverlapTileInferer(None)(image, network)[0].flatten(1)
            network.head.bias.sub_(torch.as_tensor(found).as_subclass(torch.Tensor).median(dim=1).values)
    return network


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    affine = np.array([[0, -0.8, 0, 5], [-1.3, 0, 0, 7], [0, 0, 2.5, -9], [0, 0, 0, 1.0]])
    coarse = torch.randn(1, 1, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    voxels = torch.nn.functional.interpolate(coarse, (33, 38, 21), mode="trilinear")[0, 0]
    return write_volume(voxels.numpy(), tmp_path / "a.nii.gz", affine=affine)


def preprocessing(spacing: tuple[float, ...]) -> Compose:
    return Compose(
        [
            LoadImaged("image", reader=MedunetReader(), ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=spacing, mode="bilinear", padding_mode="border"),
        ]
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.5, 2.0)])
@pytest.mark.parametrize("tile_size", [None, 24])
def test_labels_equal_those_of_full_interpolation_threshold_and_order(
    scan: Path, spacing: tuple[float, ...], tile_size: int | None
) -> None:
    transform = preprocessing(spacing)
    item = transform({"image": str(scan)})
    batch = item["image"][None]
    network = make_network(batch)
    with torch.inference_mode():
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("oblique", [False, True])
def test_only_mixed_cells_are_interpolated_and_nothing_is_lost(seed: int, oblique: bool) -> None:
    matrix = np.diag([0.45, 0.6, 0.52, 1.0])
    if oblique:
        matrix[0, 1], matrix[1, 0] = 0.1, -0.1
    grid = GridMap(matrix, (20, 15, 19), (10, 10, 10))
    logits = torch.randn(3, 10, 10, 10, generator=torch.Generator().manual_seed(seed))
    found = restore_labels(logits, grid, order=ORDER)
    where = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (20, 15, 19)), indexing="ij"), dim=-1).double()
    where = where @ torch.as_tensor(matrix[:3, :3]).T
    outside = ((where < -1) | (where > 10)).any(-1)
    sampled = torch.nn.functional.grid_sample(
        logits[None].double(), (2 * where / 9 - 1).flip(-1)[None], align_corners=True, padding_mode="border"
    )[0]
    expected = paint_regions(sampled, ORDER).masked_fill(outside, 0)
    clear = sampled.abs().amin(0) > 1e-5
    assert torch.equal(found[clear], expected[clear])
    assert clear.float().mean() > 0.99


def test_what_overlaps_is_no_competition() -> None:
    logits = torch.tensor([[9.0, 9.0], [-1.0, 1.0]]).reshape(2, 2, 1)
    grid = GridMap(np.eye(3), (2, 1), (2, 1))
    assert restore_labels(logits, grid, order=[1, 2]).tolist() == [[1], [2]]
    assert restore_labels(logits, grid).tolist() == [[0], [0]]  # of classes the first would win


@pytest.mark.parametrize("order", [[1, 1], [0, 1], [255]])
def test_orders_that_cannot_be_told_apart_are_refused(order: list[int]) -> None:
    with pytest.raises(ConfigError, match="different class indices"):
        LabelInferer(SimpleInferer(), order=order)


def test_means_of_ensembles_and_mirrors_are_means_of_sigmoids() -> None:
    assert LabelInferer(SimpleInferer(), order=[1, 2]).activation == "sigmoid"
    assert LabelInferer(SimpleInferer()).activation == "softmax"
    image = torch.rand(1, 1, 8, 8, 8)
    joined = ensemble_of(make_network(), 2, activation="sigmoid").eval()
    with torch.inference_mode():
        single = torch.sigmoid(make_network()(image))
        torch.testing.assert_close(torch.sigmoid(joined(image)), single, atol=1e-5, rtol=0)
        mirrored = MirrorInferer(SimpleInferer(), axes=[0], activation="sigmoid")(image, make_network())
        flipped = torch.sigmoid(make_network()(image.flip(2))).flip(2)
    torch.testing.assert_close(torch.sigmoid(mirrored), (single + flipped) / 2, atol=1e-5, rtol=0)
