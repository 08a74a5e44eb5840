"""MONAI Label's roles hold on every route, in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from medunet.deploy.monailabel.server import SETTINGS_VARIABLE, TOKEN_VARIABLE

from .real import environment

pytestmark = pytest.mark.label

PROGRAM = """
import asyncio, json
from monailabel.endpoints.user import auth
auth.from_token = lambda token: auth.User(username="someone", roles=[token])
from monailabel.endpoints import activelearning, infer
seen = []
infer.app_instance = activelearning.app_instance = lambda: seen.append(1) or 1 / 0
from medunet.deploy.monailabel.app.asgi import app

async def ask(path, role):
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    headers += [(b"authorization", b"Bearer " + role.encode())] if role else []
    scope = dict(type="http", method="POST", path=path, raw_path=path.encode(), query_string=b"image=a")
    scope |= dict(headers=headers, scheme="http", server=("localhost", 80), client=("localhost", 1), root_path="")
    sent = []
    async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message): sent.append(message)
    try:
        await app(scope, receive, send)
    except ZeroDivisionError:
        pass
    return sent[0]["status"]

paths, roles = ("/infer/organs", "/activelearning/random"), ("", "guest", "monailabel-user")
found = [asyncio.run(ask(path, role)) for path in paths for role in roles]
print(json.dumps([found, len(seen)]))
"""


@pytest.mark.parametrize(
    ("enabled", "statuses", "reached"),
    [("true", [401, 403, 500, 401, 403, 500], 2), ("false", [500, 500, 500, 500, 500, 500], 6)],
)
def test_inference_and_samples_need_the_role_that_monai_label_asks_for(
    tmp_path: Path, enabled: str, statuses: list[int], reached: int
) -> None:
    """500 is the stand-in for the application, which the request has reached."""
    home = environment()
    (tmp_path / "log_key").write_text("00")
    (tmp_path / "settings.json").write_text(json.dumps({"loopback": True}))
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", TOKEN_VARIABLE)}
    variables |= {"PYTHONPATH": str(home.package_path), SETTINGS_VARIABLE: str(tmp_path / "settings.json")}
    variables |= {"MONAI_LABEL_AUTH_ENABLE": enabled, "MPLBACKEND": "agg"}
    done = subprocess.run([home.python, "-c", PROGRAM], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [statuses, reached]
