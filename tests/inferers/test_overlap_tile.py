"""Tiling changes no voxel, for every kind of network, image and tile."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medunet.errors import ConfigError
from medunet.inferers import OverlapTileInferer, SameSizeShapes, measure_shapes, smallest_tile
from medunet.networks import UNet

ROUNDING = 1e-5
"""Largest difference of logits of order 1 in float32: another window size sums in another order."""
ANISOTROPIC = {"strides": [(1, 2, 2), (2, 2, 2)], "kernel_sizes": [(1, 3, 3), 3, 3]}


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN: a voxel that is never written shows up in every comparison."""
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory, see torch.utils.deterministic
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def make_network(spatial_dims: int, *, levels: int = 3, norm: str | None = "batch", **options) -> UNet:
    """Build a U-Net in evaluation mode whose normalisation has seen other data than it gets here."""
    torch.manual_seed(spatial_dims)
    channels = (4, 6, 8, 8, 8)[:levels]
    network = UNet(spatial_dims, 1, 3, channels=channels, norm=norm, **options).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    with torch.no_grad():
        size = network.shapes.input_for_output((32,) * spatial_dims)
        network.head.weight /= network(torch.randn(1, 1, *size)).std()  # logits of order 1, as ROUNDING expects
    return network


def random_image(*size: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(sum(size)))


def whole_image(network: UNet, image: torch.Tensor) -> torch.Tensor:
    """Evaluate in one pass without the inferer; numpy mirrors the borders for a valid network."""
    size, shapes = image.shape[2:], network.shapes
    window = shapes.input_for_output(size)
    border = [(m, w - n - m) for w, n, m in zip(window, size, shapes.margin, strict=True)]
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), *border], mode="reflect"))
    with torch.inference_mode():
        return network(padded)[(..., *(slice(n) for n in size))]


def tiled(network, image: torch.Tensor, tile_size, **options) -> torch.Tensor:
    with torch.inference_mode():
        return OverlapTileInferer(tile_size, **options)(image, network)


def assert_tiling_changes_no_voxel(network: UNet, image: torch.Tensor, tile_size: Sequence[int], **options) -> None:
    inferer = OverlapTileInferer(tile_size, **options)
    assert len(inferer.plan(image.shape[2:], network).tiles) > 1  # else the whole image is compared with itself
    expected = whole_image(network, image)
    assert expected.std() > 0.05  # else any result would be close
    with torch.inference_mode():
        torch.testing.assert_close(inferer(image, network), expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": None},
        {"upsample": "linear"},
        {"downsample": "conv"},
        {"block": "residual"},
        {"strides": [(2, 1), (3, 2)]},
        {"kernel_sizes": [(1, 3), (3, 5), 3], "head_kernel_size": 3, "norm_after_up": True, "act_after_up": True},
    ],
    ids=str,
)
def test_tiling_changes_no_voxel_in_2d(options, padding: str, batch_size: int) -> None:
    network = make_network(2, padding=padding, **options)
    tile = tuple(n + extra for n, extra in zip(smallest_tile(network.shapes), (5, 13), strict=True))
    image = random_image(*(n + extra for n, extra in zip(tile, (33, 71), strict=True)), batch=2)
    assert_tiling_changes_no_voxel(network, image, tile, batch_size=batch_size)


@pytest.mark.parametrize(("size", "batch_size"), [((33, 34, 35), 1), ((34, 35, 33), 3)], ids=str)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [2, [(1, 2, 2)], [(3, 1, 2)]], ids=str)
def test_tiling_changes_no_voxel_in_3d(strides, size: tuple[int, ...], padding: str, batch_size: int) -> None:
    network = make_network(3, levels=2, padding=padding, strides=strides)
    tile = tuple(n + extra for n, extra in zip(smallest_tile(network.shapes), (2, 3, 6), strict=True))
    assert_tiling_changes_no_voxel(network, random_image(*size), tile, batch_size=batch_size)


