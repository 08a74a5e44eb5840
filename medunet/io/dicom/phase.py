"""Several slices at one position: the phases of a series of volumes, or duplicates.

Phases are distinguished by the first of these that works, because vendors differ:

1. one attribute, or several together, with the same values at every position (Philips: TemporalPositionIdentifier,
   EchoTime and ImageType; Siemens: AcquisitionNumber);
2. the order of a time at every position (TriggerTime of a heart whose beats differ in length);
3. the order of InstanceNumber, if it counts volume by volume or position by position (GE, Canon, Toshiba).
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from medunet.errors import DataError, GeometryError

from .codec import same_pixels
from .header import Frame
from .tags import TEMPORAL_KEYS

SAME_POSITION_MM = 1e-3  # slices closer than this share a position: a tenth of micro-CT's finest slice distance
_MAX_NAMED = 6  # phases that an error names
_TIMES = ("TriggerTime", "AcquisitionTime", "ContentTime")  # their order separates phases even if their values differ

Groups = list[list[Frame]]
"""Frames at one position each, along the normal."""


class _Phases(NamedTuple):
    """How a series is divided into volumes."""

    by: str  # the attributes that distinguish the phases
    names: list[str]  # their values, per phase
    volumes: list[list[Frame]]  # the frames of each phase, one per position
    incomplete: int = 0  # phases that lack slices at some positions


def group_positions(frames: Sequence[Frame], offsets: Sequence[float]) -> Groups:
    """Return frames in the order of their offsets along the normal, grouped by position."""
    order = sorted(range(len(frames)), key=lambda k: (offsets[k], str(frames[k].file.path), frames[k].index))
    groups = [[frames[order[0]]]]
    for last, k in pairwise(order):
        if offsets[k] - offsets[last] > SAME_POSITION_MM:
            groups.append([])
        groups[-1].append(frames[k])
    return groups


def choose_frames(groups: Groups, phase: int | None, folder: Path) -> tuple[list[Frame], list[str]]:
    """Return one frame per position, of the chosen phase or without duplicates, and notes on what was left out.

    A missing choice among several phases, and a phase that does not exist, are a DataError. Frames at one position with
    different pixels that nothing distinguishes are a GeometryError.
    """
    phases = _by_values(groups)
    if phases is not None:
        return _chosen(phases, phase, folder)
    ordered = _by_time(groups) or _by_number(groups)
    if phase is not None and ordered is not None:
        return _chosen(ordered, phase, folder)
    if phase not in (None, 0):
        raise DataError("series has a single phase", file=folder, received=f"phase={phase}", expected="phase=0")
    pairs = [(group[0], other) for group in groups for other in group[1:]]
    different = next((pair for pair in pairs if not same_pixels(*pair)), None)
    if different is None:
        return [group[0] for group in groups], [f"{len(pairs)} duplicate slices dropped"] if pairs else []
    if ordered is not None:
        return _chosen(ordered, phase, folder)
    first, other = (frame.file.path for frame in different)
    several = sum(len(group) > 1 for group in groups)
    raise GeometryError(
        "slices have the same position but different pixels, and no tag divides them into complete phases",
        file=other,
        received=f"also {first.name}; several slices at {several} of {len(groups)} positions",
        remedy="remove one; if both are phases, export each phase as its own series",
    )


def _chosen(phases: _Phases, phase: int | None, folder: Path) -> tuple[list[Frame], list[str]]:
    count = len(phases.names)
    left_out = f"; {phases.incomplete} incomplete phases left out" if phases.incomplete else ""
    if phase is not None and 0 <= phase < count:
        return phases.volumes[phase], [f"phase {phase} of {count} read ({phases.by} {phases.names[phase]}{left_out})"]
    named = ("; " if "," in phases.by else ", ").join(phases.names[:_MAX_NAMED] + ["..."] * (count > _MAX_NAMED))
    raise DataError(
        f"series has {count} phases" + left_out,
        file=folder,
        received=f"{phases.by} {named}" + ("" if phase is None else f" and phase={phase}"),
        expected=f"--phase 0 to {count - 1}" if count > 1 else "--phase 0",
        remedy=f"choose one, such as --phase {min(1, count - 1)}",
    )


def _by_values(groups: Groups) -> _Phases | None:
    """Return phases by attributes with the same values at every position, the fewest that distinguish all slices."""
    if max(map(len, groups)) == 1:
        return None

    def values(keys: list[str]) -> list[list[tuple[str, ...]]]:
        return [[tuple(frame.moments.get(key, "") for key in keys) for frame in group] for group in groups]

    def count_distinct(keys: list[str]) -> int:
        return sum(len(set(group)) for group in values(keys))

    is_full = len(set(map(len, groups))) == 1
    keys = [key for key in TEMPORAL_KEYS if not is_full or len(set(map(frozenset, values([key])))) == 1]
    together: list[str] = []
    for key in keys:
        if count_distinct([*together, key]) > count_distinct(together):
            together.append(key)
    for chosen in [*([key] for key in keys), together]:
        tuples = values(chosen)
        sets = [set(group) for group in tuples]
        common = sorted(set.intersection(*sets), key=lambda some: [_as_number(value) for value in some])
        incomplete = len(set.union(*sets)) - len(common)
        if any(len(unique) < len(group) for unique, group in zip(sets, tuples, strict=True)):
            continue
        if common and not (is_full and incomplete):
            pairs = list(zip(groups, tuples, strict=True))
            volumes = [[group[some.index(wanted)] for group, some in pairs] for wanted in common]
            names = [", ".join(value or "none" for value in wanted) for wanted in common]
            return _Phases(", ".join(chosen), names, volumes, incomplete)
    return None


def _by_time(groups: Groups) -> _Phases | None:
    """Return phases by the order of a time that differs between the slices at every position."""
    for key in _TIMES:
        times = [[_as_number(frame.moments.get(key, ""))[0] for frame in group] for group in groups]
        if all(len(set(some)) == len(some) and max(some) < float("inf") for some in times):
            return _in_order(groups, times, key)
    return None


def _by_number(groups: Groups) -> _Phases | None:
    """Return phases by the order of InstanceNumber if those of two volumes, or of two positions, do not overlap."""
    frames = [frame for group in groups for frame in group]
    is_single_file = len({frame.file.path for frame in frames}) == 1
    if not is_single_file and any(frame.number is None for frame in frames):
        return None
    numbers = [[(frame.number or 0, frame.index) for frame in group] for group in groups]
    if len(set(map(len, numbers))) != 1 or any(len(set(some)) < len(some) for some in numbers):
        return None
    by_position = sorted(sorted(some) for some in numbers)
    by_volume = [sorted(some) for some in zip(*by_position, strict=True)]
    if not any(all(a[-1] < b[0] for a, b in pairwise(blocks)) for blocks in (by_position, by_volume)):
        return None
    return _in_order(groups, numbers, "frame number" if is_single_file else "InstanceNumber")


def _in_order(groups: Groups, keys: Sequence[Sequence[Any]], by: str) -> _Phases | None:
    """Return volumes of the first, second, ... slices at every position; None if positions differ in their number."""
    if len(groups[0]) == 1 or len(set(map(len, groups))) != 1:
        return None
    pairs = [
        sorted(zip(some, group, strict=True), key=lambda pair: pair[0])
        for some, group in zip(keys, groups, strict=True)
    ]
    volumes = [[frame for _, frame in volume] for volume in zip(*pairs, strict=True)]
    firsts = [volume[0] for volume in volumes]
    names = [str(one.number if by == "InstanceNumber" else one.moments.get(by, one.index + 1)) for one in firsts]
    return _Phases(f"{by} of the first position", names, volumes)


def _as_number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
