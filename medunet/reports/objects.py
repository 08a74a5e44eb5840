"""Maps that show objects: neighbours in different colours, and the errors of a prediction in colours of their own."""

from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.segmentation import expand_labels

from medunet.metrics import overlaps

NEAR = 4  # pixels up to which objects are neighbours
TONES = ("#3b9be0", "#1ba87a", "#8a6fdf", "#17a2b0", "#8fb8de", "#6b8e23")  # of objects without an error
ERRORS = {"missed": "#ffd400", "spurious": "#ff3b30", "merged": "#ff2fd0", "split": "#ff8c1a"}
# value of each class in the maps: tones first; the first one has the name of them all
TONE_NAMES = tuple(f"objects {place}" if place else "objects" for place in range(len(TONES)))
OBJECT_COLOURS = {**dict(zip(TONE_NAMES, TONES, strict=True)), **ERRORS}

Labels = npt.NDArray[np.uint8]


def object_maps(pred: npt.NDArray[Any], ref: npt.NDArray[Any]) -> tuple[Labels, Labels]:
    """Return maps of a prediction and its reference with values of `OBJECT_COLOURS`, counted from 1.

    Spurious and merging objects are marked in the prediction, missed and split ones in the reference.
    """
    pred, ref = pred.astype(np.int32), ref.astype(np.int32)
    table, code = overlaps(pred, ref), {name: value for value, name in enumerate(OBJECT_COLOURS, start=1)}
    maps = []
    for labels, ids, marks in (
        (pred, table.pred_ids, {"spurious": table.is_spurious(), "merged": table.is_merging}),
        (ref, table.ref_ids, {"missed": table.is_missed(), "split": table.is_split}),
    ):
        lookup = tones(labels)
        for name, marked in marks.items():
            lookup[ids[marked]] = code[name]
        maps.append(lookup[labels])
    return maps[0], maps[1]


def object_layers() -> list[dict[str, Any]]:
    """Return name, colour and mark of each value of the maps for the page's viewer; further tones have no name."""
    names = {name: "" if name in TONE_NAMES[1:] else name for name in OBJECT_COLOURS}
    return [
        {"name": names[name], "colour": colour, "marked": name in ERRORS} for name, colour in OBJECT_COLOURS.items()
    ]


def tones(labels: npt.NDArray[Any]) -> Labels:
    """Return a tone from 1 for each object number, such that neighbours differ if there are enough tones.

    Examples:
        >>> tones(np.array([[1, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]])).tolist()
        [0, 1, 2, 0, 0, 1]
    """
    wide = expand_labels(labels, NEAR)
    pairs = []
    for axis in range(labels.ndim):
        here, there = (np.moveaxis(wide, axis, 0)[part] for part in (slice(1, None), slice(None, -1)))
        touching = (here != there) & (here > 0) & (there > 0)
        pairs.append(np.stack([here[touching], there[touching]], axis=1))
    beside: dict[int, set[int]] = {}
    for one, other in np.unique(np.concatenate(pairs), axis=0).tolist():
        beside.setdefault(one, set()).add(other)
        beside.setdefault(other, set()).add(one)
    lookup = np.zeros(int(labels.max(initial=0)) + 1, np.uint8)
    for number in np.unique(labels[labels > 0]).tolist():
        taken = {int(lookup[other]) for other in beside.get(number, ())}
        free = (tone for tone in range(1, len(TONES) + 1) if tone not in taken)
        lookup[number] = next(free, 1 + number % len(TONES))
    return lookup
