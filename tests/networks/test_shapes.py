import pytest

from medunet.errors import ConfigError
from medunet.networks import UNetShapes

PAPER = UNetShapes(2, 5, padding="valid")


@pytest.mark.parametrize(("levels", "shrink"), [(2, 16), (3, 40), (4, 88), (5, 184)])
def test_valid_networks_shrink_as_published(levels, shrink):
    shapes = UNetShapes(2, levels, padding="valid")
    size = shapes.next_valid_input((600, 601))
    assert shapes.output_size(size) == (size[0] - shrink, size[1] - shrink)
    assert shapes.margin == (shrink // 2, shrink // 2)


def test_the_paper_has_the_published_sizes():
    assert PAPER.output_size((572, 572)) == (388, 388)
    assert PAPER.coarsest_size((572, 588)) == (28, 29)
    assert PAPER.receptive_radius == (107, 107)
    assert PAPER.halo == (112, 112)
    assert UNetShapes(3, 4, padding="valid").output_size((132, 132, 116)) == (44, 44, 28)


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
    for wanted in range(1, 60):
        size = PAPER.input_for_output((wanted, wanted))[0]
        assert size - 184 >= wanted
        assert size == 188 or size - 16 - 184 < wanted


def test_padded_networks_preserve_odd_sizes_and_reject_less_than_the_total_stride():
    shapes = UNetShapes(3, 4, strides=[[1, 2, 2], 2, 2])
    assert shapes.total_stride == (4, 8, 8)
    assert shapes.output_size((33, 34, 35)) == (33, 34, 35)
    assert shapes.next_valid_input((1, 9, 7)) == shapes.input_for_output((1, 9, 7)) == (4, 9, 8)
    assert shapes.coarsest_size((33, 34, 35)) == (8, 4, 4)
    assert shapes.margin == (0, 0, 0)
    with pytest.raises(ConfigError, match=r"received \(33, 7, 8\), expected at least \(4, 8, 8\)\); remedy: pad"):
        shapes.output_size((33, 7, 8))


def test_receptive_radius_of_the_smallest_networks_by_hand():
    # One level down, one 3-kernel per level. Output pixel 0 <- decoder -1..1 <- coarse -1..0 <- (conv) -2..1 <- fine
    # -4..3 <- (conv) -5..4. Output pixel 1 <- 0..2 <- coarse 0..1 <- -1..2 <- -2..5 <- -3..6: 5 to the right.
    assert UNetShapes(2, 2, convs_per_level=1).receptive_radius == (5, 5)
    # Linear: pixel 0 <- decoder -1..1 <- coarse -1..1 <- (conv) -2..2 <- fine -4..5 <- (conv) -5..6: 6 to the right.
    assert UNetShapes(2, 2, convs_per_level=1, upsample="linear").receptive_radius == (6, 6)
    # Kernels of 1 leave the pixel's own coarse pixel: one neighbour.
    assert UNetShapes(2, 2, kernel_sizes=1).receptive_radius == (1, 1)
    assert UNetShapes(2, 2, kernel_sizes=[[1, 3], [1, 3]], strides=[[1, 2]]).receptive_radius == (0, 9)


def test_resized_output_has_the_size_of_the_input_and_no_margin():
    shapes = UNetShapes(2, 5, padding="valid", resize_output=True)
    assert shapes.output_size((572, 572)) == (572, 572)
    assert shapes.margin == (0, 0)
    assert shapes.input_for_output((388, 389)) == (396, 396)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spatial_dims": 4}, "unknown spatial_dims"),
        ({"spatial_dims": True}, "unknown spatial_dims"),
        ({"levels": 1}, "levels must be an integer >= 2"),
        ({"padding": "reflect"}, "'same' | 'valid'"),
        ({"kernel_sizes": 2}, "kernel_sizes[0] must be odd"),
        ({"head_kernel_size": 2, "padding": "valid"}, "head_kernel_size must be odd"),
        ({"padding": "valid", "kernel_sizes": 2, "convs_per_level": 1}, "kernel_sizes[0] must be odd"),
        ({"kernel_sizes": [3, 3]}, "kernel_sizes must have one entry per level"),
        ({"strides": [2, 2, 2]}, "strides must have one entry per transition"),
        ({"strides": [[2, 2, 2], 2]}, "2 entries"),
        ({"strides": 0}, "strides must be an integer >= 1"),
        ({"strides": [2, "2"]}, "strides must have one"),
        ({"strides": 2.0}, "strides must have one"),
    ],
)
def test_invalid_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ConfigError) as error:
        UNetShapes(**{"spatial_dims": 2, "levels": 3, **arguments})
    assert message in str(error.value)
    assert error.value.received is not None


@pytest.mark.parametrize("size", [(572,), (0, 572), (571, 572), (572.0, 572), "ab"])
def test_invalid_sizes_are_rejected(size):
    with pytest.raises(ConfigError):
        PAPER.output_size(size)
