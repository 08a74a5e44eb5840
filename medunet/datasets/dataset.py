"""What a labelled set of images is, wherever it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medunet.errors import ConfigError
from medunet.io.options import DEFAULTS, ReadOptions

from .regions import Region

SECOND_CASE = "label another image, or cut this one in two"
"""What helps where there is one case only: nothing would be left to choose the weights by."""


@dataclass(frozen=True)
class Case:
    """One patient, scan or picture.

    Args:
        name: file name of the image without ending (`hippocampus_001`); results bear it.
        images: one file (or DICOM folder) a channel; usually one.
        label: file of the reference, or None.
    """

    name: str
    images: tuple[Path, ...]
    label: Path | None = None

    def item(self) -> dict[str, str | list[str]]:
        """As MONAI's datasets take it: ``{"image": path or paths, "label": path, "name": name}``; no label, no key."""
        image: str | list[str] = str(self.images[0]) if len(self.images) == 1 else [str(p) for p in self.images]
        item: dict[str, str | list[str]] = {"image": image, "name": self.name}
        if self.label is not None:
            item["label"] = str(self.label)
        return item


@dataclass(frozen=True)
class SegmentationDataset:
    """A labelled set of images and what its labels mean.

    Args:
        root: the folder that paths of the data set are relative to.
        name: for people.
        cases: the labelled cases, sorted by name.
        labels: name to value in the files, background first, then by value: ``{"background": 0, "label_255": 255}``.
        channels: names of the image's channels.
        spatial_dims: 2 or 3.
        file_ending: of the labels: `.nii.gz`, `.png`, ...
        test: cases for testing only (MSD's and nnU-Net's `imagesTs`), with labels where `labelsTs` has them.
        ignore: value in the files of voxels without annotation, which belongs to no label.
        regions: classes that overlap, if the data set declares some; then `labels` only names the single values.
        read: what the user chose for images that can be interpreted in more than one way.
    """

    root: Path
    name: str
    cases: tuple[Case, ...]
    labels: dict[str, int]
    channels: tuple[str, ...]
    spatial_dims: int
    file_ending: str
    test: tuple[Case, ...] = ()
    ignore: int | None = None
    regions: tuple[Region, ...] = ()
    read: ReadOptions = DEFAULTS

    @property
    def read_options(self) -> ReadOptions:
        """Options to read an image of this data set: the user's choices, its channels and its dimensions."""
        channels = len(self.channels) if len(self.channels) > 1 else None
        return replace(self.read, channels=channels, spatial_dims=2 if self.spatial_dims == 2 else None)


def split_fold(cases: Sequence[Case], *, fold: int, folds: int = 5) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Training and validation cases of one fold of cross-validation.

    Over the names in sorted order fold k validates cases k, k + folds, k + 2 folds, ...

    Args:
        cases: all labelled cases.
        fold: which, from 0.
        folds: how many.

    Raises:
        ConfigError: no such fold, or fewer cases than folds.

    Example:
        >>> cases = [Case(name, ()) for name in "bacde"]
        >>> train, validation = split_fold(cases, fold=1, folds=3)
        >>> [c.name for c in train], [c.name for c in validation]
        (['a', 'c', 'd'], ['b', 'e'])
    """
    if folds < 2:
        raise ConfigError("cross-validation needs two folds", received=folds, expected=">= 2", remedy=SECOND_CASE)
    if not 0 <= fold < folds:
        raise ConfigError("no such fold", received=fold, expected=f"0 to {folds - 1}")
    if len(cases) < folds:
        raise ConfigError(
            "fewer cases than folds", received=len(cases), expected=f">= {folds}", remedy="choose fewer folds"
        )
    ordered = sorted(cases, key=lambda case: case.name)
    validation = tuple(ordered[fold::folds])
    training = tuple(case for index, case in enumerate(ordered) if index % folds != fold)
    return training, validation
