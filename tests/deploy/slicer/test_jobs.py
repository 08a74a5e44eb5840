"""Segmentations beside Slicer's window: progress, end, failure, cancelling, and the words for them."""

from __future__ import annotations

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
from MedUNetLib.jobs import Job, LocalJob, RemoteJob, State, clean_environment, named, split_command
from MedUNetLib.nrrd import NrrdVolume, write_nrrd

from medunet.io import write_volume

SECONDS = 120.0


def wait(job: Job) -> State:
    end = time.monotonic() + SECONDS
    while (state := job.poll()) is State.RUNNING and time.monotonic() < end:
        time.sleep(0.02)
    return state


@pytest.fixture
def segmentation(tmp_path: Path) -> Path:
    labels = np.zeros((5, 4, 3), np.uint8)
    labels[1:3, 2, 1] = 1
    return write_volume(labels, tmp_path / "made.seg.nrrd", labels={"liver": 1})


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], list[str]]:
    """A program in the place of medunet."""

    def make(body: str) -> list[str]:
        path = tmp_path / "program.py"
        path.write_text(f"import os, pathlib, shutil, sys, time\noutput = pathlib.Path(sys.argv[5])\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return [sys.executable, str(path)]

    return make


def local(command: list[str], tmp_path: Path) -> LocalJob:
    (tmp_path / "out").mkdir()
    return LocalJob(command, tmp_path / "run", tmp_path / "image.nrrd", tmp_path / "out")


def test_a_local_job_shows_progress_and_gives_the_segmentation(
    command: Callable[[str], list[str]], tmp_path: Path, segmentation: Path
) -> None:
    body = f"print('tile 1 of 2', flush=True)\nshutil.copy({str(segmentation)!r}, output / 'image.seg.nrrd')"
    job = local(command(body), tmp_path)
    job.start()
    assert wait(job) is State.DONE
    assert job.result().segments[0].name == "liver"
    assert job.arguments[2:5] == ["predict", str(tmp_path / "run"), str(tmp_path / "image.nrrd")]


def test_a_local_job_that_fails_says_why(command: Callable[[str], list[str]], tmp_path: Path) -> None:
    job = local(command("print('error ct.nrrd: a slice is missing')\nprint('0 of 1')\nsys.exit(2)"), tmp_path)
    job.start()
    assert wait(job) is State.FAILED
    assert job.message == "ct.nrrd: a slice is missing"


def test_a_local_job_is_cancelled_with_its_children(command: Callable[[str], list[str]], tmp_path: Path) -> None:
    body = "import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\ntime.sleep(60)"
    job = local(command(body), tmp_path)
    job.start()
    time.sleep(0.5)
    assert job.poll() is State.RUNNING
    job.cancel()
    assert wait(job) is State.CANCELLED


def test_the_variables_of_slicers_python_do_not_reach_medunets() -> None:
    assert clean_environment({"PYTHONHOME": "x", "PYTHONPATH": "y", "PATH": "z"}) == {"PATH": "z"}


def test_names_come_from_lists_and_from_tables() -> None:
    assert [(i.name, i.value) for i in named({"label_names": ["liver", "spleen"]})] == [("liver", 1), ("spleen", 2)]
    (only,) = named({"label_names": {"background": 0, "liver": 3}, "label_colors": {"liver": [255, 0, 0]}})
    assert (only.value, only.color) == (3, (1.0, 0.0, 0.0))


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


def test_a_remote_job_sends_the_image_and_reads_the_mask(
    server: ThreadingHTTPServer, segmentation: Path, tmp_path: Path
) -> None:
    mask = segmentation.read_bytes()
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"label_names": {"liver": 1}}\r\n',
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' + mask + b"\r\n--b--\r\n",
    ]
    _Server.answer = (200, "multipart/form-data; boundary=b", b"".join(parts))
    (tmp_path / "image.nrrd").write_bytes(b"voxels")
    job = RemoteJob(LabelClient(address(server), "secret"), "liver run", tmp_path / "image.nrrd", tmp_path)
    job.start()
    assert wait(job) is State.DONE
    assert job.result().segments[0].name == "liver"
    _, path, headers, body = _Server.seen[0]
    assert path == "/infer/liver%20run?output=all"
    assert headers["Authorization"] == "Bearer secret"
    assert b"voxels" in body
    assert b'"result_extension": ".seg.nrrd"' in body


def test_an_error_of_the_server_is_shown_in_its_own_words(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    _Server.answer = (422, "application/json", b'{"detail": "a slice is missing"}')
    with pytest.raises(ServerError, match="422: a slice is missing"):
        LabelClient(address(server)).info()


def test_a_server_that_is_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "image.nrrd").write_bytes(b"voxels")
    job = RemoteJob(LabelClient("127.0.0.1:9"), "model", tmp_path / "image.nrrd", tmp_path)
    job.start()
    assert wait(job) is State.FAILED
    assert job.message.startswith("no answer from 127.0.0.1:9")


def test_a_remote_job_that_is_cancelled_is_not_waited_for(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    _Server.delay = 1.0
    (tmp_path / "image.nrrd").write_bytes(b"voxels")
    job = RemoteJob(LabelClient(address(server)), "model", tmp_path / "image.nrrd", tmp_path)
    job.start()
    assert job.poll() is State.RUNNING
    job.cancel()
    assert job.poll() is State.CANCELLED


def test_a_cancelled_request_ends_at_once_and_leaves_no_thread(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    _Server.delay = 30.0
    (tmp_path / "image.nrrd").write_bytes(b"voxels")
    job = RemoteJob(LabelClient(address(server)), "model", tmp_path / "image.nrrd", tmp_path)
    job.start()
    end = time.monotonic() + 10
    while not _Server.seen and time.monotonic() < end:  # the image is there, and the answer is waited for
        time.sleep(0.02)
    job.cancel()
    assert job._thread is not None
    job._thread.join(10)
    assert not job._thread.is_alive()


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.003, 0.01])
def test_a_request_is_cancelled_at_any_moment(server: ThreadingHTTPServer, tmp_path: Path, seconds: float) -> None:
    _Server.delay = 30.0
    (tmp_path / "image.nrrd").write_bytes(b"voxels")
    for _ in range(5):
        job = RemoteJob(LabelClient(address(server)), "model", tmp_path / "image.nrrd", tmp_path)
        job.start()
        time.sleep(seconds)
        job.cancel()
        assert job._thread is not None
        job._thread.join(10)
        assert not job._thread.is_alive()
        assert job.poll() is State.CANCELLED


def test_a_client_that_is_closed_makes_no_request(server: ThreadingHTTPServer) -> None:
    client = LabelClient(address(server))
    client.close()
    with pytest.raises(ServerError, match="broken off"):
        client.info()


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
    image = write_nrrd(tmp_path / "image.nrrd", NrrdVolume(np.ones((17, 19, 16), np.float32), np.eye(4)))
    (tmp_path / "out").mkdir()
    job = LocalJob([sys.executable, "-m", "medunet"], bundle, image, tmp_path / "out", "cpu")
    job.start()
    assert wait(job) is State.DONE, job.message
    assert job.result().array.shape == (17, 19, 16)
    broken = LocalJob([sys.executable, "-m", "medunet"], bundle, tmp_path / "none.nrrd", tmp_path / "out2", "cpu")
    broken.start()
    assert wait(broken) is State.FAILED
    assert "none.nrrd: does not exist" in broken.message
