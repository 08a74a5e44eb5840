"""One entry point for labels: label maps, `.seg.nrrd`, DICOM SEG and RTSTRUCT become a label map on an image's grid."""

import logging
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
from medunet.transforms.tensors import like

from .dicom.references import RTSTRUCT_CLASS, SEG_CLASSES, storage_class
from .dicom.rtstruct import read_regions
from .dicom.seg import read_segments
from .dicom.tags import typed_errors
from .itk import SEG_NRRD_SUFFIX, read_seg_nrrd
from .limits import require_reachable, system_errors
from .nifti import NIFTI_SUFFIXES
from .objects import object_numbers, read_classes
from .reader import PathLike, Volume, metadata, read_header, read_volume
from .record import ReadRecord
from .structures import number_structures, paint_structures
from .writer import nifti_labels

logger = logging.getLogger(__name__)

_DAMAGED = "structures are damaged"
_KINDS = {**dict.fromkeys(SEG_CLASSES, "dicom-seg"), RTSTRUCT_CLASS: "rtstruct"}
_READERS = {"dicom-seg": read_segments, "rtstruct": read_regions, "seg.nrrd": read_seg_nrrd}


def read_label(path: PathLike, *, reference: PathLike | Geometry, labels: Mapping[str, int] | None = None) -> Volume:
    """Read a label map on the grid of its image, from any format.

    Args:
        path: a label map in any format of `read_volume`; a `.seg.nrrd`, a DICOM SEG or an RTSTRUCT file; or a folder
            with one such DICOM file.
        reference: the image, or its grid. A label map must lie on it; segments may cover a part of it, mirrored or with
            permuted axes; contours may lie anywhere in the planes of its slices.
        labels: value by name, for the formats with names; the value 0 and the name 'background' mean that no structure
            covers a voxel. None numbers the structures as the file does.

    Returns:
        ``Volume(image, record)``, image ``(1, *spatial)``; ``image.meta["labels"]`` has values by name if the file has
        names, and ``record.warnings`` what was left out.

    Raises:
        DataError: unreadable, or none of the labels is in it.
        GeometryError: it does not lie on the reference.
    """
    if isinstance(reference, Geometry):
        return _read(Path(path), reference, labels, placed=True)
    record = read_header(reference)
    return _read(Path(path), record.geometry, labels, placed=record.is_placed)


def _read(path: Path, grid: Geometry, labels: Mapping[str, int] | None, *, placed: bool) -> Volume:
    """Read as `read_label` does; an image that is not `placed` in a patient shares only its shape with the label."""
    file, kind = _structure_file(path)
    with typed_errors(_DAMAGED, file):
        structures = _READERS[kind](file) if kind else []
    if not structures:  # voxels with values, which a NIfTI may name
        volume = read_volume(file, spatial_dims=2 if len(grid.shape) == 2 else None)
        own = volume.record.geometry
        if not (own.is_close(grid) if placed and volume.record.is_placed else own.shape == grid.shape):
            raise GeometryError("label does not lie on the image's grid", file=file, received=own, expected=grid)
        if names := _nifti_labels(file):
            volume.image.meta["labels"] = names
        return volume
    is_slice = placed and len(grid.shape) == 2  # a 2D image that is placed in a patient
    canvas = Geometry(grid.affine, (*grid.shape, 1)) if is_slice else grid
    with typed_errors(_DAMAGED, file):
        voxels, names, warnings = paint_structures(structures, canvas, labels=labels, file=file)
    record = ReadRecord(path=file, format=kind or "", geometry=grid, dtype="uint8", warnings=warnings)
    meta = {**metadata(record, [file]), "labels": names}
    affine = torch.as_tensor(meta.pop("affine"))
    return Volume(MetaTensor(torch.as_tensor(voxels.reshape(1, *grid.shape)), affine=affine, meta=meta), record)


