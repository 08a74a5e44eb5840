"""Segmentations of Slicer's module: progress, end, failure, cancelling, and messages."""

from __future__ import annotations

import email
import json
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from MedUNetLib.client import LabelClient, ServerError
from MedUNetLib.jobs import Job, LocalJob, RemoteJob, State, split_command

from medunet.io import read_label, write_volume

SECONDS = 120.0


def wait(job: Job) -> State:
    end = time.monotonic() + SECONDS
    while (state := job.poll()) is State.RUNNING and time.monotonic() < end:
        time.sleep(0.02)
    return state


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], list[str]]:
    """A program that replaces medunet."""

    def make(body: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(f"import os, pathlib, shutil, sys, time\noutput = pathlib.Path(sys.argv[5])\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return [sys.executable, str(path)]

    return make


def local(command: list[str], tmp_path: Path) -> LocalJob:
    (tmp_path / "out").mkdir()
    return LocalJob(command, tmp_path / "run", tmp_path / "image.nrrd", tmp_path / "out")


def test_a_local_job_shows_progress_and_returns_the_segmentation(
    command: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "that of Slicer, with which no other Python starts")
    body = "print('tile 1 of 2', flush=True)\n(output / 'image.seg.nrrd').write_bytes(b'labels')"
    job = local(command(body), tmp_path)
    job.start()
    assert wait(job) is State.DONE
    assert job.result().read_bytes() == b"labels"
    assert job.arguments[2:5] == ["predict", str(tmp_path / "run"), str(tmp_path / "image.nrrd")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('error ct.nrrd: a slice is missing')\nprint('0 of 1')\nsys.exit(2)", "ct.nrrd: a slice is missing"),
        ("print('out of memory')\nsys.exit(1)", "out of memory"),
        ("sys.exit(3)", "medunet ended with code 3"),
        ("", "medunet ended with code 0"),
    ],
)
def test_a_local_job_that_fails_shows_why(
    command: Callable[[str], list[str]], tmp_path: Path, body: str, message: str
) -> None:
    job = local(command(body), tmp_path)
    job.start()
    assert wait(job) is State.FAILED
    assert job.message == message


def test_a_local_job_is_cancelled_with_its_children(command: Callable[[str], list[str]], tmp_path: Path) -> None:
    body = "import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    job = local(command(f"{body}print('started', flush=True)\ntime.sleep(60)"), tmp_path)
    job.start()
    end = time.monotonic() + SECONDS
    while job.message != "started" and time.monotonic() < end:
        time.sleep(0.02)
    assert job.poll() is State.RUNNING
    job.cancel()
    assert wait(job) is State.CANCELLED
    job._thread.join(10)  # ends when no process has its output open
    assert not job._thread.is_alive()


class _Server(BaseHTTPRequestHandler):
    answer: ClassVar[tuple[int, str, bytes]] = (200, "application/json", b"{}")
    seen: ClassVar[list[tuple[str, str, dict[str, str], bytes]]] = []
    delay = 0.0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.command, self.path, dict(self.headers), body))
        time.sleep(self.delay)
        status, kind, content = self.answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    _Server.seen, _Server.delay, _Server.answer = [], 0.0, (200, "application/json", b"{}")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def remote(url: str, tmp_path: Path) -> RemoteJob:
    (tmp_path / "image.nrrd").write_bytes(b"voxels")
    job = RemoteJob(LabelClient(url, "secret"), "liver run", tmp_path / "image.nrrd", tmp_path)
    job.start()
    return job


def test_a_remote_job_sends_the_image_and_writes_the_mask(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    _Server.answer = (200, "application/octet-stream", b"labels")
    job = remote(address(server), tmp_path)
    assert wait(job) is State.DONE
    assert job.result().read_bytes() == b"labels"
    _, path, headers, body = _Server.seen[0]
    assert path == "/infer/liver%20run?output=image"
    assert headers["Authorization"] == "Bearer secret"
    form = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
    params, file = form.get_payload()
    assert json.loads(params.get_payload()) == {"result_extension": ".seg.nrrd"}
    assert (file.get_filename(), file.get_payload()) == ("image.nrrd", "voxels")


def test_an_error_of_the_server_is_shown(server: ThreadingHTTPServer) -> None:
    _Server.answer = (422, "application/json", b'{"detail": "a slice is missing"}')
    with pytest.raises(ServerError, match="422: a slice is missing"):
        LabelClient(address(server)).models()
    with pytest.raises(ServerError, match="must be like"):
        LabelClient("ftp://somewhere")


def test_a_missing_server_is_an_error_of_one_line(tmp_path: Path) -> None:
    job = remote("127.0.0.1:9", tmp_path)
    assert wait(job) is State.FAILED
    assert job.message.startswith("no answer from 127.0.0.1:9")


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.01, None])
def test_a_request_is_cancelled_at_any_moment(
    server: ThreadingHTTPServer, tmp_path: Path, seconds: float | None
) -> None:
    """After so many seconds, or (None) while the client waits for the answer."""
    _Server.delay = 30.0
    for _ in range(3):
        _Server.seen = []
        job = remote(address(server), tmp_path)
        assert job.poll() is State.RUNNING
        end = time.monotonic() + 10
        while seconds is None and not _Server.seen and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(seconds or 0.0)
        job.cancel()
        assert job.poll() is State.CANCELLED
        job._thread.join(10)
        assert not job._thread.is_alive()


def test_a_closed_client_sends_no_request(server: ThreadingHTTPServer) -> None:
    client = LabelClient(address(server))
    client.close()
    with pytest.raises(ServerError, match="cancelled"):
        client.models()
    assert not _Server.seen


def test_a_command_is_split_as_its_system_does(tmp_path: Path) -> None:
    assert split_command("/a\\ b/medunet -v", windows=False) == ["/a b/medunet", "-v"]
    assert split_command(r'"C:\Program Files\py\python.exe" -m medunet', windows=True) == [
        r"C:\Program Files\py\python.exe",
        "-m",
        "medunet",
    ]
    program = tmp_path / "my programs" / "medunet"
    program.parent.mkdir()
    program.touch()
    for windows in (False, True):
        assert split_command(f" {program} ", windows=windows) == [str(program)]


@pytest.mark.slow
def test_medunet_predict_is_a_local_job(bundle: Path, tmp_path: Path) -> None:
    image = write_volume(np.ones((17, 19, 16), np.float32), tmp_path / "image.nrrd")
    (tmp_path / "out").mkdir()
    job = LocalJob([sys.executable, "-m", "medunet"], bundle, image, tmp_path / "out", "cpu")
    job.start()
    assert wait(job) is State.DONE, job.message
    assert read_label(job.result(), reference=image).image.shape == (1, 17, 19, 16)
    broken = LocalJob([sys.executable, "-m", "medunet"], bundle, tmp_path / "none.nrrd", tmp_path / "out2", "cpu")
    broken.start()
    assert wait(broken) is State.FAILED
    assert "none.nrrd: does not exist" in broken.message
