"""Segmentations of Slicer's module: progress, end, failure, cancelling, and messages."""

import email
import json
import sys
import threading
import time
from collections.abc import Iterator
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


def local(body: str, tmp_path: Path) -> LocalJob:
    """Start a program that replaces medunet."""
    program = tmp_path / "program.py"
    program.write_text(f"import pathlib, sys, time\noutput = pathlib.Path(sys.argv[5])\n{body}\n")
    (tmp_path / "out").mkdir()
    job = LocalJob([sys.executable, str(program)], tmp_path / "run", tmp_path / "image.nrrd", tmp_path / "out")
    job.start()
    return job


def test_a_local_job_returns_the_segmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "that of Slicer, with which no other Python starts")
    job = local("(output / 'image.seg.nrrd').write_bytes(b'labels')", tmp_path)
    assert wait(job) is State.DONE
    assert job.result().read_bytes() == b"labels"
    assert job.arguments[2:5] == ["predict", str(tmp_path / "run"), str(tmp_path / "image.nrrd")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('error ct.nrrd: a slice is missing')\nprint('0 of 1')\nsys.exit(2)", "ct.nrrd: a slice is missing"),
        ("print('out of memory')\nsys.exit(1)", "out of memory"),
        ("", "medunet ended with code 0"),
    ],
)
def test_a_local_job_that_fails_shows_the_cause(tmp_path: Path, body: str, message: str) -> None:
    job = local(body, tmp_path)
    assert wait(job) is State.FAILED
    assert job.message == message


def test_a_local_job_is_cancelled_with_its_children(tmp_path: Path) -> None:
    body = "import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    job = local(f"{body}print('started', flush=True)\ntime.sleep(60)", tmp_path)
    end = time.monotonic() + SECONDS
    while job.message != "started" and time.monotonic() < end:
        time.sleep(0.02)
    assert job.poll() is State.RUNNING
    job.cancel()
    assert wait(job) is State.CANCELLED
    job._thread.join(10)  # ends when no process has its output open
    assert not job._thread.is_alive()


class _Server(BaseHTTPRequestHandler):
    answer: ClassVar[tuple[int, bytes]] = (200, b"{}")
    seen: ClassVar[list[tuple[str, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.path, dict(self.headers), body))
        status, content = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    _Server.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def remote(url: str, tmp_path: Path) -> RemoteJob:
    (tmp_path / "image.nrrd").write_bytes(b"voxels")
    job = RemoteJob(LabelClient(url, "secret"), "liver run", tmp_path / "image.nrrd", tmp_path)
    job.start()
    return job


def test_a_remote_job_sends_the_image_and_writes_the_mask(address: str, tmp_path: Path) -> None:
    _Server.answer = (200, b"labels")
    job = remote(address, tmp_path)
    assert wait(job) is State.DONE
    assert job.result().read_bytes() == b"labels"
    path, headers, body = _Server.seen[0]
    assert path == "/infer/liver%20run?output=image"
    assert headers["Authorization"] == "Bearer secret"
    form = email.message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
    params, file = form.get_payload()
    assert json.loads(params.get_payload()) == {"result_extension": ".seg.nrrd"}
    assert (file.get_filename(), file.get_payload()) == ("image.nrrd", "voxels")


def test_an_error_of_the_server_is_shown(address: str, tmp_path: Path) -> None:
    _Server.answer = (422, b'{"detail": "a slice is missing"}')
    with pytest.raises(ServerError, match="422: a slice is missing"):
        LabelClient(address).models()
    with pytest.raises(ServerError, match="must be like"):
        LabelClient("ftp://somewhere")
    job = remote("127.0.0.1:9", tmp_path)
    assert wait(job) is State.FAILED
    assert job.message.startswith("no answer from 127.0.0.1:9")
    job.cancel()
    assert job.poll() is State.CANCELLED


def test_commands_are_split_by_the_rules_of_the_platform(tmp_path: Path) -> None:
    assert split_command("/a\\ b/medunet -v", windows=False) == ["/a b/medunet", "-v"]
    words = split_command(r'"C:\Program Files\py\python.exe" -m medunet', windows=True)
    assert words == [r"C:\Program Files\py\python.exe", "-m", "medunet"]
    program = tmp_path / "my programs" / "medunet"
    program.parent.mkdir()
    program.touch()
    for windows in (False, True):
        assert split_command(f" {program} ", windows=windows) == [str(program)]


@pytest.mark.slow
def test_medunet_predict_runs_as_a_local_job(bundle: Path, tmp_path: Path) -> None:
    image = write_volume(np.ones((17, 19, 16), np.float32), tmp_path / "image.nrrd")
    (tmp_path / "out").mkdir()
    job = LocalJob([sys.executable, "-m", "medunet"], bundle, image, tmp_path / "out", "cpu")
    job.start()
    assert wait(job) is State.DONE, job.message
    assert read_label(job.result(), reference=image).image.shape == (1, 17, 19, 16)
