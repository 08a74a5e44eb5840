"""medunet bundles as a MONAI Label app."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore

from medunet.deploy.monailabel.scoring import labels_agree
from medunet.deploy.monailabel.served import judge_served
from medunet.deploy.monailabel.server import FILE_PATTERNS, SETTINGS_VARIABLE
from medunet.errors import DataError

from .hidden import HIDDEN
from .inference import BundleInference, ResidentPredictor
from .segmentation_objects import know
from .tasks import BundleTraining, LabelDice, RandomImage, Uncertainty

logger = logging.getLogger(__name__)

MODALITY_TAG = "00080060"
IMAGE_MODALITIES = frozenset({"CT", "MR", "PT", "US", "XA", "NM", "CR", "DX", "MG", "OT"})
"""What a network may have been trained on; not segmentations, contours and reports."""


class MedunetLabelApp(MONAILabelApp):
    """Serves the bundles that `medunet label` was given.

    Args:
        app_dir: the app's folder.
        studies: folder of images, or URL of a DICOMweb service.
        conf: MONAI Label's options; unused.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str] | None = None) -> None:
        file = Path(os.environ[SETTINGS_VARIABLE])
        settings = json.loads(file.read_text(encoding="utf-8"))
        self.work = Path(settings["work"])
        self.bundles = judge_served(file)
        self.device: str = settings["device"]
        self.trust: bool = settings["trust"]
        know(self.bundles)
        scratch = Path(tempfile.gettempdir())
        self.residents = {
            bundle.name: ResidentPredictor(bundle, scratch, self.device, trust=self.trust) for bundle in self.bundles
        }
        names = ", ".join(bundle.name for bundle in self.bundles)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf or {},
            name="medunet",
            description=f"U-Nets of medunet: {names}. Research, not a medical device.",
            labels=list(dict.fromkeys(label for bundle in self.bundles for label in bundle.labels)),
        )

    def init_infers(self) -> dict[str, Any]:
        """An inference a bundle."""
        return {name: BundleInference(resident) for name, resident in self.residents.items()}

    def init_trainers(self) -> dict[str, Any]:
        """A training a bundle, but not of ensembles."""
        return {
            bundle.name: BundleTraining(bundle, self.work / "trainings" / bundle.name, self.device, trust=self.trust)
            for bundle in self.bundles
            if not bundle.is_ensemble
        }

    def init_strategies(self) -> dict[str, Any]:
        """Random; of each bundle mirrored views, and folds where it has them."""
        found: dict[str, Any] = {"random": RandomImage()}
        for name, resident in self.residents.items():
            end = "" if len(self.residents) == 1 else f"_{name}"
            folder = self.work / "uncertainty"
            found[f"uncertainty{end}"] = Uncertainty(resident, "mirror", folder)
            if resident.bundle.is_ensemble:
                found[f"fold_disagreement{end}"] = Uncertainty(resident, "folds", folder)
        return found

    def init_scoring_methods(self) -> dict[str, Any]:
        """Dice by label; of each bundle by itself where their labels contradict each other."""
        if labels_agree(bundle.labels for bundle in self.bundles):
            return {"dice": LabelDice(self.bundles)}
        return {f"dice_{bundle.name}": LabelDice([bundle]) for bundle in self.bundles}

    def init_datastore(self) -> Datastore:
        """As MONAI Label's, but a file that is moved into the folder is seen, and a store offers images only."""
        folder = Path(self.studies)
        if folder.is_dir():  # what is there is named while the datastore is made
            HIDDEN.hide(*(path.name for pattern in FILE_PATTERNS for path in folder.rglob(pattern)))
        datastore = super().init_datastore()
        client = getattr(datastore, "_client", None)
        if client is not None:
            client.search_for_series = partial(search_images, client.search_for_series)
        handler = getattr(datastore, "_handler", None)
        if handler is not None:
            handler.on_moved = handler.on_created
        return datastore

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """As MONAI Label's, but an image is one of the datastore or one that was sent, not any file of the machine.

        Raises:
            DataError: a path elsewhere.
        """
        image = request.get("image")
        if isinstance(image, str) and os.path.exists(image):  # noqa: PTH110 (any text, such as an image's id)
            allowed = [Path(tempfile.gettempdir()).resolve(), (self.work / "sessions").resolve()]
            if not any(folder in Path(image).resolve().parents for folder in allowed):
                raise DataError("is no image of the datastore", received=image, remedy="send the file, or give its id")
        answer: dict[str, Any] = super().infer(request, datastore)
        return answer


def search_images(search: Callable[..., Any], *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    """Series of a DICOMweb store; those that are no images are left out of a search that names no modality."""
    found: list[dict[str, Any]] = search(*arguments, **options)
    if options.get("search_filters"):
        return found
    return [series for series in found if set(series.get(MODALITY_TAG, {}).get("Value", ())) & IMAGE_MODALITIES]
