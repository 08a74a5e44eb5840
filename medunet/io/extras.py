"""Packages that only some formats need: imported when the format is used."""

from __future__ import annotations

import importlib
from types import ModuleType

from medunet.errors import ConfigError


def import_extra(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        name: the module.
        extra: the extra of medunet that installs it.
        purpose: what needs it, for the error.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{name.partition('.')[0]} is needed for {purpose} but cannot be imported",
            received=str(error),
            remedy=f"pip install 'medunet[{extra}]'",
        ) from error
