"""A real MLflow server on the loopback, started and stopped by its process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from medunet.datasets import write_phantom_dataset

START_SECONDS = 180


def usable_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Process:
    """A program that answers on a port of the loopback."""

    def __init__(
        self, command: Callable[[int], list[str]], folder: Path, *, path: str = "/health", **environment: str
    ) -> None:
        self.port = usable_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = command(self.port)
        self.folder = folder
        self.path = path
        own = {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
        own["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # it starts uvicorn
        self.environment = {**os.environ, **own, **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(self.uri + self.path, timeout=2).ok:
                    return
            time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        """End it and the workers that it has started: they share its process group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("server")
    store = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]

    def command(port: int) -> list[str]:
        words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        return [sys.executable, *words, *store]

    found = Process(command, folder)
    found.start()
    yield found
    found.stop()


class Gate:
    """A proxy before a server, which lets in who knows the token, and says `status` to others."""

    def __init__(self, server: str, *, token: str, status: int) -> None:
        self.token = token
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                known = self.headers.get("Authorization") == f"Bearer {gate.token}"
                if known or self.path == "/health":
                    headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                    found = requests.request(self.command, server + self.path, headers=headers, data=body, timeout=60)
                    answer, code, kind = found.content, found.status_code, found.headers.get("Content-Type", "")
                else:
                    answer, code, kind = b"<html>log in</html>", status, "text/html"
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._proxy.server_port}"

    def __enter__(self) -> Gate:
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()


@pytest.fixture
def gate(server: Process, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Gate]:
    """A gate before the server, and its token as MLflow's client reads it."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of today")
    return lambda status: Gate(server.uri, token="of today", status=status)


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data whose files are named like patients."""
    root = tmp_path_factory.mktemp("ward") / "study"
    write_phantom_dataset(root, kind="cells", cases=4, size=(48, 48))
    for folder in ("imagesTr", "labelsTr"):
        for number, path in enumerate(sorted((root / folder).iterdir())):
            path.rename(path.with_name(f"Mustermann_{'ABCD'[number]}{path.suffix}"))
    (root / "dataset.json").unlink(missing_ok=True)
    return root


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], str]]:
    """Serve a model of a store; returns the address."""
    started: list[Process] = []

    def start(model: str, uri: str) -> str:
        folder = tmp_path_factory.mktemp("serve")

        def command(port: int) -> list[str]:
            words = ["models", "serve", "-m", model, "--env-manager", "local", "--host", "127.0.0.1", "-p", str(port)]
            return [sys.executable, "-m", "mlflow", *words]

        found = Process(command, folder, path="/ping", MLFLOW_TRACKING_URI=uri, MEDUNET_DEVICE="cpu")
        started.append(found)
        found.start()
        return found.uri

    yield start
    for one in started:
        one.stop()
