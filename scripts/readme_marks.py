"""Tables that scripts write into the README, each between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def write_between(path: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Replace what stands between two marks of a text file; each mark is there once."""
    before, rest = path.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    path.write_text(before + "\n".join([begin, *lines, end]) + after, encoding="utf-8")
