"""Several slices at one position: the phases of a series of volumes, or duplicates.

Phases are distinguished by the first of these that works, because vendors differ:

1. one attribute, or several together, with the same values at every position (Philips: TemporalPositionIdentifier,
   EchoTime and ImageType; Siemens: AcquisitionNumber);
2. the order of a time at every position (TriggerTime of a heart whose beats differ in length);
3. the order of InstanceNumber, if it counts volume by volume or position by position (GE, Canon, Toshiba).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from medunet.errors import DataError, GeometryError

from .header import Frame
from .values import TEMPORAL_KEYS

SAME_POSITION_MM = 1e-3  # slices closer than this share a position: a tenth of micro-CT's finest slice distance
_MAX_NAMED = 6  # phases that an error names
_TIMES = ("TriggerTime", "AcquisitionTime", "ContentTime")  # their order separates phases even if their values differ

Groups = list[list[Frame]]
"""Frames at one position each, along the normal."""


class _Phases(NamedTuple):
    """How a series is divided into volumes."""

    by: str
    """The attributes that distinguish the phases."""
    names: list[str]
    """Their values, per phase."""
    volumes: list[list[Frame]]
    """The frames of each phase, one per position."""
    incomplete: int = 0
    """Phases that lack slices at some positions."""


def group_positions(frames: Sequence[Frame], offsets: Sequence[float]) -> Groups:
    """Return frames in the order of their offsets along the normal, grouped by position."""
    order = sorted(range(len(frames)), key=lambda k: (offsets[k], str(frames[k].file.path), frames[k].index))
    groups = [[frames[order[0]]]]
    for last, k in pairwise(order):
        if offsets[k] - offsets[last] > SAME_POSITION_MM:
            groups.append([])
        groups[-1].append(frames[k])
    return groups


def choose_frames(
    groups: Groups, phase: int | None, folder: Path, same_pixels: Callable[[Frame, Frame], bool]
) -> tuple[list[Frame], list[str]]:
    """Return one frame per position, of the chosen phase or without duplicates, and notes on what was left out.

    Raises:
        DataError: several phases and none is chosen, or a phase that does not exist.
        GeometryError: frames at one position with different pixels that nothing distinguishes.
    """
    phases = _by_values(groups)
    if phases is not None:
        return _chosen(phases, phase, folder)
    ordered = _by_time(groups) or _by_number(groups)
    if phase is not None and ordered is not None:
        return _chosen(ordered, phase, folder)
    if phase not in (None, 0):
        raise DataError("series has a single phase", file=folder, received=f"phase={phase}", expected="phase=0")
    dropped = 0
    for group in groups:
        for other in group[1:]:
            if not same_pixels(group[0], other):
                if ordered is not None:
                    return _chosen(ordered, phase, folder)
                several = sum(len(group) > 1 for group in groups)
                raise GeometryError(
                    "slices have the same position but different pixels, and no tag divides them into complete phases",
                    file=other.file.path,
                    received=f"also {group[0].file.path.name}; several slices at {several} of {len(groups)} positions",
                    remedy="remove one; if both are phases, export each phase as its own series",
                )
            dropped += 1
    return [group[0] for group in groups], [f"{dropped} duplicate slices dropped"] if dropped else []


def _chosen(phases: _Phases, phase: int | None, folder: Path) -> tuple[list[Frame], list[str]]:
    count = len(phases.names)
    left_out = f"; {phases.incomplete} incomplete phases left out" if phases.incomplete else ""
    if phase is None or not 0 <= phase < count:
        named = ("; " if "," in phases.by else ", ").join(phases.names[:_MAX_NAMED] + ["..."] * (count > _MAX_NAMED))
        raise DataError(
            f"series has {count} phases" + left_out,
            file=folder,
            received=f"{phases.by} {named}" + ("" if phase is None else f" and phase={phase}"),
            expected=f"--phase 0 to {count - 1}" if count > 1 else "--phase 0",
            remedy=f"choose one, such as --phase {min(1, count - 1)}",
        )
    return phases.volumes[phase], [f"phase {phase} of {count} read ({phases.by} {phases.names[phase]}{left_out})"]


def _by_values(groups: Groups) -> _Phases | None:
    """Return phases by attributes with the same values at every position, the fewest that distinguish all slices."""
    if max(map(len, groups)) == 1:
        return None
    is_full = len({len(group) for group in groups}) == 1
    values = {key: [[frame.moments.get(key, "") for frame in group] for group in groups] for key in TEMPORAL_KEYS}
    keys = [key for key in TEMPORAL_KEYS if not is_full or len({frozenset(some) for some in values[key]}) == 1]
    together: list[str] = []
    for key in keys:
        if _distinct(values, [*together, key]) > _distinct(values, together):
            together.append(key)
    for chosen in ([[key] for key in keys] + [together]) if together else []:
        tuples = [list(zip(*(values[key][n] for key in chosen), strict=True)) for n in range(len(groups))]
        sets = [set(some) for some in tuples]
        if any(len(unique) < len(some) for unique, some in zip(sets, tuples, strict=True)):
            continue
        common = sorted(set.intersection(*sets), key=lambda some: [_as_number(value) for value in some])
        others = len(set.union(*sets)) - len(common)
        if common and not (is_full and others):
            volumes = [
                [group[some.index(wanted)] for group, some in zip(groups, tuples, strict=True)] for wanted in common
            ]
            names = [", ".join(value or "none" for value in wanted) for wanted in common]
            return _Phases(", ".join(chosen), names, volumes, others)
    return None


def _distinct(values: dict[str, list[list[str]]], keys: list[str]) -> int:
    """Return how many slices, summed over positions, attributes distinguish from the others at their position."""
    if not keys:
        return len(next(iter(values.values())))
    return sum(len(set(zip(*columns, strict=True))) for columns in zip(*(values[key] for key in keys), strict=True))


def _by_time(groups: Groups) -> _Phases | None:
    """Return phases by the order of a time that differs between the slices at every position."""
    for key in _TIMES:
        times = [[_as_number(frame.moments.get(key, ""))[0] for frame in group] for group in groups]
        if all(len(set(some)) == len(some) and max(some) < float("inf") for some in times):
            return _in_order(groups, times, key)
    return None


def _by_number(groups: Groups) -> _Phases | None:
    """Return phases by the order of InstanceNumber if the numbers of two volumes, or of two positions, do not mix."""
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
    count = len(groups[0])
    if count == 1 or any(len(group) != count for group in groups):
        return None
    sorted_groups = [
        [frame for _, frame in sorted(zip(some, group, strict=True), key=lambda pair: pair[0])]
        for some, group in zip(keys, groups, strict=True)
    ]
    volumes = [[group[n] for group in sorted_groups] for n in range(count)]
    firsts = [volume[0] for volume in volumes]
    names = [str(one.number if by == "InstanceNumber" else one.moments.get(by, one.index + 1)) for one in firsts]
    return _Phases(f"{by} of the first position", names, volumes)


def _as_number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
