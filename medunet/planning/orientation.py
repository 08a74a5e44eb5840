"""Whether mirroring an image would make its labels wrong."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

ORIENTATION_WORDS = frozenset(
    [
        *("left", "right", "l", "r", "lt", "rt", "lh", "rh", "sin", "dex", "sinister", "dexter"),
        *("anterior", "posterior", "ant", "post", "front", "rear", "ventral", "dorsal", "rostral"),
        *("superior", "inferior", "sup", "inf", "upper", "lower", "top", "bottom", "cranial", "caudal"),
        *("medial", "lateral", "proximal", "distal", "basal", "apical"),
    ]
)
"""Words that lose their sense, or change their class, in a mirror."""

SIDES = {
    "left": frozenset(["left", "l", "lt", "lh", "sin", "sinister"]),
    "right": frozenset(["right", "r", "rt", "rh", "dex", "dexter"]),
}
"""Words that tell the sides of a pair apart."""

_ANONYMOUS = re.compile(r"(label|class)[_ ]?\d+$")


def words_of(name: str) -> list[str]:
    """The words of a label's name, in lower case; a capital letter begins a new one.

    Example:
        >>> words_of("Left_Lung"), words_of("kidneyR"), words_of("vertebra-L1")
        (['left', 'lung'], ['kidney', 'r'], ['vertebra', 'l1'])
    """
    parts = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", name)
    return [part.lower() for part in parts]


def orientation_words(labels: Mapping[str, int]) -> dict[str, str]:
    """Label names with the word that speaks of a direction.

    Example:
        >>> orientation_words({"background": 0, "Anterior": 1, "spleen": 2})
        {'Anterior': 'anterior'}
    """
    found = {}
    for name in labels:
        words = [word for word in words_of(name) if word in ORIENTATION_WORDS]
        if words:
            found[name] = words[0]
    return found


def side_pairs(labels: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs of labels whose names differ in left and right only.

    Example:
        >>> side_pairs({"background": 0, "left lung": 1, "Right_Lung": 2, "heart": 3})
        [('left lung', 'Right_Lung')]
    """
    sides: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: {"left": [], "right": []})
    for name in labels:
        words = words_of(name)
        for side, spellings in SIDES.items():
            if spellings & set(words):
                sides[tuple(word for word in words if word not in spellings)][side].append(name)
    return [(pair["left"][0], pair["right"][0]) for pair in sides.values() if list(map(len, pair.values())) == [1, 1]]


def mirror_faults(labels: Mapping[str, int]) -> dict[str, str]:
    """Labels that a mirror from left to right would make wrong although pairs trade places, with the word that says so.

    Above and below, front and back stay where they are in such a mirror, and so do middle and side.

    Example:
        >>> mirror_faults({"background": 0, "left upper lobe": 1, "right upper lobe": 2, "left ventricle": 3})
        {'left ventricle': 'left'}
    """
    paired = {name for pair in side_pairs(labels) for name in pair}
    words = frozenset().union(*SIDES.values())
    return {name: found[0] for name in labels if name not in paired and (found := sorted(words & set(words_of(name))))}


def anonymous(labels: Mapping[str, int]) -> bool:
    """Whether several classes have no names that could tell sides apart.

    Example:
        >>> anonymous({"background": 0, "label_1": 1}), anonymous({"background": 0, "label_1": 1, "label_2": 2})
        (False, True)
    """
    foreground = [name for name, value in labels.items() if value != min(labels.values())]
    return len(foreground) > 1 and all(_ANONYMOUS.match(name.lower()) for name in foreground)
