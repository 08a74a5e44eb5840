"""Reading files that nobody vouches for in a process of its own, with limits of memory and time.

Decoders in C can crash, loop or eat the memory on malformed input; here that ends a child process, and the file is
refused like any other damaged one. The child stays for the next file, so that a file costs little more than its copy.
The voxels come back in memory that both processes map; nothing is unpickled. The child is no jail: it has the user's
rights, so this bounds what bugs destroy, not what an attacker may do who takes a decoder over.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from medunet.errors import ConfigError, DataError, GeometryError, MedunetError, SecurityError
from medunet.geometry import Geometry

from .options import ReadOptions
from .record import ReadRecord, decode_frames

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.5
"""Part of the machine's memory that the child may take beside its programs."""

LONGEST_SECONDS = 300.0
"""For one file; the largest CT from a slow drive takes a tenth."""

START_SECONDS = 120.0
"""Until the child has loaded its programs; some seconds on an idle machine."""

LONGEST_LINE = 1 << 22

SWITCH = "MEDUNET_ISOLATE"
"""Environment variable: 1 reads all images in a child process, where nobody says otherwise."""

_ERRORS = {kind.__name__: kind for kind in (DataError, GeometryError, SecurityError, ConfigError)}

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from medunet.io.isolated_child import main; main()"


def is_wanted(isolated: bool | None) -> bool:
    """Whether to isolate: what a caller says, else the environment."""
    return os.environ.get(SWITCH, "") not in ("", "0") if isolated is None else isolated


