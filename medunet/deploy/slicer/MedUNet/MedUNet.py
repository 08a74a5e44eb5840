"""Module MedUNet of 3D Slicer: panel, logic and self-test; MedUNetLib does the work."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctk
import numpy as np
import qt
import slicer
import vtk
from MedUNetLib.client import LabelClient, ServerError
from MedUNetLib.jobs import Job, LocalJob, RemoteJob, State, split_command
from MedUNetLib.scene import load_segmentation, save_volume
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

POLL_MILLISECONDS = 200


class MedUNet(ScriptedLoadableModule):
    """Entry in Slicer's list of modules."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "MedUNet"
        self.parent.categories = ["Segmentation"]
        self.parent.contributors = ["The medunet developers"]
        self.parent.helpText = (
            "Segments a volume with a U-Net of medunet: on this machine, with `medunet predict` in its own Python, or "
            "on a MONAI Label server (`medunet label serve`). Research, not a medical device."
        )


class MedUNetLogic(ScriptedLoadableModuleLogic):
    """Segments a volume node and loads the result, one segmentation at a time."""

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.job: Job | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._volume: Any = None

    def start(self, volume: Any, make_job: Callable[[Path, Path], Job]) -> None:
        """Save a scalar volume node and start a job on the file, whose result goes to a folder.

        Raises:
            ValueError: the volume is empty.
            OSError: the job's command does not exist.
        """
        self.clean_up()
        self._volume = volume
        self._folder = tempfile.TemporaryDirectory(prefix="medunet-", ignore_cleanup_errors=True)
        result = Path(self._folder.name) / "result"
        result.mkdir()
        job = make_job(save_volume(slicer.mrmlScene, volume, result.with_name("image.nrrd")), result)
        job.start()
        self.job = job

    def finish(self) -> Any:
        """Load the result of a finished job and return its node; an unreadable result is a ValueError."""
        assert self.job is not None
        try:
            name = f"{self._volume.GetName()} segmentation"
            return load_segmentation(slicer.mrmlScene, self.job.result(), name, reference=self._volume)
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        """Forget the job and delete its files."""
        self.job = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class MedUNetWidget(ScriptedLoadableModuleWidget):
    """Panel of the module."""

    def setup(self) -> None:
        """Create the panel; Slicer's settings store its values."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = MedUNetLogic()
        self.settings = qt.QSettings()

        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.addEnabled = self.volume.removeEnabled = False
        self.volume.setMRMLScene(slicer.mrmlScene)
        self.place = qt.QComboBox()
        self.place.addItems(["This machine", "Server"])
        self.bundle = ctk.ctkPathLineEdit()
        self.bundle.filters = ctk.ctkPathLineEdit.Dirs
        self.bundle.currentPath = self.settings.value("MedUNet/bundle", "")
        self.command = qt.QLineEdit(self.settings.value("MedUNet/command", "medunet"))
        self.command.toolTip = "Path of medunet in its own environment, such as /home/me/.venv/bin/medunet"
        self.url = qt.QLineEdit(self.settings.value("MedUNet/url", "http://127.0.0.1:8000"))
        self.token = qt.QLineEdit()
        self.token.echoMode = qt.QLineEdit.Password
        self.model = qt.QComboBox()
        self.connect_button = qt.QPushButton("Connect")
        self.apply = qt.QPushButton("Segment")
        self.cancel = qt.QPushButton("Cancel")
        self.progress = qt.QProgressBar()
        self.status = qt.QLabel("")
        self.status.wordWrap = True

        form = qt.QFormLayout()
        form.addRow("Volume", self.volume)
        form.addRow("Run on", self.place)
        form.addRow("Bundle", self.bundle)
        form.addRow("medunet command", self.command)
        form.addRow("Server address", self.url)
        form.addRow("Token", self.token)
        form.addRow(self.connect_button, self.model)
        form.addRow(self.cancel, self.apply)
        form.addRow(self.progress)
        form.addRow(self.status)
        frame = qt.QWidget()
        frame.setLayout(form)
        self.layout.addWidget(frame)
        self.layout.addStretch(1)

        self.timer = qt.QTimer()
        self.timer.interval = POLL_MILLISECONDS
        self.timer.connect("timeout()", self.on_timer)
        self.connect_button.connect("clicked()", self.on_connect)
        self.apply.connect("clicked()", self.on_apply)
        self.cancel.connect("clicked()", self.on_cancel)
        self.place.connect("currentIndexChanged(int)", self.on_place)
        self.on_place(0)
        self._show_running(False)

    def cleanup(self) -> None:
        """Cancel the job when the module is closed."""
        self.timer.stop()
        self.on_cancel()
        self.logic.clean_up()

    def on_place(self, index: int) -> None:
        """Enable the fields of this machine or of the server."""
        for widget in (self.bundle, self.command):
            widget.enabled = index == 0
        for widget in (self.url, self.token, self.model, self.connect_button):
            widget.enabled = index == 1

    def on_connect(self) -> None:
        """Read the names of the server's models."""
        self.model.clear()
        try:
            self.model.addItems(LabelClient(self.url.text, self.token.text or None).models())
        except ServerError as error:
            self.status.text = str(error)
        else:
            self.settings.setValue("MedUNet/url", self.url.text)
            self.status.text = "connected"

    def on_apply(self) -> None:
        """Start the segmentation."""
        node = self.volume.currentNode()
        if node is None:
            self.status.text = "choose a volume"
            return
        try:
            if self.place.currentIndex == 0:
                bundle, command = Path(self.bundle.currentPath), split_command(self.command.text)
                self.logic.start(node, lambda image, result: LocalJob(command, bundle, image, result))
                self.settings.setValue("MedUNet/bundle", self.bundle.currentPath)
                self.settings.setValue("MedUNet/command", self.command.text)
            else:
                client, model = LabelClient(self.url.text, self.token.text or None), self.model.currentText
                self.logic.start(node, lambda image, result: RemoteJob(client, model, image, result))
        except (ValueError, OSError, ServerError) as error:
            self.status.text = str(error)
            self.logic.clean_up()
            return
        self._show_running(True)
        self.timer.start()

    def on_cancel(self) -> None:
        """Cancel the segmentation."""
        if self.logic.job is not None:
            self.logic.job.cancel()

    def on_timer(self) -> None:
        """Show progress, and load the result at the end."""
        job = self.logic.job
        if job is None:
            self.timer.stop()
            return
        state = job.poll()
        self.status.text = "cancelled" if state is State.CANCELLED else job.message
        if state is State.RUNNING:
            return
        self.timer.stop()
        self._show_running(False)
        if state is not State.DONE:
            self.logic.clean_up()
            return
        try:
            self.logic.finish()
        except ValueError as error:
            self.status.text = str(error)

    def _show_running(self, running: bool) -> None:
        self.progress.setRange(0, 0 if running else 1)  # an empty range shows activity without progress
        self.apply.enabled = not running
        self.cancel.enabled = running


