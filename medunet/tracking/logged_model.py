"""A packed bundle becomes a model of an MLflow run, and a version of a registered model."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient, pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model

import medunet

from .bundle_model import EXAMPLE, signature

CODE = Path(__file__).with_name("model_code.py")

ARTIFACT = "model"
"""What the model of a run is called: ``runs:/RUN/model``."""

KEPT = "kept_"
"""Prefix of the run's metrics of the epoch whose weights are in the model."""

REQUIREMENTS = ("torch", "monai", "pytorch-ignite", "mlflow", "numpy", "nibabel", "SimpleITK", "pydicom")


def save_model(packed: Path, folder: Path) -> Path:
    """Write an MLflow model into a folder, without any server.

    Args:
        packed: ZIP file of a bundle.
        folder: made; must not exist.
    """
    with _unpacked(packed) as bundle:
        pyfunc.save_model(str(folder), **_content(bundle))
    return folder


def log_model(packed: Path, *, client: MlflowClient, run_id: str, name: str = "") -> None:
    """Log a packed bundle as the model of a run; what an interrupted attempt has done is not done again.

    Args:
        packed: ZIP file of a bundle.
        client: of the tracking store.
        run_id: of the run.
        name: of the registered model that gets a version; nothing is registered without one.
    """
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    ready = [model for model in known if str(model.status) == str(LoggedModelStatus.READY)]
    model = ready[0] if ready else _upload(packed, client, run)
    if not name or client.search_model_versions(f"run_id = '{run_id}'"):
        return
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.create_model_version(
        name, source=model.artifact_location, run_id=run_id, model_id=model.model_id, await_creation_for=0
    )


def _upload(packed: Path, client: MlflowClient, run: Run) -> LoggedModel:
    """Log a model as MLflow's `log_model` does, but to any store, not the one that is set for the whole process."""
    run_id = run.info.run_id
    model = client.create_logged_model(
        run.info.experiment_id, name=ARTIFACT, source_run_id=run_id, params=run.data.params
    )
    description = Model(
        artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id
    )
    with _unpacked(packed) as bundle:
        folder = bundle.with_name("model")
        pyfunc.save_model(str(folder), mlflow_model=description, **_content(bundle))
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    epoch = int(run.data.metrics.get(f"{KEPT}epoch", 0))
    for key, value in run.data.metrics.items():
        if key.startswith(KEPT):  # the others are those of the last epoch, whose weights the model need not have
            client.log_metric(run_id, key.removeprefix(KEPT), value, step=epoch, model_id=model.model_id)
    return model


def model_name(text: str) -> str:
    """A name that a registry takes.

    Example:
        >>> model_name("runs: a/b")
        'runs_a_b'
    """
    return re.sub(r"[^\w.-]+", "_", text).strip("_") or "medunet"


@contextmanager
def _unpacked(packed: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(bundle)
        yield bundle


def _content(bundle: Path) -> dict[str, Any]:
    config = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    code = bundle.with_name(
        CODE.name
    )  # MLflow notes the path of the script: that of the installation is nobody's business
    shutil.copyfile(CODE, code)
    # given, because MLflow would otherwise load the model in another process to find them out
    requirements = [f"{name}=={importlib.metadata.version(name)}" for name in REQUIREMENTS]
    return {
        "python_model": str(code),
        "artifacts": {"bundle": str(bundle)},
        "signature": signature(config["spatial_dims"]),
        "input_example": EXAMPLE,
        "pip_requirements": [f"medunet=={medunet.__version__}", *requirements],
    }
