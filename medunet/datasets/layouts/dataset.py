"""Labelled images of any layout, and digests of images."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from medunet.errors import DataError, MedunetError
from medunet.io.options import DEFAULTS, ReadOptions

BLOCKS, BLOCK_BYTES = 16, 1 << 16  # parts of an image that are read: acquired images differ within this megabyte
SECOND_CASE = "label another image, or cut this one in two"  # remedy if there is only one case


@contextmanager
def collect(problems: list[MedunetError] | None) -> Iterator[None]:
    """Add an error of the block to `problems`; None raises it."""
    try:
        yield
    except MedunetError as error:
        if problems is None:
            raise
        problems.append(error)


@dataclass(frozen=True)
class Case:
    """One patient, scan or picture."""

    name: str  # file name of the image without ending (`hippocampus_001`); results are named after it
    images: tuple[Path, ...]  # one file (or DICOM folder) per channel; usually one
    label: Path | None = None  # file of the reference
    classes: Path | None = None  # class map or table of the objects, if the label numbers objects of several classes
    group: str | None = None  # name of the patient, which folds must not split, if the data set declares groups

    def item(self) -> dict[str, str | list[str]]:
        """Return the item for MONAI: ``image`` (path, or one per channel), ``name``, ``label``, ``classes``."""
        image = [str(path) for path in self.images]
        item: dict[str, str | list[str]] = {"image": image if len(image) > 1 else image[0], "name": self.name}
        files = {"label": self.label, "classes": self.classes}
        return {**item, **{key: str(path) for key, path in files.items() if path is not None}}


@dataclass(frozen=True)
class Region:
    """A class of the network that is a union of label values; regions may overlap."""

    name: str
    values: tuple[int, ...]  # values in the files, sorted
    written: int  # value that a predicted region is written with; later regions are written over earlier ones


@dataclass(frozen=True)
class SegmentationDataset:
    """A labelled set of images and the meaning of its labels."""

    root: Path  # folder that paths of the data set are relative to
    name: str
    cases: tuple[Case, ...]  # labelled cases, sorted by name
    labels: dict[str, int]  # value in the files by name, background first, then by value
    channels: tuple[str, ...]  # names of the image's channels
    spatial_dims: int  # 2 or 3
    file_ending: str  # of the labels: `.nii.gz`, `.png`, ...
    test: tuple[Case, ...] = ()  # cases for testing only (`imagesTs`), with labels if `labelsTs` has them
    ignore: int | None = None  # value of voxels without annotation
    regions: tuple[Region, ...] = ()  # classes that overlap; then `labels` only names the single values
    instances: bool = False  # the label files number objects, and `labels` has the classes of the objects
    split: tuple[tuple[str, ...], ...] = ()  # validation cases of each fold, if the user gives a split or groups
    read: ReadOptions = DEFAULTS  # how to read images that can be interpreted in more than one way

    @property
    def read_options(self) -> ReadOptions:
        """Options to read an image of this data set."""
        channels = len(self.channels) if len(self.channels) > 1 else None
        return replace(self.read, channels=channels, spatial_dims=2 if self.spatial_dims == 2 else None)

    @property
    def allowed_labels(self) -> dict[str, int]:
        """Value by name, including the ignored value."""
        return self.labels if self.ignore is None else {**self.labels, "ignore": self.ignore}

    @property
    def groups(self) -> dict[str, str]:
        """The group of each case that has one, by case name."""
        return {case.name: case.group for case in self.cases if case.group}

    @property
    def n_groups(self) -> int:
        """Number of groups, or of cases without groups, which folds can separate."""
        return len({case.group or case.name for case in self.cases})


def image_digest(images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> str:
    """Return a digest of an image that does not depend on the names of its files.

    It covers the size of each file and blocks that are spread evenly over it.

    Args:
        images: a file, a folder of DICOM files, or several of them (channels).
    """
    given = [images] if isinstance(images, str | os.PathLike) else images
    paths = map(Path, given)
    files = [f for path in paths for f in (filter(Path.is_file, path.rglob("*")) if path.is_dir() else [path])]
    blocks = max(1, BLOCKS // max(len(files), 1))
    return hashlib.sha256("\n".join(sorted(_sampled(file, blocks) for file in files)).encode()).hexdigest()


def _sampled(path: Path, blocks: int) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            last = max(size - BLOCK_BYTES, 0)
            for start in sorted({last * index // max(blocks - 1, 1) for index in range(blocks)}):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from error
    return digest.hexdigest()
