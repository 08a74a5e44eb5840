"""A real MLflow server on the loopback, a gate before it, and an SQLite store that is ready."""

import contextlib
import os
import shutil
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
from shared import shared

from medunet.tracking.server import Server

START_SECONDS = 180


class Process:
    """A program that answers on a port of the loopback; `command` gets the port."""

    def __init__(
        self, command: Callable[[str], list[str]], folder: Path, *, path: str = "/health", **environment: str
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        self.command = [sys.executable, "-m", "mlflow", *command(str(port))]
        self.folder, self.path = folder, path
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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new SQLite store; MLflow needs seconds to create its tables."""
    folder = shared(tmp_path_factory, "store", lambda folder: Server(f"sqlite:///{folder}/mlruns.db").client)
    return folder / "mlruns.db"


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    """Return the address of an MLflow store for this test, `tmp_path/mlruns.db`."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlruns.db')}"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Process]:
    """A server for the whole session."""
    folder = tmp_path_factory.mktemp("server")
    store = shutil.copy(empty_store, folder / "mlflow.db")
    words = ["server", "--host", "127.0.0.1", "--workers", "1", "--backend-store-uri", f"sqlite:///{store}"]
    words += ["--artifacts-destination", str(folder / "artifacts"), "--port"]
    process = Process(lambda port: [*words, port], folder)
    process.start()
    yield process
    process.stop()


class Gate:
    """A proxy before a server: it accepts only requests with the token, and can hang."""

    def __init__(self, server: str, *, token: str) -> None:
        self.token = token
        self.is_hanging = False
        self.waiting = 0  # requests that were not answered
        self._ended = threading.Event()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if gate.is_hanging:
                    gate.waiting += 1
                    gate._ended.wait()
                    return
                answer, code, kind = b"<html>log in</html>", 401, "text/html"
                if self.headers.get("Authorization") == f"Bearer {gate.token}":
                    headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                    found = requests.request(self.command, server + self.path, headers=headers, data=body, timeout=60)
                    answer, code, kind = found.content, found.status_code, found.headers.get("Content-Type", "")
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._proxy.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._proxy.server_port}"

    def __enter__(self) -> "Gate":
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._proxy.shutdown()
        self._proxy.server_close()


@pytest.fixture
def gate(server: Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A gate before the server, whose token MLflow's client has."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of today")
    with Gate(server.uri, token="of today") as opened:
        yield opened


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], str]]:
    """Serve a model of a store; returns the address."""
    started: list[Process] = []

    def start(model: str, uri: str) -> str:
        words = ["models", "serve", "-m", model, "--env-manager", "local", "--host", "127.0.0.1", "-p"]
        environment = {"MLFLOW_TRACKING_URI": uri, "MEDUNET_DEVICE": "cpu"}
        folder = tmp_path_factory.mktemp("serve")
        started.append(Process(lambda port: [*words, port], folder, path="/ping", **environment))
        started[-1].start()
        return started[-1].uri

    yield start
    for one in started:
        one.stop()