@pytest.mark.parametrize("end", range(100, 104))
def test_a_padded_image_may_end_at_any_phase_of_the_pooling(end: int) -> None:
    network = make_network(2)
    assert_tiling_changes_no_voxel(network, random_image(end, end + 9), smallest_tile(network.shapes))


def test_a_halo_of_the_receptive_radius_is_enough_and_a_smaller_one_changes_the_result() -> None:
    network, image = make_network(2, kernel_sizes=[5, 3, 1]), random_image(133, 155)
    radius = network.shapes.receptive_radius
    assert radius != network.shapes.halo
    assert_tiling_changes_no_voxel(network, image, (96, 64), halo=radius)
    difference = (tiled(network, image, (96, 64), halo=4) - whole_image(network, image)).abs().amax()
    assert difference > 100 * ROUNDING


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(1, 1), (3, 35), (33, 2), (34, 34)], ids=str)
def test_an_image_smaller_than_a_tile_is_one_window(size: tuple[int, int], padding: str) -> None:
    network, image = make_network(2, padding=padding), random_image(*size)
    assert len(OverlapTileInferer(128).plan(size, network).tiles) == 1
    torch.testing.assert_close(tiled(network, image, 128), whole_image(network, image), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("size", [(1, 35), (7, 33), (13, 150)], ids=str)
def test_an_image_smaller_than_the_margin_is_mirrored_back_and_forth(size: tuple[int, int]) -> None:
    network, image = make_network(2, padding="valid"), random_image(*size)
    assert size[0] < network.shapes.margin[0]
    assert_tiling_changes_no_voxel(network, image, (64, 60))


def test_an_axis_may_be_one_voxel_thick() -> None:
    network = make_network(3, levels=2, padding="valid")
    assert_tiling_changes_no_voxel(network, random_image(33, 1, 35), (24, 24, 28))
    network = make_network(3, levels=2, strides=[(1, 2, 2)], kernel_sizes=[(1, 3, 3), (1, 3, 3)])
    assert_tiling_changes_no_voxel(network, random_image(1, 65, 35), (1, 40, 40))


def test_the_2015_layout_returns_512_for_512() -> None:
    network = make_network(2, levels=5, padding="valid", norm=None)
    image = random_image(512, 512)
    assert OverlapTileInferer(572).plan((512, 512), network).tiles[0].window_size == (572, 572)
    assert_tiling_changes_no_voxel(network, image, (572, 572))


def test_windows_of_one_size_share_batches_across_images() -> None:
    network, seen = make_network(2), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    tile = smallest_tile(network.shapes)
    image = random_image(tile[0] + 3, tile[1], batch=3)
    tiled(network, image, tile, batch_size=2)
    # Two windows per image, the second one voxel lower: 3 images in batches of 2 and 1, for either size.
    assert [shape[0] for shape in seen] == [2, 1, 2, 1]


def test_metadata_is_copied_and_not_shared() -> None:
    image = MetaTensor(random_image(33, 34), meta={"filename_or_obj": "a.png", "affine": torch.eye(4)})
    image.is_batch = True  # as it comes from MONAI's DataLoader; decollating needs it
    result = tiled(make_network(2), image, None)
    assert isinstance(result, MetaTensor)
    assert result.is_batch
    assert result.meta["filename_or_obj"] == "a.png"
    result.meta["filename_or_obj"] = "b.png"
    assert image.meta["filename_or_obj"] == "a.png"
    assert type(tiled(make_network(2), image.as_tensor(), None)) is torch.Tensor


def test_half_precision_logits_are_stitched_in_float32() -> None:
    network, image = make_network(2), random_image(40, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = tiled(network, image, None)
        with torch.inference_mode():
            direct = network(image)
    assert direct.dtype == torch.bfloat16
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, direct.float())


def test_further_arguments_reach_the_network_and_gradients_pass_through_the_tiles() -> None:
    def network(window: torch.Tensor, factor: float, *, shift: float) -> torch.Tensor:
        return window * factor + shift

    image = random_image(33, 34).requires_grad_()
    result = OverlapTileInferer(16, halo=0, tile_stride=1)(image, network, 2.0, shift=1.0)
    torch.testing.assert_close(result, image * 2 + 1)
    result.sum().backward()
    torch.testing.assert_close(image.grad, torch.full_like(image, 2.0))


def test_shapes_are_read_through_wrappers() -> None:
    wrapped = torch.nn.Module()  # as DistributedDataParallel
    wrapped.module = make_network(2)
    compiled = torch.compile(wrapped, backend="eager")  # compiled only when called
    assert len(OverlapTileInferer(96).plan((200, 200), compiled).tiles) > 1


def test_stride_and_halo_of_a_network_without_shapes_are_measured() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(4, 4, 3, padding=1),
        torch.nn.ConvTranspose2d(4, 2, 2, 2),
    ).eval()
    image = random_image(66, 34)
    # Receptive radius: 1 at full resolution, one coarse voxel of 2, and the phase within it.
    assert measure_shapes(network, 1, 2) == SameSizeShapes(total_stride=(2, 2), halo=(4, 4))
    for options in ({}, {"halo": 4}, {"tile_stride": 2}, {"halo": 4, "tile_stride": 2}):
        torch.testing.assert_close(tiled(network, image, 16, **options), network(image), atol=ROUNDING, rtol=0)
    with pytest.raises(ConfigError, match="depends on the whole window"):
        tiled(torch.nn.Sequential(network, torch.nn.Softmax(dim=2)), image, 16)
    wide, pool = torch.nn.Conv2d(1, 1, 15, padding=7), torch.nn.AvgPool2d(2)  # the wide branch hides the stride
    both = measure_shapes(lambda x: wide(x) + torch.nn.functional.interpolate(pool(x), scale_factor=2), 1, 2)
    assert both == SameSizeShapes(total_stride=(2, 2), halo=(8, 8))


