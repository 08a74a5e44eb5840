"""Several slices at one position: phases of a sequence in time, or duplicates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from medunet.errors import DataError, GeometryError

from .dicom_header import Frame
from .dicom_values import TEMPORAL_KEYS

SAME_POSITION_MM = 1e-3
"""Slices closer than this lie at one position: a tenth of the finest slice distance of micro-CT."""

_MAX_NAMED = 6
"""How many phases an error names."""

Groups = list[list[Frame]]
"""Frames at one position each, along the normal."""


def group_positions(frames: Sequence[Frame], offsets: Sequence[float]) -> Groups:
    """Frames in the order of their offsets along the normal, those at one position together."""
    order = sorted(range(len(frames)), key=lambda k: (offsets[k], str(frames[k].file.path), frames[k].index))
    groups: Groups = []
    last = None
    for k in order:
        if last is None or offsets[k] - last > SAME_POSITION_MM:
            groups.append([])
        groups[-1].append(frames[k])
        last = offsets[k]
    return groups


def choose_phase(groups: Groups, phase: int | None, folder: Path) -> tuple[Groups, list[str]]:
    """Of a sequence in time one phase, with a note; anything else unchanged.

    A sequence has as many slices at every position, told apart at each by the same values of one tag.

    Raises:
        DataError: several phases and none chosen, or a phase that is not there.
    """
    count = len(groups[0])
    key = None
    if count > 1 and all(len(group) == count for group in groups):
        key = next((key for key in TEMPORAL_KEYS if _splits(groups, key)), None)
    if key is None:
        if phase not in (None, 0):
            raise DataError("series has a single phase", file=folder, received=f"phase={phase}", expected="phase=0")
        return groups, []
    values = sorted({frame.moments[key] for frame in groups[0]}, key=_as_number)
    if phase is None or not 0 <= phase < count:
        named = ", ".join(values[:_MAX_NAMED]) + (", ..." if count > _MAX_NAMED else "")
        raise DataError(
            f"series has {count} phases at each position",
            file=folder,
            received=f"{key} {named}" + ("" if phase is None else f"; phase={phase}"),
            expected=f"one of phase=0 to {count - 1}",
            remedy="choose one by `phase`",
        )
    chosen = [[frame for frame in group if frame.moments[key] == values[phase]] for group in groups]
    return chosen, [f"phase {phase} of {count} read ({key} {values[phase]})"]


def drop_duplicates(groups: Groups, same_pixels: Callable[[Frame, Frame], bool]) -> tuple[list[Frame], list[str]]:
    """One frame at each position, and a note on the duplicates that were dropped.

    Raises:
        GeometryError: frames at one position with different pixels.
    """
    dropped = 0
    for group in groups:
        for other in group[1:]:
            if not same_pixels(group[0], other):
                raise GeometryError(
                    "two slices have the same position but different pixels",
                    file=other.file.path,
                    received=f"also {group[0].file.path.name}",
                    remedy="remove one, or split the series",
                )
            dropped += 1
    return [group[0] for group in groups], [f"{dropped} duplicate slices dropped"] if dropped else []


def _splits(groups: Groups, key: str) -> bool:
    first = {frame.moments.get(key) for frame in groups[0]}
    if None in first or len(first) != len(groups[0]):
        return False
    return all({frame.moments.get(key) for frame in group} == first for group in groups)


def _as_number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
