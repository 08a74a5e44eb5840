"""How much a client of the label server may send, and how many requests are worked on at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import MutableMapping
from typing import Any

from medunet.errors import ConfigError
from medunet.inferers.memory import parse_memory
from medunet.io.isolation import SWITCH as ISOLATE

from .guard import App, Receive, Scope, Send
from .guard import _answer as answer

UPLOAD_VARIABLE = "MEDUNET_LABEL_MAX_UPLOAD"
"""Largest body of a request, such as 2GB."""

REQUESTS_VARIABLE = "MEDUNET_LABEL_MAX_REQUESTS"
"""Requests that are worked on at a time; more wait, and when too many do, they are told to come back."""

MAX_UPLOAD = "4GB"
"""A CT of 512 x 512 x 2,000 voxels takes 1 GB as it is."""

MAX_REQUESTS = 16
"""Four clients that load a page of OHIF, and some that compute."""

WAITING = 4
"""Times as many requests may wait: browsers send six at a time and do not come back."""

LONGEST_SILENCE = 60.0
"""Seconds between two parts of a body."""

RETRY_SECONDS = 2


class TooLargeError(Exception):
    """More was sent than is allowed."""


class Limits:
    """ASGI middleware that bounds the size of bodies, their slowness, and the requests at a time.

    Args:
        app: the application.
        max_upload: bytes of a body, whether its length is announced or not.
        max_requests: at a time; `WAITING` times as many may wait.
        silence: seconds that a client may let pass between parts of a body.

    Raises:
        ConfigError: a number below 1.
    """

    def __init__(
        self,
        app: App,
        *,
        max_upload: int | str = MAX_UPLOAD,
        max_requests: int = MAX_REQUESTS,
        silence: float = LONGEST_SILENCE,
    ) -> None:
        if max_requests < 1:
            raise ConfigError("impossible number of requests", received=max_requests, expected="1 or more")
        self.app = app
        self.max_upload = parse_memory(max_upload)
        self.max_requests = max_requests
        self.silence = silence
        self.present = 0
        """Requests that are worked on or wait."""
        self._places = asyncio.Semaphore(max_requests)

    @classmethod
    def from_environment(cls, app: App) -> Limits:
        """With what the server's environment says.

        Raises:
            ConfigError: no size, or no number.
        """
        number = os.environ.get(REQUESTS_VARIABLE) or str(MAX_REQUESTS)
        if not number.isdigit():
            raise ConfigError(f"{REQUESTS_VARIABLE} is no number", received=number)
        return cls(app, max_upload=os.environ.get(UPLOAD_VARIABLE) or MAX_UPLOAD, max_requests=int(number))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on within the limits, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = next((value for key, value in scope["headers"] if key.lower() == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self.max_upload:
            await self._refuse_size(send)
            return
        if self.present >= self.max_requests * (1 + WAITING):
            again = [(b"retry-after", str(RETRY_SECONDS).encode())]
            await answer(send, 503, {"detail": "the server is busy, try again in a moment"}, again)
            return
        self.present += 1
        try:
            async with self._places:
                await self._pass(scope, receive, send)
        finally:
            self.present -= 1

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, whole, begun = 0, False, False
        refused: type[Exception] | None = None

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal received, whole, refused
            try:
                message = await receive() if whole else await asyncio.wait_for(receive(), self.silence)
            except asyncio.TimeoutError:
                refused = asyncio.TimeoutError
                raise
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                whole = not message.get("more_body")
            if received > self.max_upload:
                refused = TooLargeError
                raise TooLargeError
            return message

        async def noted(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if refused is None or begun:  # the application's own words about a body that was cut off are not sent
                begun = True
                await send(message)

        try:
            await self.app(scope, bounded, noted)
        except Exception:
            if refused is None:
                raise
        if refused is None or begun:
            return
        if refused is TooLargeError:
            await self._refuse_size(send)
        else:
            await answer(send, 408, {"detail": f"nothing was sent for {self.silence:g} s"})

    async def _refuse_size(self, send: Send) -> None:
        text = f"at most {self.max_upload >> 20} MiB may be sent; {UPLOAD_VARIABLE} of the server changes it"
        await answer(send, 413, {"detail": text}, [(b"connection", b"close")])


def limit_variables() -> dict[str, str]:
    """What the server's environment gets: images are decoded in a child process, where that can be."""
    return {ISOLATE: os.environ.get(ISOLATE, "1")} if os.name == "posix" else {}
