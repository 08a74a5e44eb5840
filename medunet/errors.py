"""Typed errors: each says what was received, what was expected and what to do about it."""

from __future__ import annotations

import os
import re

from typing_extensions import Self

_NOT_INSTANTIATED = re.compile(r"Failed to instantiate component '([^']+)'")
"""How MONAI begins the error of a component of a config."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class MedunetError(Exception):
    """Base of all errors that medunet raises for input it cannot use.

    The message is one line, so that a command can print it as it is.

    Args:
        cause: what is wrong, a phrase without a full stop.
        file: the file or folder it is about.
        received: the value that was met.
        expected: the values that are allowed.
        remedy: what the user can do, an imperative phrase.

    Example:
        >>> str(
        ...     MedunetError(
        ...         "label has unknown values", file="a.nii.gz", received=[7], expected=[0, 1], remedy="relabel"
        ...     )
        ... )
        'a.nii.gz: label has unknown values (received [7], expected [0, 1]); remedy: relabel'
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
        values = [
            f"{word} {value}" for word, value in (("received", received), ("expected", expected)) if value is not None
        ]
        text = cause if self.file is None else f"{self.file}: {cause}"
        if values:
            text += f" ({', '.join(values)})"
        if remedy is not None:
            text += f"; remedy: {remedy}"
        super().__init__(_CONTROL.sub(" ", text))  # what a header held may not write lines into a log

    def at(self, file: str | os.PathLike[str] | None) -> Self:
        """Return the same error with another file or folder that it is about.

        Example:
            >>> str(GeometryError("no spacing", remedy="write it again").at("a.nrrd"))
            'a.nrrd: no spacing; remedy: write it again'
        """
        return type(self)(self.cause, file=file, received=self.received, expected=self.expected, remedy=self.remedy)


class ConfigError(MedunetError, ValueError):
    """An invalid configuration or argument: unknown key, impossible size, missing device.

    It is a `ValueError`, as Python callers expect of a wrong argument. Errors about the content of files are not.
    """


class GeometryError(MedunetError):
    """Spacing, orientation, origin or shape that is missing, impossible or contradictory."""


class DataError(MedunetError):
    """A file, image or label that cannot be used: unreadable, no partner, wrong values."""


class SecurityError(MedunetError):
    """Content that is refused because it could run code, leave its folder or exhaust the machine."""


def find_cause(error: BaseException) -> MedunetError | None:
    """Return the typed error behind another one: MONAI and ignite wrap what a transform or a config expression raises.

    A component that rejects its arguments becomes a ConfigError: PyTorch's and MONAI's own components raise none.

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
    seen: BaseException | None = error
    rejected: MedunetError | None = None
    while seen is not None and not isinstance(seen, MedunetError):
        behind = seen.__cause__ or seen.__context__
        if (match := _NOT_INSTANTIATED.match(str(seen))) and isinstance(behind, ValueError | TypeError):
            rejected = ConfigError(f"{match[1]} rejects its arguments: {behind}")
        seen = behind
    return seen or rejected


def first_cause(error: BaseException) -> BaseException:
    """Return the exception that others were raised from; MONAI wraps what a transform or a component raises.

    A typed error is an answer, whatever it was raised from.

    Example:
        >>> try:
        ...     try:
        ...         raise KeyError("image")
        ...     except KeyError as cause:
        ...         raise RuntimeError("applying transform") from cause
        ... except RuntimeError as wrapped:
        ...     first_cause(wrapped)
        KeyError('image')
    """
    while error.__cause__ is not None and not isinstance(error, MedunetError):
        error = error.__cause__
    return error
