"""Names, colours and clinical codes of a label map's values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medunet.errors import ConfigError

BACKGROUND = "background"  # the name, in upper or lower case, that is never a segment

# Default colours: Okabe and Ito's, which colour-blind people can distinguish, and a green.
PALETTE = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167), (128, 174, 128)),
)


class Code(NamedTuple):
    """A coded concept, such as ``Code("10200004", "SCT", "Liver")``."""

    value: str
    scheme: str
    meaning: str


TISSUE = Code("85756007", "SCT", "Tissue")  # category and type of a label without codes; 3D Slicer's default too


@dataclass(frozen=True)
class Segment:
    """One label of a map: its name, its value in the voxels, and its clinical codes."""

    name: str
    value: int
    color: tuple[int, int, int] = PALETTE[0]  # red, green, blue, 0 to 255
    category: Code = TISSUE  # of the type (DICOM CID 7150)
    type: Code = TISSUE  # anatomical structure or finding


def as_segments(
    labels: Mapping[str, int] | None,
    *,
    values: npt.ArrayLike = (),
    colors: Mapping[str, Sequence[int]] | None = None,
    codes: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> tuple[Segment, ...]:
    """Return the segments of labels, by value. The value 0 and the name 'background' are not segments.

    Args:
        labels: value by name.
        values: values of voxels; those without a name become `label_<value>`.
        colors: name to ``[red, green, blue]``, 0 to 255.
        codes: by name, ``{"category": [value, scheme, meaning], "type": [...]}``; a missing one is `TISSUE`.

    Raises:
        ConfigError: an invalid colour or code, or one of an unknown label.

    Examples:
        >>> [(s.name, s.value) for s in as_segments({"background": 0, "liver": 2}, values=[0, 2, 3])]
        [('liver', 2), ('label_3', 3)]
    """
    names = {int(value): str(name) for name, value in (labels or {}).items()}
    for option, given in (("label_colors", colors), ("label_codes", codes)):
        if unknown := sorted(set(given or {}) - set(names.values())):
            raise ConfigError(f"{option} of unknown labels", received=unknown, expected=sorted(names.values()))
    for value in np.unique(np.asarray(values, dtype=np.int64)):
        names.setdefault(int(value), f"label_{value}")
    names = {value: name for value, name in sorted(names.items()) if value != 0 and name.casefold() != BACKGROUND}
    return tuple(
        Segment(
            name,
            value,
            color=_color((colors or {}).get(name, PALETTE[index % len(PALETTE)]), name),
            category=_code((codes or {}).get(name, {}).get("category", TISSUE), name),
            type=_code((codes or {}).get(name, {}).get("type", TISSUE), name),
        )
        for index, (value, name) in enumerate(names.items())
    )


def object_segments(
    numbers: npt.ArrayLike, labels: Mapping[str, int] | None, *, codes: Mapping[str, Mapping[str, Sequence[str]]] | None
) -> tuple[Segment, ...]:
    """Return one segment per object of a map of object numbers, named after its class and number.

    Args:
        numbers: the map.
        labels: value by name of a class; objects of several classes are called 'object'.
        codes: as for `as_segments`, by name of a class.

    Examples:
        >>> [(s.name, s.value) for s in object_segments([0, 3, 7], {"background": 0, "cell": 1}, codes=None)]
        [('cell 3', 3), ('cell 7', 7)]
    """
    kinds = [name for name, value in (labels or {}).items() if value != 0]
    kind = kinds[0] if len(kinds) == 1 else "object"
    names = {f"{kind} {number}": number for number in np.unique(numbers).tolist() if number > 0}
    code = (codes or {}).get(kind)
    return as_segments(names, codes=dict.fromkeys(names, code) if code else None)


def _color(color: Sequence[int], name: str) -> tuple[int, int, int]:
    if len(color) != 3 or not all(0 <= part <= 255 for part in color):
        raise ConfigError(f"invalid colour for '{name}'", received=color, expected="[red, green, blue], 0 to 255")
    return round(color[0]), round(color[1]), round(color[2])


def _code(code: Sequence[str], name: str) -> Code:
    if len(code) != 3 or not all(isinstance(part, str) and part for part in code):
        raise ConfigError(f"invalid code for '{name}'", received=code, expected="[value, scheme, meaning], all strings")
    return Code(*code)
