"""MONAI Label's REST interface, by the standard library."""

from __future__ import annotations

import contextlib
import email.parser
import email.policy
import http.client
import json
import secrets
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

BLOCK = 1 << 20
"""Bytes of a file that are sent at a time."""

TIMEOUT = 30.0
"""Seconds to wait for a connection and for short answers."""

INFER_TIMEOUT = 3600.0


class ServerError(Exception):
    """What the server answered, or why it did not.

    Args:
        text: for people.
        status: of HTTP; 0 when there was no answer.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class LabelClient:
    """Talks to a MONAI Label server, one request at a time.

    Args:
        url: such as ``http://127.0.0.1:8000``.
        token: sent as `Authorization: Bearer`; None for none.

    Raises:
        ServerError: no HTTP address.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url!r} is no address of a server (expected for instance http://127.0.0.1:8000)")
        self.parts = parts
        self.token = token
        self._socket: socket.socket | None = None
        self._closed = False

    def info(self) -> dict[str, Any]:
        """Name, models with their labels, and strategies."""
        return self._json("GET", "/info/")

    def models(self) -> dict[str, dict[str, Any]]:
        """Models that segment, by name."""
        models: dict[str, dict[str, Any]] = self.info().get("models", {})
        return {name: model for name, model in models.items() if model.get("type") == "segmentation"}

    def infer(self, model: str, image: Path, result: Path, **params: Any) -> dict[str, Any]:
        """Segment a file and write what comes back.

        Args:
            model: its name.
            image: is sent.
            result: where the mask is written; its ending is asked for.
            params: further values of the request.

        Returns:
            What the server says beside the mask: ``label_names``, ``label_colors``, ...

        Raises:
            ServerError: no connection, or the server's own error.
        """
        ending = ".seg.nrrd" if result.name.endswith(".seg.nrrd") else "".join(result.suffixes)
        values = {"result_extension": ending, **params}
        path = f"/infer/{quote(model, safe='')}?{urlencode({'output': 'all'})}"
        kind, body = self._request("POST", path, fields={"params": json.dumps(values)}, files={"file": image})
        if not kind.startswith("multipart/"):
            raise ServerError("the server sent no mask")
        parts = read_multipart(kind, body)
        if "image" not in parts:
            raise ServerError("the server sent no mask")
        result.write_bytes(parts["image"])
        answer: dict[str, Any] = json.loads(parts.get("params", b"{}"))
        return answer

    def next_sample(self, strategy: str) -> dict[str, Any]:
        """The image that a strategy offers for annotation; empty when all are labelled."""
        return self._json("POST", f"/activelearning/{quote(strategy, safe='')}", content={})

    def image(self, name: str, target: Path) -> Path:
        """Download an image of the datastore."""
        _, body = self._request("GET", f"/datastore/image?{urlencode({'image': name})}")
        target.write_bytes(body)
        return target

    def save_label(self, name: str, label: Path, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Submit a corrected label of an image of the datastore."""
        path = f"/datastore/label?{urlencode({'image': name, 'tag': 'final'})}"
        _, body = self._request("PUT", path, fields={"params": json.dumps(params or {})}, files={"label": label})
        answer: dict[str, Any] = json.loads(body)
        return answer

    def train(self, model: str, **params: Any) -> dict[str, Any]:
        """Start training on the submitted labels."""
        return self._json("POST", f"/train/{quote(model, safe='')}", content=params)

    def train_status(self) -> dict[str, Any]:
        """Of the last training."""
        return self._json("GET", "/train/")

    def close(self) -> None:
        """Break off the request that another thread waits for; a later one is refused."""
        self._closed = True  # before the look at the socket: a request looks the other way round
        connected = self._socket  # the other thread may let go of it at any moment
        if connected is not None:
            _wake(connected)

    def _json(self, method: str, path: str, content: Any = None) -> dict[str, Any]:
        _, body = self._request(method, path, content=content)
        answer: dict[str, Any] = json.loads(body)
        return answer

    def _request(
        self,
        method: str,
        path: str,
        *,
        content: Any = None,
        fields: dict[str, str] | None = None,
        files: dict[str, Path] | None = None,
    ) -> tuple[str, bytes]:
        headers = {"Accept": "application/json, multipart/form-data"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        body: Any = None
        if files is not None:
            boundary = secrets.token_hex(16)
            headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
            headers["Content-Length"] = str(sum(len(part) for part in write_multipart(fields or {}, files, boundary)))
            body = write_multipart(fields or {}, files, boundary)
        elif content is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(content).encode()
        connection = self._connect()
        try:
            connection.connect()
            connection.sock.settimeout(INFER_TIMEOUT if files is not None else TIMEOUT)
            self._socket = connection.sock  # kept here: a connection lets go of it as soon as the answer begins
            if self._closed:
                raise ConnectionAbortedError("the request was broken off")
            connection.request(method, self.parts.path.rstrip("/") + path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"no answer from {self.parts.netloc}: {error}") from error
        finally:
            self._socket = None
            connection.close()
        if response.status != http.client.OK:
            raise ServerError(_reason(response.status, answer), response.status)
        return response.headers.get("Content-Type", ""), answer

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self.parts.hostname or "", self.parts.port
        if self.parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)


def _wake(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the server was quicker
        connected.shutdown(socket.SHUT_RDWR)  # closing would not wake the thread that reads


def write_multipart(fields: dict[str, str], files: dict[str, Path], boundary: str) -> Iterator[bytes]:
    """The blocks of a form with files; large files are not kept in memory."""
    for name, value in fields.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        yield f"{head}{value}\r\n".encode()
    for name, path in files.items():
        safe = path.name.replace('"', "_").replace("\r", "_").replace("\n", "_")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{safe}"\r\n'
        yield f"{head}Content-Type: application/octet-stream\r\n\r\n".encode()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def read_multipart(kind: str, body: bytes) -> dict[str, bytes]:
    r"""The parts of a form by name.

    Example:
        >>> body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n2\r\n--x--\r\n'
        >>> read_multipart("multipart/form-data; boundary=x", body)
        {'a': b'1\r\n2'}
    """
    boundary = email.parser.Parser(policy=email.policy.HTTP).parsestr(f"Content-Type: {kind}\n\n").get_boundary()
    parts: dict[str, bytes] = {}
    mark = f"--{boundary}".encode()
    for part in body.split(mark)[1:]:
        if part.startswith(b"--"):
            break
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + b"\r\n\r\n")
        name = message["Content-Disposition"].params.get("name", "") if "Content-Disposition" in message else ""
        parts[name] = content.removesuffix(b"\r\n")
    return parts


def _reason(status: int, body: bytes) -> str:
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        detail = body.decode("utf-8", errors="replace").strip()[:300] or http.client.responses.get(status, "")
    return f"the server answered {status}: {detail}"