def label_names(path: PathLike) -> dict[str, int] | None:
    """Return values by name as `read_label` does without `labels`, from the header; None if the file has no names."""
    file, kind = _structure_file(Path(path))
    with typed_errors(_DAMAGED, file):
        if kind and (structures := _READERS[kind](file)):
            return number_structures(structures)
    return _nifti_labels(file)


def is_structure_file(path: PathLike) -> bool:
    """Return whether a file is a DICOM SEG, an RTSTRUCT or a `.seg.nrrd`, or a folder has one such DICOM file."""
    try:
        return _structure_file(Path(path))[1] is not None
    except DataError:
        return False


class LoadLabeld(MapTransform):
    """Read labels on the grid of their image: the step after `LoadImaged` of the image alone.

    DICOM SEG and RTSTRUCT are meaningless without the image, so `LoadImaged`, which reads every key by itself, cannot
    read them.

    Args:
        keys: paths of labels, replaced by ``(1, *spatial)`` tensors; ``(2, *spatial)`` for objects of several classes.
        reference_key: the image as read, before its grid changes.
        labels: value by name, for the formats with names; None numbers the structures as the file does.
        instances: the labels number objects, as int32. If `labels` has several classes, a second channel has the class
            index of each object in the order of `labels`, from the class map or table under ``classes``.

    Raises:
        DataError: unreadable, none of the labels is in it, the image has no grid, or an object without a single class.
        GeometryError: it does not lie on the image's grid.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        *,
        reference_key: str = "image",
        labels: Mapping[str, int] | None = None,
        instances: bool = False,
    ) -> None:
        super().__init__(keys)
        self.reference_key = reference_key
        self.labels = None if labels is None else dict(labels)
        self.instances = instances

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the labels of one item."""
        item = dict(data)
        image = item[self.reference_key]
        if not isinstance(image, MetaTensor):
            raise DataError(f"'{self.reference_key}' has no grid", expected="a MetaTensor of LoadImaged")
        grid = Geometry(image.affine.numpy(), tuple(image.shape[1:]))
        for key in self.key_iterator(item):
            volume = _read(Path(item[key]), grid, self.labels, placed=bool(image.meta.get("is_placed", True)))
            for warning in volume.record.warnings:
                logger.warning("%s: %s", volume.record.path, warning)
            volume.image.meta.pop("labels", None)  # only some files have names, and batches need equal metadata
            item[key] = self._objects(volume, item) if self.instances else volume.image
        return item

    def _objects(self, volume: Volume, item: dict[Hashable, Any]) -> torch.Tensor:
        """Return object numbers and, for several classes, class indices as a second channel."""
        numbers = object_numbers(volume.image.numpy(), volume.record.path)
        source = item.pop("classes", None)
        if source is not None and self.labels is not None and len(self.labels) > 2:
            classes = read_classes(numbers, Path(source), self.labels, case=str(item.get("name", "")))
            numbers = np.concatenate([numbers, classes])
        return like(torch.as_tensor(numbers), volume.image)


def _structure_file(path: Path) -> tuple[Path, str | None]:
    """Return the file with structures and its format; other paths as they are."""
    require_reachable(path)
    with system_errors(path):
        if not path.is_dir():
            return path, "seg.nrrd" if path.name.lower().endswith(SEG_NRRD_SUFFIX) else _KINDS.get(storage_class(path))
        files = [file for file in sorted(path.iterdir()) if file.is_file()]
        formats = {file: kind for file in files if (kind := _KINDS.get(storage_class(file)))}
    if len(formats) > 1:
        received = ", ".join(file.name for file in formats)
        raise DataError("folder contains several segmentations", file=path, received=received)
    return next(iter(formats.items()), (path, None))


def _nifti_labels(path: Path) -> dict[str, int] | None:
    with typed_errors(_DAMAGED, path):
        return nifti_labels(path) if path.name.lower().endswith(NIFTI_SUFFIXES) else None
