"""One thing that is wrong or unusual in a data set."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medunet.errors import DataError, GeometryError, MedunetError

MAX_NAMED = 5  # names or findings in one message; the rest is counted, and `medunet check` shows all

_NUMBER = re.compile(r"\d[\d.e+-]*")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or unusual."""

    severity: Literal["error", "warning"]  # 'error' if training would fail
    file: str  # empty for the whole data set
    cause: str
    remedy: str | None = None
    error: MedunetError | None = field(default=None, compare=False)  # the typed error behind it
    case: str = ""  # name of the case; empty for the whole data set

    @classmethod
    def of(cls, error: MedunetError, *, file: Path, case: str = "") -> "Finding":
        """Return the finding of a typed error."""
        values = [f"{w} {v}" for w, v in (("received", error.received), ("expected", error.expected)) if v is not None]
        cause = error.cause + (f" ({', '.join(values)})" if values else "")
        return cls("error", error.file or str(file), cause, error.remedy, error, case)

    @property
    def kind(self) -> str:
        """The cause without its numbers; findings that share it are counted together."""
        return _NUMBER.sub("#", self.error.cause if self.error is not None else self.cause)

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON."""
        return {key: getattr(self, key) for key in ("severity", "case", "file", "cause", "remedy")}


def shown(texts: Collection[str], *, separator: str = ", ") -> str:
    """Return the first texts in alphabetical order and the number of the others."""
    more = f" and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
    return separator.join(sorted(texts)[:MAX_NAMED]) + more


def raise_on_error(findings: Iterable[Finding]) -> None:
    """Raise the first error among the findings, as DataError or GeometryError, with a list of the others."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first, *others = errors
    listed = shown([f"{Path(error.file).name}: {error.cause}" for error in others], separator="; ")
    more = f" (and {len(others)} more problems: {listed})" if others else ""
    kind = GeometryError if isinstance(first.error, GeometryError) else DataError
    raise kind(first.cause + more, file=first.file or None, remedy=first.remedy) from first.error
