"""MONAI Label's inference, by medunet's predictor: loaded once, and again when its weights have changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.data import MetaTensor
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from medunet.deploy.monailabel.results import choose_ending, describe_result, write_result
from medunet.deploy.monailabel.served import ServedBundle
from medunet.errors import DataError, find_cause
from medunet.io import is_dicom_folder, read_header
from medunet.prediction import Predictor

logger = logging.getLogger(__name__)

T = TypeVar("T")

COMPUTING = ThreadPoolExecutor(1, "medunet-predict")
"""The thread that computes, for all bundles: if the web application's threads, up to forty, did so in turn, each would
keep workers and scratch memory of the network's libraries."""


class ResidentPredictor:
    """A bundle's predictor that stays in memory; one case at a time, in the thread that computes.

    Args:
        bundle: whose weights may be replaced at any time.
        folder: for files on the way.
        device: where it computes when a request names nothing that is here.
        trust: as of the server.
    """

    def __init__(self, bundle: ServedBundle, folder: Path, device: str, *, trust: bool = False) -> None:
        self.bundle = bundle
        self.folder = folder
        self.device = device
        self.trust = trust
        self._loaded: tuple[str, Predictor] | None = None

    def compute(self, work: Callable[[Predictor], T]) -> T:
        """What `work` makes of the predictor with the weights of now; other requests wait."""
        return COMPUTING.submit(lambda: work(self._get())).result()

    def _get(self) -> Predictor:
        stamp = self.bundle.stamp
        if self._loaded is None or self._loaded[0] != stamp:
            logger.info("loading %s", self.bundle.name)
            self._loaded = None  # the old network is let go before the new one is there
            predictor = Predictor(self.bundle.folder, device=self.device, trust=self.trust)
            self._loaded = stamp, predictor
        return self._loaded[1]


class BundleInference(InferTask):
    """Segments an image by a bundle, as `medunet predict` does.

    Args:
        resident: the bundle's predictor.
    """

    def __init__(self, resident: ResidentPredictor) -> None:
        bundle = resident.bundle
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=bundle.labels,
            dimension=bundle.spatial_dims,
            description=bundle.description,
            config={
                "device": ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"],
                "label_colors": {segment.name: list(segment.color) for segment in bundle.segments},
            },
        )
        self.resident = resident

    def is_valid(self) -> bool:
        """Whether there are weights."""
        return all(path.is_file() for path in self.resident.bundle.weights)

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment ``request["image"]`` into a file of its own.

        Returns:
            Its path, and names, colours, volumes and latencies.

        Raises:
            MedunetError: the image cannot be used, or the result not be written as asked.
        """
        begun = time.perf_counter()
        source, bundle = Path(request["image"]), self.resident.bundle
        if not source.name or not source.exists():  # the datastore's answer for an unknown id is an empty path
            raise DataError("no such image in the datastore", received=source.name or None)
        image = find_series(source)
        ending = choose_ending(request.get("result_extension"), source, spatial_dims=bundle.spatial_dims)
        ready = begun

        def decide(predictor: Predictor) -> MetaTensor:
            nonlocal ready
            ready = time.perf_counter()
            labels: MetaTensor = predictor.decide(image)["pred"]
            return labels

        with explained(image):
            labels = self.resident.compute(decide)
        decided = time.perf_counter()
        path = write_result(
            labels, self.resident.folder, ending, segments=bundle.segments, dtype=request.get("result_dtype")
        )
        answer = describe_result(labels, bundle.segments)
        done = time.perf_counter()
        answer["latencies"] = {
            "wait_and_load": round(ready - begun, 4),
            "infer": round(decided - ready, 4),
            "write": round(done - decided, 4),
            "total": round(done - begun, 4),
        }
        return str(path), answer


@contextmanager
def explained(source: Path) -> Iterator[None]:
    """Let what MONAI wraps out as the typed error behind it; what nobody foresaw becomes one, with a log line.

    Raises:
        MedunetError: for any exception in the block.
    """
    try:
        yield
    except Exception as failure:
        cause = find_cause(failure)
        if cause is None:
            logger.exception("%s: unexpected error", source.name)
            cause = DataError(f"cannot be segmented: {type(failure).__name__}", file=source.name)
        raise cause from failure


def find_series(image: Path) -> Path:
    """The DICOM series that MONAI Label has made a NIfTI file of; it is verified, which MONAI Label does not do.

    Returns:
        The series' folder, so that the mask is that of `medunet predict`; the file itself where there is none, or
        where MONAI Label has laid it on another grid.

    Raises:
        MedunetError: a series that is no volume, for instance one with a slice missing.
    """
    series = image.with_name(image.name.removesuffix(".nii.gz"))
    if series == image or not (series.is_dir() and is_dicom_folder(series)):
        return image
    same = read_header(series).geometry.is_close(read_header(image).geometry)
    return series if same else image
