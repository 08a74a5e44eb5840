"""Which images a cohort has, and what each result is called."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from medunet.datasets import list_inputs
from medunet.errors import DataError, SecurityError
from medunet.io import output_name, split_suffix
from medunet.prediction import NamedSource

IMAGE_COLUMN = "image"
NAME_COLUMNS = ("name", "output")
SEPARATOR = ";"
"""Between the channels of one case."""

MAX_NAMED = 5
"""Doubles that an error names."""


def read_cohort(source: Path, *, channels: int = 1) -> list[NamedSource]:
    """The cases of a manifest or a folder, each with a name of its own.

    A manifest is a CSV file with a column `image`: a path, or one a channel with `;` between them, absolute or from the
    manifest's folder. A column `name` (or `output`) says what the result is called, without ending, with folders where
    wanted; else it bears the first image's name.

    Args:
        source: the CSV file, or a folder of images.
        channels: of the network.

    Raises:
        DataError: not readable, no such column, another number of channels, or two cases of one name.
        SecurityError: a name that leaves the output folder.
    """
    if source.is_dir():
        inputs = list_inputs(source, channels=channels)
        given = [(item,) if isinstance(item, Path) else tuple(item) for item in inputs]
        return [NamedSource(images, output_name(list(images) if len(images) > 1 else images[0])) for images in given]
    cases = list(_rows(source, channels=channels))
    if not cases:
        raise DataError("the manifest has no case", file=source)
    seen: set[str] = set()
    doubles = sorted({case.name for case in cases if case.name in seen or seen.add(case.name)})  # type: ignore[func-returns-value]
    if doubles:
        raise DataError(
            "cases of one name, so that one result would replace the other",
            file=source,
            received=", ".join(doubles[:MAX_NAMED]),
            remedy=f"give a column `{NAME_COLUMNS[0]}`",
        )
    return cases


def _rows(file: Path, *, channels: int) -> Iterator[NamedSource]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the manifest cannot be read: {error}", file=file) from error
    rows = csv.DictReader(text.splitlines())
    if IMAGE_COLUMN not in (rows.fieldnames or ()):
        raise DataError("no column with images", file=file, received=rows.fieldnames, expected=IMAGE_COLUMN)
    for row in rows:
        words = [word.strip() for word in (row[IMAGE_COLUMN] or "").split(SEPARATOR) if word.strip()]
        if not words and not any((row.get(key) or "").strip() for key in NAME_COLUMNS):
            continue
        if len(words) != channels:
            raise DataError(
                f"line {rows.line_num}: another number of images than the network has channels",
                file=file,
                received=len(words),
                expected=channels,
            )
        images = tuple(file.parent / word for word in words)
        given = next((row[key].strip() for key in NAME_COLUMNS if (row.get(key) or "").strip()), None)
        name = own_name(images) if given is None else checked_name(given, file)
        yield NamedSource(images, name)


def own_name(images: tuple[Path, ...]) -> str:
    """The name of the first image, looked at as text: images that are not there fail later, as cases."""
    stem = split_suffix(images[0].name)[0]
    return output_name([str(image) for image in images]) if len(images) > 1 else stem


def checked_name(text: str, file: Path) -> str:
    """A name without its ending, inside the output folder.

    Example:
        >>> checked_name("patient_7/ct.nii.gz", Path("m.csv"))
        'patient_7/ct'
    """
    path = PurePosixPath(text.replace("\\", "/"))
    stem = split_suffix(path.name)[0]
    if path.is_absolute() or ".." in path.parts or ":" in text or not stem or stem.startswith("."):
        raise SecurityError(
            "a name leaves the output folder", file=file, received=text, remedy="use names such as patient_7/ct"
        )
    return (path.parent / stem).as_posix()
