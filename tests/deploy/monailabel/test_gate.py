"""Access to a label server: token, host name, origin, names of images, sizes and rates of requests."""

import asyncio
import base64
import json
from typing import Any

import pytest

from medunet.deploy.monailabel.gate import REQUESTS_VARIABLE, UPLOAD_VARIABLE, Gate, limits_of_environment
from medunet.deploy.monailabel.private_log import PrivateNames
from medunet.errors import ConfigError

TOKEN = "a-long-token-of-a-ward"
PROXY = {"host": "label.example.org", "origin": "https://label.example.org"}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads the whole body, as MONAI Label's uploads do."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def ask_async(
    gate: Gate,
    path: str = "/info/",
    *,
    method: str = "GET",
    query: str = "",
    parts: tuple[bytes, ...] = (b"",),
    pause: float = 0.0,
    **headers: str,
) -> tuple[int, dict[str, Any]]:
    """Return status and content of the answer to a request whose body arrives in parts."""
    sent: list[Any] = []
    waiting = list(parts)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    fields = {"host": "127.0.0.1:8000", **headers}
    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "query_string": query.encode(),
        "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in fields.items()],
    }
    await gate(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def ask(gate: Gate, *words: str, **options: Any) -> tuple[int, dict[str, Any]]:
    return asyncio.run(ask_async(gate, *words, **options))


def local(app: Any = application, **options: Any) -> Gate:
    return Gate(app, token=None, loopback=True, **options)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        *((TOKEN, {"authorization": text}, 200) for text in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN))),
        *((TOKEN, {"authorization": text}, 401) for text in ("", "Bearer no", f"Basic {TOKEN}", basic("no"), TOKEN)),
        # without a token only host names of this machine are served
        *((None, {"host": host}, 200) for host in ("localhost", "127.0.0.1:8000", "[::1]:8000")),
        *((None, {"host": host}, 403) for host in ("evil.example", "192.168.0.7:8000", "", "[")),
        (None, {"origin": "http://127.0.0.1:8000"}, 200),
        *((None, {"origin": page}, 403) for page in ("http://evil.example", "null", "http://127.0.0.1:9000")),
        # with a token a proxy may use its own name
        (TOKEN, {**PROXY, "authorization": f"Bearer {TOKEN}"}, 200),
        (TOKEN, PROXY, 401),
        (TOKEN, {**PROXY, "authorization": f"Bearer {TOKEN}", "origin": "https://evil.example"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/docs", "/auth/token/valid"])
def test_a_request_needs_the_token_a_known_host_and_its_own_origin(
    token: str | None, headers: dict[str, str], status: int, path: str
) -> None:
    assert ask(Gate(application, token=token, loopback=True), path, **headers)[0] == status


def test_the_login_of_slicers_extension_returns_the_token() -> None:
    gate = Gate(application, token=TOKEN, loopback=False)
    assert ask(gate, "/auth/")[1]["enabled"] is True
    login = f"username=x&password={TOKEN}".encode()
    status, answer = ask(gate, "/auth/token", method="POST", parts=(login,))
    assert (status, answer["access_token"]) == (200, TOKEN)
    assert ask(gate, "/auth/token", method="POST", parts=(b"username=x&password=y",))[0] == 401
    assert ask(gate, "/auth/token/valid", authorization=f"Bearer {TOKEN}")[1]["username"] == "medunet"


@pytest.mark.parametrize("query", ["image=../../etc/passwd", "tag=%2e%2e", "label=a%5Cb", "id=/etc", "image=%2Fetc"])
def test_a_name_that_is_a_path_is_rejected(query: str) -> None:
    assert ask(local(), "/datastore/", query=query)[0] == 400
    assert ask(local(), "/infer/a", query="image=1.2.840.113619&output=json")[0] == 200


def test_names_in_a_query_are_hidden_before_the_application_logs_them() -> None:
    names = PrivateNames(b"key")
    logged: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        logged.append(names.mask("saving Doe^Jane"))
        await application(scope, receive, send)

    ask(local(app, hide=names.hide), query="image=Doe%5EJane&output=image")
    assert logged == [f"saving {names.code('Doe^Jane')}"]


async def unreachable(*_: Any) -> None:
    raise AssertionError("the application was called")


@pytest.mark.parametrize("length", ["101", "99999999999999999999", "-1", "many"])
def test_an_announced_size_over_the_limit_is_rejected_before_reading(length: str) -> None:
    assert ask(local(unreachable, max_upload=100), content_length=length)[0] == 413
    assert ask(local(max_upload=100), parts=(bytes(50), bytes(50)), content_length="100")[0] == 200


def test_a_body_that_exceeds_the_limit_or_stalls_is_rejected() -> None:
    status, answer = ask(local(max_upload=1 << 20), parts=(bytes(1 << 20), b"1", bytes(1 << 30)))
    assert (status, "at most 1 MiB" in answer["detail"]) == (413, True)
    status, answer = ask(local(body_timeout=0.05), parts=(b"1", b"2"), pause=5)
    assert (status, answer["detail"]) == (408, "nothing was sent for 0.05 s")


def test_requests_over_the_limit_wait_and_those_over_the_queue_are_rejected() -> None:
    running, most = 0, 0

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await application(scope, receive, send)
        running -= 1
        if scope["path"] == "/fail":
            raise ValueError("its own")

    gate = local(counting, max_requests=2)

    async def many() -> list[int]:
        answers = await asyncio.gather(*(ask_async(gate, pause=0.05) for _ in range(13)))
        return [status for status, _ in answers]

    assert sorted(asyncio.run(many())) == [200] * 10 + [503] * 3
    assert most == 2
    for _ in range(11):  # more than the slots and their queue: errors of the application free a slot
        with pytest.raises(ValueError, match="its own"):
            ask(gate, "/fail")
    assert ask(gate)[0] == 200


def test_environment_variables_set_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs a token"):
        Gate(application, token=None, loopback=False)
    monkeypatch.setenv(UPLOAD_VARIABLE, "10MB")
    monkeypatch.setenv(REQUESTS_VARIABLE, "3")
    gate = local(**limits_of_environment())
    assert (gate.max_upload, gate.max_requests) == (10 << 20, 3)
    for name, value in ((UPLOAD_VARIABLE, "much"), (REQUESTS_VARIABLE, "few"), (REQUESTS_VARIABLE, "0")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError):
            local(**limits_of_environment())
