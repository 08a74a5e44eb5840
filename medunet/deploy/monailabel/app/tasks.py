"""MONAI Label's training, scoring and active learning, by medunet."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from medunet.deploy.monailabel.scoring import score_labels
from medunet.deploy.monailabel.served import ServedBundle
from medunet.deploy.monailabel.training import EPOCHS, TrainingOptions, train_further
from medunet.deploy.monailabel.uncertainty import uncertainty
from medunet.errors import MedunetError
from medunet.files import write_atomically
from medunet.training import HISTORY_NAME, kept_entry

from .hidden import HIDDEN
from .inference import ResidentPredictor, explained

logger = logging.getLogger(__name__)

SECONDS = 60.0
"""For how long a request for the next sample may look at images that it has not seen before."""


class BundleTraining(TrainTask):
    """Trains a working copy further; runs in a process of its own.

    Args:
        bundle: the working copy.
        folder: for data sets and runs.
        device: as of the server.
        trust: as of the server.
    """

    def __init__(self, bundle: ServedBundle, folder: Path, device: str, *, trust: bool = False) -> None:
        super().__init__(f"Train {bundle.name} further on the submitted labels")
        self.bundle = bundle
        self.folder = folder
        self.device = device
        self.trust = trust

    def config(self) -> dict[str, Any]:
        """What clients show as options."""
        return {"max_epochs": EPOCHS, "steps_per_epoch": 0, "learning_rate": 0.0, "preset": ""}

    def stats(self) -> dict[str, Any]:
        """Of the last training: epochs, and the validation Dice of the one that was kept."""
        runs = sorted(self.folder.glob(f"*/run/eval/{HISTORY_NAME}"))
        if not runs:
            return {}
        history = read_history(runs[-1])
        dice: dict[str, float] = kept_entry(history).get("val_dice", {})
        return {"epoch": len(history), "total_time": "", "best_metric": round(_mean(dice), 4), "dice": dice}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train on every image with a final label."""
        pairs = [(Path(pair["image"]), Path(pair["label"])) for pair in datastore.datalist()]
        HIDDEN.hide(*(path.name for pair in pairs for path in pair))
        done = train_further(
            self.bundle,
            pairs,
            self.folder,
            options=TrainingOptions.read(request),
            device=self.device,
            trust=self.trust,
        )
        return {
            "run": str(done.run),
            "cases": done.cases,
            "held_out": done.held_out,
            "dice": done.dice,
            "seconds": round(done.seconds, 1),
        }


class LabelDice(ScoringMethod):
    """Dice by label between what was predicted and what was submitted; written beside the image.

    Args:
        bundles: their label values must not contradict each other.
    """

    def __init__(self, bundles: Sequence[ServedBundle]) -> None:
        super().__init__("Dice of each label, predicted against submitted")
        self.labels = {name: value for bundle in bundles for name, value in bundle.labels.items()}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score every image that has both labels."""
        tags = request.get("y", DefaultLabelTag.FINAL), request.get("y_pred", DefaultLabelTag.ORIGINAL)
        found: dict[str, Any] = {}
        images = datastore.list_images()
        HIDDEN.hide(*images)
        for image in images:
            submitted, predicted = (datastore.get_label_by_image_id(image, tag) for tag in tags)
            if not (submitted and predicted):
                continue
            reference, prediction = (
                Path(datastore.get_label_uri(label, tag))
                for label, tag in zip((submitted, predicted), tags, strict=True)
            )
            try:
                values = score_labels(prediction, reference, self.labels, image=Path(datastore.get_image_uri(image)))
            except MedunetError as error:
                logger.warning("%s is not scored: %s", image, error)
                continue
            dice = {name: round(value, 4) for name, value in values.items() if not math.isnan(value)}
            found[image] = {"dice": round(_mean(dice), 4), "labels": dice}
            datastore.update_image_info(image, {"dice": found[image]["dice"], "dice_labels": dice})
        return found


class RandomImage(Strategy):
    """Offers any image without a label, sooner those that were offered long ago or never."""

    def __init__(self) -> None:
        super().__init__("Any image without a label")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """MONAI Label's own fails when all images were offered within the last second."""
        images = unlabelled(request, datastore)
        if not images:
            return None
        offered = [datastore.get_image_info(image).get("strategy", {}).get("random", {}) for image in images]
        ages = [1.0 + max(0.0, time.time() - float(info.get("ts", 0))) for info in offered]
        (chosen,) = random.choices(range(len(images)), weights=ages)
        return {"id": images[chosen], "weight": ages[chosen]}


class Uncertainty(Strategy):
    """Offers the image about which a bundle is least sure; what was found is kept until its weights change.

    Args:
        resident: the bundle's predictor.
        by: `mirror` or `folds`.
        folder: for the numbers.
    """

    def __init__(self, resident: ResidentPredictor, by: str, folder: Path) -> None:
        what = "mirrored views" if by == "mirror" else "folds"
        super().__init__(f"The image on which {resident.bundle.name}'s {what} disagree most")
        self.resident = resident
        self.by = by
        self.file = folder / f"{resident.bundle.name}_{by}.json"

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The least sure one of the images seen so far; a request looks at new ones for ``max_seconds``."""
        images = unlabelled(request, datastore)
        stamp = self.resident.bundle.stamp
        known = read_known(self.file, stamp)
        end = time.monotonic() + float(request.get("max_seconds") or SECONDS)
        for image in images:
            if image in known:
                continue
            if known and time.monotonic() > end:
                break
            try:
                source = Path(datastore.get_image_uri(image))
                with explained(source):
                    found = self.resident.compute(partial(uncertainty, source=source, by=self.by))
                known[image] = round(found, 6)
            except MedunetError as error:
                logger.warning("%s cannot be offered: %s", image, error)
                known[image] = -1.0
        write_atomically(self.file, json.dumps({"stamp": stamp, "uncertainty": known}))
        open_ones = {image: known[image] for image in images if known.get(image, -1.0) >= 0}
        if not open_ones:
            return None
        chosen = max(open_ones, key=lambda image: open_ones[image])
        return {"id": chosen, "weight": open_ones[chosen], "uncertainty": open_ones[chosen], "seen": len(open_ones)}


def unlabelled(request: dict[str, Any], datastore: Datastore) -> list[str]:
    """Images that a strategy may offer; the log does not name them."""
    images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
    HIDDEN.hide(*images)
    return images


def read_known(file: Path, stamp: str) -> dict[str, float]:
    """Uncertainties by image that were found with these weights."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(kept["uncertainty"]) if kept.get("stamp") == stamp else {}


def read_history(file: Path) -> list[dict[str, Any]]:
    """Epochs of a run's history."""
    try:
        history = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return history if isinstance(history, list) else list(history.get("epochs", []))


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values) if values else 0.0
