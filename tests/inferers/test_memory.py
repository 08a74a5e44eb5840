"""Memory of a pass, and the tiles that follow from it."""

import contextlib
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError
from medunet.inferers import OverlapTileInferer, SameSizeShapes, peak_bytes
from medunet.inferers.tiling import MAX_LIMITS, MOST_TIMES, choose_halo, choose_tiles, plan_tiles
from medunet.networks import UNet
from medunet.runtime.cuda import is_out_of_memory


def make_network(spatial_dims: int = 2, **options) -> UNet:
    torch.manual_seed(0)
    return UNet(spatial_dims, 1, 3, channels=(4, 6, 8), **{"norm": "batch", **options}).eval()


class Greedy(torch.nn.Module):
    """A network on a small machine: a window above `limit` voxels takes more memory than there is."""

    def __init__(self, network: UNet, limit: int, error: Exception | None = None) -> None:
        super().__init__()
        self.network, self.limit = network, limit
        self.shapes, self.tileable = network.shapes, True
        self.error = error or RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
        self.windows: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.windows.append(tuple(image.shape[2:]))
        if image.device.type != "meta" and math.prod(image.shape[2:]) > self.limit:
            raise self.error
        return self.network(image)


def test_peak_of_a_chain_is_the_largest_pair():
    # 1 -> 8 -> 2 channels of 10 x 10 float32: the caller holds the input
    chain = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 1), torch.nn.Conv2d(8, 2, 1))
    assert peak_bytes(chain, (1, 1, 10, 10)) == 4 * 100 * (1 + 8 + 2)


def test_auto_uses_the_whole_image_or_few_tiles_and_changes_no_voxel():
    network, image = make_network(), torch.randn(1, 1, 133, 205)
    assert len(OverlapTileInferer("auto", memory="1GB").plan((133, 205), network).tiles) == 1
    whole = peak_bytes(network, (1, 1, 136, 208))
    # at the finest level a skip of 4 channels waits while 8 concatenated and 4 new ones are there
    assert whole >= 4 * 136 * 208 * (4 + 8 + 4)
    inferer = OverlapTileInferer("auto", memory=whole)  # the estimate adds half as much again
    plan = inferer.plan((133, 205), network)
    assert 2 <= len(plan.tiles) <= 3
    with torch.inference_mode():
        torch.testing.assert_close(inferer(image, network), OverlapTileInferer(None)(image, network), atol=1e-5, rtol=0)


def test_auto_uses_the_free_memory(monkeypatch):
    network = make_network()
    monkeypatch.setattr("medunet.inferers.overlap_tile.free_memory", lambda device: 1 << 20)
    assert len(OverlapTileInferer("auto").plan((512, 512), network).tiles) > 1


def with_memory_for(voxels, **options):
    inferer = OverlapTileInferer("auto", **options)
    inferer._max_voxels = lambda *_: voxels
    return inferer


def test_auto_takes_a_part_of_the_halo_and_says_so_if_whole_ones_would_evaluate_too_much(caplog):
    network, image = make_network(), torch.randn(1, 1, 160, 160)
    halo, stride = network.shapes.halo[0], network.shapes.total_stride[0]
    most = (2 * halo + stride) ** 2  # the smallest tile with the whole halo
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        whole = OverlapTileInferer(None)(image, network)
        torch.testing.assert_close(with_memory_for(most, halo="exact")(image, network), whole, atol=1e-5, rtol=0)
        assert not caplog.records
        found = with_memory_for(most)(image, network)
    assert len(caplog.records) == 1
    assert "a few voxels where tiles meet may differ" in caplog.text.replace("\n", " ")
    evaluated = [
        sum(math.prod(tile.window_size) for tile in with_memory_for(most, halo=kind).plan((160, 160), network).tiles)
        for kind in ("exact", "auto")
    ]
    assert evaluated[0] > MOST_TIMES * 160**2 >= evaluated[1]
    assert (found.argmax(1) == whole.argmax(1)).float().mean() > 0.95  # of random weights; only where tiles meet


def test_auto_takes_the_cheapest_part_if_every_part_evaluates_too_much():
    shapes = SameSizeShapes(total_stride=(4, 4), halo=(36, 36))
    smallest_part = 12  # a quarter of 36 is 9, rounded up to the stride
    most = (2 * smallest_part + 4) ** 2
    plan, halo = choose_halo((200, 200), most, shapes=shapes)
    assert halo == (smallest_part, smallest_part)
    assert sum(math.prod(tile.window_size) for tile in plan.tiles) > MOST_TIMES * 200**2
    with pytest.raises(ConfigError, match="smallest tile"):
        choose_halo((200, 200), most - 1, shapes=shapes)


