"""What a config may say without being asked: expressions that medunet's recipes render, and targets that were reviewed.

Names are compared whole, never by their beginning: `monai.transforms.os.system` begins with `monai.` and is the shell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medunet.files import write_atomically

EXPRESSIONS_FILE = Path(__file__).with_name("expressions.txt")
"""One expression a line, as rendered; `medunet bundle render` adds, nobody removes: older runs hold older ones."""

TARGETS_FILE = Path(__file__).with_name("targets.txt")
"""One target a line, each reviewed: it takes no string as code, as a name to import or as a pickle to load."""

EXPRESSION = "$"
MACRO = "%"
TARGET = "_target_"

_PATTERNS = (re.compile(r"\$@ckpt_dir \+ '/fold_\d{1,4}\.pt'"),)
"""Expressions with a number in them: members of an ensemble."""


def _read(path: Path) -> frozenset[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


KNOWN_EXPRESSIONS = _read(EXPRESSIONS_FILE)
KNOWN_TARGETS = _read(TARGETS_FILE)

SAFE_READERS = frozenset({"ITKReader", "NibabelReader", "NrrdReader", "PILReader", "PydicomReader"})
"""Values of `reader` that MONAI looks up among its own; any other string it would import and call."""

GADGET_ARGUMENTS: Mapping[str, tuple[frozenset[Any], str]] = {
    "reader": (SAFE_READERS | {None}, "a string here is a name that MONAI imports and calls"),
    "writer": (frozenset({None}), "a string here is a name that MONAI imports and calls"),
    "merger_cls": (frozenset({None}), "a string here is a name that MONAI imports and calls"),
    "allow_pickle": (frozenset({False}), "pickles run code when they are loaded"),
    "weights_only": (frozenset({True}), "pickles run code when they are loaded"),
    "_mode_": (frozenset({"default"}), "starts a debugger, or lets something else give the arguments"),
    "_debug_": (frozenset({False}), "starts a debugger"),
    "_wrapper_": (frozenset(), "calls what it names"),
}
"""Arguments through which a harmless target runs something else: their allowed values, and why others are rejected.

The scan looks for these names everywhere, so a flat key (`a::b::reader`) or another target cannot avoid it. A list or a
mapping is never an allowed value, because Python takes a container with anything in it for true.
"""

LISTED_ARGUMENTS = frozenset({"reader"})
"""The arguments above that may also be a flat list; each entry is judged as if it were the value."""

GADGET_COMPONENTS: Mapping[str, frozenset[str]] = {"reader": frozenset({"medunet.io.MedunetReader"})}
"""What else may stand in their place: components of these targets.

Any other mapping may not: MONAI takes whatever can be iterated for a list of names, the keys of a mapping too.
"""


def is_known_expression(text: str) -> bool:
    """Whether a `$` expression is one that medunet renders.

    Example:
        >>> is_known_expression("$@ckpt_dir + '/fold_3.pt'"), is_known_expression("$__import__('os').system('id')")
        (True, False)
    """
    return text in KNOWN_EXPRESSIONS or any(pattern.fullmatch(text) for pattern in _PATTERNS)


def collect(value: Any) -> tuple[set[str], set[str]]:
    """All expressions and all targets in a config."""
    expressions: set[str] = set()
    targets: set[str] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            targets |= {str(inner) for key, inner in item.items() if key == TARGET}
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and item.startswith(EXPRESSION):
            expressions.add(item)
    return expressions, targets


def missing_from_known(configs: Iterable[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    """Expressions and targets of rendered configs that the lists of this package lack."""
    expressions: set[str] = set()
    targets: set[str] = set()
    for config in configs:
        found = collect(config)
        expressions |= {text for text in found[0] if not is_known_expression(text)}
        targets |= found[1] - KNOWN_TARGETS
    return expressions, targets


def write_expressions(new: Iterable[str]) -> Path:
    """Add expressions to the list; what `medunet bundle render` does after a change of the recipes."""
    head = "# What medunet's recipes render. Written by `medunet bundle render`; lines are added, never removed.\n"
    lines = sorted({*_read(EXPRESSIONS_FILE), *new})
    return write_atomically(EXPRESSIONS_FILE, head + "".join(f"{line}\n" for line in lines))
