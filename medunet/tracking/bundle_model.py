"""A bundle as an MLflow model: images in, label maps out, over HTTP too."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from monai.data import MetaTensor

from medunet.errors import DataError, GeometryError
from medunet.prediction import Predictor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns about its own type hints
    from mlflow.pyfunc import PythonModel

DEVICE_VARIABLE = "MEDUNET_DEVICE"
"""Environment: where a served model runs; ``auto`` by default."""

LABEL_TYPE = np.int32
"""Of the label maps."""


class BundleModel(PythonModel):
    """Predicts label maps with a bundle.

    An image is a path that this machine can read (a file, or the folder of a DICOM series), a list of paths (one a
    channel), or an array ``(C, *spatial)`` or ``(*spatial)``. An array knows no geometry: it is taken to lie on the
    grid of the network (axes in RAS order, the bundle's spacing) unless ``params={"spacing_mm": [...]}`` is given.

    The answer is an array ``(*spatial)`` with the label values of the data set, on the grid of the image: what
    ``medunet predict`` writes.

    A bundle that could run code of its own is refused, unless this user has trusted it before, or ``MEDUNET_TRUST`` in
    the environment has its hash, which the refusal names: see :func:`medunet.trust.judge`.

    Example::

        model = mlflow.pyfunc.load_model("models:/NAME/1")
        model.predict("scan.nii.gz")  # an array
        model.predict(["a.nii.gz", array])  # a list of arrays
    """

    def load_context(self, context: Any) -> None:
        """Load the bundle that lies beside the model.

        Raises:
            SecurityError: it is not trusted; nothing of it was run.
        """
        self._folder = tempfile.mkdtemp(prefix="medunet-")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._lock = threading.Lock()  # a server may ask from several threads
        self.predictor = Predictor(
            Path(context.artifacts["bundle"]),
            output_dir=Path(self._folder),
            device=os.environ.get(DEVICE_VARIABLE, "auto"),
            overwrite=True,
        )

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> Any:
        """Label maps: one for one image, a list for a list of images.

        Args:
            context: MLflow's.
            model_input: an image or a list of images; the type hint is one of those from which MLflow infers nothing.
            params: `spacing_mm` of arrays.

        Raises:
            MedunetError: an image that cannot be read or does not fit.
        """
        spacing = (params or {}).get("spacing_mm")
        given: Any = model_input
        if isinstance(given, str | os.PathLike | np.ndarray | torch.Tensor):
            return self._one(given, spacing)
        images = given.iloc[:, 0].tolist() if isinstance(given, pandas.DataFrame) else given
        return [self._one(image, spacing) for image in images]

    def _one(self, image: Any, spacing_mm: Sequence[float] | None) -> np.ndarray:
        is_paths = isinstance(image, list | tuple) and image and all(isinstance(part, str) for part in image)
        with self._lock:
            if isinstance(image, str | os.PathLike):
                item = self.predictor.decide(Path(image))
            elif is_paths:
                item = self.predictor.decide([Path(part) for part in image])
            else:
                item = self.predictor.decide_array(self._as_volume(image, spacing_mm))
        return np.asarray(torch.as_tensor(item["pred"]))[0].astype(LABEL_TYPE)

    def _as_volume(self, image: Any, spacing_mm: Sequence[float] | None) -> MetaTensor:
        dims, channels = self.predictor.spatial_dims, self.predictor.channels
        try:
            array = np.asarray(image, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DataError(
                "an image is neither a path nor an array of numbers", received=type(image).__name__
            ) from error
        if array.ndim == dims:
            array = array[None]
        if array.ndim != dims + 1 or array.shape[0] != channels:
            raise GeometryError(
                "array is no image for this bundle", received=array.shape, expected=(channels, *"xyz"[:dims])
            )
        spacing = self.predictor.spacing_mm if not spacing_mm else tuple(float(value) for value in spacing_mm)
        if len(spacing) != dims or not all(np.isfinite(spacing)) or min(spacing) <= 0:
            raise GeometryError("impossible spacing_mm", received=spacing_mm, expected=f"{dims} positive numbers")
        affine = torch.from_numpy(np.diag([*spacing, *([1.0] * (3 - dims)), 1.0]))
        volume = MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=affine)
        volume.meta |= {"original_affine": affine.clone(), "spatial_shape": np.array(array.shape[1:])}  # as if read
        return volume


def signature(spatial_dims: int) -> ModelSignature:
    """What a model takes and gives: anything that :class:`BundleModel` knows as an image, and a label map.

    A schema of MLflow is for columns of scalars or for arrays of one shape, not for paths as well as arrays; marked as
    one that follows from type hints it describes the model, and checking is left to the model.
    """
    found = ModelSignature(
        inputs=Schema([ColSpec(AnyType())]),
        outputs=Schema([TensorSpec(np.dtype(LABEL_TYPE), (-1,) * spatial_dims)]),
        params=ParamSchema([ParamSpec("spacing_mm", DataType.double, [], shape=(-1,))]),
    )
    found._is_signature_from_type_hint = True
    return found
