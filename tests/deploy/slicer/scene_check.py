"""Run by slicer-core's Python: medunet's files in a real MRML scene. Prints what it found as JSON.

usage: scene_check.py LIBRARY IMAGE SEGMENTATION
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import numpy as np
import slicer
import vtk
from MedUNetLib.nrrd import read_nrrd, write_nrrd
from MedUNetLib.scene import add_segmentation, add_volume, matrix_to_array, read_volume_node

scene = slicer.vtkMRMLScene()
logic = slicer.vtkSlicerSegmentationsModuleLogic()
logic.SetMRMLScene(scene)

image = read_nrrd(Path(sys.argv[2]))
volume = add_volume(scene, image, "ct")
assert np.array_equal(slicer.util.arrayFromVolume(volume), image.array)
back = read_volume_node(volume)
write_nrrd(Path(sys.argv[2]).with_name("exported.nrrd"), back)

segmentation = read_nrrd(Path(sys.argv[3]))
node = add_segmentation(scene, segmentation, "organs", reference=volume, oriented_image=slicer.vtkOrientedImageData)
segments = node.GetSegmentation()
segments.SetConversionParameter("Smoothing factor", "0.0")  # which takes some per cent of small organs away
segments.CreateRepresentation("Closed surface")

found = {"matrix": back.ijk_to_ras.tolist(), "segments": {}}
for index in range(segments.GetNumberOfSegments()):
    segment = segments.GetNthSegment(index)
    surface = segment.GetRepresentation("Closed surface")
    mass = vtk.vtkMassProperties()
    triangles = vtk.vtkTriangleFilter()
    triangles.SetInputData(surface)
    mass.SetInputConnection(triangles.GetOutputPort())
    mask = segment.GetRepresentation("Binary labelmap")
    matrix = vtk.vtkMatrix4x4()
    mask.GetImageToWorldMatrix(matrix)
    found["segments"][segment.GetName()] = {
        "color": list(segment.GetColor()),
        "surface_mm3": mass.GetVolume(),
        "extent": list(mask.GetExtent()),
        "matrix": matrix_to_array(matrix).tolist(),
        "bounds": list(surface.GetBounds()),
    }
print("FOUND" + json.dumps(found))  # noqa: T201
