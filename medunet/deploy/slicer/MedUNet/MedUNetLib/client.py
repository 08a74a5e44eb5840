"""Client of a MONAI Label server, with Python's standard library alone."""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit

BLOCK = 1 << 20  # bytes of a file that are sent at a time
TIMEOUT = 30.0  # seconds to wait for a connection and for short answers
INFER_TIMEOUT = 3600.0  # seconds


class ServerError(Exception):
    """Error of the server, or the reason why it did not answer; `status` is the HTTP status, 0 without a response."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class LabelClient:
    """Client of a MONAI Label server at an address such as `http://127.0.0.1:8000`, with a token or None."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.parts, self.token = urlsplit(url if "//" in url else f"http://{url}"), token
        if self.parts.scheme not in ("http", "https") or not self.parts.hostname:
            raise ServerError(f"the server's address must be like http://127.0.0.1:8000, got {url!r}")

    def models(self) -> list[str]:
        """Return the names of the models that segment."""
        models = json.loads(self._request("GET", "/info/")).get("models", {})
        return sorted(name for name, model in models.items() if model.get("type") == "segmentation")

    def infer(self, model: str, image: Path, result: Path) -> None:
        """Segment a file and write the mask; a .seg.nrrd file has names and colours of the segments."""
        suffix = ".seg.nrrd" if result.name.endswith(".seg.nrrd") else "".join(result.suffixes)
        boundary, name = secrets.token_hex(16), image.name.replace('"', "_").replace("\r", "_").replace("\n", "_")
        part = f"--{boundary}\r\nContent-Disposition: form-data; name="
        start = f'{part}"params"\r\n\r\n{json.dumps({"result_extension": suffix})}\r\n'
        start += f'{part}"file"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        head, tail = start.encode(), f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + image.stat().st_size + len(tail)),
        }
        with image.open("rb") as file:
            body = itertools.chain([head], iter(lambda: file.read(BLOCK), b""), [tail])
            path = f"/infer/{quote(model, safe='')}?output=image"
            result.write_bytes(self._request("POST", path, body, timeout=INFER_TIMEOUT, **headers))

    def _request(
        self, method: str, path: str, body: Iterable[bytes] = (), *, timeout: float = TIMEOUT, **headers: str
    ) -> bytes:
        """Send a request and return the body of the response."""
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.parts.hostname or "", self.parts.port, timeout=TIMEOUT)
        try:
            connection.connect()
            connection.sock.settimeout(timeout)
            connection.request(method, self.parts.path.rstrip("/") + path, body or None, headers)
            response = connection.getresponse()
            status, answer = response.status, response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerError(f"no answer from {self.parts.netloc}: {error}") from error
        finally:
            connection.close()
        if status != http.client.OK:
            try:
                reason = str(json.loads(answer)["detail"])
            except (ValueError, KeyError, TypeError):
                reason = answer.decode("utf-8", errors="replace").strip()[:300] or http.client.responses.get(status, "")
            raise ServerError(f"the server answered {status}: {reason}", status)
        return answer
