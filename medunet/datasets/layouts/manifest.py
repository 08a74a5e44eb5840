"""`dataset.json` of the Medical Segmentation Decathlon and of nnU-Net: cases, labels, and regions that overlap."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from medunet.datasets.check.finding import shown
from medunet.errors import DataError, MedunetError, SecurityError

from .dataset import Case, Region, collect
from .pairing import FOLDERS, find_folders, guess_channels, pair_folders, stem

MANIFEST = "dataset.json"
ORDER_KEY = "regions_class_order"  # nnU-Net's name for the values that regions are written with
EXAMPLE = '{"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}'


class ParsedLabels(NamedTuple):
    """Labels of a `dataset.json`."""

    labels: dict[str, int]  # value by name, background first
    ignore: int | None = None  # value of voxels without annotation
    regions: tuple[Region, ...] = ()


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


def with_groups(cases: Sequence[Case], groups: object, file: Path, *, others: Collection[str] = ()) -> tuple[Case, ...]:
    """Return the cases with their groups from `groups` of a `dataset.json`, a mapping from case to group.

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
            raise DataError("two cases have the same name", file=file, received=case.name, remedy="rename one of them")
        cases[case.name] = case
    if missing:
        remedy = "complete the download or correct the list"
        with collect(problems):
            raise DataError(f"{len(missing)} listed files are missing: {shown(missing)}", file=file, remedy=remedy)
    return tuple(sorted(cases.values(), key=lambda case: case.name))


def _channel_names(names: object) -> tuple[str, ...]:
    """Return MSD's `modality` or nnU-Net's `channel_names`, ``{"0": "CT"}``, ordered by number."""
    if isinstance(names, Mapping):
        return tuple(str(names[key]) for key in sorted(names, key=lambda key: int(key) if str(key).isdigit() else 0))
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def labels_of(manifest: Mapping[str, Any], file: Path) -> ParsedLabels:
    """Return the labels: MSD's ``{"0": "background"}``, nnU-Net's ``{"background": 0}``, or regions.

    Examples:
        >>> labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
        >>> parsed = labels_of({"labels": labels, "regions_class_order": [1, 2, 3]}, Path("dataset.json"))
        >>> parsed.labels  # a value that is not a region alone is `label_VALUE`
        {'background': 0, 'label_1': 1, 'label_2': 2, 'enhancing': 3}
        >>> [(region.name, region.written) for region in parsed.regions]
        [('whole', 1), ('core', 2), ('enhancing', 3)]
    """
    if "labels" not in manifest:
        return ParsedLabels({})
    labels = manifest["labels"]
    if not isinstance(labels, Mapping) or not labels:
        raise DataError("labels are missing", file=file, expected='{"background": 0, "liver": 1, ...}')
    if any(isinstance(listed, list | tuple) and len(set(listed)) > 1 for listed in labels.values()):
        return _parse_regions(labels, manifest.get(ORDER_KEY), file)
    pairs: dict[str, int] = {}
    for key, listed in labels.items():
        value = listed[0] if isinstance(listed, list | tuple) and len(listed) == 1 else listed
        if isinstance(value, str) and str(key).isdigit() and not value.isdigit():
            name, number = value, int(key)  # MSD
        elif isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            name, number = str(key), int(value)  # nnU-Net
        else:
            raise DataError("invalid label", file=file, received={key: value}, expected='{"liver": 1}')
        if name in pairs or number in pairs.values():
            raise DataError("two labels share a name or a value", file=file, received={name: number})
        pairs[name] = number
    ignore = pairs.pop("ignore", None)
    if len(pairs) < 2:
        raise DataError("labels must be a background and at least one class", file=file, received=pairs)
    return ParsedLabels(dict(sorted(pairs.items(), key=lambda pair: pair[1])), ignore)


def _parse_regions(labels: Mapping[str, object], order: object, file: Path) -> ParsedLabels:
    unions = {str(name): _values(name, listed, file) for name, listed in labels.items()}
    ignored = unions.pop("ignore", ())
    if len(ignored) > 1:
        raise DataError("ignore must be one value", file=file, received=list(ignored))
    background = next((name for name, values in unions.items() if values == (0,)), None)
    if background is None:
        raise DataError("regions need a background", file=file, received=dict(labels), expected=EXAMPLE)
    del unions[background]
    for name, values in unions.items():
        if {0, *ignored} & set(values):
            cause = "regions must not contain the background or ignored voxels"
            raise DataError(cause, file=file, received={name: list(values)})
    if not isinstance(order, list | tuple):
        raise DataError(f"regions need {ORDER_KEY}", file=file, received=order, expected=EXAMPLE)
    fits = len(order) == len(unions) == len(set(order))
    if not fits or not all(value in values for value, values in zip(order, unions.values(), strict=True)):
        expected = f"one of its own values for each of {', '.join(unions)}, all different"
        raise DataError(f"{ORDER_KEY} does not fit the regions", file=file, received=list(order), expected=expected)
    regions = tuple(Region(name, values, value) for (name, values), value in zip(unions.items(), order, strict=True))
    alone = {region.values[0]: region.name for region in regions if len(region.values) == 1}
    numbers = sorted({value for values in unions.values() for value in values})
    names = {background: 0, **{alone.get(value, f"label_{value}"): value for value in numbers}}
    return ParsedLabels(names, ignored[0] if ignored else None, regions)


def _values(name: object, listed: object, file: Path) -> tuple[int, ...]:
    values = listed if isinstance(listed, list | tuple) else [listed]
    numbers = [int(v) for v in values if (isinstance(v, str) and v.isdigit()) or type(v) is int]
    if not numbers or len(numbers) < len(values) or min(numbers) < 0:
        raise DataError("invalid region", file=file, received={name: listed}, expected='{"whole": [1, 2]}')
    return tuple(sorted(set(numbers)))
