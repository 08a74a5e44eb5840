"""A bundle as a label server offers it: its name, its labels, a working copy for training, and its predictor."""

import itertools
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medunet.bundle.read import read_own
from medunet.config import read_json
from medunet.errors import ConfigError, DataError, DeviceError
from medunet.files import atomic_path, sha256_of, write_atomically
from medunet.io.segments import Segment, as_segments
from medunet.prediction import Predictor
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.training import BEST_NAME
from medunet.trust import adopt, forget_weights, require_trust

logger = logging.getLogger(__name__)

T = TypeVar("T")

# One thread computes: each of the web application's forty would keep its own workers and scratch memory.
WORKER = ThreadPoolExecutor(1, "medunet-predict")


@dataclass(frozen=True)
class ServedBundle:
    """A trained bundle and its name on the server.

    Args:
        name: name in URLs and menus.
        folder: folder of the bundle.
    """

    name: str
    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """Unresolved content of `inference.json`."""
        return read_own(self.folder, "inference")

    @property
    def weights(self) -> tuple[Path, ...]:
        """Checkpoint files: one, or one per fold."""
        folds = self.config.get(ENSEMBLE_FOLDS)
        names = [BEST_NAME] if folds is None else [f"fold_{fold}.pt" for fold in folds]
        return tuple(self.folder / "models" / name for name in names)

    @property
    def is_ensemble(self) -> bool:
        """Whether the network is the mean of folds; ensembles are not trained further."""
        return ENSEMBLE_FOLDS in self.config

    @property
    def spatial_dims(self) -> int:
        """Number of spatial dimensions, 2 or 3."""
        return int(self.config["spatial_dims"])

    @property
    def instances(self) -> bool:
        """Whether the label maps number objects; `labels` are then their classes."""
        return bool(self.config.get("instances", False))

    @property
    def labels(self) -> dict[str, int]:
        """Label value by name, without the background."""
        return {segment.name: segment.value for segment in self.segments}

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Names, values, colours and codes of the labels."""
        config = self.config
        names = dict(zip(config["label_names"], config["label_values"], strict=True))
        return as_segments(names, colors=config.get("label_colors"), codes=config.get("label_codes"))

    @property
    def stamp(self) -> str:
        """Text that changes when the weights change."""
        return "-".join(f"{path.stat().st_mtime_ns:x}" for path in self.weights)

    def working_copy(self, folder: Path) -> "ServedBundle":
        """Copy the bundle, which must be trusted, to `folder/NAME`, where training may change the weights.

        An existing copy keeps its weights, unless the bundle has new weights or the copy is of another bundle. Hashes
        of weights are not copied.
        """
        target, origin = folder / self.name, folder / f"{self.name}.origin"
        digest = " ".join(sha256_of(path) for path in self.weights)
        is_current = origin.is_file() and origin.read_text(encoding="ascii") == digest
        for path in sorted([*self.folder.glob("configs/*"), *self.folder.glob("docs/*"), self.folder / "LICENSE"]):
            if path.is_file():
                copy_atomically(path, target / path.relative_to(self.folder))
        forget_weights(target)
        for path in self.weights:
            copy = target / path.relative_to(self.folder)
            if not (is_current and copy.is_file()):
                copy_atomically(path, copy)
        write_atomically(origin, digest)
        adopt(target)
        return ServedBundle(self.name, target)


def serve(folders: Sequence[Path]) -> tuple[ServedBundle, ...]:
    """Name bundles after their folders; the names are unique and need no escaping in URLs.

    Raises:
        ConfigError: no bundle, or a bundle with invalid configs.
        DataError: a bundle without weights.
    """
    if not folders:
        raise ConfigError("no bundle to serve", expected="a run or a bundle with weights")
    bundles: dict[str, ServedBundle] = {}
    for folder in folders:
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).strip("._") or "bundle"
        names = itertools.chain([base], (f"{base}_{count}" for count in itertools.count(2)))
        name = next(name for name in names if name not in bundles)
        bundle = bundles[name] = ServedBundle(name, folder)
        _ = bundle.spatial_dims, bundle.segments  # an invalid config is an error now
        for path in bundle.weights:
            if not path.is_file():
                raise DataError("the bundle has no weights", file=path, remedy="train it with `medunet train`")
    return tuple(bundles.values())


def trusted_bundles(settings: Path) -> tuple[ServedBundle, ...]:
    """Return the bundles of a server's settings; each is checked for trust before any of its content is loaded."""
    content = read_json(settings)
    bundles = tuple(ServedBundle(name, Path(folder)) for name, folder in content["bundles"])
    for bundle in bundles:
        require_trust(bundle.folder, trust=bool(content["trust"]))
    return bundles


def order_label_info(
    present: Sequence[int], segments: Sequence[Segment], given: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """Describe each label of a mask for a DICOM SEG, in the order of the values.

    MONAI Label pairs the labels in a mask with the client's list by position: the next organ gets the name of a missing
    one. The client's list (`given`) may be incomplete; its entries take precedence over the bundle's.

    Examples:
        >>> bundle = as_segments({"liver": 1, "spleen": 2, "kidney": 4})
        >>> [info["name"] for info in order_label_info([2, 4], bundle, [{"name": "liver"}, {"name": "spleen"}])]
        ['spleen', 'kidney']
    """
    by_value = {segment.value: segment for segment in segments}
    by_name = {str(info.get("name")): info for info in given or ()}
    ordered = []
    for value in sorted(present):
        segment = by_value.get(value) or as_segments(None, values=[value])[0]
        info = by_name.get(segment.name, {})
        attribute = {
            "labelID": value,
            "SegmentLabel": segment.name,
            "SegmentDescription": str(info.get("description") or segment.name),
            "SegmentAlgorithmType": "SEMIAUTOMATIC" if given else "AUTOMATIC",
            "SegmentAlgorithmName": "medunet",
            "SegmentedPropertyCategoryCodeSequence": _code(segment.category),
            "SegmentedPropertyTypeCodeSequence": _code(segment.type),
            "recommendedDisplayRGBValue": [int(part) for part in (info.get("color") or segment.color)[:3]],
        }
        ordered.append({"name": segment.name, "segmentAttribute": attribute})
    return ordered


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file; a reader of the target sees the old file or the new one, complete."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _code(code: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), code, strict=True))


class LoadedBundle:
    """A bundle whose predictor stays in memory and processes one case at a time; its weights may change."""

    def __init__(self, bundle: ServedBundle, device: str, *, trust: bool = False) -> None:
        self.bundle, self.device, self.trust = bundle, device, trust
        self._loaded: tuple[str, Predictor] | None = None

    def compute(self, work: Callable[[Predictor], T]) -> T:
        """Return what `work` computes with the current weights; other requests wait."""
        try:
            return WORKER.submit(lambda: work(self._predictor())).result()
        except DeviceError:
            os.kill(os.getpid(), signal.SIGTERM)  # this answer is sent, then the server ends
            raise

    def _predictor(self) -> Predictor:
        stamp = self.bundle.stamp
        if self._loaded is None or self._loaded[0] != stamp:
            logger.info("loading %s", self.bundle.name)
            self._loaded = None  # frees the old network before the new one is loaded
            self._loaded = stamp, Predictor(self.bundle.folder, device=self.device, trust=self.trust)
        return self._loaded[1]
