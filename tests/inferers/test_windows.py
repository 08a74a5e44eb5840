"""Windows that exceed the image, compared with numpy, whose `pad` reflects as often as needed."""

import numpy as np
import pytest
import torch

from medunet.inferers.windows import take_window


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1), (7, 4)])
@pytest.mark.parametrize(("before", "after"), [(0, 13), (1, 2), (11, 0)])
def test_a_window_around_the_image_equals_numpy_pad(size, before, after) -> None:
    if max(before, after) >= min(size) > 1 and np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("numpy 1 repeats a reflection out of step")
    image = torch.arange(2 * size[0] * size[1], dtype=torch.float32).reshape(1, 2, *size)
    window = take_window(
        image, (slice(0, before + size[0] + after), slice(0, before + size[1] + after)), (before, before)
    )
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), (before, after), (before, after)], mode="reflect")
    np.testing.assert_array_equal(window.numpy(), expected)


def test_a_window_across_one_border_is_part_of_the_padded_image() -> None:
    image = torch.arange(5 * 6 * 7, dtype=torch.float32).reshape(1, 1, 5, 6, 7)
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), *[(4, 4)] * 3], mode="reflect")
    window = take_window(image, (slice(1, 8), slice(6, 9), slice(8, 15)), (4, 4, 4))
    np.testing.assert_array_equal(window.numpy(), padded[:, :, 1:8, 6:9, 8:15])


def test_a_window_inside_the_image_is_not_copied() -> None:
    image = torch.rand(1, 1, 8, 8)
    assert take_window(image, (slice(2, 6), slice(2, 6)), (0, 0))[0, 0, 0, 0].data_ptr() == image[0, 0, 2, 2].data_ptr()
