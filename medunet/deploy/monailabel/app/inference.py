"""MONAI Label's inference with medunet's predictor, which stays in memory."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from monai.data import MetaTensor
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from medunet.deploy.monailabel.results import choose_suffix, describe_result, write_result
from medunet.deploy.monailabel.served import ServedBundle
from medunet.errors import DataError, find_cause
from medunet.io import is_dicom_folder, read_header
from medunet.prediction import Predictor

logger = logging.getLogger(__name__)

T = TypeVar("T")

# One thread computes: each of the web application's forty would keep its own workers and scratch memory.
WORKER = ThreadPoolExecutor(1, "medunet-predict")


class LoadedBundle:
    """A bundle whose predictor stays in memory and processes one case at a time; its weights may change."""

    def __init__(self, bundle: ServedBundle, device: str, *, trust: bool = False) -> None:
        self.bundle, self.device, self.trust = bundle, device, trust
        self._loaded: tuple[str, Predictor] | None = None

    def compute(self, work: Callable[[Predictor], T]) -> T:
        """Return what `work` computes with the current weights; other requests wait."""
        return WORKER.submit(lambda: work(self._predictor())).result()

    def _predictor(self) -> Predictor:
        stamp = self.bundle.stamp
        if self._loaded is None or self._loaded[0] != stamp:
            logger.info("loading %s", self.bundle.name)
            self._loaded = None  # frees the old network before the new one is loaded
            self._loaded = stamp, Predictor(self.bundle.folder, device=self.device, trust=self.trust)
        return self._loaded[1]


class BundleInference(InferTask):
    """Segments an image with a bundle, as `medunet predict` does."""

    def __init__(self, loaded: LoadedBundle) -> None:
        bundle = loaded.bundle
        config = {
            "device": ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"],
            "label_colors": {segment.name: list(segment.color) for segment in bundle.segments},
        }
        options = {"labels": bundle.labels, "dimension": bundle.spatial_dims, "description": bundle.description}
        super().__init__(type=InferType.SEGMENTATION, config=config, **options)
        self.loaded = loaded

    def is_valid(self) -> bool:
        """Return whether there are weights."""
        return all(path.is_file() for path in self.loaded.bundle.weights)

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment `request["image"]`; return the path of a new file, and names, colours, sizes and latencies."""
        begun = ready = time.perf_counter()
        source, bundle = Path(request["image"]), self.loaded.bundle
        if not source.name or not source.exists():  # the datastore returns an empty path for an unknown id
            raise DataError("no such image in the datastore", received=source.name or None)
        image = find_series(source)
        suffix = choose_suffix(request.get("result_extension"), source, spatial_dims=bundle.spatial_dims)

        def decide(predictor: Predictor) -> MetaTensor:
            nonlocal ready
            ready = time.perf_counter()
            labels: MetaTensor = predictor.decide(image)["pred"]
            return labels

        with typed_errors(image):
            labels = self.loaded.compute(decide)
        decided = time.perf_counter()
        folder, dtype = Path(tempfile.gettempdir()), request.get("result_dtype")
        path = write_result(labels, folder, suffix, segments=bundle.segments, dtype=dtype)
        answer = describe_result(labels, bundle.segments)
        done = time.perf_counter()
        seconds = {"wait_and_load": ready - begun, "infer": decided - ready, "write": done - decided}
        answer["latencies"] = {name: round(value, 4) for name, value in {**seconds, "total": done - begun}.items()}
        return str(path), answer


@contextmanager
def typed_errors(source: Path) -> Iterator[None]:
    """Raise the typed error behind an error of MONAI; log an unexpected error and replace it by a typed one."""
    try:
        yield
    except Exception as failure:
        cause = find_cause(failure)
        if cause is None:
            logger.exception("%s: unexpected error", source.name)
            cause = DataError(f"cannot be segmented: {type(failure).__name__}", file=source.name)
        raise cause from failure


def find_series(image: Path) -> Path:
    """Return the DICOM series from which MONAI Label converted a NIfTI file, since medunet verifies series.

    Return the file itself if there is no series or the conversion changed its grid.
    """
    series = image.with_name(image.name.removesuffix(".nii.gz"))
    if series == image or not (series.is_dir() and is_dicom_folder(series)):
        return image
    return series if read_header(series).geometry.is_close(read_header(image).geometry) else image
