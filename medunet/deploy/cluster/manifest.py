"""The cases of a cohort, and the names of their results."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from medunet.datasets import list_inputs, shown
from medunet.errors import DataError, SecurityError
from medunet.io import output_name, split_suffix
from medunet.prediction import NamedSource

IMAGE_COLUMN, NAME_COLUMNS = "image", ("name", "output")
SEPARATOR = ";"  # between the channels of one case


def read_cohort(source: Path, *, channels: int = 1) -> list[NamedSource]:
    """Return the cases of a manifest or a folder, each with a unique name.

    A manifest is a CSV file with a column `image`: a path, or one per channel with `;` between them, absolute or
    relative to the manifest's folder. A column `name` (or `output`) names the result without its suffix, possibly with
    folders; otherwise the result is named after the first image.

    Args:
        source: the CSV file, or a folder of images.
        channels: number of channels of the network.

    Raises:
        DataError: the manifest cannot be read, lacks the column, has another number of channels or a repeated name.
        SecurityError: a name that leaves the output folder.
    """
    if source.is_dir():
        inputs = list_inputs(source, channels=channels)
        given = [(item,) if isinstance(item, Path) else tuple(item) for item in inputs]
        return [NamedSource(images, output_name(list(images) if len(images) > 1 else images[0])) for images in given]
    cases = list(_rows(source, channels=channels))
    if not cases:
        raise DataError("the manifest has no case", file=source)
    if duplicates := [name for name, count in Counter(case.name for case in cases).items() if count > 1]:
        cause, remedy = "the names of cases must be unique", f"add a column `{NAME_COLUMNS[0]}`"
        raise DataError(cause, file=source, received=shown(duplicates), remedy=remedy)
    return cases


def _rows(file: Path, *, channels: int) -> Iterator[NamedSource]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the manifest cannot be read: {error}", file=file) from error
    rows = csv.DictReader(text.splitlines())
    if IMAGE_COLUMN not in (rows.fieldnames or ()):
        cause = "the manifest has no column of images"
        raise DataError(cause, file=file, received=rows.fieldnames, expected=IMAGE_COLUMN)
    for row in rows:
        words = [word.strip() for word in (row[IMAGE_COLUMN] or "").split(SEPARATOR) if word.strip()]
        name = next((text for key in NAME_COLUMNS if (text := (row.get(key) or "").strip())), None)
        if not words and name is None:
            continue
        if len(words) != channels:
            cause = f"line {rows.line_num}: the number of images must be the network's number of channels"
            raise DataError(cause, file=file, received=len(words), expected=channels)
        if name is not None:
            name = checked_name(name, file)
        else:  # by text: an image that does not exist is a failed case
            name = output_name(words) if len(words) > 1 else split_suffix(Path(words[0]).name)[0]
        yield NamedSource(tuple(file.parent / word for word in words), name)


def checked_name(text: str, file: Path) -> str:
    """Return a name without its suffix; raise a SecurityError if it leaves the output folder.

    Examples:
        >>> checked_name("patient_7/ct.nii.gz", Path("m.csv"))
        'patient_7/ct'
    """
    path = PurePosixPath(text.replace("\\", "/"))
    stem = split_suffix(path.name)[0]
    if path.is_absolute() or ".." in path.parts or ":" in text or not stem or stem.startswith("."):
        raise SecurityError("names must stay in the output folder", file=file, received=text, expected="patient_7/ct")
    return (path.parent / stem).as_posix()
