"""Training a served bundle further on the labels that annotators have submitted."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medunet.config import read_json
from medunet.datasets.layouts.regions import ORDER_KEY
from medunet.errors import ConfigError, DataError
from medunet.files import atomic_path, write_atomically
from medunet.io import read_label, split_suffix
from medunet.runs import train_bundle
from medunet.runs.evaluate import region_values_of
from medunet.training import BEST_NAME

from .served import ServedBundle

logger = logging.getLogger(__name__)

KEPT_IDS = ("in_channels", "label_values", "label_names", "spacing_mm", "patch_size", "folds")
"""What further training does not take from the few new cases: the network was trained with it."""

MIN_HELD_OUT = 10
"""From this many labelled cases on, the bundle's fold validates; of fewer, each is needed for training."""

EPOCHS = 10
LEARNING_RATE_SHARE = 0.3
"""Of the bundle's learning rate: enough to move, not enough to forget."""


@dataclass(frozen=True)
class TrainingOptions:
    """What a client may choose.

    Args:
        max_epochs: how many.
        steps_per_epoch: how long one is; None takes the bundle's.
        learning_rate: None takes a share of the bundle's.
        preset: overlays of the bundle, by names with commas between.

    Example:
        >>> TrainingOptions.read({"max_epochs": "3", "model": "spleen", "client_id": "slicer"})
        TrainingOptions(max_epochs=3, steps_per_epoch=None, learning_rate=None, preset='')
    """

    max_epochs: int = EPOCHS
    steps_per_epoch: int | None = None
    learning_rate: float | None = None
    preset: str = ""

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> TrainingOptions:
        """From MONAI Label's request, whose values may be texts; what is unknown is left alone.

        Raises:
            ConfigError: a value that is no number, or not above 0.
        """
        found: dict[str, Any] = {}
        for key, kind in (("max_epochs", int), ("steps_per_epoch", int), ("learning_rate", float)):
            value = request.get(key)
            if value in (None, "", 0):
                continue
            try:
                found[key] = kind(value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"{key} is no number", received=value) from error
            if not found[key] > 0:
                raise ConfigError(f"{key} must be above 0", received=value)
        return cls(**found, preset=str(request.get("preset") or ""))


@dataclass(frozen=True)
class Training:
    """What became of a training.

    Args:
        run: its folder, a bundle; MLflow's record lies in its ``eval``.
        cases: how many labelled cases trained.
        held_out: how many validated only.
        dice: of validation by class, at the epoch that is kept.
        seconds: it took.
    """

    run: Path
    cases: int
    held_out: int
    dice: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def write_dataset(pairs: Sequence[tuple[Path, Path]], folder: Path, bundle: ServedBundle) -> list[str]:
    """Lay images and submitted labels out as a data set; nothing is copied where links can be made.

    Args:
        pairs: image and label files.
        folder: a new folder.
        bundle: says which labels there are.

    Returns:
        Names of the cases.

    Raises:
        DataError: no pair, or a label with values that the bundle does not know.
        GeometryError: a label that does not lie on its image.
    """
    if not pairs:
        raise DataError("no labels were submitted", remedy="submit the corrected segmentation of a case first")
    config = read_json(bundle.folder / "configs" / "train.json")
    labels = {str(name): int(value) for name, value in zip(config["label_names"], config["label_values"], strict=True)}
    names: list[str] = []
    entries = []
    for image, label in sorted(pairs):
        _check_values(image, label, labels)
        stem, ending = split_suffix(image.name)
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)
        name = f"{name}_{len(names)}" if name in names else name
        names.append(name)
        files = {"image": f"imagesTr/{name}{ending}", "label": f"labelsTr/{name}{split_suffix(label.name)[1]}"}
        for source, relative in zip((image, label), files.values(), strict=True):
            _link(source, folder / relative)
        entries.append(files)
    channels = {str(index): f"channel_{index}" for index in range(int(config["in_channels"]))}
    manifest: dict[str, Any] = {
        "name": bundle.name,
        "modality": channels,
        "labels": {str(value): name for name, value in labels.items()},
        "training": entries,
        "test": [],
    }
    if regions := region_values_of(config):  # classes that overlap, in nnU-Net's words
        manifest["labels"] = {"background": 0, **regions}
        manifest[ORDER_KEY] = config["regions_class_order"]
    write_atomically(folder / "dataset.json", json.dumps(manifest, indent=2))
    return names


def train_further(
    bundle: ServedBundle,
    pairs: Sequence[tuple[Path, Path]],
    folder: Path,
    *,
    options: TrainingOptions | None = None,
    device: str = "auto",
    trust: bool = False,
) -> Training:
    """Train a working copy on submitted labels, through the bundle's own training config; then it serves the result.

    Args:
        bundle: a working copy; its weights are replaced when the training has ended.
        pairs: image and label files.
        folder: each training makes a new folder in it, with data set and run.
        options: what the client chose.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        trust: as of the server.

    Raises:
        ConfigError: an ensemble, which has no one network to train, or an impossible option.
        MedunetError: labels that cannot be used.
    """
    options = options or TrainingOptions()
    if bundle.is_ensemble:
        raise ConfigError("an ensemble of folds cannot be trained", file=bundle.folder, remedy="serve one of its folds")
    begun = time.perf_counter()
    place = _new_folder(folder)
    cases = write_dataset(pairs, place / "data", bundle)
    config = read_json(bundle.folder / "configs" / "train.json")
    changes = {key: config[key] for key in KEPT_IDS if key in config}
    changes |= {
        "init_from": str(bundle.folder.resolve()),
        "epochs": options.max_epochs,
        "val_interval": max(1, options.max_epochs // 2),
        "learning_rate": options.learning_rate or config["learning_rate"] * LEARNING_RATE_SHARE,
    }
    if options.steps_per_epoch is not None:
        changes["steps_per_epoch"] = options.steps_per_epoch
    held_out = len(cases) // config["folds"] if len(cases) >= max(MIN_HELD_OUT, config["folds"]) else 0
    if held_out:
        changes["validation_cases"] = cases[:: config["folds"]][:held_out]
    else:
        every = "$medunet.datasets.datalist(@dataset_dir, section='all')"
        changes |= {"train#dataset#data": every, "validate#dataset#data": every}
    result = train_bundle(
        bundle.folder,
        place / "data",
        place / "run",
        changes=changes,
        presets=[name for name in options.preset.split(",") if name],
        device=device,
        trust=trust,
    )
    publish(place / "run", bundle)
    return Training(
        run=place / "run",
        cases=len(cases) - held_out,
        held_out=held_out,
        dice=result.kept_dice,
        seconds=time.perf_counter() - begun,
    )


def publish(run: Path, bundle: ServedBundle) -> None:
    """Let a bundle serve the weights of a run; a server sees the old file or the new one, whole."""
    with atomic_path(bundle.weights[0]) as temporary:
        shutil.copyfile(run / "models" / BEST_NAME, temporary)
    logger.info("%s serves the weights of %s", bundle.name, run)


def _check_values(image: Path, label: Path, labels: Mapping[str, int]) -> None:
    volume = read_label(label, reference=image, labels=labels)
    unknown = sorted({int(value) for value in volume.image.unique()} - set(labels.values()))
    if unknown:
        raise DataError(
            "label has values that the bundle does not know",
            file=label,
            received=unknown,
            expected=labels,
            remedy="correct and submit it again",
        )


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _new_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.name) for path in parent.iterdir() if path.name.isdigit()), default=0)
    while True:
        try:
            (parent / f"{number:03d}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return parent / f"{number:03d}"
