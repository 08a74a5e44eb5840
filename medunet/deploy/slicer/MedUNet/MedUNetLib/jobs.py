"""Segmentations in a process of medunet or on a server; Slicer's window polls them and never waits."""

from __future__ import annotations

import contextlib
import enum
import os
import shlex
import signal
import subprocess
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .client import LabelClient, ServerError

RESULT_SUFFIX = ".seg.nrrd"
STOP_SECONDS = 5.0  # for a process to finish the file that it writes
LAST_LINES = 20  # lines of output that may explain a failure
NEW_PROCESS_GROUP = 0x200  # Windows' flag: a signal for Slicer does not reach medunet

# variables that Slicer sets for its own Python and that break another one
SLICER_VARIABLES = ("PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONNOUSERSITE")


class State(enum.Enum):
    """State of a job."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Job(ABC):
    """A segmentation that runs in a thread; `message` is what it does, or why it failed."""

    def __init__(self, folder: Path, message: str) -> None:
        self.folder, self.message = folder, message
        self._is_cancelled = False
        self._error: str | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Start the job."""
        self._thread.start()

    def poll(self) -> State:
        """Return the state of a started job without waiting."""
        if self._is_cancelled:
            return State.CANCELLED
        if self._thread.is_alive():
            return State.RUNNING
        self.message = self._error or "done"
        return State.FAILED if self._error is not None else State.DONE

    def result(self) -> Path:
        """Return the segmentation file of a finished job."""
        return next(self.folder.glob(f"*{RESULT_SUFFIX}"))

    def cancel(self) -> None:
        """End the job."""
        self._is_cancelled = True

    def _work(self) -> None:
        self._error = self._run()

    @abstractmethod
    def _run(self) -> str | None:
        """Run the job; return why it failed."""


class LocalJob(Job):
    """`medunet predict` in its own Python; a command is such as `["python", "-m", "medunet"]`."""

    def __init__(self, command: Sequence[str], bundle: Path, image: Path, folder: Path, device: str = "auto") -> None:
        super().__init__(folder, "segmenting")
        options = ["--output", str(folder), "--format", "seg.nrrd", "--device", device]
        self.arguments = [*command, "predict", str(bundle), str(image), *options]

    def start(self) -> None:
        """Start the process; an OSError means that the command does not exist."""
        group: dict[str, Any] = {"creationflags": NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
        self._process = subprocess.Popen(
            self.arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={key: value for key, value in os.environ.items() if key not in SLICER_VARIABLES},
            **group,
        )
        super().start()

    def cancel(self) -> None:
        """Ask the process to stop, and end it with its children if it does not."""
        super().cancel()
        if self._process.poll() is None:
            self._signal(gently=True)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._signal(gently=False)

    def _run(self) -> str | None:
        lines: deque[str] = deque(maxlen=LAST_LINES)
        with self._process:
            for line in self._process.stdout or ():
                if line.strip():
                    lines.append(line.strip())
                    self.message = lines[-1]
        if self._process.returncode == 0 and any(self.folder.glob(f"*{RESULT_SUFFIX}")):
            return None
        errors = [line.removeprefix("error ") for line in lines if line.startswith("error ")]
        return [f"medunet ended with code {self._process.returncode}", *lines, *errors][-1]

    def _signal(self, *, gently: bool) -> None:
        if os.name == "nt":
            self._process.terminate() if gently else self._process.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT if gently else signal.SIGKILL)


class RemoteJob(Job):
    """A request to a MONAI Label server, which still finishes a cancelled request."""

    def __init__(self, client: LabelClient, model: str, image: Path, folder: Path) -> None:
        super().__init__(folder, "waiting for the server")
        self.client, self.model, self.image = client, model, image

    def _run(self) -> str | None:
        try:
            self.client.infer(self.model, self.image, self.folder / f"result{RESULT_SUFFIX}")
        except (ServerError, OSError) as error:
            return str(error)
        return None


def split_command(text: str, *, windows: bool = os.name == "nt") -> list[str]:
    """Split a command line; an existing file is one word. An unclosed quotation mark is a ValueError."""
    if Path(text.strip()).is_file():
        return [text.strip()]
    if not windows:
        return shlex.split(text)
    return [word.strip('"') for word in shlex.split(text, posix=False)]  # a backslash separates folders there
