"""What a run logs beside its metrics: parameters, a digest of the data, the environment; no users and no host names."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from monai.utils import ensure_tuple

import medunet
from medunet.config import leaves
from medunet.errors import DataError
from medunet.files import cache_folder, sha256_of, write_atomically

from .server import now

logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it logs its start and its end

# packages whose versions are parameters of a run and requirements of its model
MAIN_PACKAGES = ("torch", "monai", "pytorch-ignite", "mlflow", "numpy", "nibabel", "SimpleITK", "pydicom")

GIT_SECONDS = 5.0
INTERVAL_SECONDS = 10.0  # between two samples, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is set

# wiring that is the same in all runs, and paths; the whole config is an artifact
SKIPPED = {"imports", "train", "validate", "initialize", "run", "training", "finalize"}
SKIPPED |= {"bundle_root", "dataset_dir", "resume", "split"}

DIGEST_LENGTH = 32  # characters; MLflow keeps 36


def flat_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """Return values by config id, without expressions and references, whose value a config does not contain.

    Examples:
        >>> flat_parameters({"epochs": 3, "network_def": {"channels": [4, 8], "spatial_dims": "@dims"}})
        {'epochs': '3', 'network_def::channels': '[4, 8]'}
    """
    values = leaves({key: value for key, value in config.items() if key not in SKIPPED})
    return {id_: show(value) for id_, value in values.items() if not _is_expression(value)}


def changed_parameters(changes: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the values of preset and run by id, from the ``{id: [preset, run]}`` of ``docs/changes.json``."""
    selected = {id_: pair for id_, pair in changes.items() if id_.partition("::")[0] not in SKIPPED}
    return {id_: (show(before), show(after)) for id_, (before, after) in selected.items()}


def describe(base: str, changed: Mapping[str, tuple[str, str]]) -> str:
    """Return the description of a run for MLflow's page (Markdown)."""
    if not changed:
        return f"As `{base}` has it." if base else ""
    rows = [f"| `{id_}` | {_cell(before)} | {_cell(after)} |" for id_, (before, after) in changed.items()]
    return "\n".join([f"Changed from `{base}`:", "", "| parameter | there | here |", "| --- | --- | --- |", *rows])


def show(value: Any) -> str:
    """Return a text unchanged, and anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cell(text: str) -> str:
    return f"`{text[:200]}`".replace("|", "\\|").replace("\n", " ")


def _is_expression(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return any(isinstance(text, str) and text.startswith(("$", "@", "%")) for text in texts)


def dataset_record(
    name: str, items: Sequence[Mapping[str, Any]], *, context: str, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Return a data set as `RunRecord` stores it; `context` is ``training`` or ``validation``."""
    dataset = {
        "name": name,
        "digest": content_digest(items, stop=stop),
        "source_type": "local",
        "source": json.dumps({"uri": name}),  # never the path
        "profile": json.dumps({"cases": len(items)}),
    }
    return {"dataset": dataset, "context": context}


def content_digest(items: Iterable[Mapping[str, Any]], *, stop: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 over the bytes of all images and labels, whatever the names, places and order of the files.

    `stop` is called before each file; if it returns True, a DataError ends the work. Digests of files are cached by
    path, size and modification time, because every fold needs them.
    """
    cache = cache_folder() / "digests"

    def digests(value: Any) -> list[str]:
        return [_path_digest(Path(path), cache, stop) for path in ensure_tuple(value) if path is not None]

    cases = sorted(json.dumps([digests(item.get(key)) for key in ("image", "label")]) for item in items)
    return _join(cases)[:DIGEST_LENGTH]


def _path_digest(path: Path, cache: Path, stop: Callable[[], bool]) -> str:
    if path.is_dir():  # a DICOM series
        return _join(sorted(_path_digest(file, cache, stop) for file in path.rglob("*") if file.is_file()))
    if stop():
        raise DataError("the digest of the data set was stopped because the training run ended")
    try:
        status = path.stat()
        file = cache / _join([str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)])[:DIGEST_LENGTH]
        if not file.is_file():
            write_atomically(file, sha256_of(path))
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=path) from error


def _join(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """Return the versions of the main packages, and the hardware."""
    device: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    device["memory_gb"] = round(psutil.virtual_memory().total / 1e9, 1)
    if torch.cuda.is_available():
        device["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        device["cuda"] = torch.version.cuda
        device["cudnn"] = torch.backends.cudnn.version()
    return {
        "medunet": medunet.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "packages": versions(),
        "device": device,
    }


def versions() -> dict[str, str]:
    """Return the versions of the main packages by name."""
    known: dict[str, str] = {}
    for name in MAIN_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return known


def packages() -> str:
    """Return all installed packages, one ``name==version`` per line."""
    installed = {str(dist.metadata["Name"]): dist.version for dist in importlib.metadata.distributions()}
    return "".join(f"{name}=={installed[name]}\n" for name in sorted(installed, key=str.lower))


def git_revision() -> dict[str, str]:
    """Return the commit of medunet's checkout, and whether it has changes; empty for an installed package."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(medunet.__file__).parent), *words]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(
                command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True
            ).stdout.strip()
        return ""

    commit = git("rev-parse", "HEAD")
    changed = bool(commit and git("status", "--porcelain", "--untracked-files=no"))
    return {"commit": commit, "changed": str(changed).lower()} if commit else {}


class SystemMetrics(SystemMetricsMonitor):
    """MLflow's monitor of processor, memory, disk, network and, with `nvidia-ml-py`, GPUs; samples go to a file.

    MLflow's own thread ends as soon as its server fails to answer. This one needs no server. Each line of the
    file at `path` is one sample: points ``[key, value, milliseconds since 1970, number of the sample]``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__("", sampling_interval=INTERVAL_SECONDS, tracking_uri="sqlite://")  # neither is used
        self.path = path
        self._logging_step = len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0

    def monitor(self) -> None:
        """Sample until `finish`."""
        while not self._shutdown_event.is_set():
            for _ in range(self.samples_before_logging):
                self.collect_metrics()
                if self._shutdown_event.wait(self.sampling_interval):
                    break
            self.publish_metrics(self.aggregate_metrics())

    def publish_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the means of the samples."""
        time, step = now(), self._logging_step
        points = [[f"{self._metrics_prefix}{key}", float(value), time, step] for key, value in metrics.items()]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(points) + "\n")
        self._logging_step += 1
        for monitor in self.monitors:
            monitor.clear_metrics()
