"""How well the network's labels agree with the annotators'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medunet.io import read_label, read_volume
from medunet.metrics import dice


def score_labels(predicted: Path, reference: Path, labels: Mapping[str, int], *, image: Path) -> dict[str, float]:
    """Dice by label name; NaN for a label that neither has.

    Args:
        predicted: label map of the network.
        reference: label map of the annotator.
        labels: value by name.
        image: whose grid both lie on.

    Raises:
        DataError: a file that cannot be read.
        GeometryError: one that does not lie on the image.
    """
    grid = read_volume(image).record.geometry
    one, other = (read_label(path, reference=grid, labels=labels).image for path in (predicted, reference))
    return {name: dice(one == value, other == value) for name, value in labels.items() if value}
