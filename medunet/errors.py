"""Typed errors: rule, value, place, remedy."""

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

    Examples:
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
        self.cause, self.received, self.expected, self.remedy = cause, received, expected, remedy
        self.file = None if file is None else os.fspath(file)
        values = {"received": received, "expected": expected}
        listed = ", ".join(f"{word} {value}" for word, value in values.items() if value is not None)
        text = (f"{self.file}: " if self.file is not None else "") + cause + (f" ({listed})" if listed else "")
        text += f"; remedy: {remedy}" if remedy is not None else ""
        super().__init__(_CONTROL.sub(" ", text))  # text of a header must not add lines to a log

    def at(self, file: str | os.PathLike[str] | None) -> Self:
        """Return the same error about another file or folder."""
        return type(self)(self.cause, file=file, received=self.received, expected=self.expected, remedy=self.remedy)


class ConfigError(MedunetError, ValueError):
    """An invalid configuration or argument: unknown key, impossible size, missing device."""


class GeometryError(MedunetError):
    """Spacing, orientation, origin or shape that is missing, impossible or contradictory."""


class DataError(MedunetError):
    """A file, image or label that cannot be used: unreadable, unpaired or with wrong values."""


class DeviceError(MedunetError):
    """A GPU that rejects all further work of this process, as CUDA does after an illegal access."""


class SecurityError(MedunetError):
    """Content that is rejected because it could run code, leave its folder or exhaust the machine."""


def find_cause(error: BaseException) -> MedunetError | None:
    """Return the typed error behind an exception of MONAI or ignite, which wrap what transforms and configs raise.

    A component that rejects its arguments becomes a ConfigError.
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


def first_lines(error: BaseException, count: int = 1) -> str:
    """Return the first lines of an exception's message, joined; the name of its type if it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count])[:300] or type(error).__name__
