"""A trained bundle in memory, and its predictions."""

import base64
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medunet.errors import ConfigError, MedunetError
from medunet.io import read_volume
from medunet.io.object_table import object_table
from medunet.io.reader import PathLike
from medunet.notebook import Shown, Table
from medunet.prediction import PredictOptions, Predictor
from medunet.reports import render_objects, render_overlay

Image = npt.ArrayLike | torch.Tensor | PathLike | Sequence[PathLike]


@dataclass(frozen=True, repr=False)
class Segmentation(Shown):
    """The prediction for one image. A notebook shows its outlines on the image, and volumes and objects by class.

    Args:
        labels: label map `(*spatial)` on the grid of the image, with the data set's label values or object numbers.
        affine: 4x4, from voxel indices to RAS millimetres.
        classes: name of each label value.
        probabilities: `(class, *spatial)`, or None if they were not requested.
        regions: label values that each region unites; empty if classes do not overlap.
        image: the image as it was given, an array or paths; only the picture needs it.
        object_classes: label value by object number, 0 for the background; None if `labels` has label values.
    """

    labels: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    classes: Mapping[str, int]
    probabilities: npt.NDArray[np.float32] | None = None
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    image: Image | None = None
    object_classes: npt.NDArray[Any] | None = None

    @property
    def volumes_mm3(self) -> dict[str, float]:
        """Volume of each class or region in mm³ (area in mm² for 2D images), without the background."""
        size = math.prod(self._spacing)
        voxels = self.labels if self.object_classes is None else self.object_classes[self.labels]
        return {name: size * int(np.isin(voxels, values).sum()) for name, values in self._values.items()}

    @property
    def objects(self) -> dict[str, npt.NDArray[Any]]:
        """Columns of a table with one row per object, as in `CASE_objects.csv` without intensity and confidence.

        They are `id`, `class`, `area_px`, `area_mm2` or `volume_mm3`, centroid and bounding box in voxels. Without
        objects in the bundle there are no columns.
        """
        if self.object_classes is None:
            return {}
        names = {value: name for name, value in self.classes.items()}
        classes = {number: names[value] for number, value in enumerate(self.object_classes.tolist())}
        is_picture = self.labels.ndim == 2 and np.array_equal(self.affine, np.eye(4))
        return object_table(self.labels, spacing_mm=None if is_picture else self._spacing, classes=classes)

    def picture(self) -> bytes:
        """Draw the outlines on the image as PNG: in 3D, three planes with most foreground."""
        try:
            paths = _paths(self.image)
            return self._draw(self.image if paths is None else read_volume(paths).image)
        except MedunetError:  # the file has moved, or has another grid
            return self._draw(np.zeros(self.labels.shape))

    def _draw(self, image: Any) -> bytes:
        grid: dict[str, Any] = {"spacing_mm": self._spacing, "affine": self.affine}
        if self.object_classes is not None:
            return render_objects(image, self.labels, **grid)
        values: dict[str, Any] = {"background": self.classes.get("background", 0), **self._values}
        return render_overlay(image, self.labels, labels=values, **grid)

    @property
    def _values(self) -> dict[str, Sequence[int]]:
        return dict(self.regions) or {name: [value] for name, value in self.classes.items() if value}

    @property
    def _spacing(self) -> list[float]:
        return [float(n) for n in np.linalg.norm(self.affine[:3, :3], axis=0)[: self.labels.ndim]]

    def _table(self) -> Table:
        unit = "mm³" if self.labels.ndim == 3 else "mm²"
        rows: list[tuple[object, ...]] = [("class", unit), *self.volumes_mm3.items()]
        if self.object_classes is not None:
            counts = [int((self.object_classes == self.classes[str(name)]).sum()) for name, _ in rows[1:]]
            rows = [(*row, count) for row, count in zip(rows, ("objects", *counts), strict=True)]
        return f"label map {' x '.join(map(str, self.labels.shape))}", rows

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.picture()).decode()
        return (
            f'<img src="data:image/png;base64,{picture}" style="max-width: 60em; width: 100%">{super()._repr_html_()}'
        )


class Model:
    """A trained bundle in memory, made by :func:`load` with the same arguments. Several threads may share it."""

    def __init__(self, run: PathLike, *, probabilities: bool = False, **options: Any) -> None:
        self.predictor = Predictor(run, PredictOptions(probabilities=probabilities, **options))
        self._lock = threading.Lock()
        self._run = run

    def __repr__(self) -> str:
        classes = ", ".join(f"{name}={value}" for name, value in self.classes.items())
        channels, axes = self.predictor.channels, self.predictor.spatial_dims
        return f"Model({str(self._run)!r}): {axes}D, {channels} channels, {self.predictor.device}, {classes}"

    @property
    def classes(self) -> dict[str, int]:
        """Name and value of each class, the background included."""
        return self.predictor.classes

    def predict(self, image: Image, *, affine: npt.ArrayLike | None = None) -> Segmentation:
        """Segment one image without writing a file.

        Args:
            image: a path, one path per channel, or an array or tensor `(C, *spatial)`; `(*spatial)` for one channel.
            affine: 4x4, from voxel indices to RAS millimetres, such as nibabel's `affine`; for arrays only.

        Raises:
            GeometryError: no affine for a volume, an invalid one, or an array with other channels or axes.
            DataError: the file cannot be read, or the array has no numbers.
            ConfigError: an affine for a file.
        """
        paths = _paths(image)
        if paths is not None and affine is not None:
            raise ConfigError("affine is for arrays; a file has its own", received=image)
        with self._lock:
            if paths is not None:
                item = self.predictor.decide(paths if len(paths) > 1 else paths[0])
            else:
                array: Any = image if isinstance(image, torch.Tensor) else np.asarray(image)
                array = array[None] if array.ndim == self.predictor.spatial_dims else array
                item = self.predictor.decide_array(array, affine=affine)
        labels, objects = item["pred"], item.get("object_classes")
        probabilities = item.get("prob") if self.predictor.options.probabilities else None
        return Segmentation(
            labels=np.asarray(labels.numpy() if isinstance(labels, torch.Tensor) else labels)[0],
            affine=np.asarray(getattr(labels, "affine", np.eye(4)), dtype=np.float64),
            classes=self.classes,
            probabilities=None if probabilities is None else np.asarray(probabilities),
            regions=self.predictor.regions,
            image=image,
            object_classes=None if objects is None else np.array(list(self.classes.values()))[objects],
        )


def load(run: PathLike, *, probabilities: bool = False, **options: Any) -> Model:
    """Load a trained bundle for repeated prediction in memory.

    Args:
        run: folder of a run or of a bundle with weights.
        probabilities: also return class probabilities.
        **options: fields of :class:`medunet.prediction.PredictOptions`, such as `device="cuda:1"`.

    Raises:
        SecurityError: the bundle is not trusted.
        DataError: no weights.
    """
    return Model(run, probabilities=probabilities, **options)


def _paths(image: object) -> tuple[Path, ...] | None:
    """Return an image's paths; None for an array."""
    if isinstance(image, str | os.PathLike):
        return (Path(image),)
    if isinstance(image, list | tuple) and image and all(isinstance(path, str | os.PathLike) for path in image):
        return tuple(map(Path, image))
    return None
