"""Cases of a path: the layouts of data sets, their sections, and inputs of predictions."""

import contextlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from medunet.errors import ConfigError, DataError, MedunetError
from medunet.io import ReadRecord, is_dicom_folder, output_name, picture_files, read_header, split_suffix
from medunet.io.options import DEFAULTS, ReadOptions
from medunet.io.reader import PICTURES

from .dataset import Case, SegmentationDataset, collect
from .dicom_folders import dicom_cases
from .folds import FOLDS, split_fold
from .instances import are_instances, class_labels, refuse_classes, with_classes
from .labels import MAX_CLASSES, scan_labels
from .manifest import MANIFEST, ParsedLabels, Parts, labels_of, load_manifest, read_msd, read_nnunet, with_groups
from .pairing import find_folders, group_channels, image_files
from .splits import Split, checked_split

MAX_HEADERS = 50  # headers that are read for a usual value or a median; more hardly change it

Section = Literal["training", "validation", "all", "test"]

_LAYOUTS = "dataset.json (MSD or nnU-Net), imagesTr + labelsTr, images + labels, or one folder of DICOM files per case"


def open_dataset(
    path: str | os.PathLike[str],
    *,
    problems: list[MedunetError] | None = None,
    instances: bool = False,
    read: ReadOptions = DEFAULTS,
) -> SegmentationDataset:
    """Open a data set. Only headers are read, and labels if no `dataset.json` names them.

    Known layouts::

        dataset.json with "training"            Medical Segmentation Decathlon; paths relative to its folder
        dataset.json with "channel_names"       nnU-Net raw: imagesTr/case_0000.ext, labelsTr/case.ext
        imagesTr/ + labelsTr/                   pairs with the same name; endings may differ
        images/ + labels/                       the same
        CASE/... of DICOM files                 a series and the SEG or RTSTRUCT that refers to it; `dataset.json` may
                                                choose among their structures by "labels"

    If all cases are volumes of a single slice ``(x, y, 1)``, they are 2D images. A `dataset.json` of any layout may
    have ``"groups": {"case_1": "patient_1", ...}``; folds do not split a group. It may also have ``"instances": true``:
    then the labels number the objects in each image, and the classes of the objects are one, or those of class maps in
    `labels_class/`, or of a `classes.csv` with columns case, id and class.

    Args:
        path: the folder, or its `dataset.json`.
        problems: collects errors about single cases instead of raising them; the data set has the other cases.
        instances: the labels number objects, whether or not `dataset.json` declares it.
        read: how to read images that can be interpreted in more than one way; channels and spatial_dims are ignored.

    Raises:
        DataError: unknown layout, an unpaired image or label, missing files, unusable labels.
        SecurityError: a path in `dataset.json` leaves the folder.
    """
    layout = _open_layout(path, problems, instances=instances)
    channels, labels = layout.channels, layout.labels
    read = replace(read, channels=len(channels) if len(channels) > 1 else None, spatial_dims=None)
    header = _first_header(layout.cases, read, problems=problems)
    planar = header.is_single_slice and _are_single_slices(layout.cases, read)
    if not channels:
        count = _usual_channels(layout.cases, header, read)
        channels = ("image",) if count == 1 else tuple(f"channel_{n}" for n in range(count))
    elif len(channels) == 1 < header.channels:  # a colour picture, named once
        channels = tuple(f"{channels[0]}_{n}" for n in range(header.channels))
    if layout.instances:
        refuse_classes(layout.cases)
        labels = class_labels(layout.cases, ParsedLabels(labels, layout.ignore, layout.regions), layout.root)
    elif not labels:
        labels = scan_labels(layout.cases, problems)
    if len(labels) > MAX_CLASSES:
        expected = f"at most {MAX_CLASSES}, the background among them"
        raise DataError("too many classes for one label map", file=layout.root, received=len(labels), expected=expected)
    spatial_dims = 2 if planar else len(header.geometry.shape)
    return replace(layout, labels=labels, channels=channels, spatial_dims=spatial_dims, read=read)


