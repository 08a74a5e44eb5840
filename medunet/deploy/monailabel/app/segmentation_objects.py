"""DICOM SEG of MONAI Label, with each label under its own name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monailabel.datastore import dicom
from monailabel.datastore.utils import convert
from monailabel.endpoints import infer

from medunet.deploy.monailabel.served import ServedBundle, order_label_info
from medunet.errors import DataError
from medunet.io import read_volume
from medunet.io.segments import Segment

_segments: list[Segment] = []
"""Of all bundles that are served; a name's first."""


def know(bundles: Sequence[ServedBundle]) -> None:
    """Take names, colours and codes from these bundles."""
    _segments.clear()
    _segments.extend(segment for bundle in bundles for segment in bundle.segments)


def make_dicom_seg(
    series_dir: str,
    label: str,
    label_info: Sequence[Mapping[str, Any]] | None,
    file_ext: str = "*",
    use_itk: bool = True,
) -> str:
    """As MONAI Label's function of the same arguments, by dcmqi.

    Raises:
        DataError: an empty mask, which a DICOM SEG cannot be of, or dcmqi refused it.
    """
    present = sorted({int(value) for value in np.unique(read_volume(label).image.numpy())} - {0})
    if not present:
        raise DataError("the segmentation is empty, and a DICOM SEG cannot be", remedy="ask for the output `image`")
    named = {str(info.get("name")) for info in label_info or ()}
    # of several bundles with one value, the one whose names the client speaks of
    segments = sorted(_segments, key=lambda segment: segment.name in named)
    path: str = convert.nifti_to_dicom_seg(
        series_dir, label, order_label_info(present, segments, label_info), file_ext, use_itk=True
    )
    if not path:
        raise DataError("dcmqi could not write the DICOM SEG", file=series_dir)
    return path


def use_own_names() -> None:
    """Put :func:`make_dicom_seg` where MONAI Label calls its own."""
    infer.nifti_to_dicom_seg = make_dicom_seg
    dicom.nifti_to_dicom_seg = make_dicom_seg
