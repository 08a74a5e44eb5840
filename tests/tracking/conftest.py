"""A real MLflow server on the loopback, and a gate before it."""

import contextlib
import logging
import multiprocessing
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

from medunet.tracking import server as tracking_server

START_SECONDS = 180


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(address: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(address, timeout=2).ok
    return False


class LocalServer:
    """MLflow's server in a fork of this process, because a new one needs seconds to import it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        tracking_server.create_store(folder / "mlflow.db")
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        from mlflow.server import app

        def serve() -> None:
            from mlflow.server import constants
            from werkzeug.serving import make_server

            with (self.folder / "server.log").open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            logging.getLogger("werkzeug").setLevel(logging.ERROR)
            os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = f"sqlite:///{self.folder}/mlflow.db"
            os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
            os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = str(self.folder / "artifacts")
            os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
            make_server("127.0.0.1", self.port, app, threaded=True).serve_forever()

        self.process = multiprocessing.get_context("fork").Process(target=serve, daemon=True)
        self.process.start()
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self.process.is_alive():
            if answers(f"{self.uri}/health"):
                return
            time.sleep(0.05)
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join(30)
            self.process = None


class Process:
    """A command of MLflow that answers on a port of the loopback; `command` gets the port."""

    def __init__(
        self, command: Callable[[str], list[str]], folder: Path, *, path: str = "/health", **environment: str
    ) -> None:
        port = free_port()
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
            if answers(self.uri + self.path):
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
def uri(tmp_path: Path) -> str:
    """Return the address of an MLflow store for this test, `tmp_path/mlruns.db`."""
    return f"sqlite:///{tmp_path}/mlruns.db"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server for the whole session."""
    local = LocalServer(tmp_path_factory.mktemp("server"))
    local.start()
    yield local
    local.stop()


@pytest.fixture(scope="session")
def server_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`mlflow server`, with its pages."""
    folder = tmp_path_factory.mktemp("server")
    tracking_server.create_store(folder / "mlflow.db")
    words = ["server", "--host", "127.0.0.1", "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
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
def gate(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
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