@pytest.mark.parametrize("padding, halo", [("same", 16), ("same", "exact"), ("valid", "auto")])
def test_a_given_halo_and_the_margin_of_a_valid_network_are_never_reduced(padding, halo):
    with pytest.raises(ConfigError, match="smallest tile"):
        with_memory_for(300, halo=halo).plan((512, 512), make_network(padding=padding))


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, MAX_LIMITS), st.integers(1, MAX_LIMITS), st.integers(1, 40)),  # all cuts are tried
    stride=st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 3),
    halo=st.tuples(*[st.integers(0, 9)] * 3),
    part=st.floats(0.05, 1.0),
    extend=st.integers(0, 2),
)
def test_chosen_tiles_fit_and_no_cut_along_one_axis_is_better(size, stride, halo, part, extend):
    shapes = SameSizeShapes(total_stride=stride, halo=halo)
    most = math.prod(plan_tiles(size, None, shapes=shapes).tiles[0].window_size)
    try:
        plan = choose_tiles(size, part * most, shapes=shapes, extend=extend)
    except ConfigError as error:
        assert "smallest tile" in str(error)
        return
    windows = [math.prod(tile.window_size) for tile in plan.tiles]
    assert max(windows) <= part * most
    for axis, width in ((k, n) for k in range(3) for n in range(stride[k], size[k], stride[k])):
        with contextlib.suppress(ConfigError):  # too small a tile
            other = plan_tiles(size, [width if k == axis else None for k in range(3)], shapes=shapes, extend=extend)
            sizes = [math.prod(t.window_size) for t in other.tiles]
            assert sum(windows) <= sum(sizes) or max(sizes) > part * most


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_extended_regions_equal_the_whole_image(padding):
    network, image = make_network(padding=padding), torch.randn(1, 1, 133, 75)
    with torch.inference_mode():
        whole = OverlapTileInferer(None)(image, network)
        seen = torch.zeros(133, 75)
        for tile in OverlapTileInferer(68).tiles(image, network, extend=1):
            torch.testing.assert_close(tile.logits, whole[0][(slice(None), *tile.region)], atol=1e-5, rtol=0)
            seen[tile.region] += 1
    assert seen.min() == 1
    assert seen.max() == 4  # where the corners of four regions meet


@pytest.mark.parametrize("tile_size", ["auto", None, (133, 205)])
def test_out_of_memory_continues_with_smaller_tiles(tile_size, caplog):
    image = torch.randn(2, 1, 133, 205)
    network = Greedy(make_network(), limit=14_000)
    inferer = OverlapTileInferer(tile_size, memory="1GB")
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        result = inferer(image, network)
        torch.testing.assert_close(result, OverlapTileInferer(None)(image, network.network), atol=1e-5, rtol=0)
    assert [record.message for record in caplog.records] == [
        "out of memory: continuing with smaller tiles, the result is the same"
    ]


def test_other_errors_are_not_treated_as_out_of_memory():
    network = Greedy(make_network(), limit=7000, error=RuntimeError("weights are missing"))
    with pytest.raises(RuntimeError, match="weights are missing"):
        OverlapTileInferer(None)(torch.randn(1, 1, 133, 205), network)
    assert len(network.windows) == 1
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))


def test_out_of_memory_for_the_smallest_tile_is_raised():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        OverlapTileInferer(None)(torch.randn(1, 1, 133, 205), Greedy(make_network(), limit=10))


def test_instance_norm_is_blended_if_the_image_needs_several_windows(caplog):
    network, image = make_network(norm="instance"), torch.randn(1, 1, 96, 101)
    inferer = OverlapTileInferer(64)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        result = inferer(image, network)
        inferer(image, network)
        whole = OverlapTileInferer(None)(image, network)
    assert result.shape == whole.shape
    assert len(caplog.records) == 1
    assert "blended" in caplog.text
    # blending has no seam: no step at the borders of windows is larger than those within
    steps = (result - whole)[0, 0].diff(dim=0).abs().mean(dim=1)
    assert steps.max() < 6 * steps.median()
