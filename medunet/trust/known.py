"""What a config may contain without approval: expressions that medunet's recipes render, and reviewed targets.

Names are compared as a whole, never by their prefix: `monai.transforms.os.system` is the shell.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medunet.files import write_atomically

# One expression per line; `medunet bundle render` adds lines. None is removed, because older runs have older ones.
EXPRESSIONS_FILE = Path(__file__).with_name("expressions.txt")
TARGETS_FILE = Path(__file__).with_name("targets.txt")  # reviewed targets by module

EXPRESSION, MACRO, TARGET = "$", "%", "_target_"

_ENSEMBLE_MEMBER = re.compile(r"\$@ckpt_dir \+ '/fold_\d{1,4}\.pt'")


def _read(path: Path) -> frozenset[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


KNOWN_EXPRESSIONS = _read(EXPRESSIONS_FILE)
KNOWN_TARGETS = frozenset(
    name if module == "MONAI" else f"{module}.{name}"
    for module, names in (line.split(": ") for line in _read(TARGETS_FILE))
    for name in names.split()
)

# The only component that `reader` may be, and the names that MONAI looks up among its own readers.
READER_TARGET = "medunet.io.MedunetReader"
SAFE_READERS = frozenset({"ITKReader", "NibabelReader", "NrrdReader", "PILReader", "PydicomReader"})

_CALLED = "a string here is a name that MONAI imports and calls"
_PICKLE = "pickles run code when they are loaded"

# Arguments by which a harmless target runs something else: their allowed values, and why others are rejected. The scan
# looks for these names everywhere, so a flat key (`a::b::reader`) or another target cannot avoid it. A list or mapping
# is never an allowed value, because Python treats every non-empty container as true; `reader` has its own rule.
GADGET_ARGUMENTS: Mapping[str, tuple[frozenset[Any], str]] = {
    "reader": (SAFE_READERS | {None}, _CALLED),
    "writer": (frozenset({None}), _CALLED),
    "merger_cls": (frozenset({None}), _CALLED),
    "allow_pickle": (frozenset({False}), _PICKLE),
    "weights_only": (frozenset({True}), _PICKLE),
    "_mode_": (frozenset({"default"}), "starts a debugger, or lets something else give the arguments"),
    "_debug_": (frozenset({False}), "starts a debugger"),
    "_wrapper_": (frozenset(), "calls what it names"),
}


def is_known_expression(text: str) -> bool:
    """Return whether medunet renders a `$` expression.

    Examples:
        >>> is_known_expression("$@ckpt_dir + '/fold_3.pt'"), is_known_expression("$__import__('os').system('id')")
        (True, False)
    """
    return text in KNOWN_EXPRESSIONS or _ENSEMBLE_MEMBER.fullmatch(text) is not None


def missing_from_known(configs: Iterable[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    """Return expressions and targets of rendered configs that are not on the lists."""
    expressions: set[str] = set()
    targets: set[str] = set()
    waiting: list[Any] = list(configs)
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            targets |= {str(inner) for key, inner in item.items() if key == TARGET}
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and item.startswith(EXPRESSION) and not is_known_expression(item):
            expressions.add(item)
    return expressions, targets - KNOWN_TARGETS


def write_expressions(new: Iterable[str]) -> Path:
    """Add expressions to the list, after a change of the recipes."""
    head = "# What medunet's recipes render. Written by `medunet bundle render`; lines are added, never removed.\n"
    lines = sorted({*_read(EXPRESSIONS_FILE), *new})
    return write_atomically(EXPRESSIONS_FILE, head + "".join(f"{line}\n" for line in lines))
