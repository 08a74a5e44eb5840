"""The separate environment that MONAI Label needs: its packages cannot live beside pydicom 3 and numpy 2."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import medunet
from medunet.errors import ConfigError, DataError
from medunet.files import cache_folder, write_atomically

logger = logging.getLogger(__name__)

TORCH = "torch==2.13.0"
"""Exact, and installed first and alone: a range would let another package choose a build with gigabytes of CUDA."""

MONAI_LABEL = "monailabel==0.8.5"
"""Installed last and without what it asks for, see requirements.txt."""

REQUIREMENTS = Path(__file__).with_name("requirements.txt")

PYTHONS = ((3, 10), (3, 12))
"""First and last Python that MONAI Label 0.8.5 runs on with these pins, for numpy 1.26 and the module `cgi`."""

STAMP = "medunet-label.json"
"""Written last, so that an interrupted setup is not taken for a whole one."""

PACKAGE_DIR = "medunet-package"
"""Folder in the environment through which it sees this medunet and nothing else of its environment."""


class LabelEnvironment:
    """A virtual environment with MONAI Label and this medunet.

    Args:
        folder: where it lies; by default `label-env` in medunet's cache folder.

    Example:
        >>> LabelEnvironment(Path("env")).is_ready
        False
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder() / "label-env"

    @property
    def bin(self) -> Path:
        """Where its commands lie, among them dcmqi's, which MONAI Label calls by name."""
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.bin / ("python.exe" if os.name == "nt" else "python")

    @property
    def is_ready(self) -> bool:
        """Whether it was made whole, by these pins."""
        try:
            stamp = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(stamp == _stamp()) and self.python.is_file()

    def check(self) -> None:
        """Refuse an environment that is not there, and let it see this medunet.

        Raises:
            ConfigError: not set up, or by other pins.
        """
        if not self.is_ready:
            raise ConfigError(
                "MONAI Label's environment is not set up",
                file=self.folder,
                remedy="run `medunet label --setup` once, with access to a package index",
            )
        self._show_package()

    def make(self, *, python: str | None = None, torch_index: str | None = None) -> None:
        """Make it, or complete one that was interrupted; one that is ready is left as it is.

        Args:
            python: the interpreter to make it from; by default the running one.
            torch_index: URL of the package index that torch alone is taken from; by default that of all packages,
                which for Linux is often one with CUDA.

        Raises:
            ConfigError: a Python that MONAI Label does not run on.
            DataError: pip failed; its last lines are in the message.
        """
        if self.is_ready:
            self._show_package()
            return
        base = python or sys.executable
        check_python(_version(base), base)
        logger.info("setting up MONAI Label in %s; this takes some minutes", self.folder)
        if not self.python.is_file():
            _run([base, "-m", "venv", os.fspath(self.folder)])
        install = [os.fspath(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*install, *(["--index-url", torch_index] if torch_index else []), TORCH])
        _run([*install, TORCH, "--requirement", os.fspath(REQUIREMENTS)])
        _run([*install, "--no-deps", MONAI_LABEL])
        self._show_package()
        write_atomically(self.folder / STAMP, json.dumps(_stamp()))

    def _show_package(self) -> None:
        """Link this medunet into the environment: not a copy that grows old, and not the packages around it."""
        package = Path(medunet.__file__).resolve().parent
        shown = self.folder / PACKAGE_DIR / "medunet"
        if shown.is_symlink() and shown.resolve() == package:
            return
        shown.parent.mkdir(parents=True, exist_ok=True)
        if shown.is_symlink():
            shown.unlink()
        elif shown.is_dir():
            shutil.rmtree(shown)
        try:
            shown.symlink_to(package, target_is_directory=True)
        except OSError:  # Windows without the right to make links
            shutil.copytree(package, shown)

    @property
    def package_path(self) -> Path:
        """What PYTHONPATH must hold there for `import medunet`."""
        return self.folder / PACKAGE_DIR


def check_python(version: tuple[int, int], interpreter: str) -> None:
    """Refuse a Python that MONAI Label does not run on.

    Example:
        >>> check_python((3, 11), "python3.11")
        >>> check_python((3, 10), "python3.10")
    """
    first, last = PYTHONS
    if not first <= version <= last:
        raise ConfigError(
            "MONAI Label does not run on this Python",
            file=interpreter,
            received=".".join(map(str, version)),
            expected=f"{first[0]}.{first[1]} to {last[0]}.{last[1]}",
            remedy="name another one by `medunet label --setup --python python3.11`",
        )


def _version(interpreter: str) -> tuple[int, int]:
    text = _run([interpreter, "-c", "import sys; print(*sys.version_info[:2])"])
    major, minor = text.split()
    return int(major), int(minor)


def _stamp() -> dict[str, str]:
    """What an environment must have been made from to be used."""
    return {"torch": TORCH, "monailabel": MONAI_LABEL, "requirements": REQUIREMENTS.read_text(encoding="utf-8")}


def _run(command: Sequence[str]) -> str:
    """Standard output of a command.

    Raises:
        DataError: it failed, or is not there.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        raise DataError(f"cannot be run: {error.strerror or error}", file=command[0]) from error
    if done.returncode != 0:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise DataError(
            f"setting up failed: {last}",
            file=command[0],
            received=" ".join(command[1:4]),
            remedy="mend the cause and run `medunet label --setup` again; what is done is kept",
        )
    return done.stdout
