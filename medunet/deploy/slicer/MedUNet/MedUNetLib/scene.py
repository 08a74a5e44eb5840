"""Volumes out of Slicer's scene and segmentations into it, by VTK and MRML; no Qt."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from .nrrd import NrrdVolume


def matrix_to_array(matrix: vtk.vtkMatrix4x4) -> np.ndarray[Any, Any]:
    """A 4x4 matrix of VTK as numpy's."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def array_to_matrix(array: np.ndarray[Any, Any]) -> vtk.vtkMatrix4x4:
    """The way back."""
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, float(array[row, column]))
    return matrix


def read_volume_node(node: Any) -> NrrdVolume:
    """Voxels ``(k, j, i)`` and placement of a scalar volume node; a transform above it is left out.

    Raises:
        ValueError: the node is empty, or has several numbers a voxel.
    """
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        raise ValueError(f"{node.GetName()} holds no image")
    if image.GetNumberOfScalarComponents() != 1:
        raise ValueError(f"{node.GetName()} is no image of single numbers")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    return NrrdVolume(voxels, matrix_to_array(matrix))


def add_volume(scene: Any, volume: NrrdVolume, name: str) -> Any:
    """A new scalar volume node."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    node.SetAndObserveImageData(_image_data(vtk.vtkImageData(), volume.array))
    node.SetIJKToRASMatrix(array_to_matrix(volume.ijk_to_ras))
    return node


def add_segmentation(
    scene: Any, segmentation: NrrdVolume, name: str, *, reference: Any = None, oriented_image: Any
) -> Any:
    """A new segmentation node with a segment for each label that has voxels, named and coloured.

    Args:
        scene: of MRML.
        segmentation: label map with its segments; a label without a name becomes ``label_<value>``.
        name: of the node.
        reference: the volume node whose grid it lies on and under whose transform it belongs.
        oriented_image: the class `vtkOrientedImageData`, which Slicer keeps in a module of its own.

    Returns:
        The node.
    """
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    if reference is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
        node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())
    known = {info.value: info for info in segmentation.segments}
    matrix = array_to_matrix(segmentation.ijk_to_ras)
    for value in [int(v) for v in np.unique(segmentation.array) if v]:
        mask, first = _cropped(segmentation.array == value)
        image = _image_data(oriented_image(), mask.astype(np.uint8))
        image.SetExtent(*(edge for low, n in zip(first, mask.shape[::-1], strict=True) for edge in (low, low + n - 1)))
        image.SetImageToWorldMatrix(matrix)
        info = known.get(value)
        label = info.name if info else f"label_{value}"
        color = info.color if info else (0.9, 0.62, 0.0)
        node.AddSegmentFromBinaryLabelmapRepresentation(image, label, list(color))
    return node


def _cropped(mask: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], tuple[int, int, int]]:
    """The part of a mask ``(k, j, i)`` that is not empty, and its first voxel ``(i, j, k)``."""
    places = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    box = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in places)
    return mask[box], (box[2].start, box[1].start, box[0].start)


def _image_data(image: Any, array: np.ndarray[Any, Any]) -> Any:
    """Put voxels ``(k, j, i)`` into an image of VTK, as a copy."""
    image.SetDimensions(*array.shape[::-1])
    scalars = numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True)
    image.GetPointData().SetScalars(scalars)
    return image
