"""The user's folders, and checks of output folders before the work starts."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medunet.errors import DataError

from .atomic import temporary_name, write_atomically

_PROBE_BYTES = 1 << 16  # written and removed again to check that a folder accepts data


def config_folder() -> Path:
    """Return the folder of the user's decisions: `MEDUNET_CONFIG_DIR`, or `medunet` in the user's config folder."""
    own = os.environ.get("MEDUNET_CONFIG_DIR")
    return Path(own or Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "medunet")


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return `folder`, or for None `MEDUNET_CACHE_DIR`, or `medunet` in the user's cache folder."""
    own = folder or os.environ.get("MEDUNET_CACHE_DIR")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medunet")


@contextmanager
def only_if_used(folder: Path) -> Iterator[None]:
    """Remove folders that the block creates and leaves empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def require_path(*paths: str | os.PathLike[str] | None) -> None:
    """Raise a DataError for the first path that does not exist; None is accepted."""
    for path in paths:
        if path is not None and not Path(path).exists():
            raise DataError("does not exist", file=path)


def require_new(path: str | os.PathLike[str] | None, *, force: bool = False) -> None:
    """Raise a DataError if a result exists and `force` does not allow to replace it; None is accepted."""
    if path is not None and not force and Path(path).exists():
        raise DataError("already exists", file=path, remedy="choose another --output, or add --force")


def reject_other_files(folder: str | os.PathLike[str], *, own: str | None = None) -> None:
    """Raise a DataError if an output folder contains files of another command; hidden files do not count.

    `own` is a pattern of a path that shows that the same command wrote into the folder before.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DataError("the output must be a folder", file=folder, received="a file")
    others = sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))
    if others and (own is None or next(folder.glob(own), None) is None):
        received, expected = ", ".join(others[:3]) + (" ..." if len(others) > 3 else ""), "an empty or a new folder"
        raise DataError("the output folder contains other files", file=folder, received=received, expected=expected)


def check_target(folder: str | os.PathLike[str], *, needed: int = 0) -> None:
    """Raise a DataError before the work starts if results cannot be written, or `needed` bytes are not free."""
    folder = Path(folder)
    probe = temporary_name(folder / "probe")
    with only_if_used(folder):
        try:
            write_atomically(probe, bytes(_PROBE_BYTES))
            probe.unlink(missing_ok=True)
            free = shutil.disk_usage(folder).free
        except DataError as error:
            raise error.at(folder) from error
    if free < needed:
        received, expected = f"{free / 2**20:.0f} MiB free", f"{needed / 2**20:.0f} MiB"
        raise DataError("not enough free space for the results", file=folder, received=received, expected=expected)
