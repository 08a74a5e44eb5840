"""The separate Python environment of MONAI Label: its packages need pydicom < 3 and numpy < 2."""

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

TORCH = "torch==2.13.0"  # installed first, exact and alone: a range lets another package choose a CUDA build
MONAI_LABEL = "monailabel==0.8.5"  # installed last and without its dependencies, see requirements.txt
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PYTHONS = ((3, 10), (3, 12))  # first and last Python that these pins support: numpy 1.26, module `cgi`
STAMP = "medunet-label.json"  # written last: an environment without it is incomplete


class LabelEnvironment:
    """A virtual environment with MONAI Label and a link to this medunet.

    Args:
        folder: folder of the environment. Default: `label-env` in medunet's cache folder.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else cache_folder() / "label-env"
        self.bin = self.folder / ("Scripts" if os.name == "nt" else "bin")  # also has dcmqi's programs
        self.python = self.bin / ("python.exe" if os.name == "nt" else "python")
        self.package_path = self.folder / "medunet-package"  # PYTHONPATH: medunet without the packages around it

    @property
    def is_ready(self) -> bool:
        """Whether the environment was completed with the current pins."""
        try:
            stamp = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(stamp == _stamp()) and self.python.is_file()

    def check(self) -> None:
        """Link this medunet into the environment; a missing, incomplete or outdated environment is a ConfigError."""
        if not self.is_ready:
            remedy = "run `medunet label setup` once, with access to a package index"
            raise ConfigError("MONAI Label's environment is not set up", file=self.folder, remedy=remedy)
        self._link_package()

    def make(self, *, python: str | None = None, torch_index: str | None = None) -> None:
        """Create the environment, or complete an interrupted setup.

        Args:
            python: interpreter to create it with. Default: the running one.
            torch_index: URL of the package index for torch alone. Default: the index of all packages.

        Raises:
            ConfigError: MONAI Label does not support this Python.
            DataError: pip failed; the message has its last lines.
        """
        if not self.is_ready:
            base = python or sys.executable
            check_python(_run([base, "-c", "import sys; print(*sys.version_info[:2])"]), base)
            logger.info("setting up MONAI Label in %s; this takes some minutes", self.folder)
            if not self.python.is_file():
                _run([base, "-m", "venv", os.fspath(self.folder)])
            install = [os.fspath(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*install, *(["--index-url", torch_index] if torch_index else []), TORCH])
            _run([*install, TORCH, "--requirement", os.fspath(REQUIREMENTS)])
            _run([*install, "--no-deps", MONAI_LABEL])
            write_atomically(self.folder / STAMP, json.dumps(_stamp()))
        self._link_package()

    def _link_package(self) -> None:
        """Link rather than copy, so that the environment never runs an outdated medunet."""
        package, link = Path(medunet.__file__).resolve().parent, self.package_path / "medunet"
        if link.is_symlink() and link.resolve() == package:
            return
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        shutil.rmtree(link, ignore_errors=True)
        try:
            link.symlink_to(package, target_is_directory=True)
        except OSError:  # Windows without the right to create links
            shutil.copytree(package, link)


def check_python(version: str, interpreter: str) -> None:
    """Reject a Python version (such as "3 11") that MONAI Label does not support."""
    first, last = PYTHONS
    if not first <= tuple(map(int, version.split())) <= last:
        expected = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}, given as --python"
        rule = "MONAI Label does not support this Python version"
        raise ConfigError(rule, file=interpreter, received=version.replace(" ", "."), expected=expected)


def _stamp() -> dict[str, str]:
    return {"torch": TORCH, "monailabel": MONAI_LABEL, "requirements": REQUIREMENTS.read_text(encoding="utf-8")}


def _run(command: Sequence[str]) -> str:
    """Return a command's standard output; a failure is a DataError."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    except OSError as error:
        raise DataError(f"cannot be run: {error.strerror or error}", file=command[0]) from error
    except subprocess.CalledProcessError as error:
        last = " | ".join((error.stderr or error.stdout).strip().splitlines()[-3:])
        remedy = "fix the cause and rerun `medunet label setup`, which resumes"
        raise DataError(f"setting up failed: {last}", file=command[0], remedy=remedy) from error
