"""Train a served bundle further on the labels that annotators have submitted."""

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.config import read_json
from medunet.datasets.layouts.manifest import ORDER_KEY
from medunet.errors import ConfigError, DataError
from medunet.files import write_atomically
from medunet.io import read_label, split_suffix
from medunet.runs import train_bundle
from medunet.runs.evaluate import region_values
from medunet.training import BEST_NAME

from .served import ServedBundle, copy_atomically

logger = logging.getLogger(__name__)

# config ids that keep the bundle's values: the few new cases do not change what the network was trained with
NETWORK_IDS = ("in_channels", "label_values", "label_names", "spacing_mm", "patch_size", "folds")
MIN_HELD_OUT = 10  # labelled cases; with fewer, all are needed for training
EPOCHS = 10
LEARNING_RATE_SHARE = 0.3  # of the bundle's learning rate: enough to learn, not enough to forget


def read_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of :func:`train_further` in MONAI Label's request, whose values may be texts.

    Examples:
        >>> read_options({"max_epochs": "3", "learning_rate": 0, "model": "spleen", "client_id": "slicer"})
        {'max_epochs': 3}
    """
    options: dict[str, Any] = {}
    for key, kind in (("max_epochs", int), ("steps_per_epoch", int), ("learning_rate", float), ("preset", str)):
        value = request.get(key)
        if value in (None, "", 0):
            continue
        with contextlib.suppress(TypeError, ValueError):
            options[key] = kind(value)
        if kind is not str and not options.get(key, 0) > 0:
            raise ConfigError(f"{key} must be a number above 0", received=value)
    return options


def write_dataset(pairs: Sequence[tuple[Path, Path]], folder: Path, bundle: ServedBundle) -> list[str]:
    """Write a data set of image and label files, with the bundle's labels, and return the names of its cases."""
    if not pairs:
        raise DataError("no labels were submitted")
    config = read_json(bundle.folder / "configs" / "train.json")
    labels = {str(name): int(value) for name, value in zip(config["label_names"], config["label_values"], strict=True)}
    names: list[str] = []
    entries = []
    for image, label in sorted(pairs):
        values = read_label(label, reference=image, labels=None if bundle.instances else labels).image.unique().tolist()
        unknown = sorted({int(value) for value in values} - set(labels.values()))
        if unknown and not bundle.instances:
            raise DataError("the bundle does not define these labels", file=label, received=unknown, expected=labels)
        stem, suffix = split_suffix(image.name)
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)
        name = f"{name}_{len(names)}" if name in names else name
        names.append(name)
        entry = {"image": f"imagesTr/{name}{suffix}", "label": f"labelsTr/{name}{split_suffix(label.name)[1]}"}
        _link(image, folder / entry["image"])
        _link(label, folder / entry["label"])
        entries.append(entry)
    manifest: dict[str, Any] = {
        "name": bundle.name,
        "modality": {str(index): f"channel_{index}" for index in range(int(config["in_channels"]))},
        "labels": {str(value): name for name, value in labels.items()},
        "training": entries,
        "test": [],
    }
    if bundle.instances:
        manifest["instances"] = True
    if regions := region_values(config):  # overlapping classes, in nnU-Net's format
        manifest["labels"] = {"background": 0, **regions}
        manifest[ORDER_KEY] = config["regions_class_order"]
    write_atomically(folder / "dataset.json", json.dumps(manifest, indent=2))
    return names


def train_further(
    bundle: ServedBundle,
    pairs: Sequence[tuple[Path, Path]],
    folder: Path,
    *,
    max_epochs: int = EPOCHS,
    steps_per_epoch: int | None = None,
    learning_rate: float | None = None,
    preset: str = "",
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Train a working copy on submitted labels with the bundle's own training config, and replace its weights.

    `folder` gets a new folder with the data set and the run. The defaults are the bundle's steps per epoch and a share
    of its learning rate. Return the run's folder, the numbers of training and validation cases, the validation Dice by
    class of the selected epoch, and seconds.
    """
    if bundle.is_ensemble:
        raise ConfigError("an ensemble of folds cannot be trained", file=bundle.folder, remedy="serve one of its folds")
    if bundle.instances and len(bundle.labels) > 1:
        cause = "annotations number objects and do not have their classes, of which the bundle has several"
        raise ConfigError(cause, file=bundle.folder, received=list(bundle.labels), remedy="train with `medunet train`")
    begun = time.perf_counter()
    numbers = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
    place = folder / f"{max(numbers, default=0) + 1:03d}"
    cases = write_dataset(pairs, place / "data", bundle)
    config = read_json(bundle.folder / "configs" / "train.json")
    changes = {key: config[key] for key in NETWORK_IDS if key in config}
    changes |= {
        "init_from": str(bundle.folder.resolve()),
        "epochs": max_epochs,
        "val_interval": max(1, max_epochs // 2),
        "learning_rate": learning_rate or config["learning_rate"] * LEARNING_RATE_SHARE,
    }
    if steps_per_epoch is not None:
        changes["steps_per_epoch"] = steps_per_epoch
    held_out = len(cases) // config["folds"] if len(cases) >= max(MIN_HELD_OUT, config["folds"]) else 0
    if held_out:
        changes["validation_cases"] = cases[:: config["folds"]][:held_out]
    else:
        all_cases = "$medunet.datasets.datalist(@dataset_dir, section='all')"
        changes |= {"train#dataset#data": all_cases, "validate#dataset#data": all_cases}
    options: dict[str, Any] = {"presets": [name for name in preset.split(",") if name], "device": device}
    result = train_bundle(bundle.folder, place / "data", place / "run", changes=changes, trust=trust, **options)
    copy_atomically(place / "run" / "models" / BEST_NAME, bundle.weights[0])
    logger.info("%s serves the weights of %s", bundle.name, place / "run")
    return {
        "run": str(place / "run"),
        "cases": len(cases) - held_out,
        "held_out": held_out,
        "dice": result.kept_dice,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
