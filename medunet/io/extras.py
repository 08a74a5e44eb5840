"""Packages that only some formats need: imported when the format is used."""

import importlib
from types import ModuleType

from medunet.errors import ConfigError


def import_extra(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional package, or raise a ConfigError that names the extra of medunet with it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        cause = f"{name.partition('.')[0]} is needed for {purpose} but cannot be imported"
        raise ConfigError(cause, received=str(error), remedy=f"pip install 'medunet[{extra}]'") from error
