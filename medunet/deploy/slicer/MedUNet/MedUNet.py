"""3D Slicer's module MedUNet: window and logic; what it does lies in MedUNetLib."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ctk
import numpy as np
import qt
import slicer
import vtk
from MedUNetLib.client import LabelClient, ServerError
from MedUNetLib.jobs import Job, LocalJob, RemoteJob, State, split_command
from MedUNetLib.nrrd import NrrdError, NrrdVolume, SegmentInfo, write_nrrd
from MedUNetLib.scene import add_segmentation, add_volume, matrix_to_array, read_volume_node
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from vtk.util.numpy_support import vtk_to_numpy

POLL_MILLISECONDS = 200


class MedUNet(ScriptedLoadableModule):
    """What Slicer shows in its list of modules."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "MedUNet"
        self.parent.categories = ["Segmentation"]
        self.parent.dependencies = []
        self.parent.contributors = ["The medunet developers"]
        self.parent.helpText = (
            "Segments a volume by a U-Net of medunet: on this machine, by `medunet predict` in its own Python, or by a "
            "MONAI Label server (`medunet label`). Research, not a medical device."
        )
        self.parent.acknowledgementText = ""


class MedUNetLogic(ScriptedLoadableModuleLogic):
    """Starts a segmentation of a volume node and loads what comes of it. One at a time."""

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.job: Job | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._volume: Any = None

    def start_local(self, volume: Any, *, command: str, bundle: str, device: str = "auto") -> None:
        """Segment by `medunet predict`.

        Args:
            volume: a scalar volume node.
            command: how medunet is started, as in a shell.
            bundle: folder of a run or bundle.
            device: as of `medunet predict`.

        Raises:
            ValueError: an empty volume, or no such bundle.
            FileNotFoundError: no such command.
        """
        if not (Path(bundle) / "configs").is_dir():
            raise ValueError(f"{bundle or 'nothing'} is no bundle: it has no folder configs")
        image, output = self._export(volume)
        self._begin(LocalJob(split_command(command), Path(bundle), image, output, device))

    def start_remote(self, volume: Any, *, client: LabelClient, model: str) -> None:
        """Segment on a MONAI Label server.

        Raises:
            ValueError: an empty volume.
        """
        image, output = self._export(volume)
        self._begin(RemoteJob(client, model, image, output))

    def finish(self) -> Any:
        """Load the result of a job that is done; the segmentation node."""
        if self.job is None:
            raise ValueError("no segmentation is under way")
        try:
            return add_segmentation(
                slicer.mrmlScene,
                self.job.result(),
                f"{self._volume.GetName()} segmentation",
                reference=self._volume,
                oriented_image=slicer.vtkOrientedImageData,
            )
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        """Let go of the job and its files."""
        self.job = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _export(self, volume: Any) -> tuple[Path, Path]:
        self.clean_up()
        self._volume = volume
        self._folder = tempfile.TemporaryDirectory(prefix="medunet-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        (folder / "result").mkdir()
        return write_nrrd(folder / "image.nrrd", read_volume_node(volume)), folder / "result"

    def _begin(self, job: Job) -> None:
        try:
            job.start()
        except OSError:
            self.clean_up()
            raise
        self.job = job


class MedUNetWidget(ScriptedLoadableModuleWidget):
    """The module's panel."""

    def setup(self) -> None:
        """Build the panel; values are kept in Slicer's settings."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = MedUNetLogic()
        self.settings = qt.QSettings()

        form = qt.QFormLayout()
        frame = qt.QWidget()
        frame.setLayout(form)
        self.layout.addWidget(frame)

        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.addEnabled = self.volume.removeEnabled = False
        self.volume.setMRMLScene(slicer.mrmlScene)
        form.addRow("Volume", self.volume)

        self.where = qt.QComboBox()
        self.where.addItems(["This machine", "Server"])
        form.addRow("Run on", self.where)

        self.bundle = ctk.ctkPathLineEdit()
        self.bundle.filters = ctk.ctkPathLineEdit.Dirs
        self.bundle.currentPath = self.settings.value("MedUNet/bundle", "")
        form.addRow("Bundle", self.bundle)
        self.command = qt.QLineEdit(self.settings.value("MedUNet/command", "medunet"))
        self.command.toolTip = (
            "Path of the command medunet in its own environment, for instance /home/me/.venv/bin/medunet"
        )
        form.addRow("medunet command", self.command)

        self.url = qt.QLineEdit(self.settings.value("MedUNet/url", "http://127.0.0.1:8000"))
        form.addRow("Server address", self.url)
        self.token = qt.QLineEdit()
        self.token.echoMode = qt.QLineEdit.Password
        form.addRow("Token", self.token)
        self.model = qt.QComboBox()
        self.connect_button = qt.QPushButton("Connect")
        form.addRow(self.connect_button, self.model)

        self.apply = qt.QPushButton("Segment")
        self.cancel = qt.QPushButton("Cancel")
        self.cancel.enabled = False
        form.addRow(self.cancel, self.apply)
        self.progress = qt.QProgressBar()
        self.progress.setRange(0, 1)
        form.addRow(self.progress)
        self.status = qt.QLabel("")
        self.status.wordWrap = True
        form.addRow(self.status)
        self.layout.addStretch(1)

        self.timer = qt.QTimer()
        self.timer.interval = POLL_MILLISECONDS
        self.timer.connect("timeout()", self.on_timer)
        self.connect_button.connect("clicked()", self.on_connect)
        self.apply.connect("clicked()", self.on_apply)
        self.cancel.connect("clicked()", self.on_cancel)
        self.where.connect("currentIndexChanged(int)", self.on_where)
        self.on_where(0)

    def cleanup(self) -> None:
        """End what runs when the module is closed."""
        self.timer.stop()
        if self.logic.job is not None:
            self.logic.job.cancel()
        self.logic.clean_up()

    def on_where(self, index: int) -> None:
        """Enable what belongs to the place of work."""
        for widget in (self.bundle, self.command):
            widget.enabled = index == 0
        for widget in (self.url, self.token, self.model, self.connect_button):
            widget.enabled = index == 1

    def client(self) -> LabelClient:
        """Of the server in the panel."""
        return LabelClient(self.url.text, self.token.text or None)

    def on_connect(self) -> None:
        """Ask the server for its models."""
        self.model.clear()
        try:
            self.model.addItems(sorted(self.client().models()))
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
            if self.where.currentIndex == 0:
                self.logic.start_local(node, command=self.command.text, bundle=self.bundle.currentPath)
                self.settings.setValue("MedUNet/bundle", self.bundle.currentPath)
                self.settings.setValue("MedUNet/command", self.command.text)
            else:
                self.logic.start_remote(node, client=self.client(), model=self.model.currentText)
        except (ValueError, OSError, ServerError, NrrdError) as error:
            self.status.text = str(error)
            return
        self._show_running(True)
        self.timer.start()

    def on_cancel(self) -> None:
        """End the segmentation."""
        if self.logic.job is not None:
            self.logic.job.cancel()

    def on_timer(self) -> None:
        """Look how far it is."""
        job = self.logic.job
        if job is None:
            self.timer.stop()
            return
        state = job.poll()
        self.status.text = job.message
        if state is State.RUNNING:
            return
        self.timer.stop()
        self._show_running(False)
        if state is State.DONE:
            try:
                self.logic.finish()
            except (NrrdError, ValueError) as error:
                self.status.text = str(error)
        else:
            self.status.text = job.message if state is State.FAILED else "cancelled"
            self.logic.clean_up()

    def _show_running(self, running: bool) -> None:
        self.progress.setRange(0, 0 if running else 1)  # a range of nothing moves to and fro
        self.apply.enabled = not running
        self.cancel.enabled = running


class MedUNetTest(ScriptedLoadableModuleTest):
    """Runs inside of Slicer (Reload and Test, or ctest); needs neither medunet nor a server.

    In the place of `medunet predict` stands a program that takes the bright voxels for an organ.
    """

    AFFINE = np.array([[0.0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1]])
    SECONDS = 60.0
    STAND_IN = """
import sys
from pathlib import Path
sys.path.insert(0, {library!r})
from MedUNetLib.nrrd import NrrdVolume, read_nrrd, write_nrrd
image, output = Path(sys.argv[3]), Path(sys.argv[5])
if not (Path(sys.argv[2]) / "configs" / "inference.json").is_file():
    sys.exit("error run: the bundle lacks inference.json")
volume = read_nrrd(image)
path = write_nrrd(output / "image.seg.nrrd", NrrdVolume((volume.array > 40).astype("uint8"), volume.ijk_to_ras))
head, _, voxels = path.read_bytes().partition(b"\\n\\n")
names = b"\\nSegment0_ID:=s0\\nSegment0_Name:=organ\\nSegment0_LabelValue:=1\\nSegment0_Color:=1 0 0"
path.write_bytes(head + names + b"\\n\\n" + voxels)
"""

    def setUp(self) -> None:
        """An empty scene with a made volume."""
        slicer.mrmlScene.Clear()
        self.voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
        self.node = add_volume(slicer.mrmlScene, NrrdVolume(self.voxels, self.AFFINE), "made")

    def runTest(self) -> None:
        """Each test on a scene of its own."""
        for test in (
            self.test_a_volume_leaves_the_scene_and_a_segmentation_enters_it,
            self.test_a_program_segments_a_volume,
            self.test_a_program_that_fails_says_why_and_leaves_nothing,
        ):
            self.setUp()
            test()
            logging.info("MedUNet: %s", test.__name__)
        self.delayDisplay("Tests passed")

    def test_a_volume_leaves_the_scene_and_a_segmentation_enters_it(self) -> None:
        """Voxels, placement, names and colours stay."""
        back = read_volume_node(self.node)
        assert np.array_equal(back.ijk_to_ras, self.AFFINE)
        assert np.array_equal(back.array, self.voxels)
        labels = np.zeros((3, 4, 5), np.uint8)
        labels[1, 1:3, 2:4] = 2
        result = NrrdVolume(labels, self.AFFINE, (SegmentInfo("organ", 2, (1.0, 0.0, 0.0)),))
        made = add_segmentation(
            slicer.mrmlScene,
            result,
            "made segmentation",
            reference=self.node,
            oriented_image=slicer.vtkOrientedImageData,
        )
        self._has_organ(made, voxels=4)

    def test_a_program_segments_a_volume(self) -> None:
        """From the button to the node: export, process, polling, result."""
        logic = MedUNetLogic()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "configs").mkdir()
            (Path(folder) / "configs" / "inference.json").write_text("{}", encoding="utf-8")
            logic.start_local(self.node, command=self._stand_in(Path(folder)), bundle=folder)
            assert self._wait(logic) == (State.DONE, "done")
            made = logic.finish()
        assert made.GetName() == "made segmentation"
        self._has_organ(made, voxels=int((self.voxels > 40).sum()))
        assert logic.job is None

    def test_a_program_that_fails_says_why_and_leaves_nothing(self) -> None:
        """Its last words are shown, and no node is made."""
        logic = MedUNetLogic()
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "configs").mkdir()
            logic.start_local(self.node, command=self._stand_in(Path(folder)), bundle=folder)
            assert self._wait(logic) == (State.FAILED, "run: the bundle lacks inference.json")
        logic.clean_up()
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0

    def _has_organ(self, node: Any, *, voxels: int) -> None:
        segments = node.GetSegmentation()
        assert segments.GetNumberOfSegments() == 1
        segment = segments.GetNthSegment(0)
        assert segment.GetName() == "organ"
        assert np.allclose(segment.GetColor(), (1.0, 0.0, 0.0))
        mask = segment.GetRepresentation("Binary labelmap")
        assert vtk_to_numpy(mask.GetPointData().GetScalars()).sum() == voxels
        matrix = vtk.vtkMatrix4x4()
        mask.GetImageToWorldMatrix(matrix)
        assert np.allclose(matrix_to_array(matrix), self.AFFINE)

    def _stand_in(self, folder: Path) -> str:
        program = folder / "program.py"
        program.write_text(self.STAND_IN.format(library=str(Path(__file__).parent)), encoding="utf-8")
        return f'"{shutil.which("PythonSlicer") or sys.executable}" "{program}"'

    def _wait(self, logic: MedUNetLogic) -> tuple[State, str]:
        job = logic.job
        assert job is not None
        end = time.monotonic() + self.SECONDS
        while (state := job.poll()) is State.RUNNING and time.monotonic() < end:
            time.sleep(0.05)
        return state, job.message
