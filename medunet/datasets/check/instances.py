"""Recognise label maps that number objects (instances) instead of naming classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from medunet.datasets.layouts.values import MAX_LABELS, index_values
from medunet.errors import DataError
from medunet.io import read_volume

MIN_OBJECTS = 4  # fewer values in every image may be classes of which the later ones are rarer: organ, tumour, cyst
MIN_COUNTS = 3  # different numbers of values that images must have: classes are mostly all there
CONSECUTIVE_SHARE = 0.95  # of the images must have exactly the values 1 to n: missing classes leave gaps elsewhere
INCOMPLETE_SHARE = 0.25  # of the images must lack the largest value
SINGLE_SHARE = 0.95  # of the values must be one connected piece in their image
SAMPLE = 10  # images whose pieces are counted


def refuse_instances(values: Mapping[Path, Collection[int]], *, is_class_map: bool = True) -> None:
    """Raise an error if label maps number the objects in each image.

    Then images have the values 1 to n, n differs between images, and each value is one connected piece. Labels of
    classes may share one of these properties, but not all.

    Args:
        values: the distinct values of each label map.
        is_class_map: whether more than `MAX_LABELS` values in all images are evidence enough, if each is one piece.

    Raises:
        DataError: these look like instance labels.
    """
    objects = {path: sorted(set(found) - {0}) for path, found in values.items()}
    counts = {path: len(found) for path, found in objects.items() if found}
    most = max(counts.values(), default=0)
    consecutive = sum(objects[path] == list(range(1, count + 1)) for path, count in counts.items())
    numbered = (
        most >= MIN_OBJECTS
        and len(set(counts.values())) >= (MIN_COUNTS if most <= MAX_LABELS else 2)
        and consecutive >= CONSECUTIVE_SHARE * len(counts)
        and sum(count < most for count in counts.values()) >= INCOMPLETE_SHARE * len(counts)
    )
    if not numbered and not (is_class_map and len(set().union(*objects.values())) > MAX_LABELS):
        return
    ordered = sorted(counts, key=lambda path: (-counts[path], path))
    pieces = [count for path in ordered[:: -(-len(ordered) // SAMPLE)] for count in _pieces(path)]
    single = sum(count == 1 for count in pieces)
    if single < SINGLE_SHARE * len(pieces):
        return
    evidence = f"{min(counts.values())} to {most} values per image{', numbered from 1' if numbered else ''}"
    raise DataError(
        "these look like instance labels, one number per object, not like classes",
        file=ordered[0].parent,
        received=f"{evidence}; {single} of {len(pieces)} in one piece",
        expected="one value per class",
        remedy='set all objects of a class to one value; or declare the classes in dataset.json: "labels": {...}',
    )


def _pieces(path: Path) -> list[int]:
    """Return the number of connected pieces of each value but 0."""
    table, indices = index_values(read_volume(path).image.numpy()[0])
    neighbours = np.ones((3,) * indices.ndim, bool)
    boxes = ndimage.find_objects(indices.astype(np.int32))
    return [
        ndimage.label(indices[box] == index, structure=neighbours)[1]
        for index, box in enumerate(boxes, start=1)
        if box is not None and table[index] != 0
    ]
