"""How well the network's labels agree with the annotators'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def labels_agree(tables: Iterable[Mapping[str, int]]) -> bool:
    """Whether tables of labels contradict each other nowhere: no name with two values, no value with two names.

    Example:
        >>> labels_agree([{"liver": 1, "spleen": 2}, {"cell": 255}]), labels_agree([{"liver": 1}, {"tumour": 1}])
        (True, False)
        >>> labels_agree([{"liver": 1}, {"liver": 5}])
        False
    """
    pairs = {pair for labels in tables for pair in labels.items()}
    return len(pairs) == len({name for name, _ in pairs}) == len({value for _, value in pairs})
