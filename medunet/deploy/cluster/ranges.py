"""Ranges that a search tries values of, as they are typed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medunet.config import parse_yaml
from medunet.errors import ConfigError

CHOICE = "|"


@dataclass(frozen=True)
class Range:
    """What one value of a config is chosen from.

    Args:
        key: config id.
        low: smallest value; None for a choice.
        high: largest value.
        is_log: equally often in every order of magnitude.
        is_whole: whole numbers only.
        choices: the values to choose from, instead of a range.
    """

    key: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def example(self) -> Any:
        """A value in it."""
        return self.choices[0] if self.choices else int(self.low or 0) if self.is_whole else self.low

    @property
    def largest(self) -> Any:
        """The largest value in it."""
        if not self.choices:
            return self.high
        try:
            return max(self.choices)
        except TypeError as error:
            raise ConfigError(
                "not all choices are numbers", received=f"{self.key}={CHOICE.join(map(str, self.choices))}"
            ) from error

    def to_tune(self, tune: Any) -> Any:
        """As a domain of Ray Tune."""
        if self.choices:
            return tune.choice(list(self.choices))
        if self.is_whole:  # Tune's upper bound is exclusive
            return (tune.lograndint if self.is_log else tune.randint)(int(self.low or 0), int(self.high or 0) + 1)
        return (tune.loguniform if self.is_log else tune.uniform)(self.low, self.high)


def parse_range(text: str) -> Range:
    """`KEY=LOW:HIGH`, with `:log` for orders of magnitude and `:int` for whole numbers; or `KEY=A|B|C`.

    Raises:
        ConfigError: something else, or an empty range.

    Example:
        >>> parse_range("learning_rate=1e-4:1e-2:log").low
        0.0001
        >>> parse_range("learning_rate=1e-4|1e-3").choices
        (0.0001, 0.001)
    """
    expected = "KEY=LOW:HIGH[:log][:int] or KEY=A|B"
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError("--set-range takes a range", received=text, expected=expected)
    if CHOICE in value:
        return Range(key, choices=tuple(parse_yaml(word) for word in value.split(CHOICE)))
    words = value.split(":")
    flags = set(words[2:])
    try:
        low, high = float(words[0]), float(words[1])
    except (ValueError, IndexError) as error:
        raise ConfigError("--set-range takes a range", received=text, expected=expected) from error
    if not low < high or flags - {"log", "int"} or ("log" in flags and low <= 0):
        raise ConfigError("an impossible range", received=text, expected=f"{expected}, LOW below HIGH, above 0 for log")
    return Range(key, low, high, is_log="log" in flags, is_whole="int" in flags)


def parse_ranges(texts: Iterable[str]) -> list[Range]:
    """All of them; raises as :func:`parse_range`, also where there is none."""
    ranges = [parse_range(text) for text in texts]
    if not ranges:
        raise ConfigError("nothing to search", remedy="give --set-range, such as learning_rate=1e-4:1e-2:log")
    return ranges
