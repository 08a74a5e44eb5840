"""A label server takes no more than it can hold: size, slowness and number of requests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from medunet.deploy.monailabel.limits import REQUESTS_VARIABLE, UPLOAD_VARIABLE, Limits, limit_variables
from medunet.errors import ConfigError


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the whole body, as MONAI Label's uploads do."""
    more = True
    while more:
        more = bool((await receive()).get("more_body"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def ask(
    limits: Limits, parts: list[bytes], *, length: str | None = None, pause: float = 0.0
) -> tuple[int, dict[str, Any]]:
    sent: list[Any] = []
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        part = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if length is None else [(b"Content-Length", length.encode())]
    await limits({"type": "http", "headers": headers}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def run(limits: Limits, parts: list[bytes], **options: Any) -> tuple[int, dict[str, Any]]:
    return asyncio.run(ask(limits, parts, **options))


def test_what_is_small_enough_passes() -> None:
    assert run(Limits(reading, max_upload=100), [bytes(50), bytes(50)], length="100")[0] == 200
    assert run(Limits(reading, max_upload=100), [b""])[0] == 200


@pytest.mark.parametrize("length", ["101", "99999999999999999999", "-1", "many"])
def test_an_announced_size_is_refused_before_anything_is_read(length: str) -> None:
    async def untouched(*_: Any) -> None:
        raise AssertionError("was asked")

    assert run(Limits(untouched, max_upload=100), [], length=length)[0] == 413


def test_a_size_that_nobody_announced_is_refused_when_it_is_reached() -> None:
    status, answer = run(Limits(reading, max_upload=1 << 20), [bytes(1 << 20), b"1", bytes(1 << 30)])
    assert status == 413
    assert "at most 1 MiB" in answer["detail"]


def test_who_sends_too_slowly_is_not_waited_for() -> None:
    status, answer = run(Limits(reading, silence=0.05), [b"1", b"2"], pause=5)
    assert (status, answer["detail"]) == (408, "nothing was sent for 0.05 s")


def test_more_requests_than_allowed_wait_and_too_many_are_told_to_come_back() -> None:
    at_once, most = 0, 0

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await reading(scope, receive, send)
        at_once -= 1

    limits = Limits(noting, max_requests=2)

    async def many() -> list[int]:
        answers = await asyncio.gather(*(ask(limits, [b"1"], pause=0.05) for _ in range(13)))
        return [status for status, _ in answers]

    assert sorted(asyncio.run(many())) == [200] * 10 + [503] * 3
    assert most == 2
    assert run(limits, [b"1"])[0] == 200


def test_what_the_application_raises_passes_and_frees_its_place() -> None:
    async def failing(*_: Any) -> None:
        raise ValueError("its own")

    limits = Limits(failing, max_requests=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="its own"):
            run(limits, [b""])
    assert limits.present == 0


def test_the_environment_sets_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UPLOAD_VARIABLE, "10MB")
    monkeypatch.setenv(REQUESTS_VARIABLE, "3")
    limits = Limits.from_environment(reading)
    assert (limits.max_upload, limits.max_requests) == (10 << 20, 3)
    for name, value in ((UPLOAD_VARIABLE, "much"), (REQUESTS_VARIABLE, "few"), (REQUESTS_VARIABLE, "0")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError):
            Limits.from_environment(reading)


def test_the_server_decodes_images_in_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDUNET_ISOLATE", raising=False)
    assert limit_variables() == {"MEDUNET_ISOLATE": "1"}
    monkeypatch.setenv("MEDUNET_ISOLATE", "0")
    assert limit_variables() == {"MEDUNET_ISOLATE": "0"}
