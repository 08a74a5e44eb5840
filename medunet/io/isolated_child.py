"""The child of `medunet.io.isolation`: one request a line, one answer a line, voxels in a file without a name."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from medunet.errors import DataError, MedunetError

from .options import ReadOptions
from .reader import read_one, read_one_header
from .record import ReadRecord, encode_frames

_GRACE_SECONDS = 5
"""The parent ends a child that takes too long; one whose parent has died ends itself so much later."""


def main() -> None:
    """Serve the parent at the other end of the socket until it closes it."""
    handle, memory = int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    limit_memory(memory)
    with socket.socket(fileno=handle) as link, link.makefile("rb") as lines:
        link.sendall(b"ready\n")
        for line in lines:
            request = json.loads(line)
            with contextlib.suppress(ValueError):
                signal.setitimer(signal.ITIMER_REAL, request["seconds"] + _GRACE_SECONDS)  # ends the process
            answer, content = _answer(request)
            text = json.dumps(answer).encode() + b"\n"
            if content is None:
                link.sendall(text)
            else:
                with content:
                    sent = socket.send_fds(link, [text], [content.fileno()])
                link.sendall(text[sent:])
            signal.setitimer(signal.ITIMER_REAL, 0)
            if answer.get("leave"):
                return


def limit_memory(memory: int) -> None:
    """Bound the address space to what the programs have taken and so many bytes more; no core dumps of patients."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wanted = psutil.Process().memory_info().vms + memory
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS knows the limit but does not set it
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    path, options = Path(request["path"]), ReadOptions(**request["options"])
    try:
        if request["what"] == "header":
            return {"record": _as_json(read_one_header(path, options))}, None
        voxels, record = read_one(path, options)
        return {"record": _as_json(record), "array_shape": voxels.shape}, _file_of(voxels)
    except MedunetError as error:
        return {"error": _spelt(error)}, None
    except MemoryError:
        # what is left of it is fragmented, so the next file gets a fresh process
        own = DataError("reading needs more memory than it may have", remedy="crop it, or use a larger machine")
    except OSError as cause:
        own = DataError(f"cannot be read: {cause.strerror or type(cause).__name__}", remedy="look at the drive")
    except Exception as cause:  # no fault of the input that was foreseen; the words may quote the header
        own = DataError(f"unexpected error while reading: {type(cause).__name__}", remedy="convert it anew")
    return {"error": _spelt(own), "leave": True}, None


def _spelt(error: MedunetError) -> dict[str, str | None]:
    values = {name: None if (v := getattr(error, name)) is None else str(v) for name in ("received", "expected")}
    return {"kind": type(error).__name__, "cause": error.cause, "file": error.file, "remedy": error.remedy, **values}


def _as_json(record: ReadRecord) -> dict[str, Any]:
    return {
        "affine": record.geometry.affine.tolist(),
        "shape": record.geometry.shape,
        **{name: getattr(record, name) for name in ("format", "channels", "dtype", "files", "modality", "series")},
        "warnings": record.warnings,
        "frames": encode_frames(record.frames),
    }


def _file_of(voxels: npt.NDArray[np.float32]) -> Any:
    """A file without a name that holds the voxels; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        file: Any = os.fdopen(os.memfd_create("voxels"), "wb", buffering=0)
    else:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed once it is sent)
    content = np.ascontiguousarray(voxels, dtype=np.float32).data.cast("B")
    place = 0
    while place < len(content):
        place += file.write(content[place : place + (1 << 30)])
    return file
