"""medunet bundles as a MONAI Label app."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.utils import convert
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore

from medunet.deploy.monailabel.private_log import server_names
from medunet.deploy.monailabel.results import labels_agree
from medunet.deploy.monailabel.served import LoadedBundle, order_label_info, trusted_bundles
from medunet.deploy.monailabel.server import FILE_PATTERNS, SETTINGS_VARIABLE
from medunet.errors import DataError
from medunet.io import read_volume
from medunet.io.segments import Segment

from .tasks import BundleInference, BundleTraining, LabelScore, RandomImage, Uncertainty

server_names()  # masks the log of this process before MONAI Label starts

MODALITY_TAG = "00080060"
IMAGE_MODALITIES = frozenset({"CT", "MR", "PT", "US", "XA", "NM", "CR", "DX", "MG", "OT"})  # not SEG, RTSTRUCT, SR

_segments: list[Segment] = []  # labels of all served bundles, for make_dicom_seg


class MedunetLabelApp(MONAILabelApp):
    """MONAI Label app that serves the bundles given to `medunet label serve`; `conf` is unused."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str] | None = None) -> None:
        file = Path(os.environ[SETTINGS_VARIABLE])
        settings = json.loads(file.read_text(encoding="utf-8"))
        bundles = trusted_bundles(file)
        _segments[:] = [segment for bundle in bundles if not bundle.instances for segment in bundle.segments]
        self.work = Path(settings["work"])
        self.options = {"device": settings["device"], "trust": settings["trust"]}
        self.loaded = {bundle.name: LoadedBundle(bundle, **self.options) for bundle in bundles}
        description = f"U-Nets of medunet: {', '.join(self.loaded)}. Research, not a medical device."
        labels = list(dict.fromkeys(label for bundle in bundles for label in bundle.labels))
        super().__init__(app_dir, studies, conf or {}, name="medunet", description=description, labels=labels)

    def init_infers(self) -> dict[str, Any]:
        """Return one inference task per bundle."""
        return {name: BundleInference(loaded) for name, loaded in self.loaded.items()}

    def init_trainers(self) -> dict[str, Any]:
        """Return one training task per bundle that is not an ensemble."""
        bundles = [loaded.bundle for loaded in self.loaded.values() if not loaded.bundle.is_ensemble]
        folder = self.work / "trainings"
        return {bundle.name: BundleTraining(bundle, folder / bundle.name, **self.options) for bundle in bundles}

    def init_strategies(self) -> dict[str, Any]:
        """Return the random strategy and, per bundle, the one by uncertainty."""
        strategies: dict[str, Any] = {"random": RandomImage()}
        for name, loaded in self.loaded.items():
            end = "" if len(self.loaded) == 1 else f"_{name}"
            strategies[f"uncertainty{end}"] = Uncertainty(loaded, self.work / "uncertainty")
        return strategies

    def init_scoring_methods(self) -> dict[str, Any]:
        """Return Dice by label, or one method per bundle if labels contradict each other; `mean_ap` is for objects."""
        bundles = [loaded.bundle for loaded in self.loaded.values()]
        labels = {bundle.name: bundle.labels for bundle in bundles if not bundle.instances}
        methods = {"mean_ap": LabelScore(None)} if len(labels) < len(bundles) else {}
        if not labels:
            return methods
        if labels_agree(labels.values()):
            names = {name: value for table in labels.values() for name, value in table.items()}
            return {"dice": LabelScore(names), **methods}
        return {**{f"dice_{name}": LabelScore(table) for name, table in labels.items()}, **methods}

    def init_datastore(self) -> Datastore:
        """Return MONAI Label's datastore, changed to notice files that are moved in and to offer only images."""
        folder = Path(self.studies)
        if folder.is_dir():  # MONAI Label logs their names while it creates the datastore
            server_names().hide(*(path.name for pattern in FILE_PATTERNS for path in folder.rglob(pattern)))
        datastore = super().init_datastore()
        if (client := getattr(datastore, "_client", None)) is not None:
            client.search_for_series = partial(search_images, client.search_for_series)
        if (handler := getattr(datastore, "_handler", None)) is not None:
            handler.on_moved = handler.on_created
        return datastore

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segment an image of the datastore or an uploaded one, but no other file of the machine."""
        image = request.get("image")
        if isinstance(image, str) and os.path.exists(image):  # noqa: PTH110 (any text, such as an image's id)
            allowed = {Path(tempfile.gettempdir()).resolve(), (self.work / "sessions").resolve()}
            if allowed.isdisjoint(Path(image).resolve().parents):
                remedy = "send the file, or give its id"
                raise DataError("the image is not in the datastore", received=image, remedy=remedy)
        answer: dict[str, Any] = super().infer(request, datastore)
        return answer


def search_images(search: Callable[..., Any], *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    """Search series of a DICOMweb store; without a filter, return only images."""
    series: list[dict[str, Any]] = search(*arguments, **options)
    if options.get("search_filters"):
        return series
    return [one for one in series if IMAGE_MODALITIES.intersection(one.get(MODALITY_TAG, {}).get("Value", ()))]


def make_dicom_seg(
    series_dir: str,
    label: str,
    label_info: Sequence[Mapping[str, Any]] | None,
    file_ext: str = "*",
    use_itk: bool = True,
) -> str:
    """Write a DICOM SEG with dcmqi, as MONAI Label's function does, but each label keeps its own name."""
    present = sorted({int(value) for value in np.unique(read_volume(label).image.numpy())} - {0})
    if not present:
        raise DataError("a DICOM SEG cannot be empty", remedy="request the output `image`")
    named = {str(info.get("name")) for info in label_info or ()}
    # if several bundles use a value, the client's names decide
    segments = sorted(_segments, key=lambda segment: segment.name in named)
    info = order_label_info(present, segments, label_info)
    path: str = convert.nifti_to_dicom_seg(series_dir, label, info, file_ext, use_itk=True)
    if not path:
        raise DataError("dcmqi could not write the DICOM SEG", file=series_dir)
    return path
