"""Run by slicer-core's Python: the module's own self-test in a real MRML scene, without Slicer's windows.

usage: self_test.py MODULE_FOLDER
"""

from __future__ import annotations

import importlib
import sys
import types

import slicer

sys.path.insert(0, sys.argv[1])


class Stub:
    """Replaces Qt and Slicer's base classes."""

    def __init__(self, parent: object = None) -> None:
        self.parent = parent

    def delayDisplay(self, message: str) -> None:
        print(message)  # noqa: T201


slicer.mrmlScene = slicer.vtkMRMLScene()
logic = slicer.vtkSlicerSegmentationsModuleLogic()
logic.SetMRMLScene(slicer.mrmlScene)
base = types.ModuleType("slicer.ScriptedLoadableModule")
for kind in ("", "Logic", "Test", "Widget"):
    setattr(base, f"ScriptedLoadableModule{kind}", Stub)
sys.modules["slicer.ScriptedLoadableModule"] = base
for name in ("ctk", "qt"):
    sys.modules[name] = types.ModuleType(name)

importlib.import_module("MedUNet").MedUNetTest().runTest()