def open_as(config: Mapping[str, Any], data: Path, problems: list[MedunetError] | None = None) -> SegmentationDataset:
    """Open a data set as a bundle with this config does: with its reading options, and as objects if it is for them."""
    read, instances = ReadOptions.of_config(config), config.get("instances", False)
    return open_dataset(data, problems=problems, instances=instances, read=read)


def _open_layout(
    path: str | os.PathLike[str], problems: list[MedunetError] | None, *, instances: bool
) -> SegmentationDataset:
    """Return a data set as the names of files and `dataset.json` describe it."""
    # absolute without following links, so that a folder of links keeps its own names
    given = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 (resolve() would follow links)
    if not given.exists():
        raise DataError("does not exist", file=given, expected=_LAYOUTS)
    file = given if given.is_file() else given / MANIFEST
    root, has_folders = file.parent, find_folders(file.parent) is not None
    manifest = load_manifest(file) if file.is_file() else {}
    parts: Parts
    if manifest.get("training") and "channel_names" not in manifest:
        parts = read_msd(manifest, file, problems)
    elif not has_folders and "training" not in manifest and (dicom := dicom_cases(root, problems)):
        parts = dicom, (), labels_of(manifest, file), ()
    elif has_folders or file.is_file():
        parts = read_nnunet(manifest, file, problems)
    else:
        raise DataError("no data set found", file=root, expected=_LAYOUTS)
    cases, test, (labels, ignore, regions), channels = parts
    if not cases:
        raise DataError("data set has no cases", file=root, expected=_LAYOUTS)
    known = {case.name for case in test} | {output_name(p.file) for p in problems or () if p.file}
    cases = with_groups(cases, manifest.get("groups"), file, others=known)
    if instances := are_instances(manifest, file, instances=instances):
        cases, test = with_classes(cases, root), with_classes(test, root)
    ending = split_suffix(Path(cases[0].label or "").name)[1]
    name = str(manifest.get("name") or root.name)
    return SegmentationDataset(root, name, cases, labels, channels, 0, ending, test, ignore, regions, instances)


def _first_header(cases: Sequence[Case], read: ReadOptions, *, problems: list[MedunetError] | None) -> ReadRecord:
    """Return the header of the first case, or of the first one that can be read if problems are collected."""
    for case in cases:
        with collect(problems):
            return read_header(case.images, **asdict(read))
    raise DataError("none of the images can be read", file=cases[0].images[0].parent)


def sample_cases(cases: Sequence[Case]) -> Sequence[Case]:
    """Return at most `MAX_HEADERS` evenly spaced cases."""
    return cases[:: math.ceil(len(cases) / MAX_HEADERS)]


def _usual_channels(cases: Sequence[Case], first: ReadRecord, read: ReadOptions) -> int:
    """Return the number of channels of most images: a data set may have grey and colour pictures."""
    if first.format not in PICTURES or len(first.geometry.shape) == 3:
        return first.channels
    counts = Counter({first.channels: 0})
    for case in sample_cases(cases):
        with contextlib.suppress(MedunetError):  # reported by the check of the case
            counts[read_header(case.images, **asdict(read)).channels] += 1
    return max(counts, key=lambda channels: (counts[channels], channels))