class ReadingProcess:
    """A child process that reads image after image.

    It is started by the first file, or by :meth:`start`; after a crash the next file starts another one. Threads take
    turns. A process that was forked from this one gets a child of its own.

    Args:
        memory: bytes that reading may take beside the programs; None for `MEMORY_SHARE` of the machine's.
        seconds: that one file may take.

    Raises:
        ConfigError: a system without the calls that this needs (Windows), or a child that does not start.
    """

    def __init__(self, *, memory: int | None = None, seconds: float = LONGEST_SECONDS) -> None:
        if not hasattr(socket, "recv_fds"):
            raise ConfigError("reading in a child process needs Linux or macOS", remedy="read without isolation")
        self.memory = int(psutil.virtual_memory().total * MEMORY_SHARE) if memory is None else memory
        self.seconds = seconds
        self._lock = threading.Lock()
        self._owner = 0
        self._is_ready = False
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Start the child now, to have it ready when the first file comes; does not wait for it."""
        with self._lock:
            self._ensure()

    @property
    def pid(self) -> int | None:
        """Of the child, if there is one."""
        return self._child.pid if self._child is not None and self._owner == os.getpid() else None

    def read(self, path: Path, options: ReadOptions) -> tuple[npt.NDArray[np.float32], ReadRecord]:
        """As the reader of the file's format; the voxels are mapped, and may be written to.

        Raises:
            DataError: also for a crash, too much memory or too long a time.
            MedunetError: what the reader raises.
        """
        answer, voxels = self._ask("voxels", path, options)
        if voxels is None:
            raise DataError("its reading gave no voxels", file=path)
        return voxels.reshape(answer["array_shape"]), _record(answer["record"])

    def read_header(self, path: Path, options: ReadOptions) -> ReadRecord:
        """As :meth:`read`, of the header alone."""
        return _record(self._ask("header", path, options)[0]["record"])

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _ask(
        self, what: str, path: Path, options: ReadOptions
    ) -> tuple[dict[str, Any], npt.NDArray[np.float32] | None]:
        request = {"what": what, "path": os.path.abspath(path), "options": asdict(options), "seconds": self.seconds}  # noqa: PTH100 (keeps links)
        with self._lock:
            link = self._ensure()
            try:
                self._await_start(link)
                end = time.monotonic() + self.seconds
                link.sendall(json.dumps(request).encode() + b"\n")
                line, handle = _receive(link, end)
            except TimeoutError:
                self._end()
                raise DataError(
                    "reading takes too long, it was stopped",
                    file=path,
                    expected=f"at most {self.seconds:g} s",
                    remedy="look whether it opens in a viewer; if the drive is slow, copy it first",
                ) from None
            except OSError as error:
                raise self._crash(path) from error
            if line is None:
                raise self._crash(path)
        with contextlib.ExitStack() as stack:
            if handle is not None:
                stack.callback(os.close, handle)
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise _error(answer["error"], path)
            answer["record"]["path"] = path
            return answer, None if handle is None else _mapped(handle, answer["array_shape"], path)

    def _await_start(self, link: socket.socket) -> None:
        if not self._is_ready:
            try:
                line = _receive(link, time.monotonic() + START_SECONDS)[0]
            except TimeoutError:
                line = None
            if line is None:
                code = self._end()
                raise ConfigError("the reading process does not start", received=f"exit code {code}")
            self._is_ready = True

    def _ensure(self) -> socket.socket:
        """The socket of a child that lives; the lock is held."""
        if self._owner != os.getpid():  # forked: the child belongs to the parent
            self._child = self._socket = None
            self._owner = os.getpid()
        if self._child is not None and self._socket is not None and self._child.poll() is None:
            return self._socket
        self._end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        command = [sys.executable, "-I", "-c", _PROGRAM, json.dumps(sys.path), str(theirs.fileno()), str(self.memory)]
        loud = logger.isEnabledFor(logging.DEBUG)
        with theirs:
            self._child = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=None if loud else subprocess.DEVNULL,  # libraries print names of files
                start_new_session=True,  # Ctrl-C is the parent's affair
            )
        self._socket, self._is_ready = ours, False
        return ours

    def _crash(self, path: Path) -> DataError:
        code = self._end()
        if code is not None and code < 0:
            what = f"by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"by signal {-code}"
        else:
            what = f"with exit code {code}"
        return DataError(
            "reading it made the reading process end",
            file=path,
            received=what,
            remedy="the file is damaged or too large for the memory: copy it again from its source",
        )

    def _end(self) -> int | None:
        """Stop the child, if there is one; its exit code, which is its own where it had ended already."""
        child, self._child = self._child, None
        link, self._socket = self._socket, None
        if link is not None:
            link.close()
        if child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=1.0)  # its end of the socket is closed: it leaves by itself
        child.kill()
        return child.wait()

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadingProcess:
        """Copies of a reader share the child."""
        return self


_shared: ReadingProcess | None = None
_making = threading.Lock()


def shared_process() -> ReadingProcess:
    """The one of this process; made when it is asked for."""
    global _shared  # noqa: PLW0603 (one child a process)
    with _making:
        if _shared is None:
            _shared = ReadingProcess()
            atexit.register(_shared.close)
        return _shared


def _receive(link: socket.socket, end: float) -> tuple[bytes | None, int | None]:
    """A line and the handle that came with it; no line: the other side is gone."""
    parts: list[bytes] = []
    handle: int | None = None
    total = 0
    while not parts or not parts[-1].endswith(b"\n"):
        link.settimeout(max(end - time.monotonic(), 0.001))
        data, handles, _, _ = socket.recv_fds(link, 1 << 16, 1)
        handle = handles[0] if handles else handle
        total += len(data)
        if not data or total > LONGEST_LINE:
            if handle is not None:
                os.close(handle)
            return None, None
        parts.append(data)
    return b"".join(parts), handle


def _mapped(handle: int, shape: list[int], path: Path) -> npt.NDArray[np.float32]:
    count = math.prod(shape)
    if os.fstat(handle).st_size != 4 * count or not count:
        raise DataError("its reading gave the wrong number of voxels", file=path)
    return np.frombuffer(mmap.mmap(handle, 4 * count), dtype=np.float32)


def _record(content: dict[str, Any]) -> ReadRecord:
    values = dict(content)
    geometry = Geometry(np.array(values.pop("affine"), dtype=np.float64), tuple(values.pop("shape")))
    values["warnings"] = tuple(values["warnings"])
    values["frames"] = decode_frames(values["frames"])
    return ReadRecord(geometry=geometry, **values)


def _error(content: dict[str, Any], path: Path) -> MedunetError:
    kind = _ERRORS.get(content["kind"], DataError)
    return kind(
        content["cause"],
        file=content["file"] or path,
        received=content["received"],
        expected=content["expected"],
        remedy=content["remedy"],
    )
