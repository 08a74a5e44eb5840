"""MONAI Label's inference, training, scoring and active learning with medunet."""

import json
import logging
import math
import random
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

from medunet.config import read_json
from medunet.deploy.monailabel.private_log import server_names
from medunet.deploy.monailabel.results import choose_suffix, describe_result, score_labels, uncertainty, write_result
from medunet.deploy.monailabel.served import LoadedBundle, ServedBundle
from medunet.deploy.monailabel.training import EPOCHS, read_options, train_further
from medunet.errors import DataError, DeviceError, MedunetError, find_cause
from medunet.files import write_atomically
from medunet.io import is_dicom_folder, read_header
from medunet.metrics.overlap import mean_of_known
from medunet.prediction import Predictor
from medunet.training import kept_entry, read_history

logger = logging.getLogger(__name__)

SEARCH_SECONDS = 60.0  # a request for the next sample may spend so long on images that have no uncertainty yet
UNUSABLE = -1.0  # uncertainty of an image that cannot be segmented


class BundleInference(InferTask):
    """Segments an image with a bundle, as `medunet predict` does."""

    def __init__(self, loaded: LoadedBundle) -> None:
        bundle = loaded.bundle
        config = {
            "device": ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"],
            "label_colors": {segment.name: list(segment.color) for segment in bundle.segments},
        }
        metadata = read_json(bundle.folder / "configs" / "metadata.json")
        options = {"dimension": bundle.spatial_dims, "description": metadata.get("description", bundle.name)}
        super().__init__(type=InferType.SEGMENTATION, labels=bundle.labels, config=config, **options)
        self.loaded = loaded

    def is_valid(self) -> bool:
        """Return whether there are weights."""
        return all(path.is_file() for path in self.loaded.bundle.weights)

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment `request["image"]`; return the path of a new file, and names, colours, sizes and latencies."""
        begun = ready = time.perf_counter()
        source, bundle = Path(request["image"]), self.loaded.bundle
        if not source.name or not source.exists():  # the datastore returns an empty path for an unknown id
            raise DataError("the image is not in the datastore", received=source.name or None)
        image = find_series(source)
        suffix = choose_suffix(request.get("result_extension"), source, spatial_dims=bundle.spatial_dims)

        def decide(predictor: Predictor) -> dict[Any, Any]:
            nonlocal ready
            ready = time.perf_counter()
            return predictor.decide(image)

        item = self.loaded.compute(decide)
        decided = time.perf_counter()
        labels = item["pred"]
        options: dict[str, Any] = {"dtype": request.get("result_dtype"), "instances": bundle.instances}
        path = write_result(labels, Path(tempfile.gettempdir()), suffix, segments=bundle.segments, **options)
        classes = np.array(bundle.config["label_values"])[item["object_classes"]] if bundle.instances else None
        answer = describe_result(labels, bundle.segments, classes)
        done = time.perf_counter()
        seconds = {"wait_and_load": ready - begun, "infer": decided - ready, "write": done - decided}
        answer["latencies"] = {name: round(value, 4) for name, value in {**seconds, "total": done - begun}.items()}
        return str(path), answer


def find_series(image: Path) -> Path:
    """Return the DICOM series from which MONAI Label converted a NIfTI file, since medunet verifies series.

    Return the file itself if there is no series or the conversion changed its grid.
    """
    series = image.with_name(image.name.removesuffix(".nii.gz"))
    if series == image or not (series.is_dir() and is_dicom_folder(series)):
        return image
    return series if read_header(series).geometry.is_close(read_header(image).geometry) else image


class BundleTraining(TrainTask):
    """Trains a working copy further; runs in its own process."""

    def __init__(self, bundle: ServedBundle, folder: Path, device: str, *, trust: bool = False) -> None:
        super().__init__(f"Train {bundle.name} further on the submitted labels")
        self.bundle, self.folder, self.device, self.trust = bundle, folder, device, trust

    def config(self) -> dict[str, Any]:
        """Return the options that clients show."""
        return {"max_epochs": EPOCHS, "steps_per_epoch": 0, "learning_rate": 0.0, "preset": ""}

    def stats(self) -> dict[str, Any]:
        """Return number of epochs and validation Dice of the last training run."""
        runs = sorted(self.folder.glob("*/run"))
        if not (runs and (history := read_history(runs[-1]))):
            return {}
        dice: dict[str, float] = kept_entry(history).get("val_dice", {})
        best = round(mean_of_known(dice.values()), 4) if dice else 0.0
        return {"epoch": len(history), "total_time": "", "best_metric": best, "dice": dice}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train on every image with a final label."""
        pairs = [(Path(pair["image"]), Path(pair["label"])) for pair in datastore.datalist()]
        server_names().hide(*(path.name for pair in pairs for path in pair))
        options = {**read_options(request), "device": self.device, "trust": self.trust}
        return train_further(self.bundle, pairs, self.folder, **options)


