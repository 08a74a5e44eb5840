"""medunet: U-Nets for labelled medical images, as ordinary MONAI bundles.

The functions of :mod:`medunet.api` are attributes of this package; they are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medunet.api import Model, Segmentation, check, evaluate, export, load, plan, predict, report, train

__version__ = "0.1.0"

__all__ = ["Model", "Segmentation", "check", "evaluate", "export", "load", "plan", "predict", "report", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("medunet.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
