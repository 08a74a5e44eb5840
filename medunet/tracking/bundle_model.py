"""A bundle as an MLflow model: images in, label maps out, over HTTP too."""

import os
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas
import torch
from mlflow import MlflowClient, pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType

import medunet
from medunet.config import read_json
from medunet.errors import GeometryError, find_cause
from medunet.prediction import Predictor

from .content import versions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns about its own type hints
    from mlflow.pyfunc import PythonModel

DEVICE_VARIABLE = "MEDUNET_DEVICE"  # where a served model runs; "auto" by default
LABEL_TYPE = np.int32
EXAMPLE = ["scan.nii.gz"]  # shown with the model; the serving endpoint takes it as {"inputs": ["scan.nii.gz"]}
ARTIFACT = "model"  # the model of a run is runs:/RUN/model
KEPT = "kept_"  # prefix of the run's metrics of the epoch whose weights are in the model

# the script that MLflow loads the model from ("models from code"), so that no object is ever pickled
CODE = """from mlflow.models import set_model

from medunet.tracking.bundle_model import BundleModel

set_model(BundleModel())
"""


class UnusableImageError(MlflowException):
    """One line about an image that cannot be predicted; its cause is medunet's typed error."""

    # MLflow's server would put the request's data before it, which may be a whole volume
    message = property(lambda self: self.args[0], lambda self, text: None)

    def __init__(self, line: str) -> None:
        super().__init__(line, error_code=INVALID_PARAMETER_VALUE)


class BundleModel(PythonModel):
    """Predicts label maps with a bundle.

    An image is a path that this machine can read (a file, or the folder of a DICOM series), a list of paths (one per
    channel), or an array ``(C, *spatial)`` or ``(*spatial)``; an array of pixels is ``(x, y)``. A volume as an array
    needs its geometry in `params`: ``affine``, 16 numbers row by row, from voxel indices to RAS millimetres. A 2D
    image can have ``spacing_mm``, two numbers.

    The result is an array ``(*spatial)`` with the label values of the data set, on the grid of the image: what
    ``medunet predict`` writes. The serving endpoint takes ``{"inputs": [IMAGE, ...], "params": {...}}``.

    An untrusted bundle is rejected unless this user has trusted it before, or ``MEDUNET_TRUST`` in the environment has
    its hash, which the message names.

    Examples::

        model = mlflow.pyfunc.load_model("models:/NAME/1")
        model.predict(["a.nii.gz", "b.nii.gz"])  # a list of arrays
        model.predict(array, params={"affine": affine.ravel().tolist()})  # an array
    """

    def load_context(self, context: Any) -> None:
        """Load the bundle beside the model; raise a SecurityError if it is not trusted."""
        self._lock = threading.Lock()  # a server may ask from several threads
        self.predictor = Predictor(context.artifacts["bundle"], device=os.environ.get(DEVICE_VARIABLE, "auto"))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        """Return a label map for an image, or a list of them for a list of images.

        Args:
            context: context of MLflow.
            model_input: an image or a list of images; MLflow infers no schema from this type hint.
            params: ``affine`` or ``spacing_mm`` of arrays.

        Raises:
            UnusableImageError: an image cannot be read, does not fit or lacks its geometry.
        """
        given: Any = model_input
        try:
            affine = self._affine(params or {})
            if isinstance(given, str | os.PathLike | np.ndarray | torch.Tensor):
                return self._predict_one(given, affine)
            images = given.iloc[:, 0].tolist() if isinstance(given, pandas.DataFrame) else given
            return [self._predict_one(image, affine) for image in images]
        except Exception as failure:
            cause = find_cause(failure)
            if cause is None:
                raise
            raise UnusableImageError(str(cause)) from cause

    def _predict_one(self, image: Any, affine: npt.NDArray[np.float64] | None) -> np.ndarray:
        is_paths = isinstance(image, list | tuple) and image and all(isinstance(part, str) for part in image)
        with self._lock:
            if isinstance(image, str | os.PathLike) or is_paths:
                item = self.predictor.decide(image)
            elif affine is None and self.predictor.needs_affine:
                raise GeometryError(
                    "an array needs its affine: spacing and orientation decide the result",
                    expected="params={'affine': [16 numbers, row by row]}, from voxel indices to RAS millimetres",
                )
            else:
                array = np.asarray(image)
                array = array[None] if array.ndim == self.predictor.spatial_dims else array
                item = self.predictor.decide_array(array, affine=affine)
        return np.asarray(torch.as_tensor(item["pred"]))[0].astype(LABEL_TYPE)

    def _affine(self, params: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
        numbers, spacing = ([float(value) for value in params.get(key) or ()] for key in ("affine", "spacing_mm"))
        if numbers and spacing:
            raise GeometryError("give affine or spacing_mm, not both")
        if len(numbers) not in (0, 16):
            raise GeometryError("affine must have 16 numbers, row by row", received=len(numbers))
        if spacing and (self.predictor.spatial_dims, len(spacing)) != (2, 2):
            cause = "spacing_mm must have two numbers and is for 2D images; a volume also has an orientation"
            raise GeometryError(cause, received=spacing)
        if spacing:
            return np.diag([*spacing, 1.0, 1.0])
        return np.reshape(numbers, (4, 4)) if numbers else None


def save_model(bundle: Path, folder: Path, **options: Any) -> None:
    """Write the MLflow model of a copied bundle into a new folder; `options` are those of MLflow's `save_model`."""
    shape = (-1,) * read_json(bundle / "configs" / "inference.json")["spatial_dims"]
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType())]),
        outputs=Schema([TensorSpec(np.dtype(LABEL_TYPE), shape)]),
        params=ParamSchema([ParamSpec(key, DataType.double, [], shape=(-1,)) for key in ("affine", "spacing_mm")]),
    )
    # MLflow's schemas are for columns or for arrays: this one only describes the model, which checks images itself
    signature._is_signature_from_type_hint = True
    code = bundle.with_name("model_code.py")  # MLflow stores its path, which must not be that of the installation
    code.write_text(CODE, encoding="utf-8")
    # MLflow would otherwise load the model in another process to find the requirements
    requirements = [f"{name}=={version}" for name, version in {"medunet": medunet.__version__, **versions()}.items()]
    pyfunc.save_model(
        str(folder),
        python_model=str(code),
        artifacts={"bundle": str(bundle)},
        signature=signature,
        input_example=EXAMPLE,
        pip_requirements=requirements,
        **options,
    )


