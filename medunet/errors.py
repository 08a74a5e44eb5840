"""Typed errors: rule, value, place, remedy."""

from __future__ import annotations

import os
import re

from typing_extensions import Self

_NOT_INSTANTIATED = re.compile(r"Failed to instantiate component '([^']+)'")  # MONAI's error about a config's component
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class MedunetError(Exception):
    """Base of all errors that medunet raises for unusable input. The message is one line.

    Args:
        cause: the violated rule, a phrase without a full stop.
        file: the file or folder.
        received: the value.
        expected: the allowed values.
        remedy: what the user can do, an imperative phrase.

    Example:
        >>> str(MedunetError("unknown label values", file="a.nii.gz", received=[7], expected=[0, 1], remedy="relabel"))
        'a.nii.gz: unknown label values (received [7], expected [0, 1]); remedy: relabel'
    """

    def __init__(
        self,
        cause: str,
        *,
        file: str | os.PathLike[str] | None = None,
        received: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.cause = cause
        self.file = None if file is None else os.fspath(file)
        self.received = received
        self.expected = expected
        self.remedy = remedy
        both = (("received", received), ("expected", expected))
        values = [f"{word} {value}" for word, value in both if value is not None]
        text = cause if self.file is None else f"{self.file}: {cause}"
        if values:
            text += f" ({', '.join(values)})"
        if remedy is not None:
            text += f"; remedy: {remedy}"
        super().__init__(_CONTROL.sub(" ", text))  # text of a header must not add lines to a log

    def at(self, file: str | os.PathLike[str] | None) -> Self:
        """Return the same error about another file or folder.

        Example:
            >>> str(GeometryError("no spacing", remedy="write it again").at("a.nrrd"))
            'a.nrrd: no spacing; remedy: write it again'
        """
        return type(self)(self.cause, file=file, received=self.received, expected=self.expected, remedy=self.remedy)


class ConfigError(MedunetError, ValueError):
    """An invalid configuration or argument: unknown key, impossible size, missing device."""


class GeometryError(MedunetError):
    """Spacing, orientation, origin or shape that is missing, impossible or contradictory."""


class DataError(MedunetError):
    """A file, image or label that cannot be used: unreadable, no partner, wrong values."""


class SecurityError(MedunetError):
    """Content that is rejected because it could run code, leave its folder or exhaust the machine."""


def find_cause(error: BaseException) -> MedunetError | None:
    """Return the typed error behind an exception of MONAI or ignite, which wrap what transforms and configs raise.

    A component that rejects its arguments becomes a ConfigError.

    Example:
        >>> try:
        ...     try:
        ...         raise DataError("no label", file="a.png")
        ...     except DataError as cause:
        ...         raise RuntimeError("applying transform") from cause
        ... except RuntimeError as wrapped:
        ...     print(find_cause(wrapped))
        a.png: no label
    """
    current: BaseException | None = error
    rejected: MedunetError | None = None
    while current is not None and not isinstance(current, MedunetError):
        behind = current.__cause__ or current.__context__
        if (match := _NOT_INSTANTIATED.match(str(current))) and isinstance(behind, ValueError | TypeError):
            rejected = ConfigError(f"{match[1]} rejects its arguments: {behind}")
        current = behind
    return current or rejected


def first_cause(error: BaseException) -> BaseException:
    """Return the first typed error among an exception and its causes, else the original exception behind them."""
    while error.__cause__ is not None and not isinstance(error, MedunetError):
        error = error.__cause__
    return error
