"""Direction words in label names, which decide whether mirroring an image makes its labels wrong."""

import re
from collections import defaultdict
from collections.abc import Mapping

# words for directions, which a mirror makes wrong
ORIENTATION_WORDS = frozenset(
    [
        *("left", "right", "l", "r", "lt", "rt", "lh", "rh", "sin", "dex", "sinister", "dexter"),
        *("anterior", "posterior", "ant", "post", "front", "rear", "ventral", "dorsal", "rostral"),
        *("superior", "inferior", "sup", "inf", "upper", "lower", "top", "bottom", "cranial", "caudal"),
        *("medial", "lateral", "proximal", "distal", "basal", "apical"),
    ]
)
SIDES = {
    "left": frozenset(["left", "l", "lt", "lh", "sin", "sinister"]),
    "right": frozenset(["right", "r", "rt", "rh", "dex", "dexter"]),
}

_ANONYMOUS = re.compile(r"(label|class)[_ ]?\d+$")


def words_of(name: str) -> list[str]:
    """Return the words of a label's name in lower case; a capital letter begins a new word.

    Examples:
        >>> words_of("Left_Lung"), words_of("kidneyR"), words_of("vertebra-L1")
        (['left', 'lung'], ['kidney', 'r'], ['vertebra', 'l1'])
    """
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", name)]


def orientation_words(labels: Mapping[str, int]) -> dict[str, str]:
    """Return the labels whose names have a word for a direction, and that word."""
    words = {name: [word for word in words_of(name) if word in ORIENTATION_WORDS] for name in labels}
    return {name: matches[0] for name, matches in words.items() if matches}


def side_pairs(labels: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of labels whose names differ in left and right only.

    Examples:
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
    """Return the labels that left-right mirroring makes wrong even if pairs are swapped, and the word.

    Examples:
        >>> mirror_faults({"background": 0, "left upper lobe": 1, "right upper lobe": 2, "left ventricle": 3})
        {'left ventricle': 'left'}
    """
    paired = {name for pair in side_pairs(labels) for name in pair}
    words = frozenset().union(*SIDES.values())
    matches = {name: sorted(words & set(words_of(name))) for name in labels if name not in paired}
    return {name: sides[0] for name, sides in matches.items() if sides}


def anonymous(labels: Mapping[str, int]) -> bool:
    """Return whether there are several classes and all have generic names, which may stand for sides."""
    foreground = [name for name, value in labels.items() if value != min(labels.values())]
    return len(foreground) > 1 and all(_ANONYMOUS.match(name.lower()) for name in foreground)
