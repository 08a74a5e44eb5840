"""Cases without their names: what leaves the machine of a training says nothing of a patient."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

PATH_WORD = "(path)"
"""Stands where a path of this machine stood."""

_PATH = re.compile(r"(?<![\w.@'/:+-])(?:[A-Za-z]:[\\/]|\\\\|~?/(?=[\w.~]))[^\s'\",;:)\]]*")
"""An absolute path: of Unix, from the home folder, of Windows with a drive or a share."""


class CaseCodes:
    """Numbers the cases of a data set by their sorted names.

    File names may be those of patients, so a tracking server gets numbers. The folder of the run keeps the list.

    Args:
        names: of all cases, in any order.

    Example:
        >>> codes = CaseCodes(["Doe_Jane", "Doe_John"])
        >>> codes["Doe_John"], codes.redact("/home/me/Doe_Jane.nii.gz: empty, unlike Doe_John")
        ('case_002', '(path): empty, unlike case_002')
    """

    def __init__(self, names: Iterable[str]) -> None:
        known = sorted(set(names))
        width = max(3, len(str(len(known))))
        self.codes: dict[str, str] = {name: f"case_{number:0{width}d}" for number, name in enumerate(known, start=1)}
        longest_first = sorted((re.escape(name) for name in known if name), key=len, reverse=True)
        joined = "|".join(longest_first)
        self._names = re.compile(rf"(?<![^\W_])(?:{joined})(?![^\W_])") if joined else None

    def __getitem__(self, name: str) -> str:
        """The code of a case; one that is not known has no code but a word."""
        return self.codes.get(name, "case_unknown")

    def redact(self, value: Any) -> Any:
        """A value as it may be logged: names of cases are codes, absolute paths are left out, also inside texts."""
        if isinstance(value, str):
            text = _PATH.sub(PATH_WORD, value)
            return text if self._names is None else self._names.sub(lambda found: self.codes[found.group()], text)
        if isinstance(value, Mapping):
            return {self.redact(key): self.redact(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.redact(inner) for inner in value]
        return value
