"""What stands before MONAI Label's server: who may ask, from where, and for which names."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NAME_PARAMETERS = frozenset({"image", "label", "id", "tag", "session_id"})
"""Query parameters that MONAI Label joins to a folder as they are."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

LARGEST_LOGIN = 4096
"""Bytes of a login form; more is no login."""


def is_loopback(host: str) -> bool:
    """Whether an address to bind is reached from this machine only.

    Example:
        >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.0.7", "ward3")]
        [True, True, True, False, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that lets only legitimate requests through.

    MONAI Label's own server answers anybody who reaches the port, allows any web page to read the answers, and joins
    names from the query to its folders. So:

    - with a token, each request must bear it: `Authorization: Bearer TOKEN`, or a Basic login with any user and the
      token as password, which browsers (OHIF) and 3D Slicer's MONAI Label extension can give;
    - a page of another origin is refused, and so is another host name on loopback (DNS rebinding) where no token is
      asked for; with one, a proxy on this machine may pass its own name on;
    - names that would leave a folder are refused.

    Args:
        app: the application.
        token: what a request must bear; None asks for nothing.
        loopback: whether only this machine reaches the server; without a token `Host` must be one of its own names.

    Example:
        >>> guard = Guard(None, token="secret", loopback=False)
        >>> guard.is_authorised("Bearer secret"), guard.is_authorised("Bearer wrong"), guard.is_authorised("")
        (True, False, False)
    """

    def __init__(self, app: App | None, *, token: str | None, loopback: bool) -> None:
        self.app = app
        self.token = token
        self.loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._pass(scope, receive, send)
            return  # MONAI Label has no websockets
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        if (refusal := self.refusal(scope["query_string"].decode("latin-1"), headers)) is not None:
            await _answer(send, 403 if refusal[0] == "host" else 400, {"detail": refusal[1]})
        elif self.token is not None and scope["path"] == "/auth/" and scope["method"] == "GET":
            await _answer(send, 200, {"enabled": True, "client_id": "medunet", "realm": "medunet"})
        elif self.token is not None and scope["path"] == "/auth/token" and scope["method"] == "POST":
            await self._log_in(receive, send)
        elif self.token is None or scope["method"] == "OPTIONS" or self.is_authorised(headers.get("authorization", "")):
            if self.token is not None and scope["path"].rstrip("/") == "/auth/token/valid":
                await _answer(send, 200, {"username": "medunet", "email": None, "name": None, "roles": []})
                return
            await self._pass(scope, receive, send)
        else:
            detail = "a token is required: `Authorization: Bearer TOKEN`, or log in with it as password"
            challenge = [(b"www-authenticate", b'Basic realm="medunet label", charset="UTF-8"')]
            await _answer(send, 401, {"detail": detail}, challenge)

    def refusal(self, query: str, headers: MutableMapping[str, str]) -> tuple[str, str] | None:
        """Why a request is refused whoever asks: ``(kind, text)``, or None."""
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        unasked = self.loopback and self.token is None
        if unasked and f"[{name}]" not in LOOPBACK_NAMES and name not in LOOPBACK_NAMES:
            return "host", f"this server answers to {', '.join(LOOPBACK_NAMES)}, not to '{name}'"
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host:
            return "host", f"pages of {origin} may not use this server"
        for key, value in parse_qsl(query):
            if key in NAME_PARAMETERS and ("/" in value or "\\" in value or "\0" in value or value in (".", "..")):
                return "name", f"`{key}` is a name, not a path (received {value!r})"
        return None

    def is_authorised(self, authorization: str) -> bool:
        """Whether the header bears the token."""
        kind, _, value = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                value = base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        return self._is_token(value.strip())

    def _is_token(self, text: str) -> bool:
        return self.token is not None and hmac.compare_digest(text.encode(), self.token.encode())

    async def _log_in(self, receive: Receive, send: Send) -> None:
        """The login of 3D Slicer's extension: any user name, the token as password."""
        body, more = b"", True
        while more and len(body) <= LARGEST_LOGIN:
            message = await receive()
            body += message.get("body", b"")
            more = bool(message.get("more_body"))
        password = parse_qs(body.decode("latin-1")).get("password", [""])[0]
        if self._is_token(password):
            await _answer(send, 200, {"access_token": self.token, "token_type": "bearer"})
        else:
            await _answer(send, 401, {"detail": "the password is not the server's token"})

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)


async def _answer(
    send: Send, status: int, content: dict[str, Any], headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps(content).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
