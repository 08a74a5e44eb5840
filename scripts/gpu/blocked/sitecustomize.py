"""Hide packages that a machine with little more than PyTorch lacks; Python imports this module when it starts."""

import sys
from importlib.machinery import PathFinder
from typing import Any

HIDDEN = {"SimpleITK", "itk", "mlflow", "highdicom", "pandas", "sklearn"}


class Hide(PathFinder):
    """The finder of modules on `sys.path`, without the hidden ones."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        """Return None for a hidden package."""
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)


sys.meta_path[:] = [Hide if finder is PathFinder else finder for finder in sys.meta_path]
