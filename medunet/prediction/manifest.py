"""The record of a prediction for an audit: software, models, device, settings, and each input and output."""

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import monai
import torch
from monai.utils import ensure_tuple
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from medunet import __version__
from medunet.config import read_json
from medunet.datasets import source_files
from medunet.files import sha256_of
from medunet.io import Pseudonyms
from medunet.runtime import SAFE_SUFFIX, resolve_device, resolve_dtype

from .configuration import content, parse_inference
from .options import PredictOptions

UIDS = ("StudyInstanceUID", "SeriesInstanceUID")
# ids of the config whose values decide the result and are not in the weights: test-time augmentation and the like
RECORDED_IDS = ("mirror_axes", "view_scales", "tile_size", "autocast_dtype", "spacing_mm", "postprocess_steps")


@dataclass(frozen=True)
class CaseFile:
    """An input or a result of one case.

    Args:
        path: as given, or the case's pseudonym.
        files: number of files that the digest covers.
        sha256: of the file; of several files the SHA-256 of their sorted digests, one per line. None if it is not
            computed, or the file cannot be read.
        study_uid: StudyInstanceUID of a DICOM series, or its pseudonym.
        series_uid: SeriesInstanceUID of a DICOM series, or its pseudonym.
    """

    path: str
    files: int = 0
    sha256: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None

    @classmethod
    def read(
        cls, path: str, frames: Iterable[str] = (), *, shown: str | None = None, names: Pseudonyms | None = None
    ) -> "CaseFile":
        """Return the facts of a file, or of a folder with a DICOM series.

        Args:
            path: the file or folder.
            frames: the DICOM files that were read.
            shown: replaces the path.
            names: replace UIDs.
        """
        result = cls(shown or path)
        read = [Path(frame) for frame in dict.fromkeys(frames) if Path(frame).is_file()]
        try:
            files = sorted({*source_files(Path(path)), *read})
            digests = sorted(map(sha256_of, files))
        except OSError:
            return result
        joined = "".join(f"{digest}\n" for digest in digests).encode()
        sha256 = digests[0] if len(digests) == 1 else hashlib.sha256(joined).hexdigest() if digests else None
        # without frames (a series that was resampled) a folder of several series does not tell which one it was
        found = {_uids(file) for file in (read[:1] or files)} - {None}
        study, series = (found.pop() if len(found) == 1 else None) or (None, None)
        uids = [uid if names is None or uid is None else names.uid(uid) for uid in (study, series)]
        return replace(result, files=len(files), sha256=sha256, study_uid=uids[0], series_uid=uids[1])


def _uids(file: Path) -> tuple[str, str] | None:
    try:
        header = dcmread(file, stop_before_pixels=True, specific_tags=list(UIDS))
        return str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
    except (InvalidDicomError, AttributeError, OSError, ValueError):
        return None


class Manifest:
    """Collects what was predicted, with what. The SHA-256 of models is computed in the background.

    Args:
        bundle: folder of the bundle or run.
        options: of the prediction; `digests` decides whether digests are computed.
        is_local: whether this machine predicts.

    Raises:
        SecurityError: a bundle is not trusted.
        ConfigError: an invalid config or option.
    """

    def __init__(self, bundle: Path, options: PredictOptions, *, is_local: bool = True) -> None:
        self.options, self.started = options, datetime.now(timezone.utc)
        self.cases: Sequence[Mapping[str, Any]] = []
        self.requested = 0  # number of cases
        self.networks: Sequence[object] = ()  # how each network was computed
        device = resolve_device(options.device if is_local else "cpu")
        parse = partial(parse_inference, device=device, overrides=options.changes, trust=options.trust)
        folders = [bundle, *map(Path, options.ensemble)]
        parsers = [parse(bundle, values=options.config_values), *map(parse, folders[1:])]
        weights = [[Path(path) for path in ensure_tuple(content(parser, "ckpt_path"))] for parser in parsers]
        self._values = {id_: parsers[0][id_] for id_ in RECORDED_IDS if id_ in parsers[0]}
        self._device = None
        if is_local:
            hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
            number_format = str(resolve_dtype(device, content(parsers[0], "autocast_dtype"))).removeprefix("torch.")
            self._device = {"name": str(device), "hardware": hardware, "number_format": number_format}
        pool = ThreadPoolExecutor(1)
        self._models: Iterable[dict[str, Any]] = pool.map(self._model, folders, weights)
        pool.shutdown(wait=False)

    def _model(self, folder: Path, weights: Sequence[Path]) -> dict[str, Any]:
        metadata = folder / "configs" / "metadata.json"
        configs = sorted(path for path in (folder / "configs").iterdir() if path.is_file())
        loaded = [path if path.is_file() else path.with_suffix(SAFE_SUFFIX) for path in weights]
        return {
            "folder": folder,
            "name": read_json(metadata).get("name") if metadata.is_file() else None,
            "configs": {path.name: self._digest(path) for path in configs},
            "weights": {path.name: self._digest(path) for path in loaded},
        }

    def _digest(self, path: Path) -> str | None:
        return sha256_of(path) if self.options.digests and path.is_file() else None

    def document(self, exit_code: int) -> dict[str, Any]:
        """Return the record, without digests unless they were requested."""
        options, ended = self.options, datetime.now(timezone.utc)
        names, overrides = options.pseudonyms, dict(options.changes)
        if names is not None and overrides.get("series_uid"):
            overrides["series_uid"] = names.uid(overrides["series_uid"])
        self._models = list(self._models)
        return {
            "started": self.started.isoformat(timespec="milliseconds"),
            "ended": ended.isoformat(timespec="milliseconds"),
            "seconds": round((ended - self.started).total_seconds(), 3),
            "exit_code": exit_code,
            "software": {
                "medunet": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "monai": monai.__version__,
            },
            "models": self._models,
            "device": self._device,
            "networks": [*map(str, self.networks)],
            "settings": {
                "overrides": overrides,
                "values": self._values,
                "tta": options.tta,
                "format": options.result_format,
                "probabilities": options.probabilities,
                "deidentified": names is not None,
            },
            "output": options.output_dir,
            "requested_cases": self.requested,
            "cases": self.cases,
        }
