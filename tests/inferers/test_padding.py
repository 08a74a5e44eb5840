"""Windows beyond the image, against numpy, whose `pad` reflects as often as needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medunet.inferers.padding import PADDING_MODES, source_indices, take_window

NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "constant": "constant"}


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1), (7, 4)])
@pytest.mark.parametrize("before", [0, 1, 11])
@pytest.mark.parametrize("after", [0, 2, 13])
def test_a_window_around_the_image_equals_numpy_pad(mode, size, before, after) -> None:
    if mode == "reflect" and max(before, after) >= min(size) > 1 and np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("numpy 1 repeats a reflection out of step")
    image = torch.arange(2 * size[0] * size[1], dtype=torch.float32).reshape(1, 2, *size)
    window = take_window(image, (-before, -before), (size[0] + after, size[1] + after), mode=mode)
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), (before, after), (before, after)], mode=NUMPY_MODES[mode])
    np.testing.assert_array_equal(window.numpy(), expected)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_a_window_across_one_border_is_a_piece_of_the_padded_image(mode) -> None:
    image = torch.arange(5 * 6 * 7, dtype=torch.float32).reshape(1, 1, 5, 6, 7)
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), *[(9, 9)] * 3], mode=NUMPY_MODES[mode])
    window = take_window(image, (-3, 2, 4), (4, 5, 16), mode=mode)
    np.testing.assert_array_equal(window.numpy(), padded[:, :, 6:13, 11:14, 13:25])


def test_a_window_inside_the_image_is_not_copied() -> None:
    image = torch.rand(1, 1, 8, 8)
    assert take_window(image, (2, 2), (6, 6))[0, 0, 0, 0].data_ptr() == image[0, 0, 2, 2].data_ptr()


def test_the_edge_is_not_repeated() -> None:
    assert source_indices(-2, 6, 4).tolist() == [2, 1, 0, 1, 2, 3, 2, 1]
