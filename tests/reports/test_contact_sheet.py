"""The contact sheet: thumbnails with the right view, proportions, colours and frames."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunet.errors import DataError
from medunet.reports import ContactSheet, class_colours
from medunet.reports.contact_sheet import CAPTION, GAP, LABEL_OPACITY, TILE

LABELS = {"background": 0, "liver": 3}
TOP, LEFT = CAPTION + GAP, GAP


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., np.ndarray]:
    """Write a sheet and return its pixels."""
    return lambda sheet, **options: np.asarray(Image.open(sheet.write(tmp_path / "sheet.png", LABELS, **options)))


def test_a_picture_is_shown_unchanged_with_its_label(draw: Callable[..., np.ndarray]) -> None:
    image = np.zeros((1, 36, 36), np.float32)
    image[0, 18:] = 1000  # the right half
    label = np.zeros_like(image)
    label[0, :9, :9] = 3
    sheet = ContactSheet()
    sheet.add("a", image, label)
    tile = draw(sheet)[TOP : TOP + TILE, LEFT : LEFT + TILE]
    assert tile[-10, 10].tolist() == [0, 0, 0]
    assert tile[-10, -10].tolist() == [255, 255, 255]
    orange = np.array(list(bytes.fromhex(class_colours(["liver"])["liver"][1:])))
    assert np.abs(tile[10, 10] - LABEL_OPACITY * orange).max() <= 1


def test_a_volume_has_the_patients_proportions_and_a_frame_for_findings(draw: Callable[..., np.ndarray]) -> None:
    sheet = ContactSheet()
    image, label = np.zeros((2, 1, 40, 10, 5), np.float32)
    image[0, 30:, 5:, 3] = 1000  # the patient's right front, in the slice that shows the label
    label[0, 2, 2, 3] = 3
    sheet.add("a", image, label, affine=np.diag([1.0, 2, 5, 1]))
    assert sheet.thumbnails["a"].grey.size == (TILE, TILE // 2)
    plain, framed = draw(sheet), draw(sheet, severities={"a": "error"})
    assert plain[TOP + TILE // 4 + 5, LEFT + 5].min() > 200
    assert plain[TOP - 2, LEFT].tolist() != framed[TOP - 2, LEFT].tolist()
    assert framed[TOP - 2, LEFT, 0] > 200


def test_thumbnails_fill_rows(draw: Callable[..., np.ndarray], tmp_path: Path) -> None:
    sheet = ContactSheet()
    with pytest.raises(DataError, match="no case can be shown"):
        draw(sheet)
    assert list(tmp_path.iterdir()) == []
    for number in range(7):
        sheet.add(f"case_{number}_with_a_long_name_that_does_not_fit", np.full((1, 33, 33), number, np.float32))
    height, width, _ = draw(sheet).shape
    assert width == GAP + 4 * (TILE + GAP)
    assert height == CAPTION + 2 * GAP + 2 * (TILE + CAPTION + GAP)
