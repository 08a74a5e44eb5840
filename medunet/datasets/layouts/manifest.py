"""`dataset.json` of the Medical Segmentation Decathlon and of nnU-Net."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medunet.datasets.check.finding import shown
from medunet.errors import DataError, MedunetError, SecurityError

from .dataset import Case
from .pairing import FOLDERS, find_folders, guess_channels, pair_folders, stem
from .regions import ORDER_KEY, ParsedLabels, parse_labels

MANIFEST = "dataset.json"

Parts = tuple[tuple[Case, ...], tuple[Case, ...], ParsedLabels, tuple[str, ...]]  # cases, test cases, labels, channels


def load_manifest(file: Path) -> dict[str, Any]:
    """Read a `dataset.json`."""
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror or error}", file=file) from error
    except ValueError as error:
        raise DataError(f"invalid JSON: {error}", file=file) from error
    if not isinstance(manifest, dict):
        raise DataError("must be a JSON object", file=file, received=type(manifest).__name__)
    return manifest


def labels_of(manifest: Mapping[str, Any], file: Path) -> ParsedLabels:
    """Return labels and regions of a `dataset.json`, empty if it has no entry `labels`."""
    if "labels" not in manifest:
        return ParsedLabels({})
    return parse_labels(manifest["labels"], file, order=manifest.get(ORDER_KEY))


def with_groups(cases: Sequence[Case], groups: object, file: Path, *, others: Collection[str] = ()) -> tuple[Case, ...]:
    """Return the cases with the `groups` of a `dataset.json`: the name of each case's group.

    `others` are names of further cases that may occur.
    """
    if groups is None:
        return tuple(cases)
    if not isinstance(groups, Mapping) or not all(type(group) in (str, int) for group in groups.values()):
        raise DataError('"groups" must map each case to a name', file=file, expected='{"case_1": "patient_1", ...}')
    names = {case.name for case in cases}
    if unknown := sorted(groups.keys() - names - set(others)):
        raise DataError('"groups" has unknown cases', file=file, received=shown(unknown))
    if missing := sorted(names - groups.keys()):
        raise DataError('"groups" must name every training case', file=file, received=f"none for {shown(missing)}")
    grouped = tuple(replace(case, group=str(groups[case.name])) for case in cases)
    if len({case.group for case in grouped}) < 2 <= len(grouped):
        raise DataError('"groups" must have at least two groups', file=file, received=grouped[0].group)
    return grouped


def read_msd(manifest: Mapping[str, Any], file: Path, problems: list[MedunetError] | None = None) -> Parts:
    """Return the parts of an MSD `dataset.json`."""
    cases = _entries(manifest["training"], file, problems, labelled=True)
    test = _entries(manifest.get("test") or (), file, problems, labelled=False)
    return cases, test, labels_of(manifest, file), _channel_names(manifest.get("modality")) or ("image",)


def read_nnunet(manifest: Mapping[str, Any], file: Path, problems: list[MedunetError] | None = None) -> Parts:
    """Return the parts of an nnU-Net raw folder, or of a folder of pairs without `dataset.json`."""
    root = file.parent
    declared = manifest.get("channel_names") or manifest.get("modality")
    channels = (_channel_names(declared) or ("image",)) if declared else ()
    labels = labels_of(manifest, file)
    image_folder, label_folder = (root / part for part in find_folders(root) or FOLDERS[0])
    for folder in (image_folder, label_folder):
        if not folder.is_dir():
            raise DataError(f"folder {folder.name} is missing", file=root)
    count = len(channels) or guess_channels(image_folder, label_folder)
    cases = pair_folders(image_folder, label_folder, channels=count, problems=problems)
    test: tuple[Case, ...] = ()
    if (root / "imagesTs").is_dir():
        test = pair_folders(root / "imagesTs", root / "labelsTs", channels=count, partial=True)
    return cases, test, labels, channels


def _inside(root: Path, relative: object, file: Path) -> Path:
    """Return a path of `dataset.json`, which must be below its folder; links in the folder are followed."""
    if not isinstance(relative, str):
        raise DataError("an image and a label must be paths", file=file, received=relative)
    path = Path(os.path.normpath(root / relative))
    if path != root and root not in path.parents:
        raise SecurityError("path leaves the folder of the data set", file=file, received=relative)
    return path


def _entries(entries: Any, file: Path, problems: list[MedunetError] | None, *, labelled: bool) -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    missing: list[str] = []
    for listing in entries:
        entry = {"image": listing} if isinstance(listing, str) else listing  # MSD lists test images as plain paths
        if not isinstance(entry, Mapping) or "image" not in entry:
            raise DataError("case without image", file=file, received=entry)
        if labelled and not entry.get("label"):
            raise DataError("image without label", file=file, received=entry["image"])
        listed = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        images = tuple(_inside(file.parent, item, file) for item in listed)
        label = _inside(file.parent, entry["label"], file) if entry.get("label") else None
        absent = [path.name for path in (*images, label) if path is not None and not path.exists()]
        missing += absent
        if absent:
            continue
        case = Case(stem(images[0]), images, label)
        if case.name in cases:
            raise DataError("two cases have one name", file=file, received=case.name, remedy="rename one of them")
        cases[case.name] = case
    if missing:
        remedy = "complete the download or correct the list"
        error = DataError(f"{len(missing)} listed files are missing: {shown(missing)}", file=file, remedy=remedy)
        if problems is None:
            raise error
        problems.append(error)
    return tuple(sorted(cases.values(), key=lambda case: case.name))


def _channel_names(names: object) -> tuple[str, ...]:
    """Return MSD's `modality` or nnU-Net's `channel_names`, ``{"0": "CT"}``, ordered by number."""
    if isinstance(names, Mapping):
        return tuple(str(names[key]) for key in sorted(names, key=lambda key: int(key) if str(key).isdigit() else 0))
    return tuple(str(name) for name in names) if isinstance(names, list) else ()
