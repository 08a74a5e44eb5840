"""Client of MONAI Label's REST interface, with the standard library."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

BLOCK = 1 << 20  # bytes of a file that are sent at a time
TIMEOUT = 30.0  # seconds to wait for a connection and for short answers
INFER_TIMEOUT = 3600.0  # seconds


class ServerError(Exception):
    """Error of the server, or the reason for a missing answer.

    Args:
        text: message for the user.
        status: HTTP status; 0 without an answer.
    """

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class LabelClient:
    """Client of a MONAI Label server, for one request at a time.

    Args:
        url: address such as `http://127.0.0.1:8000`.
        token: sent as `Authorization: Bearer`; None sends no header.

    Raises:
        ServerError: not an HTTP address.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"the server's address must be like http://127.0.0.1:8000, got {url!r}")
        self.parts, self.token = parts, token
        self._socket: socket.socket | None = None
        self._closed = False

    def models(self) -> list[str]:
        """Return the names of the models that segment."""
        models = json.loads(self.request("GET", "/info/")).get("models", {})
        return sorted(name for name, model in models.items() if model.get("type") == "segmentation")

    def infer(self, model: str, image: Path, result: Path) -> None:
        """Segment a file and write the mask.

        Args:
            model: name of the model.
            image: file to send.
            result: file of the mask; a .seg.nrrd file has names and colours of the segments.

        Raises:
            ServerError: no connection, or an error of the server.
        """
        suffix = ".seg.nrrd" if result.name.endswith(".seg.nrrd") else "".join(result.suffixes)
        params = {"result_extension": suffix}
        result.write_bytes(self.request("POST", f"/infer/{quote(model, safe='')}?output=image", params, file=image))

    def close(self) -> None:
        """Abort the request that another thread waits for; later requests fail."""
        self._closed = True  # before the socket is read: a request reads them in the other order
        connected = self._socket  # the other thread may close it at any moment
        if connected is not None:
            with contextlib.suppress(OSError):  # the answer was faster
                connected.shutdown(socket.SHUT_RDWR)  # close() would not wake the thread that reads

    def request(
        self, method: str, path: str, content: Any = None, *, file: Path | None = None, field: str = "file"
    ) -> bytes:
        """Send a request and return the body of the answer.

        Args:
            method: HTTP method.
            path: path and query.
            content: values for JSON; with a file, they become the form field `params`.
            file: file to send in a form.
            field: form field of the file.

        Raises:
            ServerError: no connection, or an error of the server.
        """
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        body: bytes | Iterable[bytes] = json.dumps(content).encode() if content is not None else b""
        headers["Content-Type"] = "application/json"
        with contextlib.ExitStack() as stack:
            if file is not None:
                boundary = secrets.token_hex(16)
                head, tail = _form(json.dumps(content or {}), field, file.name, boundary)
                opened = stack.enter_context(file.open("rb"))
                body = itertools.chain([head], iter(lambda: opened.read(BLOCK), b""), [tail])
                headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
                headers["Content-Length"] = str(len(head) + file.stat().st_size + len(tail))
            status, answer = self._send(method, path, body, headers, INFER_TIMEOUT if file is not None else TIMEOUT)
        if status != http.client.OK:
            raise ServerError(f"the server answered {status}: {_reason(status, answer)}", status)
        return answer

    def _send(
        self, method: str, path: str, body: bytes | Iterable[bytes], headers: dict[str, str], timeout: float
    ) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.parts.hostname or "", self.parts.port, timeout=TIMEOUT)
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            self._socket = connection.sock  # the connection drops it as soon as the answer begins
            if self._closed:
                raise ConnectionAbortedError("the request was cancelled")
            connection.request(method, self.parts.path.rstrip("/") + path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"no answer from {self.parts.netloc}: {error}") from error
        finally:
            self._socket = None
            connection.close()


def _form(params: str, field: str, name: str, boundary: str) -> tuple[bytes, bytes]:
    """Return what precedes and what follows the file in a form."""
    safe = name.replace('"', "_").replace("\r", "_").replace("\n", "_")
    part = f"--{boundary}\r\nContent-Disposition: form-data; name="
    head = f'{part}"params"\r\n\r\n{params}\r\n{part}"{field}"; filename="{safe}"\r\n'
    return f"{head}Content-Type: application/octet-stream\r\n\r\n".encode(), f"\r\n--{boundary}--\r\n".encode()


def _reason(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", errors="replace").strip()[:300] or http.client.responses.get(status, "")
