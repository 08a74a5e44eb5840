"""Reading untrusted files in a child process with limits of memory and time.

Decoders in C can crash, loop or fill the memory on malformed input; here that ends a child process. The child has the
user's rights: this limits the damage of bugs, not what an attacker can do who controls a decoder.
"""

import atexit
import contextlib
import json
import logging
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from functools import cache
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import psutil

from medunet.errors import ConfigError, DataError, MedunetError

from . import decode  # noqa: F401 - imported before memory is limited
from .limits import resource

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MEMORY_SHARE = 0.5  # part of the machine's memory that reading may take
LONGEST_SECONDS = 300.0  # per file; the largest CT from a slow drive takes a tenth
START_SECONDS = 300.0  # until the child has imported its modules; a second on an idle machine, minutes on a busy one
SWITCH = "MEDUNET_ISOLATE"  # environment variable: 1 reads all images in a child process by default

_GRACE_SECONDS = 5  # a child whose parent has died ends itself so much after its time limit
_SHARED_BYTES = 1 << 16  # larger buffers are passed as shared memory
_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from medunet.io.isolation import serve; serve()"


class ReadingProcess:
    """A child process that reads file after file; threads take turns.

    The first call starts it. After a crash, and in a fork of this process, the next call starts another one.
    """

    # `memory`: bytes that reading may take in addition to the imported modules

    def __init__(self, *, memory: int | None = None, seconds: float = LONGEST_SECONDS) -> None:
        if not hasattr(socket, "send_fds"):
            raise ConfigError("reading in a child process needs Linux or macOS")
        self.memory = int(psutil.virtual_memory().total * MEMORY_SHARE) if memory is None else memory
        self.seconds = seconds
        self._lock = threading.Lock()
        self._owner = 0
        self._is_ready = False
        self._child: subprocess.Popen[bytes] | None = None
        self._link: Connection | None = None

    def start(self) -> None:
        """Start the child without waiting for it."""
        with self._lock:
            self._ensure()

    @property
    def pid(self) -> int | None:
        """Process id of the child, if there is one."""
        return self._child.pid if self._child is not None and self._owner == os.getpid() else None

    def call(self, read: Callable[..., Result], path: Path, *args: Any) -> Result:
        """Return ``read(path, *args)``, computed in the child; a crash, or too much memory or time, is a DataError."""
        with self._lock:
            link = self._ensure()
            try:
                if not self._is_ready:
                    if not link.poll(START_SECONDS):
                        self._stop()
                        limit = f"at most {START_SECONDS:g} s"
                        raise ConfigError("the reading process starts too slowly", expected=limit)
                    with contextlib.suppress(EOFError):
                        self._is_ready = link.recv() == "ready"
                    if not self._is_ready:
                        raise ConfigError("the reading process could not be started", received=_exit_text(self._stop()))
                link.send((read, Path.cwd(), path, args, self.seconds))
                if not link.poll(self.seconds):
                    self._stop()
                    raise DataError("reading takes too long", file=path, expected=f"at most {self.seconds:g} s")
                answer, is_fit = _receive(link)
                if not is_fit:
                    self._stop()
            except (OSError, EOFError) as error:
                cause = "the file is damaged or too large: the reading process ended"
                raise DataError(cause, file=path, received=_exit_text(self._stop())) from error
        if isinstance(answer, MedunetError):
            raise answer.at(answer.file or path)
        return answer

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._stop()

    def _ensure(self) -> Connection:
        """Return the connection to a running child; the lock is held."""
        if self._owner != os.getpid():  # after a fork the child belongs to the parent
            self._child = self._link = None
            self._owner = os.getpid()
        if self._child is not None and self._link is not None and self._child.poll() is None:
            return self._link
        self._stop()
        self._link, theirs = Pipe()
        self._is_ready = False
        command = [sys.executable, "-I", "-c", _PROGRAM, json.dumps(sys.path), str(theirs.fileno()), str(self.memory)]
        with theirs:
            self._child = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # libraries print names of files
                stderr=None if logger.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the parent only
            )
        return self._link

    def _stop(self) -> int | None:
        """Stop the child, if there is one, and return its exit code."""
        child, link = self._child, self._link
        self._child = self._link = None
        if link is not None:
            link.close()
        if child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout=1.0)  # its end of the connection is closed, so it leaves by itself
        child.kill()
        return child.wait()


@cache
def shared_process() -> ReadingProcess:
    """Return the child process that all readers of this process share."""
    process = ReadingProcess()
    atexit.register(process.close)
    return process


def _exit_text(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def _receive(link: Connection) -> Any:
    """Receive a pickled value and the shared memory of its large buffers."""
    content, sizes = link.recv()
    buffers = []
    for size in sizes:
        handle = reduction.recv_handle(link)
        try:
            buffers.append(mmap.mmap(handle, size))
        finally:
            os.close(handle)
    return pickle.loads(content, buffers=buffers)


def _send(link: Connection, value: Any) -> None:
    buffers: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes >= _SHARED_BYTES:
            buffers.append(raw)
        return raw.nbytes < _SHARED_BYTES

    content = pickle.dumps(value, protocol=5, buffer_callback=is_small)
    link.send((content, [buffer.nbytes for buffer in buffers]))
    for buffer in buffers:
        in_memory = hasattr(os, "memfd_create")
        with os.fdopen(os.memfd_create("voxels"), "wb") if in_memory else tempfile.TemporaryFile() as file:
            file.write(buffer)
            file.flush()
            reduction.send_handle(link, file.fileno(), os.getppid())


def serve() -> None:
    """Answer the requests of the parent until it closes the connection; the main function of the child."""
    link = Connection(int(sys.argv[2]))
    warnings.simplefilter("ignore")
    _limit_memory(int(sys.argv[3]))
    with contextlib.suppress(EOFError, ConnectionError):
        link.send("ready")
        while True:
            read, folder, path, args, seconds = link.recv()
            os.chdir(folder)
            with contextlib.suppress(ValueError):
                signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS)  # ends the process
            _send(link, _answer(read, path, args))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(read: Callable[..., Any], path: Path, args: tuple[Any, ...]) -> tuple[Any, bool]:
    """Return the result or a typed error, and whether the process is fit for another file."""
    try:
        return read(path, *args), True
    except MedunetError as error:
        return error, True
    except MemoryError:  # the rest of the memory is fragmented
        return DataError("reading needs more memory than allowed"), False
    except Exception as error:  # its text may quote the header
        return DataError(f"cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"), False


def _limit_memory(memory: int) -> None:
    """Limit the address space to what is in use and `memory` bytes more; write no core dumps, which hold voxels."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = psutil.Process().memory_info().vms + memory
    with contextlib.suppress(ValueError, OSError):  # macOS knows the limit but does not set it
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
