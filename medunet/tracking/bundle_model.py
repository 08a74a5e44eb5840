"""A bundle as an MLflow model: images in, label maps out, over HTTP too."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType

from medunet.errors import GeometryError, find_cause
from medunet.prediction import Predictor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns about its own type hints
    from mlflow.pyfunc import PythonModel

DEVICE_VARIABLE = "MEDUNET_DEVICE"
"""Environment: where a served model runs; ``auto`` by default."""

LABEL_TYPE = np.int32
"""Of the label maps."""

EXAMPLE = ["scan.nii.gz"]
"""Input that MLflow shows with the model; the serving endpoint takes it as ``{"inputs": ["scan.nii.gz"]}``."""


class UnusableImageError(MlflowException):
    """One line about an image that cannot be predicted; its cause is medunet's typed error."""

    def __init__(self, line: str) -> None:
        self._line = line
        super().__init__(line, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The line alone: MLflow's server would put the request's data before it, which may be a whole volume."""
        return self._line

    @message.setter
    def message(self, text: str) -> None:
        pass


class BundleModel(PythonModel):
    """Predicts label maps with a bundle.

    An image is a path that this machine can read (a file, or the folder of a DICOM series), a list of paths (one per
    channel), or an array ``(C, *spatial)`` or ``(*spatial)``, of a picture ``(x, y)``. An array needs its geometry in
    `params`: ``affine``, 16 numbers row by row, from voxel indices to RAS millimetres. A picture needs at most
    ``spacing_mm``, two numbers.

    The answer is an array ``(*spatial)`` with the label values of the data set, on the grid of the image: what
    ``medunet predict`` writes.

    The serving endpoint takes ``{"inputs": [IMAGE, ...], "params": {...}}``. MLflow rejects its other formats
    (``instances``, ``dataframe_split``, ``dataframe_records``) for models whose input is not a table.

    An untrusted bundle is rejected unless this user has trusted it before, or ``MEDUNET_TRUST`` in the environment has
    its hash, which the message names: see :func:`medunet.trust.judge`.

    Example::

        model = mlflow.pyfunc.load_model("models:/NAME/1")
        model.predict("scan.nii.gz")  # an array
        model.predict(["a.nii.gz", "b.nii.gz"])  # a list of arrays
        model.predict(array, params={"affine": affine.ravel().tolist()})
    """

    def load_context(self, context: Any) -> None:
        """Load the bundle that lies beside the model.

        Raises:
            SecurityError: it is not trusted; nothing of it was run.
        """
        self._lock = threading.Lock()  # a server may ask from several threads
        self.predictor = Predictor(context.artifacts["bundle"], device=os.environ.get(DEVICE_VARIABLE, "auto"))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        """Return label maps: one for one image, a list for a list of images.

        Args:
            context: MLflow's.
            model_input: an image or a list of images; the type hint is one of those from which MLflow infers nothing.
            params: `affine` or `spacing_mm` of arrays.

        Raises:
            UnusableImageError: an image cannot be read, does not fit or lacks its geometry.
        """
        given: Any = model_input
        try:
            affine = self._affine(params or {})
            if isinstance(given, str | os.PathLike | np.ndarray | torch.Tensor):
                return self._one(given, affine)
            images = given.iloc[:, 0].tolist() if isinstance(given, pandas.DataFrame) else given
            return [self._one(image, affine) for image in images]
        except Exception as failure:
            cause = find_cause(failure)
            if cause is None:
                raise
            raise UnusableImageError(str(cause)) from cause

    def _one(self, image: Any, affine: npt.NDArray[np.float64] | None) -> np.ndarray:
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
        if numbers:
            if len(numbers) != 16:
                raise GeometryError("affine must have 16 numbers, row by row", received=len(numbers))
            return np.reshape(numbers, (4, 4))
        if not spacing:
            return None
        if self.predictor.spatial_dims != 2 or len(spacing) != 2:
            raise GeometryError(
                "spacing_mm must have two numbers and is for images in the plane; a volume also has an orientation",
                received=spacing,
                expected=f"{'spacing_mm' if self.predictor.spatial_dims == 2 else 'affine'}",
            )
        return np.diag([*spacing, 1.0, 1.0])


def signature(spatial_dims: int) -> ModelSignature:
    """Return what a model takes and gives: anything that :class:`BundleModel` knows as an image, and a label map.

    A schema of MLflow is for columns of scalars or for arrays of one shape, not for paths as well as arrays. Marked as
    derived from type hints, it describes the model, and checking is left to the model.
    """
    found = ModelSignature(
        inputs=Schema([ColSpec(AnyType())]),
        outputs=Schema([TensorSpec(np.dtype(LABEL_TYPE), (-1,) * spatial_dims)]),
        params=ParamSchema([ParamSpec(key, DataType.double, [], shape=(-1,)) for key in ("affine", "spacing_mm")]),
    )
    found._is_signature_from_type_hint = True
    return found
