"""ZIP archives with one DICOM series, as PACS viewers and web archives export it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medunet.errors import MedunetError
from medunet.trust.archive import unpack

ZIP_SUFFIX = ".zip"
MAX_FILES = 20_000  # in one archive: a series of 400 volumes of 50 slices
MAX_BYTES = 8 << 30  # of all files together, unpacked; a whole-body CT has 2 GiB
_LONGEST_NAME = 100


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpack an archive to a temporary folder without subfolders while it is read; any other path is passed through.

    A damaged or encrypted archive is a DataError; entries that leave the folder, links, and more files or bytes than
    allowed are a SecurityError. An error about one of the files names it within the archive.
    """
    if path.suffix.lower() != ZIP_SUFFIX or not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="medunet_") as temporary:
        root, folder = Path(temporary), Path(temporary) / "files"
        free = shutil.disk_usage(root).free
        tree = unpack(path, root / "tree", max_bytes=min(MAX_BYTES, free), max_files=MAX_FILES)
        folder.mkdir()
        files = [file for file in sorted(tree.rglob("*")) if file.is_file()]
        own = (".", "__MACOSX")  # files that macOS or another system adds for its own use
        files = [file for file in files if not any(part.startswith(own) for part in file.relative_to(tree).parts)]
        for number, file in enumerate(files):
            file.rename(folder / f"{number:05d}_{file.name}"[:_LONGEST_NAME])
        try:
            yield folder
        except MedunetError as error:
            raise error.at(path if error.file in (None, str(folder)) else path / Path(error.file or "").name) from error


def image_in(folder: Path) -> Path:
    """Return the folder of a series, or its only file: a single slice is a 2D image."""
    files = list(folder.iterdir())
    return files[0] if len(files) == 1 else folder
