"""Volumes written from Slicer's scene, and segmentations loaded into it, with MRML's storage nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_volume(scene: Any, node: Any, path: Path) -> Path:
    """Write a scalar volume node to an NRRD file on its own grid, without transforms; a failure is a ValueError."""
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        raise ValueError(f"{node.GetName()} has no image")
    if image.GetNumberOfScalarComponents() != 1:
        raise ValueError(f"{node.GetName()} must have one value per voxel")
    if not _store(scene, "vtkMRMLVolumeArchetypeStorageNode", path, "WriteData", node):
        raise ValueError(f"{node.GetName()} cannot be written to {path}")
    return path


def load_segmentation(scene: Any, path: Path, name: str, *, reference: Any) -> Any:
    """Create a segmentation node from a .seg.nrrd file, with its names, colours and codes.

    `reference` is a volume node with the same grid, whose transform the segmentation gets. A failure is a ValueError.
    """
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    with path.open("rb") as file:  # Slicer aborts if it reads something else
        is_readable = file.read(4) == b"NRRD"
    if not (is_readable and _store(scene, "vtkMRMLSegmentationStorageNode", path, "ReadData", node)):
        scene.RemoveNode(node)
        raise ValueError(f"{path} is not a readable segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())
    return node


def _store(scene: Any, kind: str, path: Path, method: str, node: Any) -> bool:
    storage = scene.AddNewNodeByClass(kind)
    storage.SetFileName(str(path))
    try:
        return bool(getattr(storage, method)(node))
    finally:
        scene.RemoveNode(storage)
