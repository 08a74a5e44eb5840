"""Durations and sizes as people write them: `30min`, `8GB`."""

import re

from medunet.errors import ConfigError

GB = 1 << 30  # bytes, as `parse_size` counts them
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Return the seconds of a duration.

    Raises:
        ConfigError: The text is not a duration.

    Examples:
        >>> parse_duration("30min"), parse_duration("1.5h")
        (1800.0, 5400.0)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", text.lower())
    if match is None or match[2] not in _SECONDS or not float(match[1]) > 0:
        raise ConfigError("invalid duration", received=text, expected="such as 90s, 30min, 2h or 30d")
    return float(match[1]) * _SECONDS[match[2]]


def parse_size(text: str | int) -> int:
    """Return the bytes of a size in binary units: 1 kB is 1024 bytes, 1 GB is 1024³ bytes.

    Raises:
        ConfigError: The text is not a size.

    Examples:
        >>> parse_size("1.5GB"), parse_size(4096)
        (1610612736, 4096)
    """
    if isinstance(text, int) and text > 0:
        return text
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)B\s*", str(text).upper())
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " ")) if match else 0
    if size < 1:
        raise ConfigError("invalid size", received=text, expected="such as 500MB or 8GB")
    return size
