"""ASGI middleware in front of MONAI Label that limits who may send requests, their names, size and number.

MONAI Label answers anyone and any web page, appends names from the query to its folders, and accepts huge bodies.
"""

import asyncio
import base64
import binascii
import hmac
import os
from collections.abc import Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from medunet.errors import ConfigError
from medunet.units import parse_size

UPLOAD_VARIABLE = "MEDUNET_LABEL_MAX_UPLOAD"  # largest body of a request, such as 2GB
REQUESTS_VARIABLE = "MEDUNET_LABEL_MAX_REQUESTS"  # requests that are processed simultaneously
MAX_UPLOAD = "4GB"  # an uncompressed CT of 512 x 512 x 2,000 voxels has 1 GB
MAX_REQUESTS = 16  # four clients that load a page of OHIF, and some that compute
QUEUE_FACTOR = 5  # times MAX_REQUESTS may be open; browsers send six at a time and do not retry
BODY_TIMEOUT = 60.0  # seconds between two parts of a body
LARGEST_LOGIN = 4096  # bytes of a login form

# query parameters of MONAI Label that name an image, which the log must not contain
IMAGE_PARAMETERS = frozenset({"image", "label", "id"})
# query parameters that MONAI Label joins to a folder without checks
NAME_PARAMETERS = IMAGE_PARAMETERS | {"tag", "session_id"}

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class Gate:
    """Forward legitimate requests to an application, and reject all others.

    - With a token, each request must carry it: `Authorization: Bearer TOKEN`, or a Basic login with any user name and
      the token as password, which browsers (OHIF) and 3D Slicer's MONAI Label extension support.
    - Pages of another origin are rejected. Without a token, so are other host names on loopback (DNS rebinding).
    - Names that would leave a folder are rejected.
    - The size of bodies, the seconds between their parts, and the number of simultaneous requests are limited.
      uvicorn's `limit_concurrency` would also count connections without a token.

    `hide` receives the names of images in a query before the application can log them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        loopback: bool,
        max_upload: int | str = MAX_UPLOAD,
        max_requests: int | str = MAX_REQUESTS,
        body_timeout: float = BODY_TIMEOUT,
        hide: Callable[..., None] = lambda *names: None,
    ) -> None:
        if token is None and not loopback:
            raise ConfigError("a server that other machines can reach needs a token")
        if not str(max_requests).isdigit() or int(max_requests) < 1:
            raise ConfigError(f"{REQUESTS_VARIABLE} must be an integer above 0", received=max_requests)
        self.app, self.token, self.loopback, self.hide = app, token, loopback, hide
        self.max_upload, self.max_requests = parse_size(max_upload), int(max_requests)
        self.body_timeout = body_timeout
        self._open = 0  # requests that are processed or wait
        self._slots = asyncio.Semaphore(self.max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward or answer a request; MONAI Label has no websockets."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                answer = await self._check(Request(scope, receive))
                if answer is None:
                    await self._forward(scope, receive, send)
            except HTTPException as rejection:
                answer = JSONResponse({"detail": rejection.detail}, rejection.status_code, rejection.headers)
            if answer is not None:
                await answer(scope, receive, send)

    def is_authorized(self, authorization: str) -> bool:
        """Return whether an `Authorization` header carries the token."""
        kind, _, value = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        return kind.lower() in ("basic", "bearer") and self._is_token(value.strip())

    def _is_token(self, text: str) -> bool:
        return self.token is not None and hmac.compare_digest(text.encode(), self.token.encode())

    async def _check(self, request: Request) -> JSONResponse | None:
        """Return the answer to a request about the login, or None to forward the request."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        try:
            name, page = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:
            raise HTTPException(403, "impossible Host or Origin header") from None
        if self.loopback and self.token is None and name not in LOOPBACK_NAMES:
            raise HTTPException(403, f"this server answers to {', '.join(LOOPBACK_NAMES)}, not to {name!r}")
        if origin and page != host:
            raise HTTPException(403, f"pages of {origin} may not use this server")
        for key, value in request.query_params.multi_items():
            if key in NAME_PARAMETERS and (value in (".", "..") or any(character in value for character in "/\\\0")):
                raise HTTPException(400, f"`{key}` must be a name, not a path, got {value!r}")
        if self.token is None:
            return None
        call = request.method, request.url.path.rstrip("/")
        if call == ("GET", "/auth"):
            return JSONResponse({"enabled": True, "client_id": "medunet", "realm": "medunet"})
        if call == ("POST", "/auth/token"):
            return await self._log_in(request)
        if request.method != "OPTIONS" and not self.is_authorized(request.headers.get("authorization", "")):
            detail = "a token is required: `Authorization: Bearer TOKEN`, or log in with it as password"
            raise HTTPException(401, detail, {"WWW-Authenticate": 'Basic realm="medunet label", charset="UTF-8"'})
        if call[1] == "/auth/token/valid":
            return JSONResponse({"username": "medunet", "email": None, "name": None, "roles": []})
        return None

    async def _log_in(self, request: Request) -> JSONResponse:
        """Answer the login of 3D Slicer's extension: any user name, the token as password."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_LOGIN:
                break
        if not self._is_token(parse_qs(body.decode("latin-1")).get("password", [""])[0]):
            raise HTTPException(401, "the password is not the server's token")
        return JSONResponse({"access_token": self.token, "token_type": "bearer"})

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = QueryParams(scope["query_string"]).multi_items()
        self.hide(*(value for key, value in query if key in IMAGE_PARAMETERS))
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_upload:
            raise self._too_large()
        if self._open >= QUEUE_FACTOR * self.max_requests:
            raise HTTPException(503, "the server is busy, try again in a moment", {"Retry-After": "2"})
        received, is_complete = 0, False

        async def limited_receive() -> MutableMapping[str, Any]:
            nonlocal received, is_complete
            try:
                message = await (receive() if is_complete else asyncio.wait_for(receive(), self.body_timeout))
            except asyncio.TimeoutError:
                raise HTTPException(408, f"nothing was sent for {self.body_timeout:g} s") from None
            received += len(message.get("body", b""))
            is_complete = not message.get("more_body")
            if received > self.max_upload:
                raise self._too_large()
            return message

        self._open += 1
        try:
            async with self._slots:
                await self.app(scope, limited_receive, send)
        finally:
            self._open -= 1

    def _too_large(self) -> HTTPException:
        detail = f"at most {self.max_upload >> 20} MiB may be sent; {UPLOAD_VARIABLE} of the server sets this limit"
        return HTTPException(413, detail, {"Connection": "close"})


def limits_of_environment() -> dict[str, Any]:
    """Return the limits that the server's environment variables set."""
    upload, requests = os.environ.get(UPLOAD_VARIABLE), os.environ.get(REQUESTS_VARIABLE)
    return {"max_upload": upload or MAX_UPLOAD, "max_requests": requests or MAX_REQUESTS}
