"""One thing that is wrong or unusual in a data set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunet.errors import DataError, GeometryError, MedunetError

MAX_NAMED = 20
"""Findings that an error names beside the first; `medunet check` shows all."""

_NUMBER = re.compile(r"\d[\d.e+-]*")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or unusual.

    Args:
        severity: 'error' when training would fail, 'warning' otherwise.
        file: the file it is about; empty for the whole data set.
        cause: what is wrong.
        remedy: what the user can do.
        error: the typed error behind it, for `raise_on_error`.
        case: name of the case it is about; empty for the whole data set.
    """

    severity: Literal["error", "warning"]
    file: str
    cause: str
    remedy: str | None = None
    error: MedunetError | None = field(default=None, compare=False)
    case: str = ""

    @classmethod
    def of(cls, error: MedunetError, *, file: Path, case: str = "") -> Finding:
        """The finding that an error makes."""
        values = [f"{w} {v}" for w, v in (("received", error.received), ("expected", error.expected)) if v is not None]
        cause = error.cause + (f" ({', '.join(values)})" if values else "")
        return cls("error", error.file or str(file), cause, error.remedy, error, case)

    @property
    def kind(self) -> str:
        """The cause without the numbers met, by which equal findings of many files are counted."""
        return _NUMBER.sub("#", self.error.cause if self.error is not None else self.cause)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "severity": self.severity,
            "case": self.case,
            "file": self.file,
            "cause": self.cause,
            "remedy": self.remedy,
        }


def raise_on_error(findings: Iterable[Finding]) -> None:
    """Raise the first error among the findings, and name all the others in it.

    Raises:
        DataError: or a `GeometryError`, as the finding's.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first = errors[0]
    more = ""
    if len(errors) > 1:
        shown = [f"{Path(error.file).name}: {error.cause}" for error in errors[1 : MAX_NAMED + 1]]
        left = [f"and {len(errors) - 1 - MAX_NAMED} others"] if len(errors) - 1 > MAX_NAMED else []
        more = f" (and {len(errors) - 1} more problems: {'; '.join([*shown, *left])})"
    kind = GeometryError if isinstance(first.error, GeometryError) else DataError
    raise kind(first.cause + more, file=first.file or None, remedy=first.remedy) from first.error
