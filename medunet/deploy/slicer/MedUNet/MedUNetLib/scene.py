"""Volumes written from Slicer's scene, and segmentations loaded into it, with MRML's storage nodes."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

MAX_SEGMENTS = 255  # of a segmentation node: each is a row in a list and a surface, and Slicer becomes slow with more
GOLDEN = 0.618  # turn of the hue between two objects: any few objects in a row differ


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

    A file with more than `MAX_SEGMENTS` objects becomes a label map volume node. `reference` is a volume node with the
    same grid, whose transform the node gets. A failure is a ValueError.
    """
    header = path.read_bytes().partition(b"\n\n")[0]
    is_map = header.count(b"_LabelValue:=") > MAX_SEGMENTS
    kinds = ("LabelMapVolume", "VolumeArchetype") if is_map else ("Segmentation", "Segmentation")
    node = scene.AddNewNodeByClass(f"vtkMRML{kinds[0]}Node", name)
    # Slicer aborts if it reads something else
    if not (header.startswith(b"NRRD") and _store(scene, f"vtkMRML{kinds[1]}StorageNode", path, "ReadData", node)):
        scene.RemoveNode(node)
        raise ValueError(f"{path} is not a readable segmentation")
    node.CreateDefaultDisplayNodes()
    if is_map:
        _colour_objects(scene, node)
    else:
        node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())
    return node


def _colour_objects(scene: Any, node: Any) -> None:
    """Give each object of a label map a colour; Slicer's own tables have fewer colours."""
    largest = int(node.GetImageData().GetScalarRange()[1])
    table = scene.AddNewNodeByClass("vtkMRMLColorTableNode", f"{node.GetName()} colours")
    table.SetTypeToUser()
    table.SetNumberOfColors(largest + 1)
    table.SetColor(0, "background", 0, 0, 0, 0)
    for number in range(1, largest + 1):
        table.SetColor(number, f"object {number}", *colorsys.hsv_to_rgb(GOLDEN * number % 1, 0.65, 1), 1)
    node.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())


def _store(scene: Any, kind: str, path: Path, method: str, node: Any) -> bool:
    storage = scene.AddNewNodeByClass(kind)
    storage.SetFileName(str(path))
    try:
        return bool(getattr(storage, method)(node))
    finally:
        scene.RemoveNode(storage)
