"""An MLflow server behind nginx with TLS and passwords, as docs/howto/deploy.md says."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from nginx import proxied
from small import SMALL_2D

from medunet.datasets import write_phantom_dataset

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.filterwarnings("ignore")]
LOGIN = ("ward", "a-long-password")


def test_a_training_run_is_tracked_through_the_proxy(server_command: Any, tmp_path: Path) -> None:
    data = write_phantom_dataset(tmp_path / "cells", kind="cells", cases=4, size=[48, 48], seed=3).parent
    user, password = LOGIN
    with proxied(server_command.uri, tmp_path / "nginx", passwords=f"{user}:{{PLAIN}}{password}\n") as proxy:
        api = f"{proxy.url}/api/2.0/mlflow"
        asked = {"json": {"max_results": 10}, "verify": str(proxy.certificate), "timeout": 60}
        assert requests.post(f"{api}/experiments/search", **asked).status_code == 401
        command = [sys.executable, "-m", "medunet", "train", "unet_2d", "--data", str(data), "--output"]
        command += [str(tmp_path / "mine"), "--tracking-uri", proxy.url, "--epochs", "1", "--device", "cpu"]
        for key, value in {**SMALL_2D, "experiment_name": "proxy"}.items():
            command += ["--set", f"{key}={value}"]
        known = {
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(proxy.certificate),
        }
        done = subprocess.run(command, env={**os.environ, **known}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert password not in done.stdout + done.stderr
        found = requests.post(f"{api}/experiments/search", auth=LOGIN, **asked).json()["experiments"]
        asked["json"] = {"experiment_ids": [entry["experiment_id"] for entry in found if entry["name"] == "proxy"]}
        runs = requests.post(f"{api}/runs/search", auth=LOGIN, **asked).json()["runs"]
        assert {run["info"]["status"] for run in runs} == {"FINISHED"}
        assert "val_mean_dice" in {metric["key"] for run in runs for metric in run["data"]["metrics"]}
        [model] = (tmp_path / "mine" / "models").glob("model.pt")
        assert model.stat().st_size
