"""Ranges of a search, as users type them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medunet.config import parse_yaml
from medunet.errors import ConfigError

CHOICE = "|"


@dataclass(frozen=True)
class Range:
    """The values of one config id that a search tries: a range, or choices."""

    key: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False  # uniform in the logarithm
    is_whole: bool = False  # whole numbers only
    choices: tuple[Any, ...] = ()

    @property
    def example(self) -> Any:
        """One of the values."""
        return self.choices[0] if self.choices else int(self.low or 0) if self.is_whole else self.low

    def to_tune(self, tune: Any) -> Any:
        """Return the domain of Ray Tune."""
        if self.choices:
            return tune.choice(list(self.choices))
        if self.is_whole:  # Tune's upper bound is exclusive
            return (tune.lograndint if self.is_log else tune.randint)(int(self.low or 0), int(self.high or 0) + 1)
        return (tune.loguniform if self.is_log else tune.uniform)(self.low, self.high)


def parse_range(text: str) -> Range:
    """Parse `KEY=LOW:HIGH`, with `:log` for orders of magnitude and `:int` for whole numbers, or `KEY=A|B|C`.

    Examples:
        >>> parse_range("learning_rate=1e-4:1e-2:log").low
        0.0001
        >>> parse_range("learning_rate=1e-4|1e-3").choices
        (0.0001, 0.001)
    """
    key, equals, value = text.partition("=")
    if key and equals and CHOICE in value:
        return Range(key, choices=tuple(parse_yaml(word) for word in value.split(CHOICE)))
    low, _, rest = value.partition(":")
    high, *flags = rest.split(":")
    try:
        result = Range(key, float(low), float(high), is_log="log" in flags, is_whole="int" in flags)
        is_valid = bool(key) and float(low) < float(high) and not {*flags} - {"log", "int"}
        if not is_valid or (result.is_log and float(low) <= 0):
            raise ValueError
    except ValueError as error:
        expected = "KEY=LOW:HIGH[:log][:int] or KEY=A|B, LOW below HIGH, above 0 for log"
        raise ConfigError("--set-range must be a range that has values", received=text, expected=expected) from error
    return result


def parse_ranges(texts: Iterable[str]) -> list[Range]:
    """Parse the ranges of a search, such as ``learning_rate=1e-4:1e-2:log``, ``batch_size=2:8:int`` or ``KEY=A|B``.

    Raises:
        ConfigError: no range, another form, or an empty range.
    """
    ranges = [parse_range(text) for text in texts]
    if not ranges:
        raise ConfigError("a search needs --set-range", expected="such as learning_rate=1e-4:1e-2:log")
    return ranges
