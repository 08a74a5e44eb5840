"""Who may use a label server: by token, host name and origin; and for which names."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from medunet.deploy.monailabel.guard import Guard

TOKEN = "a-long-token-of-a-ward"


async def inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"inner": true}'})


def ask(
    guard: Guard, path: str = "/info/", *, method: str = "GET", query: str = "", body: bytes = b"", **headers: str
) -> tuple[int, dict[str, Any]]:
    """Status and answer of a request."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    all_headers = {"host": "127.0.0.1:8000", **headers}
    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "query_string": query.encode(),
        "headers": [(key.encode(), value.encode()) for key, value in all_headers.items()],
    }
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)])
def test_the_token_opens_the_door(authorization: str) -> None:
    assert ask(Guard(inner, token=TOKEN, loopback=False), authorization=authorization)[0] == 200


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", basic("wrong"), TOKEN])
def test_nothing_else_does(authorization: str) -> None:
    assert ask(Guard(inner, token=TOKEN, loopback=False), authorization=authorization)[0] == 401


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/logs/", "/reload", "/ohif/", "/static/favicon.ico", "/auth/token/valid"]
)
def test_no_path_is_open_without_the_token(path: str) -> None:
    assert ask(Guard(inner, token=TOKEN, loopback=False), path)[0] == 401


def test_the_login_of_slicers_extension_gives_the_token_for_the_token() -> None:
    guard = Guard(inner, token=TOKEN, loopback=False)
    assert ask(guard, "/auth/")[1]["enabled"] is True
    login = f"username=x&password={TOKEN}".encode()
    status, answer = ask(guard, "/auth/token", method="POST", body=login)
    assert (status, answer["access_token"]) == (200, TOKEN)
    assert ask(guard, "/auth/token", method="POST", body=b"username=x&password=y")[0] == 401


def test_without_a_token_this_machine_is_served() -> None:
    assert ask(Guard(inner, token=None, loopback=True))[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "192.168.0.7:8000", ""])
def test_another_host_name_is_refused_on_loopback(host: str) -> None:
    assert ask(Guard(inner, token=None, loopback=True), host=host)[0] == 403


def test_with_a_token_a_proxy_on_this_machine_may_pass_its_name_on() -> None:
    guard = Guard(inner, token=TOKEN, loopback=True)
    own = "https://label.example.org"
    assert ask(guard, host="label.example.org", origin=own, authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guard, host="label.example.org", origin=own)[0] == 401
    assert (
        ask(guard, host="label.example.org", origin="https://evil.example", authorization=f"Bearer {TOKEN}")[0] == 403
    )


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9000"])
def test_a_page_of_another_origin_is_refused(origin: str) -> None:
    assert ask(Guard(inner, token=None, loopback=True), origin=origin)[0] == 403


def test_the_servers_own_page_is_not() -> None:
    assert ask(Guard(inner, token=None, loopback=True), origin="http://127.0.0.1:8000")[0] == 200


@pytest.mark.parametrize("query", ["image=../../etc/passwd", "tag=%2e%2e", "label=a%5Cb", "id=/etc", "image=%2Fetc"])
def test_a_name_that_is_a_path_is_refused(query: str) -> None:
    assert ask(Guard(inner, token=None, loopback=True), "/datastore/", query=query)[0] == 400


def test_a_series_of_dicom_is_a_name() -> None:
    assert ask(Guard(inner, token=None, loopback=True), "/infer/a", query="image=1.2.840.113619&output=json")[0] == 200
