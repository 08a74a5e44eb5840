"""What the page's viewer gets: the right voxels, the right way up, small enough."""

from __future__ import annotations

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from medunet.errors import GeometryError
from medunet.reports import Stack, pack_case

RAS, LPS = np.eye(4), np.diag([-1.0, -1, 1, 1])


def labels_of(stack: Stack) -> np.ndarray:
    return np.frombuffer(zlib.decompress(stack.labels), np.uint8).reshape(stack.maps, *stack.shape)


def slices_of(stack: Stack) -> np.ndarray:
    """The sprite cut up again, as the page does."""
    sheet = np.asarray(Image.open(io.BytesIO(stack.image)).convert("L"))
    slices, rows, columns = stack.image_shape
    places = [(place // stack.across * rows, place % stack.across * columns) for place in range(slices)]
    return np.stack([sheet[top : top + rows, left : left + columns] for top, left in places])


def volume(shape: tuple[int, int, int] = (9, 11, 13)) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label map in RAS with a bright voxel at the patient's right, front and head."""
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    places = np.zeros(shape, np.uint8)
    places[-1, -1, -1] = 1
    places[1:4, 1:5, 1:6] = 2
    return image, places


def test_the_patients_right_front_and_head_come_first() -> None:
    image, places = volume()
    stack = pack_case(image, [places, places * 0], affine=RAS)
    assert stack.shape == (13, 11, 9)
    reference, prediction = labels_of(stack)
    assert reference[0, 0, 0] == 1
    assert np.array_equal(reference, places[::-1, ::-1, ::-1].T)
    assert not prediction.any()
    assert stack.is_placed and not stack.is_cut and not stack.is_coarser


def test_the_order_of_the_files_axes_does_not_matter() -> None:
    image, places = volume()
    expected = labels_of(pack_case(image, [places], affine=RAS))
    flipped = pack_case(image[:, ::-1, ::-1], [places[::-1, ::-1]], affine=LPS)
    turned = np.array([[0.0, 2, 0, 0], [0, 0, 3, 0], [5, 0, 0, 0], [0, 0, 0, 1]])  # stored as S, R, A
    moved = pack_case(np.moveaxis(image, 3, 1), [np.moveaxis(places, 2, 0)], affine=turned)
    assert np.array_equal(labels_of(flipped), expected)
    assert np.array_equal(labels_of(moved), expected)
    assert moved.spacing_mm == (5, 3, 2)


def test_grey_values_come_back_where_they_were() -> None:
    image = np.zeros((1, 40, 44, 12), np.float32)
    image[0, 20:, :22, :6] = 1000
    image[0, :20, 22:, 6:] = 500
    stack = pack_case(image, [np.zeros(image.shape[1:], np.uint8)], affine=RAS)
    seen = slices_of(stack)
    expected = np.round(image[0] / 1000 * 255)[::-1, ::-1, ::-1].T
    assert np.abs(seen - expected).mean() < 6  # WebP is not exact


def test_a_large_volume_becomes_small_and_its_finest_axes_lose_first() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 200, 180, 30)).astype(np.float32)
    places = np.zeros(image.shape[1:], np.uint8)
    places[20:180, 20:160, 4:26] = 1
    stack = pack_case(image, [places, places], affine=np.diag([1.0, 1, 5, 1]), max_bytes=60_000)
    assert stack.page_bytes <= 60_000
    assert stack.is_coarser
    slices, rows, columns = stack.image_shape
    assert slices == 30 and rows < 180 and columns < 200
    assert stack.shape == (30, 180, 200)  # contours are as fine as they were
    assert slices_of(stack).shape == stack.image_shape
    assert (labels_of(stack)[0] == 1).mean() == pytest.approx((places == 1).mean(), rel=0.05)


def test_far_surroundings_are_cut_and_no_label_with_them() -> None:
    image = np.zeros((1, 120, 110, 100), np.float32)
    places = np.zeros(image.shape[1:], np.uint8)
    places[50:60, 50:60, 95:] = 3
    stack = pack_case(image, [places * 0, places], affine=RAS)
    assert stack.is_cut
    assert (labels_of(stack) == 3).sum() == (places == 3).sum()
    assert stack.shape == (30, 60, 60)  # 25 mm on each side, where the image goes on


def test_pictures_stay_as_they_are_and_colours_are_kept() -> None:
    picture = np.zeros((3, 33, 35), np.float32)
    picture[0, :10, :10] = 255
    places = np.zeros((33, 35), np.uint8)
    places[:10, :10] = 1
    stack = pack_case(picture, [places, places])
    assert stack.shape == (1, 35, 33) and not stack.is_placed
    assert labels_of(stack)[0, 0, 0, 0] == 1
    red = np.asarray(Image.open(io.BytesIO(stack.image)).convert("RGB"))[4, 4]
    assert red[0] > 200
    assert red[1] < 80


def test_one_slice_of_a_patient_is_seen_from_the_feet() -> None:
    # a DICOM slice: x to the left, y to the back
    places = np.zeros((20, 30), np.uint8)
    places[0, 0] = 1  # right and front
    image = np.zeros((1, 20, 30), np.float32)
    stack = pack_case(image, [places], affine=np.diag([-0.5, -0.7, 1, 1]))
    assert stack.shape == (1, 30, 20)
    assert labels_of(stack)[0, 0, 0, 0] == 1
    assert stack.spacing_mm[1:] == (0.7, 0.5)


def test_flat_and_broken_intensities_are_drawn() -> None:
    image = np.full((1, 8, 9, 10), 7.0, np.float32)
    image[0, 0, 0, 0] = np.nan
    assert pack_case(image, [np.zeros((8, 9, 10), np.uint8)], affine=RAS).image


def test_the_document_is_json() -> None:
    image, places = volume()
    document = json.loads(json.dumps(pack_case(image, [places], affine=RAS).document()))
    assert zlib.decompress(base64.b64decode(document["labels"]))
    assert document["shape"] == [13, 11, 9]


def test_a_map_of_another_size_is_an_error() -> None:
    with pytest.raises(GeometryError, match="grid"):
        pack_case(np.zeros((1, 4, 5, 6)), [np.zeros((4, 5), np.uint8)], affine=RAS)