class LabelScore(ScoringMethod):
    """Dice by label between predicted and submitted labels, which is stored with the image.

    Without `labels`, the labels number objects, and the score is their mean average precision.
    """

    def __init__(self, labels: Mapping[str, int] | None) -> None:
        self.labels, self.key = labels, "mean_ap" if labels is None else "dice"
        what = "Mean average precision of objects" if labels is None else "Dice of each label"
        super().__init__(f"{what}, predicted against submitted")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score every image that has both labels."""
        tags = request.get("y_pred", DefaultLabelTag.ORIGINAL), request.get("y", DefaultLabelTag.FINAL)
        scores: dict[str, Any] = {}
        images = datastore.list_images()
        server_names().hide(*images)
        for image in images:
            labels = [datastore.get_label_by_image_id(image, tag) for tag in tags]
            if not all(labels):
                continue
            predicted, reference = (Path(datastore.get_label_uri(*pair)) for pair in zip(labels, tags, strict=True))
            try:
                values = score_labels(predicted, reference, self.labels, image=Path(datastore.get_image_uri(image)))
            except MedunetError as error:
                logger.warning("%s is not scored: %s", image, error)
                continue
            known = {name: round(value, 4) for name, value in values.items() if not math.isnan(value)}
            scores[image] = {self.key: round(mean_of_known(known.values()), 4) if known else 0.0, "labels": known}
            datastore.update_image_info(image, {self.key: scores[image][self.key], f"{self.key}_labels": known})
        return scores


class RandomImage(Strategy):
    """Offers the unlabelled image that was offered least recently; ties are broken at random.

    MONAI Label's own strategy fails if all images were offered within the last second.
    """

    def __init__(self) -> None:
        super().__init__("Any image without a label")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose an image."""

        def offered(image: str) -> float:
            return float(datastore.get_image_info(image).get("strategy", {}).get("random", {}).get("ts", 0))

        images = unlabelled(request, datastore)
        random.shuffle(images)
        return {"id": min(images, key=offered)} if images else None


class Uncertainty(Strategy):
    """Offers the image with the lowest expected Dice of a bundle; values are stored until the weights change."""

    def __init__(self, loaded: LoadedBundle, folder: Path) -> None:
        super().__init__(f"The image on which {loaded.bundle.name} is expected to be worst")
        self.loaded, self.file = loaded, folder / f"{loaded.bundle.name}.json"

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Choose among the images examined so far; examine new ones for `max_seconds`."""
        images, stamp = unlabelled(request, datastore), self.loaded.bundle.stamp
        stored = read_json(self.file) if self.file.is_file() else {}
        values: dict[str, float] = stored["uncertainty"] if stored.get("stamp") == stamp else {}
        end = time.monotonic() + float(request.get("max_seconds") or SEARCH_SECONDS)
        for image in images:
            if image in values:
                continue
            if values and time.monotonic() > end:
                break
            source = Path(datastore.get_image_uri(image))
            try:
                values[image] = round(self.loaded.compute(partial(uncertainty, source=source)), 6)
            except DeviceError:
                raise
            except Exception as error:  # such as a picture for a network of volumes
                logger.warning("%s cannot be offered: %s", image, find_cause(error) or type(error).__name__)
                values[image] = UNUSABLE
        write_atomically(self.file, json.dumps({"stamp": stamp, "uncertainty": values}))
        usable = {image: values[image] for image in images if values.get(image, UNUSABLE) != UNUSABLE}
        if not usable:
            return None
        chosen = max(usable, key=lambda image: usable[image])
        return {"id": chosen, "weight": usable[chosen], "uncertainty": usable[chosen], "seen": len(usable)}


def unlabelled(request: dict[str, Any], datastore: Datastore) -> list[str]:
    """Return the images that a strategy may offer, and hide their names in the log."""
    images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
    server_names().hide(*images)
    return images
