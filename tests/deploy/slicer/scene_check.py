"""Run by slicer-core's Python: medunet's files in a real MRML scene. Prints the result as JSON.

usage: scene_check.py LIBRARY IMAGE SEGMENTATION
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import slicer
import vtk
from MedUNetLib.scene import load_segmentation, save_volume

scene = slicer.vtkMRMLScene()
logic = slicer.vtkSlicerSegmentationsModuleLogic()
logic.SetMRMLScene(scene)


def elements(matrix: vtk.vtkMatrix4x4) -> list[list[float]]:
    return [[matrix.GetElement(row, column) for column in range(4)] for row in range(4)]


volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
storage.SetFileName(sys.argv[2])
assert storage.ReadData(volume)
save_volume(scene, volume, Path(sys.argv[2]).with_name("exported.nrrd"))

unreadable = Path(sys.argv[2]).with_name("unreadable.seg.nrrd")
unreadable.write_bytes(b"something else")
try:
    load_segmentation(scene, unreadable, "unreadable", reference=volume)
except ValueError as error:
    result = {"error": str(error), "segments": {}}

transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
volume.SetAndObserveTransformNodeID(transform.GetID())
node = load_segmentation(scene, Path(sys.argv[3]), "organs", reference=volume)
result["nodes"] = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
result["has_transform"] = node.GetTransformNodeID() == transform.GetID()
segments = node.GetSegmentation()
segments.SetConversionParameter("Smoothing factor", "0.0")  # smoothing removes some per cent of small organs
segments.CreateRepresentation("Closed surface")
for index in range(segments.GetNumberOfSegments()):
    segment = segments.GetNthSegment(index)
    triangles = vtk.vtkTriangleFilter()
    triangles.SetInputData(segment.GetRepresentation("Closed surface"))
    mass = vtk.vtkMassProperties()
    mass.SetInputConnection(triangles.GetOutputPort())
    matrix = vtk.vtkMatrix4x4()
    segment.GetRepresentation("Binary labelmap").GetImageToWorldMatrix(matrix)
    result["segments"][segment.GetName()] = {
        "color": list(segment.GetColor()),
        "surface_mm3": mass.GetVolume(),
        "bounds": list(segment.GetRepresentation("Closed surface").GetBounds()),
        "matrix": elements(matrix),
    }
print("RESULT" + json.dumps(result))  # noqa: T201
