"""`logging.conf`: Python's `fileConfig` evaluates parts of it, so only plain console logging is accepted."""

from __future__ import annotations

import re
from collections.abc import Iterator

_CLASSES = {"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"}
_ARGUMENTS = re.compile(r"\(\s*((sys\.)?(stdout|stderr)\s*,?)?\s*\)")
_PLAIN_KEYS = {"keys", "level", "handlers", "qualname", "propagate", "formatter", "format", "datefmt", "style"}
_LINE = re.compile(r"(?P<key>[A-Za-z_]+)\s*[=:]\s*(?P<value>.*)")


def suspicious_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield number and text of lines that could call something, and of lines in an unknown form.

    Each line is judged by itself, without the parser that would evaluate it.

    Example:
        >>> list(suspicious_lines("[handler_x]\nclass=StreamHandler\nargs=(sys.stderr,)"))
        []
        >>> list(suspicious_lines("[handler_x]\nargs=(__import__('os').system('id'),)"))
        [(2, "args=(__import__('os').system('id'),)")]
    """
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):  # the line ends of fileConfig
        if not line.strip() or line.startswith(("#", ";")) or re.fullmatch(r"\[[A-Za-z_]+\]\s*", line):
            continue
        match = _LINE.fullmatch(line)
        if match is None or not _is_plain(match["key"], match["value"].strip()):
            yield number, line.strip()


def _is_plain(key: str, value: str) -> bool:
    if key == "class":
        return value in _CLASSES
    if key == "args":
        return _ARGUMENTS.fullmatch(value) is not None
    return key in _PLAIN_KEYS
