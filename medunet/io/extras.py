"""Packages that only some formats need: imported when the format is used, with an error that names the extra."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from medunet.errors import ConfigError


def has_package(name: str) -> bool:
    """Whether a package is installed; it is not imported.

    Example:
        >>> has_package("numpy"), has_package("no_such_package")
        (True, False)
    """
    return importlib.util.find_spec(name) is not None


def import_extra(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: of the module.
        extra: the extra of medunet that installs it.
        purpose: what it is needed for, for the error.

    Raises:
        ConfigError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name.partition('.')[0]} is needed for {purpose} but cannot be imported",
            received=str(error),
            remedy=f"pip install 'medunet[{extra}]'",
        ) from error
