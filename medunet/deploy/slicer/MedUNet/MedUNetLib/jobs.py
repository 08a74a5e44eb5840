"""Segmentations beside Slicer's window, in a process of medunet or on a server; they are polled, not awaited."""

from __future__ import annotations

import enum
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .client import LabelClient, ServerError
from .nrrd import NrrdError, NrrdVolume, SegmentInfo, read_nrrd

RESULT_ENDING = ".seg.nrrd"

STOP_SECONDS = 5.0
"""How long a process that is asked to stop may take to finish the file that it writes."""

SLICER_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONNOUSERSITE")
"""What Slicer sets for its own Python, and what would break another one."""

LAST_LINES = 20

NEW_PROCESS_GROUP = 0x200
"""Windows' flag, so that a signal for Slicer does not reach medunet."""


class State(enum.Enum):
    """What a job is doing."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job(Protocol):
    """A segmentation under way.

    Attributes:
        message: what it does, or why it failed.
    """

    message: str

    def start(self) -> None:
        """Begin."""

    def poll(self) -> State:
        """Look, without waiting."""

    def cancel(self) -> None:
        """End it; the next poll says so."""

    def result(self) -> NrrdVolume:
        """The segmentation of a job that is done."""


class LocalJob:
    """`medunet predict` in a Python of its own.

    Args:
        command: how medunet is started, such as ``[".venv/bin/medunet"]`` or ``["python", "-m", "medunet"]``.
        bundle: a run or bundle.
        image: a volume file.
        folder: for the result; empty.
        device: as of `medunet predict`.
    """

    def __init__(self, command: Sequence[str], bundle: Path, image: Path, folder: Path, device: str = "auto") -> None:
        self.arguments = predict_command(command, bundle, image, folder, device)
        self.folder = folder
        self.message = "starting medunet"
        self._lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._cancelled = False

    def start(self) -> None:
        """Start the process.

        Raises:
            FileNotFoundError: there is no such command.
        """
        own_group: dict[str, Any] = (
            {"creationflags": NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
        )
        self._process = subprocess.Popen(
            self.arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=clean_environment(os.environ),
            **own_group,
        )
        self.message = "segmenting"
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def poll(self) -> State:
        """Whether it still runs, and how it ended."""
        if self._process is None:
            return State.CANCELLED if self._cancelled else State.RUNNING
        code = self._process.poll()
        if code is None:
            return State.RUNNING
        if self._reader is not None:
            self._reader.join()
        if self._cancelled:
            return State.CANCELLED
        if code != 0 or not self._results():
            self.message = explain(self._lines) or f"medunet ended with code {code}"
            return State.FAILED
        self.message = "done"
        return State.DONE

    def cancel(self) -> None:
        """Ask the process to stop, and end it with its children if it does not."""
        self._cancelled = True
        process = self._process
        if process is None or process.poll() is not None:
            return
        _signal(process, gently=True)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal(process, gently=False)
            process.wait()

    def result(self) -> NrrdVolume:
        """The segmentation."""
        return read_nrrd(self._results()[0])

    def _results(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{RESULT_ENDING}"))

    def _read(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        with process.stdout:
            for line in process.stdout:
                self._lines = [*self._lines, line.strip()][-LAST_LINES:]
                self.message = line.strip() or self.message


class RemoteJob:
    """A request to a MONAI Label server, in a thread.

    Args:
        client: of the server.
        model: its name there.
        image: a volume file.
        folder: for the result.
        params: further values of the request.
    """

    def __init__(
        self, client: LabelClient, model: str, image: Path, folder: Path, params: Mapping[str, Any] | None = None
    ) -> None:
        self.client = client
        self.model = model
        self.image = image
        self.file = folder / f"result{RESULT_ENDING}"
        self.params = dict(params or {})
        self.message = "waiting for the server"
        self.answer: dict[str, Any] = {}
        self._error: str | None = None
        self._thread: threading.Thread | None = None
        self._cancelled = False

    def start(self) -> None:
        """Send the image."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def poll(self) -> State:
        """Whether the answer is there."""
        if self._cancelled:
            return State.CANCELLED
        if self._thread is None or self._thread.is_alive():
            return State.RUNNING
        if self._error is not None:
            self.message = self._error
            return State.FAILED
        self.message = "done"
        return State.DONE

    def cancel(self) -> None:
        """Break off; the server may still finish what it computes."""
        self._cancelled = True
        self.client.close()

    def result(self) -> NrrdVolume:
        """The segmentation; names come from the answer where the file has none."""
        volume = read_nrrd(self.file)
        return volume if volume.segments else NrrdVolume(volume.array, volume.ijk_to_ras, named(self.answer))

    def _run(self) -> None:
        try:
            self.answer = self.client.infer(self.model, self.image, self.file, **self.params)
        except (ServerError, NrrdError, OSError, ValueError) as error:
            self._error = str(error)


def predict_command(command: Sequence[str], bundle: Path, image: Path, folder: Path, device: str = "auto") -> list[str]:
    """The command line of a segmentation.

    Example:
        >>> predict_command(["medunet"], Path("run"), Path("ct.nrrd"), Path("out"))[:3]
        ['medunet', 'predict', 'run']
    """
    options = ["--output", str(folder), "--format", "seg.nrrd", "--device", device]
    return [*command, "predict", str(bundle), str(image), *options]


def split_command(text: str, *, windows: bool = os.name == "nt") -> list[str]:
    r"""The words of a command line that a person typed; a file that is there is one word, whatever is in its name.

    Raises:
        ValueError: a quotation that does not end.

    Example:
        >>> split_command("python -m medunet"), split_command(r"C:\me\medunet.exe", windows=True)
        (['python', '-m', 'medunet'], ['C:\\me\\medunet.exe'])
    """
    if Path(text.strip()).is_file():
        return [text.strip()]
    if not windows:
        return shlex.split(text)
    return [word.strip('"') for word in shlex.split(text, posix=False)]  # a backslash parts folders there


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables without those that Slicer has set for its own Python."""
    return {key: value for key, value in variables.items() if key not in SLICER_VARIABLES}


def explain(lines: Sequence[str]) -> str:
    """The line that says why medunet failed.

    Example:
        >>> explain(["reading", "error ct.nrrd: a slice is missing; remedy: export again", "0 of 1 written"])
        'ct.nrrd: a slice is missing; remedy: export again'
    """
    errors = [line.removeprefix("error ") for line in lines if line.startswith("error ")]
    return errors[-1] if errors else (lines[-1] if lines else "")


def named(answer: Mapping[str, Any]) -> tuple[SegmentInfo, ...]:
    """Labels by MONAI Label's ``label_names``, which is name to value or a list from 1 on."""
    names = answer.get("label_names") or {}
    values = names.items() if isinstance(names, Mapping) else ((name, n) for n, name in enumerate(names, start=1))
    colors = answer.get("label_colors") or {}
    found = []
    for name, value in values:
        if int(value) == 0 or str(name).lower() == "background":
            continue
        red, green, blue = (float(part) / 255 for part in (colors.get(name) or (230, 159, 0))[:3])
        found.append(SegmentInfo(str(name), int(value), (red, green, blue)))
    return tuple(sorted(found, key=lambda info: info.value))


def _signal(process: subprocess.Popen[str], *, gently: bool) -> None:
    if os.name == "nt":
        process.terminate() if gently else process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGINT if gently else signal.SIGKILL)
    except ProcessLookupError:
        return
