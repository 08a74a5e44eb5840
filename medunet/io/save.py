"""The last transform of a bundle: predictions become files that bear their input's name."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medunet.errors import DataError, GeometryError
from medunet.geometry import Geometry

from .names import output_name
from .reader import PathLike
from .writer import label_dtype, result_suffix, write_volume

logger = logging.getLogger(__name__)


class SavePredictiond(MapTransform):
    """Write label maps under their inputs' names, and class probabilities beside them.

    ``hippocampus_001.nii.gz`` becomes ``output_dir/hippocampus_001.nii.gz``, ``em_16.png`` ``em_16.png``; JPEG and BMP
    become PNG (labels must not be blurred), other formats and DICOM series `.nii.gz`. The file lies on the grid of the
    prediction, which must be the one that the input was read on.

    Under ``<key>_path`` the item afterwards holds the path of the file written, a str.

    Args:
        keys: label maps ``(1, *spatial)`` with the values for the file, as after `DecodeLabelsd`.
        output_dir: folder for the files; made when needed.
        source_key: key of the image; its meta data names the file and keeps the original grid. Where it is missing,
            the prediction's own meta data serves.
        name_key: key of the case's name; where it is missing, the name follows from the file's.
        prob_key: key of probabilities ``(C, *spatial)`` to write as ``<name>_prob.nii.gz``, channels last, or in the
            plane as ``<name>_prob.npy`` ``(C, H, W)``; None for none.
        suffix: goes between name and ending, such as ``"_seg"``.
        overwrite: whether existing files may be replaced.
        source_grid: whether a prediction on another grid than the input's is refused.
        allow_missing_keys: as in MONAI.

    Raises:
        DataError: no file name, several channels, or values that are no labels.
        GeometryError: shape or affine unlike the input's.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        output_dir: PathLike,
        source_key: str = "image",
        name_key: str = "name",
        prob_key: str | None = None,
        suffix: str = "",
        overwrite: bool = True,
        source_grid: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.source_key = source_key
        self.name_key = name_key
        self.prob_key = prob_key
        self.suffix = suffix
        self.overwrite = overwrite
        self.source_grid = source_grid

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the files of one item, without batch axis."""
        item = dict(data)
        several = len(self.keys) > 1
        for key in self.key_iterator(item):
            image = item[key]
            meta = self._source_meta(item, image)
            source = os.fspath(meta["filename_or_obj"])
            name = str(item.get(self.name_key) or meta.get("name") or output_name(source)) + self.suffix
            if several:
                name += f"_{key}"
            affine = self._checked_affine(image, meta, source)
            labels = np.asarray(torch.as_tensor(image).detach().cpu())
            if labels.ndim not in (3, 4) or labels.shape[0] != 1:
                raise DataError(
                    "prediction is not a label map", file=source, received=labels.shape, expected="(1, *spatial)"
                )
            labels = labels[0]
            ending = result_suffix(source, spatial_dims=labels.ndim)
            planar = not ending.startswith(".nii")
            path = self.output_dir / (name + ending)
            write_volume(
                labels, path, affine=affine, dtype=label_dtype(labels, planar=planar), overwrite=self.overwrite
            )
            item[f"{key}_path"] = str(path)
            logger.debug("written: %s", path)
            if self.prob_key is not None and self.prob_key in item:
                self._save_probabilities(item[self.prob_key], self.output_dir / f"{name}_prob", affine)
        return item

    def _save_probabilities(self, probabilities: torch.Tensor, stem: Path, affine: torch.Tensor) -> None:
        tensor = torch.as_tensor(probabilities).detach().cpu().float()
        if tensor.ndim == 3:
            write_volume(tensor, stem.with_name(f"{stem.name}.npy"), overwrite=self.overwrite)
        else:
            target = stem.with_name(f"{stem.name}.nii.gz")
            write_volume(tensor.movedim(0, -1), target, affine=affine, overwrite=self.overwrite)

    def _source_meta(self, item: Mapping[Hashable, Any], image: Any) -> Mapping[str, Any]:
        for candidate in (item.get(self.source_key), image):
            if isinstance(candidate, MetaTensor) and candidate.meta.get("filename_or_obj"):
                meta: Mapping[str, Any] = candidate.meta
                return meta
        raise DataError(
            "prediction has no file name in its meta data",
            expected=f"meta data of '{self.source_key}' with filename_or_obj",
            remedy="read it by LoadImaged(reader='medunet.io.MedunetReader')",
        )

    def _checked_affine(self, image: Any, meta: Mapping[str, Any], source: str) -> torch.Tensor:
        original = meta.get("original_affine")
        affine = torch.as_tensor(image.affine if isinstance(image, MetaTensor) else original).to(torch.float64).cpu()
        if affine.shape[-1] == 3:  # MONAI's readers keep 3x3 for images in the plane; ours and files want 4x4
            planar, affine = affine, torch.eye(4, dtype=torch.float64)
            affine[:2, :2], affine[:2, 3] = planar[:2, :2], planar[:2, 2]
        spatial_shape = meta.get("spatial_shape")
        if not self.source_grid or original is None or spatial_shape is None:
            return affine
        shape = tuple(int(n) for n in np.asarray(spatial_shape).ravel())[: image.ndim - 1]
        written = Geometry(affine.numpy(), tuple(image.shape[1:]))
        expected = Geometry(np.asarray(original, dtype=np.float64), shape)
        if not written.is_close(expected):
            raise GeometryError(
                "prediction does not lie on the input's grid",
                file=source,
                received=f"shape {written.shape}, spacing {written.spacing_mm} mm, axes {written.axis_codes}",
                expected=f"shape {shape}, spacing {expected.spacing_mm} mm, axes {expected.axis_codes}",
                remedy="undo the preprocessing with Invertd before saving",
            )
        return affine