@pytest.mark.parametrize("options", [{}, {"upsample": "linear"}, {"strides": [[2, 1], 2], "kernel_sizes": [3, 5, 3]}])
def test_measured_shapes_match_those_of_the_network(options: dict[str, Any]) -> None:
    network = UNet(2, 1, 2, channels=(2, 2, 2), norm="batch", **options).eval()
    assert measure_shapes(network, 1, 2) == SameSizeShapes(network.shapes.total_stride, network.shapes.halo)


def test_an_output_of_another_size_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"different size .* \(16, 16\) \(received \(14, 14\), expected \(16, 16\)\)"):
        tiled(torch.nn.Conv2d(1, 1, 3), random_image(33, 33), 16, halo=0, tile_stride=1)


def test_a_resized_output_is_rejected_unless_the_image_fits_one_tile() -> None:
    network = make_network(2, padding="valid", resize_output=True)
    image = random_image(45, 46)
    torch.testing.assert_close(tiled(network, image, 64), whole_image(network, image), atol=ROUNDING, rtol=0)
    with pytest.raises(ConfigError, match="cannot be tiled"):
        tiled(network, random_image(133, 46), 64)


@pytest.mark.parametrize(
    "options",
    [
        {"tile_size": "large"},
        {"tile_size": (96, 96, 96)},
        {"halo": "some"},
        {"halo": (1, 2, 3)},
        {"batch_size": 0},
        {"tile_stride": 0},
    ],
    ids=str,
)
def test_invalid_options_raise_config_errors(options) -> None:
    with pytest.raises(ConfigError):
        tiled(make_network(2), random_image(33, 34), **{"tile_size": 96, **options})


def test_an_empty_batch_is_rejected() -> None:
    with pytest.raises(ConfigError, match="no image"):
        tiled(make_network(2), torch.empty(0, 1, 33, 34), None)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_windows_on_cuda_are_stitched_on_the_cpu() -> None:
    network, image = make_network(2, padding="valid"), random_image(75, 33)
    expected = whole_image(network, image)
    result = tiled(network.cuda(), image, (60, 64), sw_device="cuda")
    assert result.device.type == "cpu"
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)  # TF32 convolutions