def _are_single_slices(cases: Sequence[Case], read: ReadOptions) -> bool:
    """Return whether all readable cases are volumes of one slice: 2D images in NIfTI."""
    for case in cases:
        with contextlib.suppress(MedunetError):  # reported by the check of the case
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
    split: Split = (),
    validation_cases: Sequence[str] = (),
    skip_cases: Sequence[str] = (),
    instances: bool = False,
) -> list[dict[str, str | list[str]]]:
    """Return the items of one section of a data set, for `train#dataset#data` in a config.

    Only names are read, except for a default split, which follows from the label files.

    Args:
        path: the folder of the data set, or its `dataset.json`.
        section: 'training' and 'validation' split the labelled cases; 'all' has all of them; 'test' has the test cases.
        fold: index of the validation fold.
        folds: number of folds.
        split: names of the validation cases of each fold. Default: `make_folds` distributes the cases.
        validation_cases: names of the validation cases, instead of a fold.
        skip_cases: names of cases to leave out; only errors about these are ignored.
        instances: the labels number objects, whether or not `dataset.json` declares it.

    Returns:
        ``[{"image": ..., "label": ..., "name": ...}, ...]``, sorted by name. Objects of several classes have a class
        map or table under ``classes``.

    Raises:
        ConfigError: unknown section, fold or case, or no case left for training.
        DataError: a split that does not fit the cases, unknown layout, an unpaired image or label, or missing files.
    """
    if section not in ("training", "validation", "all", "test"):
        raise ConfigError("unknown section", received=section, expected="training, validation, all or test")
    problems: list[MedunetError] | None = [] if skip_cases else None
    layout = _open_layout(path, problems, instances=instances)
    for problem in problems or ():
        if output_name(problem.file or "unknown") not in skip_cases:
            raise problem
    cases = tuple(case for case in layout.cases if case.name not in skip_cases)
    if section == "test":
        cases = layout.test
    elif section != "all" and split and not validation_cases:
        parts = checked_split(split, cases, others=skip_cases, file=layout.root, is_complete=section == "training")
        if len(parts) != folds or not 0 <= fold < folds:
            received = f"fold {fold} of {folds}"
            raise ConfigError("unknown fold of the split", received=received, expected=f"0 to {len(parts) - 1}")
        cases = tuple(case for case in cases if (case.name in parts[fold]) == (section == "validation"))
    elif section != "all" and validation_cases:
        wanted = set(validation_cases)
        if unknown := sorted(wanted - {case.name for case in cases}):
            raise ConfigError("unknown validation cases", file=layout.root, received=unknown)
        if wanted == {case.name for case in cases}:
            raise ConfigError("every case is a validation case: none is left for training", file=layout.root)
        cases = tuple(case for case in cases if (case.name in wanted) == (section == "validation"))
    elif section != "all":
        cases = split_fold(cases, fold=fold, folds=folds)[section == "validation"]
    return [case.item() for case in cases]


def list_inputs(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, channels: int = 1
) -> list[Path | tuple[Path, ...]]:
    """Return the images that paths of a command line stand for.

    A file is one image, and so is a folder of DICOM slices. Any other folder gives its images in sorted order,
    including subfolders of DICOM slices.

    Args:
        paths: files and folders.
        channels: number of channels of the network; `case_0000` to `case_<channels - 1>` in one folder become a tuple.

    Returns:
        A path, or a tuple of paths (channels), for each image; each image once.

    Raises:
        DataError: a missing path, a folder without images, a case with a different number of channels, or two images
            with the same name.
    """
    given = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    by_folder: dict[Path, list[Path]] = {}
    for path in given:
        if not path.exists():
            raise DataError("does not exist", file=path)
        pictures = picture_files(path) if path.is_dir() else []
        if path.is_dir() and (pictures or not is_dicom_folder(path)):
            images = pictures or image_files(path)
            if not images:
                raise DataError("folder has no image", file=path, remedy="give a folder of images or a DICOM series")
            by_folder.setdefault(path, []).extend(images)
        else:
            by_folder.setdefault(path.parent, []).append(path)
    names: dict[str, Path | tuple[Path, ...]] = {}
    for images in by_folder.values():
        for _, group in group_channels(dict.fromkeys(images), channels=channels):
            item = group if len(group) > 1 else group[0]
            name = output_name(item, "" if group[0].is_dir() else split_suffix(group[0].name)[1])
            if name in names:
                remedy = "predict them into different folders"
                raise DataError("two inputs have the same name", file=group[0], received=name, remedy=remedy)
            names[name] = item
    if not names:
        raise DataError("no input is given")
    return list(names.values())
