"""Run by slicer-core's Python: the module's self-test, and medunet's files in a real MRML scene, without Qt.

usage: scene_check.py LIBRARY IMAGE SEGMENTATION FEW_OBJECTS MANY_OBJECTS; prints the result as JSON
"""

import importlib
import json
import sys
import types
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import slicer
import vtk
from MedUNetLib.scene import load_segmentation, save_volume
from vtk.util.numpy_support import vtk_to_numpy


class Stub:
    """Replaces Slicer's base classes."""

    def __init__(self, parent: object = None) -> None:
        self.parent = parent

    def delayDisplay(self, message: str) -> None:
        print(message)  # noqa: T201


scene = slicer.mrmlScene = slicer.vtkMRMLScene()
logic = slicer.vtkSlicerSegmentationsModuleLogic()
logic.SetMRMLScene(scene)
base = sys.modules["slicer.ScriptedLoadableModule"] = types.ModuleType("slicer.ScriptedLoadableModule")
for kind in ("", "Logic", "Test", "Widget"):
    setattr(base, f"ScriptedLoadableModule{kind}", Stub)
for name in ("ctk", "qt"):
    sys.modules[name] = types.ModuleType(name)
importlib.import_module("MedUNet").MedUNetTest().runTest()
scene.Clear()
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
for index in range(segments.GetNumberOfSegments()):
    segment, matrix = segments.GetNthSegment(index), vtk.vtkMatrix4x4()
    mask = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(segments.GetNthSegmentID(index), mask)
    mask.GetImageToWorldMatrix(matrix)
    voxels = vtk_to_numpy(mask.GetPointData().GetScalars()).reshape(mask.GetDimensions()[::-1])
    axes = zip(voxels.nonzero()[::-1], mask.GetExtent()[::2], strict=True)
    result["segments"][segment.GetName()] = {
        "color": list(segment.GetColor()),
        "voxels": int(voxels.sum()),
        "box": [[int(first + axis.min()), int(first + axis.max())] for axis, first in axes],
        "matrix": slicer.util.arrayFromVTKMatrix(matrix).tolist(),
    }
few, many = (load_segmentation(scene, Path(path), "objects", reference=volume) for path in sys.argv[4:])
result["few"] = [few.GetClassName(), few.GetSegmentation().GetNumberOfSegments()]
voxels = vtk_to_numpy(many.GetImageData().GetPointData().GetScalars())
table = many.GetDisplayNode().GetColorNode()
result["many"] = [many.GetClassName(), voxels.tolist(), table.GetColorName(299), table.GetNumberOfColors()]
print("RESULT" + json.dumps(result))  # noqa: T201
