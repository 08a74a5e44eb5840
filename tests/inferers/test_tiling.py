"""Plans of tiles, checked as integers without a network."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError
from medunet.inferers import SameSizeShapes, smallest_tile
from medunet.inferers.tiling import TilePlan, plan_tiles
from medunet.networks import UNetShapes

PAPER = UNetShapes(2, 5, padding="valid")


@st.composite
def plans(draw: st.DrawFn) -> tuple[TilePlan, UNetShapes, tuple[int, ...], tuple[int, ...]]:
    """Any plan: image 1..90, 2 or 3 levels, strides and kernels per axis, tiles from the smallest upwards."""
    levels = draw(st.integers(2, 3))
    axis = st.lists(st.integers(1, 3), min_size=2, max_size=2)
    kernel = st.lists(st.sampled_from([1, 3]), min_size=2, max_size=2)
    shapes = UNetShapes(
        2,
        levels,
        kernel_sizes=draw(st.lists(kernel, min_size=levels, max_size=levels)),
        strides=draw(st.lists(axis, min_size=levels - 1, max_size=levels - 1)),
        padding=draw(st.sampled_from(["same", "valid"])),
        upsample=draw(st.sampled_from(["transposed", "linear"])),
    )
    halo = draw(st.none() | st.tuples(st.integers(0, 20), st.integers(0, 20)))
    image = draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    tile = tuple(n + draw(st.integers(0, 40)) for n in smallest_tile(shapes, halo=halo))
    return plan_tiles(image, tile, shapes=shapes, halo=halo), shapes, tile, shapes.halo if halo is None else halo


@settings(deadline=None)  # the machine may be busy
@given(plans())
def test_tiles_partition_the_image_in_windows_of_the_right_phase_size_and_context(case) -> None:
    plan, shapes, tile_size, halo = case
    whole, largest = shapes.next_valid_input(plan.image_size), shapes.next_valid_input(tile_size)
    written = np.zeros(plan.image_size, dtype=int)
    for tile in plan.tiles:
        assert all(s.start < s.stop for s in tile.keep)
        written[tile.keep] += 1
        assert shapes.next_valid_input(tile.window_size) == tile.window_size
        output = shapes.output_size(tile.window_size)
        for axis, (window, keep, trim) in enumerate(zip(tile.window, tile.keep, tile.trim, strict=True)):
            stride = shapes.total_stride[axis]
            assert window.start % stride == 0
            assert tile.window_size[axis] <= largest[axis]
            # output voxel 0 is `margin` voxels into its window, and the extended image starts `margin` before the image
            assert (window.start + trim.start, window.start + trim.stop) == (keep.start, keep.stop)
            assert 0 <= trim.start < trim.stop <= output[axis]
            if not any(shapes.margin):
                assert window.start >= 0 and window.stop <= whole[axis]
                assert window.start == 0 or keep.start - window.start >= halo[axis]
                assert window.stop == whole[axis] or window.stop - keep.stop >= halo[axis]
                assert window.stop == whole[axis] or window.stop % stride == 0
    assert written.min() == written.max() == 1


def test_the_tiles_of_the_2015_paper_abut_at_384_and_end_with_the_image() -> None:
    plan = plan_tiles((512, 512), (572, 572), shapes=PAPER)
    first, last = slice(0, 384), slice(384, 512)
    assert [tile.keep for tile in plan.tiles] == [(first, first), (first, last), (last, first), (last, last)]
    # 128 voxels remain after 384; the smallest input that gives so many is 316 (-> 132).
    assert [tile.window_size for tile in plan.tiles] == [(572, 572), (572, 316), (316, 572), (316, 316)]
    # 384 + 388: no third tile for the last four voxels.
    assert len(plan_tiles((772, 388), (572, 572), shapes=PAPER).tiles) == 2
    assert len(plan_tiles((773, 388), (572, 572), shapes=PAPER).tiles) == 3


def test_padded_tiles_overlap_by_the_halo_on_each_side() -> None:
    # tile 16, halo 4, stride 4: steps of 8
    #   [============----]
    #           [----========----]
    #                   [----==========]
    plan = plan_tiles((30,), (18,), shapes=SameSizeShapes(total_stride=(4,), halo=(4,)))
    assert [tile.window[0] for tile in plan.tiles] == [slice(0, 16), slice(8, 24), slice(16, 32)]
    assert [tile.keep[0] for tile in plan.tiles] == [slice(0, 12), slice(12, 20), slice(20, 30)]


def test_a_last_window_is_never_smaller_than_the_stride() -> None:
    class AnySize(SameSizeShapes):
        """A network that takes every size of at least its stride, as `UNet` does."""

        def next_valid_input(self, size: Sequence[int], /) -> tuple[int, ...]:
            return tuple(map(max, size, self.total_stride))

    plan = plan_tiles((33,), (32,), shapes=AnySize(total_stride=(16,), halo=(0,)))
    assert [tile.window[0] for tile in plan.tiles] == [slice(0, 32), slice(16, 33)]
    assert [tile.keep[0] for tile in plan.tiles] == [slice(0, 32), slice(32, 33)]
    # That last window has 17 voxels, so a tile of 16 is too small.
    assert smallest_tile(SameSizeShapes(total_stride=(16,), halo=(0,))) == (32,)


def test_without_a_tile_size_the_whole_image_is_one_window() -> None:
    shapes = UNetShapes(3, 3)
    assert [t.window_size for t in plan_tiles((33, 34, 35), None, shapes=shapes).tiles] == [(33, 34, 35)]
    assert {t.window_size[1] for t in plan_tiles((99, 34, 99), (96, None, 96), shapes=shapes).tiles} == {34}
    # an image below the total stride grows to it
    (tile,) = plan_tiles((5, 33), (64, 64), shapes=UNetShapes(2, 4)).tiles
    assert tile.window_size == (8, 33)
    assert tile.trim == tile.keep == (slice(0, 5), slice(0, 33))


@pytest.mark.parametrize("shapes", [UNetShapes(2, 3), UNetShapes(2, 3, padding="valid")], ids=["same", "valid"])
def test_a_tile_one_voxel_too_small_is_rejected_with_the_smallest_that_works(shapes: UNetShapes) -> None:
    smallest = smallest_tile(shapes)
    assert len(plan_tiles((500, 500), smallest, shapes=shapes).tiles) > 1
    assert len(plan_tiles((5, 5), shapes.input_for_output((5, 5)), shapes=shapes).tiles) == 1  # the image fits
    with pytest.raises(ConfigError, match=rf"remedy: set tile_size to \({smallest[0]}, {smallest[1]}\)"):
        plan_tiles((500, 500), (smallest[0], smallest[1] - 1), shapes=shapes)


@pytest.mark.parametrize(("image", "tile"), [((33, 33, 33), (64, 64)), ((33, 33), (64,)), ((0, 33), (64, 64))])
def test_sizes_that_do_not_fit_the_network_are_rejected(image: tuple[int, ...], tile: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        plan_tiles(image, tile, shapes=UNetShapes(2, 3))