class MedUNetTest(ScriptedLoadableModuleTest):
    """Self-test inside Slicer (Reload and Test, or ctest); it needs neither medunet nor a server.

    A stub replaces medunet: it copies a segmentation of the bright voxels, which the test has written.
    """

    AFFINE = np.array([[0.0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])
    SECONDS = 60.0
    PROGRAM = """
import shutil, sys
from pathlib import Path
if not (Path(sys.argv[2]) / "organ.seg.nrrd").is_file():
    sys.exit("error run: the bundle lacks weights")
if not Path(sys.argv[3]).read_bytes().startswith(b"NRRD"):
    sys.exit("error image: not an NRRD file")
shutil.copy(Path(sys.argv[2]) / "organ.seg.nrrd", sys.argv[5])
"""

    def runTest(self) -> None:
        """Segment a synthetic volume with a bundle that lacks weights, then with a complete one."""
        slicer.mrmlScene.Clear()
        voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        volume = slicer.util.addVolumeFromArray(voxels, self.AFFINE, "synthetic")
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder)
            (bundle / "program.py").write_text(self.PROGRAM, encoding="utf-8")
            logic = MedUNetLogic()
            assert self._segment(logic, volume, bundle) == (State.FAILED, "run: the bundle lacks weights")
            assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0

            self._write_segmentation((voxels > 40).astype(np.uint8), bundle / "organ.seg.nrrd")
            assert self._segment(logic, volume, bundle) == (State.DONE, "done")
            node = logic.finish()
        assert (node.GetName(), logic.job) == ("synthetic segmentation", None)
        segments = node.GetSegmentation()
        assert segments.GetNumberOfSegments() == 1
        segment = segments.GetNthSegment(0)
        assert segment.GetName() == "organ"
        assert np.allclose(segment.GetColor(), (1.0, 0.0, 0.0))
        mask, matrix = segment.GetRepresentation("Binary labelmap"), vtk.vtkMatrix4x4()
        mask.GetImageToWorldMatrix(matrix)
        assert np.allclose(slicer.util.arrayFromVTKMatrix(matrix), self.AFFINE)
        assert vtk_to_numpy(mask.GetPointData().GetScalars()).sum() == (voxels > 40).sum()
        self.delayDisplay("Tests passed")

    def _segment(self, logic: MedUNetLogic, volume: Any, bundle: Path) -> tuple[State, str]:
        command = [shutil.which("PythonSlicer") or sys.executable, str(bundle / "program.py")]
        logic.start(volume, lambda image, result: LocalJob(command, bundle, image, result))
        assert logic.job is not None
        end = time.monotonic() + self.SECONDS
        while (state := logic.job.poll()) is State.RUNNING and time.monotonic() < end:
            time.sleep(0.05)
        return state, logic.job.message

    def _write_segmentation(self, mask: Any, path: Path) -> None:
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(*mask.shape[::-1])
        image.GetPointData().SetScalars(numpy_to_vtk(mask.ravel(), deep=True))
        image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(self.AFFINE))
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.AddSegmentFromBinaryLabelmapRepresentation(image, "organ", [1.0, 0.0, 0.0])
        storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        storage.SetFileName(str(path))
        assert storage.WriteData(node)
        slicer.mrmlScene.RemoveNode(node)
