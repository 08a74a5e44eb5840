"""MONAI Label's roles apply to every route, in its own environment."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from medunet.deploy.monailabel.server import SETTINGS_VARIABLE, TOKEN_VARIABLE

from .real import environment

pytestmark = pytest.mark.label
PROGRAM = """
import json
from starlette.testclient import TestClient
from monailabel.endpoints.user import auth
auth.from_token = lambda token: auth.User(username="someone", roles=[token])
from monailabel.endpoints import activelearning, infer
seen = []
infer.app_instance = activelearning.app_instance = lambda: seen.append(1) or 1 / 0
from medunet.deploy.monailabel.app.asgi import app

client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
paths, roles = ("/infer/organs?image=a", "/activelearning/random"), ("", "guest", "monailabel-user")
headers = [{"authorization": f"Bearer {role}"} if role else {} for role in roles]
print(json.dumps([[client.post(path, headers=one).status_code for path in paths for one in headers], len(seen)]))
"""


@pytest.mark.parametrize(
    ("enabled", "statuses", "reached"),
    [("true", [401, 403, 500, 401, 403, 500], 2), ("false", [500, 500, 500, 500, 500, 500], 6)],
)
def test_inference_and_samples_need_the_role_that_monai_label_requires(
    tmp_path: Path, enabled: str, statuses: list[int], reached: int
) -> None:
    """500 is the answer of the stub of the application, if a request reaches it."""
    home = environment()
    (tmp_path / "log_key").write_text("00")
    (tmp_path / "settings.json").write_text(json.dumps({"loopback": True}))
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", TOKEN_VARIABLE)}
    variables |= {"PYTHONPATH": str(home.package_path), SETTINGS_VARIABLE: str(tmp_path / "settings.json")}
    variables |= {"MONAI_LABEL_AUTH_ENABLE": enabled, "MPLBACKEND": "agg"}
    done = subprocess.run([home.python, "-c", PROGRAM], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [statuses, reached]