def log_model(bundle: Path, *, client: MlflowClient, run_id: str, name: str, time: int | None) -> None:
    """Log a copied bundle as a run's model, unless there is one, and register it by name, unless the name is empty."""
    run = client.get_run(run_id)
    known = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'")
    ready = [model for model in known if str(model.status) == str(LoggedModelStatus.READY)]
    model = ready[0] if ready else _upload(bundle, client, run, time)
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


def model_name(text: str) -> str:
    """Return a name that a registry accepts, such as ``runs_a_b`` for ``runs: a/b``."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_") or "medunet"


def _upload(bundle: Path, client: MlflowClient, run: Run, time: int | None) -> LoggedModel:
    """Log a model as MLflow's `log_model` does, but to the store of this client instead of the process's one."""
    run_id, folder = run.info.run_id, bundle.with_name("model")
    model = client.create_logged_model(
        run.info.experiment_id, name=ARTIFACT, source_run_id=run_id, params=run.data.params
    )
    ids = {"model_uuid": model.model_id, "model_id": model.model_id, "run_id": run_id}
    save_model(bundle, folder, mlflow_model=Model(artifact_path=model.artifact_location, **ids))
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    epoch = int(run.data.metrics.get(f"{KEPT}epoch", 0))
    for key, value in run.data.metrics.items():
        if key.startswith(KEPT):  # the others are those of the last epoch, whose weights the model need not have
            client.log_metric(run_id, key.removeprefix(KEPT), value, time, epoch, model_id=model.model_id)
    return model
