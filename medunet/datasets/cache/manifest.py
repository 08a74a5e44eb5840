"""`dataset.json` of the Medical Segmentation Decathlon and of nnU-Net."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medunet.datasets.check.finding import shown
from medunet.datasets.layouts.dataset import Case
from medunet.datasets.layouts.labels import ParsedLabels, parse_labels
from medunet.datasets.layouts.pairing import (
    FOLDERS,
    find_folders,
    guess_channels,
    pair_folders,
    stem,
)
from medunet.datasets.layouts.regions import ORDER_KEY
from medunet.errors import DataError, MedunetError, SecurityError

MANIFEST = "dataset.json"


def load_manifest(file: Path) -> dict[str, Any]:
    """The parsed `dataset.json`.

    Raises:
        DataError: unreadable, not JSON, or not an object.
    """
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be opened: {error.strerror or error}", file=file) from error
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", file=file) from error
    if not isinstance(manifest, dict):
        raise DataError("is not a JSON object", file=file, received=type(manifest).__name__)
    return manifest


def labels_of(manifest: Mapping[str, Any], file: Path) -> ParsedLabels:
    """Return labels and regions of a `dataset.json`, none if it has no entry `labels`; raises as `parse_labels`."""
    if "labels" not in manifest:
        return ParsedLabels({})
    return parse_labels(manifest.get("labels"), file, order=manifest.get(ORDER_KEY))


def with_groups(cases: Sequence[Case], groups: object, file: Path, *, others: Collection[str] = ()) -> tuple[Case, ...]:
    """Return the cases with the groups that a `dataset.json` declares for folds, usually patients.

    Args:
        cases: all labelled cases.
        groups: the entry `groups`: case name to the name or number of its group, for every case. None: no groups.
        file: for errors.
        others: further names that may occur, of test cases and of cases that cannot be used.

    Raises:
        DataError: another form, an unknown or a missing case, or one group for all cases.
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


def inside(root: Path, relative: object, file: Path) -> Path:
    """A path from `dataset.json`, which must stay in the folder of the data set.

    Symbolic links inside the folder are the owner's affair and are followed.

    Raises:
        SecurityError: an absolute path, or `..` beyond the root.
    """
    if not isinstance(relative, str):
        raise DataError("is not a path", file=file, received=relative)
    path = Path(os.path.normpath(root / relative))
    if path != root and root not in path.parents:
        raise SecurityError(
            "path leaves the folder of the data set", file=file, received=relative, remedy="use paths below its folder"
        )
    return path


def read_msd(
    manifest: Mapping[str, Any], file: Path, problems: list[MedunetError] | None = None
) -> tuple[tuple[Case, ...], tuple[Case, ...], ParsedLabels, tuple[str, ...]]:
    """Cases, test cases, labels and channels of an MSD `dataset.json`.

    Args:
        manifest: the parsed file.
        file: its path.
        problems: collects which files are missing instead of raising it; their cases are then left out.

    Raises:
        DataError: an entry without image or label, or a file that is missing.
        SecurityError: a path outside the folder.
    """
    root = file.parent
    cases = _entries(manifest.get("training") or manifest.get("train") or (), root, file, problems, labelled=True)
    if not cases:
        raise DataError("lists no training cases", file=file, expected='"training": [{"image": ..., "label": ...}]')
    test = _entries(manifest.get("test") or (), root, file, problems, labelled=False)
    return cases, test, labels_of(manifest, file), _channel_names(manifest.get("modality"))


def read_nnunet(
    manifest: Mapping[str, Any], file: Path, problems: list[MedunetError] | None = None
) -> tuple[tuple[Case, ...], tuple[Case, ...], ParsedLabels, tuple[str, ...]]:
    """As `read_msd`, of an nnU-Net raw folder: `imagesTr/case_0000.ext` + `labelsTr/case.ext`, or images + labels."""
    root = file.parent
    declared = manifest.get("channel_names") or manifest.get("modality")
    channels = _channel_names(declared) if declared else ()
    labels = labels_of(manifest, file)
    images, reference = find_folders(root) or FOLDERS[0]
    if not (root / images).is_dir():
        raise DataError(f"folder {images} is missing", file=root)
    count = len(channels) or guess_channels(root / images, root / reference)
    cases = pair_folders(root / images, root / reference, channels=count, problems=problems)
    test: tuple[Case, ...] = ()
    if (root / "imagesTs").is_dir():
        test = pair_folders(root / "imagesTs", root / "labelsTs", channels=count, partial=True)
    return cases, test, labels, channels


def _entries(
    entries: Any, root: Path, file: Path, problems: list[MedunetError] | None, *, labelled: bool
) -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    missing: list[str] = []
    for listing in entries:
        entry = {"image": listing} if isinstance(listing, str) else listing  # MSD lists test images as plain paths
        if not isinstance(entry, Mapping) or "image" not in entry:
            raise DataError("case without image", file=file, received=entry)
        if labelled and not entry.get("label"):
            raise DataError("image without label", file=file, received=entry["image"])
        listed = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        images = tuple(inside(root, item, file) for item in listed)
        label = inside(root, entry["label"], file) if entry.get("label") else None
        absent = [path.name for path in (*images, *([label] if label else [])) if not path.exists()]
        missing += absent
        if absent:
            continue
        case = Case(stem(images[0]), images, label)
        if case.name in cases:
            raise DataError("two cases have one name", file=file, received=case.name, remedy="rename one of them")
        cases[case.name] = case
    if missing:
        error = DataError(
            f"lists {len(missing)} missing files: {shown(missing)}",
            file=file,
            remedy="complete the download or correct the list",
        )
        if problems is None:
            raise error
        problems.append(error)
    return tuple(sorted(cases.values(), key=lambda case: case.name))


def _channel_names(names: object) -> tuple[str, ...]:
    """MSD's `modality` or nnU-Net's `channel_names`: ``{"0": "CT"}``, by number."""
    if isinstance(names, Mapping) and names:
        return tuple(str(names[key]) for key in sorted(names, key=lambda key: int(key) if str(key).isdigit() else 0))
    if isinstance(names, list) and names:
        return tuple(str(name) for name in names)
    return ("image",)
