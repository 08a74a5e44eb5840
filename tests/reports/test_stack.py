"""What the page's viewer gets: the right voxels in the right place, small enough."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from medunet.errors import GeometryError
from medunet.reports import Stack, pack_case

RAS = np.eye(4)


def labels_of(stack: Stack) -> np.ndarray:
    return np.frombuffer(zlib.decompress(stack.labels), np.uint8).reshape(stack.maps, *stack.shape)


def slices_of(stack: Stack) -> np.ndarray:
    """The sprite cut up again, as the page does."""
    sheet = np.asarray(Image.open(io.BytesIO(stack.image)).convert("L"))
    slices, rows, columns = stack.image_shape
    places = [(place // stack.across * rows, place % stack.across * columns) for place in range(slices)]
    return np.stack([sheet[top : top + rows, left : left + columns] for top, left in places])


def test_grey_values_and_labels_keep_their_positions() -> None:
    image = np.zeros((1, 40, 44, 12), np.float32)
    image[0, 20:, :22, :6] = 1000
    image[0, :20, 22:, 6:] = 500
    places = (image[0] > 600).astype(np.uint8)
    stack = pack_case(image, [places, places * 0], affine=np.diag([1.0, 1, 2, 1]))
    expected = np.round(image[0] / 1000 * 255)[::-1, ::-1, ::-1].T
    assert np.abs(slices_of(stack) - expected).mean() < 6  # WebP is not exact
    reference, prediction = labels_of(stack)
    assert np.array_equal(reference, places[::-1, ::-1, ::-1].T) and not prediction.any()
    assert (stack.spacing_mm, stack.is_placed, stack.is_cut, stack.is_coarser) == ((2, 1, 1), True, False, False)
    document = json.loads(json.dumps(stack.document()))
    assert zlib.decompress(base64.b64decode(document["labels"])) == zlib.decompress(stack.labels)
    assert document["shape"] == [12, 44, 40]


def test_a_large_volume_is_downsampled_along_its_finest_axes_first() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 200, 180, 30)).astype(np.float32)
    places = np.zeros(image.shape[1:], np.uint8)
    places[20:180, 20:160, 4:26] = 1
    stack = pack_case(image, [places, places], affine=np.diag([1.0, 1, 5, 1]), max_bytes=60_000)
    assert len(json.dumps(stack.document())) <= 60_000 + 300  # beside the numbers
    assert stack.is_coarser
    slices, rows, columns = stack.image_shape
    assert slices == 30 and rows < 180 and columns < 200
    assert stack.shape == (30, 180, 200)  # contours are as fine as they were
    assert slices_of(stack).shape == stack.image_shape
    assert (labels_of(stack)[0] == 1).mean() == pytest.approx((places == 1).mean(), rel=0.05)


def test_distant_background_is_cropped_and_no_label_is_lost() -> None:
    image = np.zeros((1, 120, 110, 100), np.float32)
    places = np.zeros(image.shape[1:], np.uint8)
    places[50:60, 50:60, 95:] = 3
    stack = pack_case(image, [places * 0, places], affine=RAS)
    assert stack.is_cut
    assert (labels_of(stack) == 3).sum() == (places == 3).sum()
    assert stack.shape == (30, 60, 60)  # 25 mm on each side, where the image continues


def test_pictures_keep_size_and_colours() -> None:
    picture = np.zeros((3, 33, 35), np.float32)
    picture[0, :10, :10] = 255
    places = np.zeros((33, 35), np.uint8)
    places[:10, :10] = 1
    stack = pack_case(picture, [places, places])
    assert stack.shape == (1, 35, 33) and not stack.is_placed
    assert labels_of(stack)[0, 0, 0, 0] == 1
    red, green, _ = np.asarray(Image.open(io.BytesIO(stack.image)).convert("RGB"))[4, 4]
    assert red > 200 and green < 80


def test_flat_and_broken_intensities_are_drawn_and_other_grids_are_errors() -> None:
    image = np.full((1, 8, 9, 10), 7.0, np.float32)
    image[0, 0, 0, 0] = np.nan
    assert pack_case(image, [np.zeros((8, 9, 10), np.uint8)], affine=RAS).image
    with pytest.raises(GeometryError, match="grid"):
        pack_case(image, [np.zeros((8, 9), np.uint8)], affine=RAS)
