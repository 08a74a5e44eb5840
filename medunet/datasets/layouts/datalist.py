"""From a path that a user types to cases: the layouts that people have."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from medunet.datasets.cache.manifest import (
    MANIFEST,
    labels_of,
    load_manifest,
    read_msd,
    read_nnunet,
    with_groups,
)
from medunet.errors import ConfigError, DataError, MedunetError
from medunet.io import ReadRecord, is_dicom_folder, output_name, picture_files, read_header, split_suffix
from medunet.io.options import DEFAULTS, ReadOptions

from .dataset import Case, SegmentationDataset
from .dicom_folders import dicom_cases
from .folds import FOLDS, split_fold
from .labels import MAX_CLASSES, ParsedLabels, scan_labels
from .pairing import find_folders, group_channels, guess_channels, image_files, pair_folders

Section = Literal["training", "validation", "all", "test"]

_LAYOUTS = "dataset.json (MSD or nnU-Net), imagesTr + labelsTr, images + labels, or a folder of DICOM files a case"


def open_dataset(
    path: str | os.PathLike[str], *, problems: list[MedunetError] | None = None, read: ReadOptions = DEFAULTS
) -> SegmentationDataset:
    """Find out what lies in a folder; only headers are read, and labels where no `dataset.json` names them.

    Known layouts::

        dataset.json with "training"            Medical Segmentation Decathlon; paths relative to its folder
        dataset.json with "channel_names"       nnU-Net raw: imagesTr/case_0000.ext, labelsTr/case.ext
        imagesTr/ + labelsTr/                   pairs of one name; the endings may differ
        images/ + labels/                       the same
        CASE/... of DICOM files                 a series and the SEG or RTSTRUCT that refers to it; `dataset.json` may
                                                choose among their structures by "labels"

    Volumes of a single slice ``(x, y, 1)`` are images in the plane where all cases are such. In each layout a
    `dataset.json` may have ``"groups": {"case_1": "patient_1", ...}``; folds do not split a group.

    Args:
        path: the folder, or its `dataset.json`.
        problems: collects what is wrong with single cases instead of raising it; the data set is then what is left.
        read: how to read images that can be interpreted in more than one way; channels and spatial_dims are ignored.

    Raises:
        DataError: no known layout, an image or label without partner, missing files, unusable labels.
        SecurityError: a path in `dataset.json` leaves the folder.
    """
    layout = _open_layout(path, problems)
    channels, labels = layout.channels, layout.labels.labels
    read = replace(read, channels=len(channels) if len(channels) > 1 else None, spatial_dims=None)
    header = _first_header(layout.cases, read, problems=problems)
    planar = header.is_single_slice and _are_single_slices(layout.cases, read)
    if not channels:
        channels = ("image",) if header.channels == 1 else tuple(f"channel_{n}" for n in range(header.channels))
    elif len(channels) == 1 < header.channels:  # a colour picture, named once
        channels = tuple(f"{channels[0]}_{n}" for n in range(header.channels))
    if not labels:
        labels = scan_labels(layout.cases, problems)
    if len(labels) > MAX_CLASSES:
        raise DataError(
            "too many classes for one label map",
            file=layout.root,
            received=len(labels),
            expected=f"at most {MAX_CLASSES}, the background among them",
            remedy="join some, or train several networks",
        )
    return SegmentationDataset(
        root=layout.root,
        name=layout.name,
        cases=layout.cases,
        labels=labels,
        channels=channels,
        spatial_dims=2 if planar else len(header.geometry.shape),
        file_ending=split_suffix(Path(layout.cases[0].label or "").name)[1],
        test=layout.test,
        ignore=layout.labels.ignore,
        regions=layout.labels.regions,
        read=read,
    )


@dataclass(frozen=True)
class _Layout:
    """What the names of files and `dataset.json` say; empty where only headers can tell."""

    root: Path
    name: str
    cases: tuple[Case, ...]
    test: tuple[Case, ...] = ()
    labels: ParsedLabels = field(default_factory=lambda: ParsedLabels({}))
    channels: tuple[str, ...] = ()


def _find_layout(given: Path, problems: list[MedunetError] | None) -> _Layout:
    manifest_file = given if given.is_file() else given / MANIFEST
    root = manifest_file.parent
    if manifest_file.is_file():
        manifest = load_manifest(manifest_file)
        name = str(manifest.get("name") or root.name)
        if "training" not in manifest and find_folders(root) is None and (cases := dicom_cases(root, problems)):
            layout = _Layout(root, name, cases, labels=labels_of(manifest, manifest_file))
        else:
            read = read_msd if manifest.get("training") and "channel_names" not in manifest else read_nnunet
            layout = _Layout(root, name, *read(manifest, manifest_file, problems))
        known = {case.name for case in layout.test} | {output_name(p.file) for p in problems or () if p.file}
        return replace(layout, cases=with_groups(layout.cases, manifest.get("groups"), manifest_file, others=known))
    folders = find_folders(root)
    if folders is None:
        if not (cases := dicom_cases(root, problems)):
            raise DataError("no data set found", file=root, expected=_LAYOUTS)
        return _Layout(root, root.name, cases)
    images, reference = (root / part for part in folders)
    if not reference.is_dir():
        raise DataError(f"folder {reference.name} is missing", file=root, expected=_LAYOUTS)
    n_channels = guess_channels(images, reference)
    cases = pair_folders(images, reference, channels=n_channels, problems=problems)
    if not (root / "imagesTs").is_dir():
        return _Layout(root, root.name, cases)
    test = pair_folders(root / "imagesTs", root / "labelsTs", channels=n_channels, partial=True)
    return _Layout(root, root.name, cases, test)


def _first_header(cases: Sequence[Case], read: ReadOptions, *, problems: list[MedunetError] | None) -> ReadRecord:
    """The header of the first case, or of the first that can be read where problems are collected."""
    for case in cases:
        try:
            return read_header(case.images, **asdict(read))
        except MedunetError as error:
            if problems is None:
                raise
            problems.append(error)
    raise DataError("none of the images can be read", file=cases[0].images[0].parent)


def _are_single_slices(cases: Sequence[Case], read: ReadOptions) -> bool:
    """Whether all cases that can be read are volumes of one slice, as programs store images in the plane as NIfTI."""
    for case in cases:
        with contextlib.suppress(MedunetError):  # what is wrong with it is told where it is checked
            header = read_header(case.images, **asdict(read))
            if len(header.geometry.shape) == 3 and not header.is_single_slice:
                return False
    return True


def datalist(
    path: str | os.PathLike[str],
    *,
    section: Section,
    fold: int = 0,
    folds: int = FOLDS,
    validation_cases: Sequence[str] = (),
    skip_cases: Sequence[str] = (),
) -> list[dict[str, str | list[str]]]:
    """Items of one section, for `train#dataset#data` in a config.

    Args:
        path: as in `open_dataset`.
        section: 'training' and 'validation' part the labelled cases; 'all' gives them all, 'test' the test cases.
        fold: index of the fold of `split_fold` that validates.
        folds: number of folds.
        validation_cases: names of the cases that validate, instead of a fold.
        skip_cases: names of cases that are left out before the others are shared out to folds, so that these stay the
            same when a case is mended. What is wrong with such a case is no error: it is known.

    Returns:
        ``[{"image": ..., "label": ..., "name": ...}, ...]``, sorted by name.

    Raises:
        ConfigError: unknown section, no such fold or case, or no case left to train.
        DataError: as `open_dataset`.
    """
    if section not in ("training", "validation", "all", "test"):
        raise ConfigError("unknown section", received=section, expected="training, validation, all or test")
    layout = _find_without(path, frozenset(skip_cases))
    if section == "all":
        return [case.item() for case in layout.cases]
    if section == "test":
        return [case.item() for case in layout.test]
    if validation_cases:
        wanted = set(validation_cases)
        if unknown := sorted(wanted - {case.name for case in layout.cases}):
            raise ConfigError("no such validation cases", file=layout.root, received=unknown)
        training = tuple(case for case in layout.cases if case.name not in wanted)
        validation = tuple(case for case in layout.cases if case.name in wanted)
        if not training:
            raise ConfigError("all cases validate, none is left to train", file=layout.root)
    else:
        training, validation = split_fold(layout.cases, fold=fold, folds=folds)
    return [case.item() for case in (training if section == "training" else validation)]


def _find_without(path: str | os.PathLike[str], skipped: frozenset[str]) -> _Layout:
    """The data set's files without cases that are known to be bad; any other bad one is an error, not a shift of folds.

    No image is opened: `train` and `evaluate` have checked the data set before they take a list.
    """
    problems: list[MedunetError] | None = [] if skipped else None
    layout = _open_layout(path, problems)
    for problem in problems or ():
        if output_name(problem.file or "unknown") not in skipped:
            raise problem
    return replace(layout, cases=tuple(case for case in layout.cases if case.name not in skipped))


def _open_layout(path: str | os.PathLike[str], problems: list[MedunetError] | None) -> _Layout:
    # made absolute without following links: a data set of links into a store keeps its own names
    given = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 (resolve() would follow links)
    if not given.exists():
        raise DataError("does not exist", file=given, expected=_LAYOUTS)
    layout = _find_layout(given, problems)
    if not layout.cases:
        raise DataError("data set has no cases", file=layout.root, expected=_LAYOUTS)
    return layout


def list_inputs(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, channels: int = 1
) -> list[Path | tuple[Path, ...]]:
    """The images that a command line means.

    A file is itself; a folder of DICOM slices is one image; any other folder, of DICOM radiographs too, gives its
    images in sorted order, among them subfolders of DICOM slices.

    Args:
        paths: files and folders.
        channels: number of channels of the network; `case_0000` to `case_<channels - 1>` in one folder become a tuple,
            see `group_channels`.

    Returns:
        A path, or a tuple of paths (channels), for each image; each image once.

    Raises:
        DataError: a path does not exist, nothing is found, a case has another number of channels, or two images would
            bear one result's name.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    inputs: list[Path | tuple[Path, ...]] = []
    files: list[Path] = []
    for entry in map(Path, given):
        if not entry.exists():
            raise DataError("does not exist", file=entry)
        found = picture_files(entry) if entry.is_dir() else []
        if found or (entry.is_dir() and not is_dicom_folder(entry)):
            found = found or image_files(entry)
            if not found:
                raise DataError("folder holds no image", file=entry, remedy="give a folder of images or a DICOM series")
            inputs += [_single(group) for _, group in group_channels(found, channels=channels)]
        else:
            files.append(entry)
    by_folder: dict[Path, list[Path]] = {}
    for file in dict.fromkeys(files):
        by_folder.setdefault(file.parent, []).append(file)
    for group_files in by_folder.values():
        inputs += [_single(group) for _, group in group_channels(group_files, channels=channels)]
    inputs = list(dict.fromkeys(inputs))
    if not inputs:
        raise DataError("nothing to read", received=[str(p) for p in given])
    names: dict[str, Path | tuple[Path, ...]] = {}
    for item in inputs:
        first = item[0] if isinstance(item, tuple) else item
        name = output_name(item, "" if first.is_dir() else split_suffix(first.name)[1])
        if name in names:
            raise DataError(
                "two inputs have one name, so that one result would replace the other",
                file=first,
                received=name,
                remedy="predict them into different folders",
            )
        names[name] = item
    return inputs


def _single(group: tuple[Path, ...]) -> Path | tuple[Path, ...]:
    return group[0] if len(group) == 1 else group
