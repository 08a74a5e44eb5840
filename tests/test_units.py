"""Durations and sizes."""

import pytest

from medunet.errors import ConfigError
from medunet.units import parse_duration, parse_size


def test_durations_and_sizes_are_parsed() -> None:
    assert [parse_duration(text) for text in ("90s", "0.5min", "2 h", "30d")] == [90, 30, 7200, 30 * 86400]
    assert [parse_size(text) for text in ("8GB", "512 mb", 7)] == [8 << 30, 512 << 20, 7]


@pytest.mark.parametrize("text", ["", "30", "min", "-3min", "0min", "3 parsecs", "5MB"])
def test_impossible_durations_are_rejected(text: str) -> None:
    with pytest.raises(ConfigError, match="invalid duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "much", "0GB", "1.2.3GB", "30min", -1])
def test_impossible_sizes_are_rejected(text: str | int) -> None:
    with pytest.raises(ConfigError, match="invalid size"):
        parse_size(text)
