from __future__ import annotations

import pytest

from medunet.errors import ConfigError
from medunet.networks.shapes import UNetShapes

PAPER = UNetShapes.of(2, 5, padding="valid")


@pytest.mark.parametrize(("levels", "shrink"), [(2, 16), (3, 40), (4, 88), (5, 184)])
def test_valid_networks_shrink_as_published(levels, shrink):
    shapes = UNetShapes.of(2, levels, padding="valid")
    size = shapes.next_valid_input((600, 601))
    assert shapes.output_size(size) == (size[0] - shrink, size[1] - shrink)
    assert shapes.margin == (shrink // 2, shrink // 2)


def test_paper_sizes_572_to_388_and_132_132_116_to_44_44_28():
    assert PAPER.output_size((572, 572)) == (388, 388)
    assert UNetShapes.of(3, 4, padding="valid").output_size((132, 132, 116)) == (44, 44, 28)


def test_next_valid_input_is_the_smallest_that_is_accepted():
    def accepted(n):
        try:
            PAPER.output_size((n, 572))
        except ConfigError:
            return False
        return True

    sizes = [n for n in range(1, 300) if accepted(n)]
    assert sizes == list(range(188, 300, 16))
    for n in range(1, 284):
        assert PAPER.next_valid_input((n, n))[0] == min(s for s in sizes if s >= n)


def test_input_for_output_is_the_smallest_with_that_output():
    for wanted in range(1, 60):
        size = PAPER.input_for_output((wanted, wanted))
        assert PAPER.output_size(size)[0] >= wanted
        smaller = size[0] - 16
        assert smaller < 188 or PAPER.output_size((smaller, smaller))[0] < wanted


def test_padded_networks_keep_odd_sizes_and_reject_less_than_the_total_stride():
    shapes = UNetShapes.of(3, 4, strides=[[1, 2, 2], 2, 2])
    assert shapes.total_stride == (4, 8, 8)
    assert shapes.output_size((33, 34, 35)) == (33, 34, 35)
    assert shapes.next_valid_input((1, 9, 7)) == (4, 9, 8)
    assert shapes.input_for_output((1, 9, 7)) == (4, 9, 8)
    assert shapes.margin == (0, 0, 0)
    with pytest.raises(ConfigError, match=r"received \(33, 7, 8\), expected at least \(4, 8, 8\)\); remedy: pad"):
        shapes.output_size((33, 7, 8))


def test_receptive_radius_of_the_smallest_networks_by_hand():
    # One level down, one 3-kernel a level. Output pixel 0 <- decoder -1..1 <- coarse -1..0 <- (conv) -2..1 <- fine
    # -4..3 <- (conv) -5..4. Output pixel 1 <- 0..2 <- coarse 0..1 <- -1..2 <- -2..5 <- -3..6: 5 to the right.
    assert UNetShapes.of(2, 2, convs_per_level=1).receptive_radius == (5, 5)
    # Linear: pixel 0 <- decoder -1..1 <- coarse -1..1 <- (conv) -2..2 <- fine -4..5 <- (conv) -5..6: 6 to the right.
    assert UNetShapes.of(2, 2, convs_per_level=1, upsample="linear").receptive_radius == (6, 6)
    # Kernels of 1 leave the pixel's own coarse pixel: one neighbour.
    assert UNetShapes.of(2, 2, kernel_sizes=1).receptive_radius == (1, 1)
    assert UNetShapes.of(2, 2, kernel_sizes=[[1, 3], [1, 3]], strides=[[1, 2]]).receptive_radius == (0, 9)


def test_halo_is_the_radius_rounded_up_to_the_total_stride():
    assert PAPER.receptive_radius == (107, 107)
    assert PAPER.halo == (112, 112)


def test_resized_output_has_the_size_of_the_input_and_no_margin():
    shapes = UNetShapes.of(2, 5, padding="valid", resize_output=True)
    assert shapes.output_size((572, 572)) == (572, 572)
    assert shapes.margin == (0, 0)
    assert shapes.input_for_output((388, 389)) == (396, 396)


def test_short_and_long_forms_are_equal():
    short = UNetShapes.of(3, 3, kernel_sizes=[[1, 3, 3], 3, 3], strides=[[1, 2, 2], 2])
    assert short == UNetShapes(3, ((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 2, 2)))
    assert short.head_kernel_size == (1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "unknown spatial_dims"),
        ({"spatial_dims": True}, "unknown spatial_dims"),
        ({"levels": 1}, "levels must be an integer >= 2"),
        ({"levels": 2.5}, "levels must be an integer >= 2"),
        ({"padding": "reflect"}, "'same' | 'valid'"),
        ({"upsample": "nearest"}, "unknown upsample"),
        ({"downsample": "avg"}, "unknown downsample"),
        ({"kernel_sizes": 2}, "even"),
        ({"head_kernel_size": 2}, "head_kernel_size is even"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes must have one entry per level"),
        ({"strides": [2, 2, 2]}, "strides must have one entry per transition"),
        ({"strides": [[2, 2, 2], 2]}, "2 of them"),
        ({"strides": 0}, "strides must be an integer >= 1"),
        ({"strides": "2"}, "strides must have one"),
        ({"strides": [2, "2"]}, "strides must have one"),
        ({"strides": 2.0}, "strides must have one"),
        ({"convs_per_level": 0}, "convs_per_level must be an integer >= 1"),
        ({"padding": "valid", "kernel_sizes": 2, "convs_per_level": 1}, "odd number of pixels"),
        ({"padding": "valid", "head_kernel_size": 2}, "odd number of pixels"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ConfigError) as error:
        UNetShapes.of(**{"spatial_dims": 2, "levels": 3, **arguments})
    assert message in str(error.value)
    assert error.value.received is not None


@pytest.mark.parametrize("size", [(572,), (572, 572, 572), (0, 572), (571, 572), (572.0, 572), "ab"])
def test_wrong_sizes_are_rejected(size):
    with pytest.raises(ConfigError):
        PAPER.output_size(size)


def test_long_form_needs_a_stride_fewer_than_kernels():
    with pytest.raises(ConfigError, match="1 kernels and 0 strides"):
        UNetShapes(2, ((3, 3),), ())


def test_coarsest_size_is_that_of_figure_1():
    assert PAPER.coarsest_size((572, 588)) == (28, 29)
    assert UNetShapes.of(3, 3).coarsest_size((33, 34, 35)) == (8, 8, 8)
