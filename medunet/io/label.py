"""One door for labels: maps of voxels, `.seg.nrrd`, DICOM SEG and RTSTRUCT become a label map on an image's grid."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from medunet.errors import DataError, GeometryError, MedunetError
from medunet.geometry import Geometry

from .dicom.references import RTSTRUCT_CLASS, SEG_CLASSES, storage_class
from .dicom.rtstruct import read_regions
from .dicom.seg import read_segments
from .limits import require_reachable, system_errors
from .names import output_name
from .nifti import NIFTI_SUFFIXES
from .nrrd import SEG_NRRD_SUFFIX, read_seg_nrrd
from .reader import Volume, read_header, read_volume
from .record import ReadRecord
from .structures import number_structures, paint_structures
from .writer import parse_label_names

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

StructureFormat = Literal["dicom-seg", "rtstruct", "seg.nrrd"]

_READERS = {"dicom-seg": read_segments, "rtstruct": read_regions, "seg.nrrd": read_seg_nrrd}


def read_label(path: PathLike, *, reference: PathLike | Geometry, labels: Mapping[str, int] | None = None) -> Volume:
    """Read a label map on the grid of its image, whatever it is kept in.

    Args:
        path: a label map in any format of `read_volume`; a `.seg.nrrd`, a DICOM SEG or an RTSTRUCT file; or a folder
            with one such DICOM file.
        reference: the image, or its grid. A label map must lie on it; segments may lie on a part of it, mirrored or
            with exchanged axes; contours anywhere in the planes of its slices.
        labels: name to value, for the formats that keep names; the value 0 and the name 'background' are what no
            structure covers. None numbers the structures as the file does.

    Returns:
        ``Volume(image, record)``, image ``(1, *spatial)``; ``image.meta["labels"]`` has name to value where the file
        keeps names, and ``record.warnings`` what was left out.

    Raises:
        DataError: unreadable, or none of the labels is in it.
        GeometryError: it does not lie on the reference.
    """
    if isinstance(reference, Geometry):
        return _read(Path(path), reference, labels, placed=True)
    record = read_header(reference)
    return _read(Path(path), record.geometry, labels, placed=record.is_placed)


def _read(path: Path, grid: Geometry, labels: Mapping[str, int] | None, *, placed: bool) -> Volume:
    """As `read_label`; an image that is not `placed` in a patient shares its shape with the label and no more."""
    file, kind = _structure_file(path)
    with _refused_if_damaged(file):
        structures = _READERS[kind](file) if kind else []
    if not structures:  # voxels with values, which a NIfTI may name
        volume = read_volume(file, spatial_dims=2 if len(grid.shape) == 2 else None)
        placed = placed and volume.record.is_placed
        _check_grid(volume.record.geometry, grid, file, placed=placed)
        if names := _nifti_labels(file):
            volume.image.meta["labels"] = names
        return volume
    is_slice = placed and len(grid.shape) == 2  # an image in the plane that lies in a patient
    canvas = Geometry(grid.affine, (*grid.shape, 1)) if is_slice else grid
    with _refused_if_damaged(file):
        voxels, names, warnings = paint_structures(structures, canvas, labels=labels, file=file)
    voxels = voxels.reshape(grid.shape)
    meta = {
        "original_affine": np.array(grid.affine),
        "spatial_shape": np.array(grid.shape),
        "original_channel_dim": float("nan"),
        "space": "RAS",
        "filename_or_obj": str(file),
        "name": output_name(file),
        "labels": names,
    }
    record = ReadRecord(path=file, format=str(kind), geometry=grid, dtype="uint8", warnings=warnings)
    return Volume(MetaTensor(torch.as_tensor(voxels[None]), affine=torch.tensor(grid.affine), meta=meta), record)


def label_names(path: PathLike) -> dict[str, int] | None:
    """Name to value as `read_label` would give them without `labels`, from the header; None where none are kept.

    Raises:
        DataError: unreadable.
    """
    file, kind = _structure_file(Path(path))
    with _refused_if_damaged(file):
        if kind and (structures := _READERS[kind](file)):
            return number_structures(structures)
    return _nifti_labels(file)


@contextmanager
def _refused_if_damaged(file: Path) -> Iterator[None]:
    """Structures are read item by item, and each item may be of any type where bytes were changed."""
    try:
        yield
    except MedunetError:
        raise
    except Exception as error:
        raise DataError(
            f"structures are damaged: {type(error).__name__}", file=file, remedy="export it again"
        ) from error


def is_structure_file(path: PathLike) -> bool:
    """Whether a file is a DICOM SEG, an RTSTRUCT or a `.seg.nrrd`, or a folder holds one DICOM file of these."""
    try:
        return _structure_file(Path(path))[1] is not None
    except DataError:
        return False


class LoadLabeld(MapTransform):
    """Read labels on the grid of their image: the step after `LoadImaged` of the image alone.

    DICOM SEG and RTSTRUCT mean nothing without the image, so that `LoadImaged`, which reads every key by itself, cannot
    read them.

    Args:
        keys: paths of labels, replaced by ``(1, *spatial)`` tensors.
        reference_key: the image as read, before anything changes its grid.
        labels: name to value, as in `read_label`.
        allow_missing_keys: as in MONAI.

    Raises:
        DataError: as `read_label`; or the image does not know its grid.
        GeometryError: as `read_label`.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        *,
        reference_key: str = "image",
        labels: Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.labels = None if labels is None else dict(labels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the labels of one item."""
        item = dict(data)
        image = item[self.reference_key]
        if not isinstance(image, MetaTensor):
            raise DataError(f"'{self.reference_key}' does not know its grid", expected="a MetaTensor of LoadImaged")
        grid = Geometry(image.affine.numpy(), tuple(image.shape[1:]))
        placed = bool(image.meta.get("is_placed", True))
        for key in self.key_iterator(item):
            volume = _read(Path(item[key]), grid, self.labels, placed=placed)
            for warning in volume.record.warnings:
                logger.warning("%s: %s", volume.record.path, warning)
            volume.image.meta.pop("labels", None)  # only some files keep names, and batches need equal meta data
            item[key] = volume.image
        return item


def _structure_file(path: Path) -> tuple[Path, StructureFormat | None]:
    """The file that holds structures and its format; other paths as they are."""
    require_reachable(path)
    with system_errors(path):
        if not path.is_dir():
            return path, "seg.nrrd" if path.name.lower().endswith(SEG_NRRD_SUFFIX) else _dicom_kind(path)
        kinds = {file: kind for file in sorted(path.iterdir()) if file.is_file() and (kind := _dicom_kind(file))}
    if len(kinds) > 1:
        raise DataError(
            "folder holds several segmentations",
            file=path,
            received=", ".join(file.name for file in kinds),
            remedy="give one of the files",
        )
    return next(iter(kinds.items()), (path, None))


def _dicom_kind(path: Path) -> StructureFormat | None:
    sop_class = storage_class(path)
    if sop_class in SEG_CLASSES:
        return "dicom-seg"
    return "rtstruct" if sop_class == RTSTRUCT_CLASS else None


def _nifti_labels(path: Path) -> dict[str, int] | None:
    if not path.name.lower().endswith(NIFTI_SUFFIXES):
        return None
    with _refused_if_damaged(path):
        for extension in nib.load(path).header.extensions:
            content = extension.get_content()
            if names := parse_label_names(content if isinstance(content, bytes) else str(content).encode()):
                return names
    return None


def _check_grid(found: Geometry, expected: Geometry, file: Path, *, placed: bool) -> None:
    if not (found.is_close(expected) if placed else found.shape == expected.shape):
        raise GeometryError(
            "label does not lie on the image's grid",
            file=file,
            received=found,
            expected=expected,
            remedy="resample the label onto its image",
        )
