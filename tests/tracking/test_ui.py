"""MLflow's own pages in a real browser show what a training run logged."""

import json
import os
from pathlib import Path
from typing import Any

import mlflow
import pytest
from browser import page
from small import SMALL_2D

from medunet.bundle import find_bundle
from medunet.runs import train_bundle

# MLflow and SQLAlchemy warn about themselves
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SMALL = {**SMALL_2D, "epochs": 3, "folds": 2}
MLFLOWS_OWN = ("ResizeObserver loop", "/ajax-api/2.0/mlflow/users/current")
"""What the pages of MLflow 3.17 complain about with any run: its layout, and a request for a user without a login."""


def test_mlflow_pages_show_metrics_parameters_and_pictures(cells: Path, tmp_path: Path, server_command: Any) -> None:
    run = tmp_path / "mine"
    train_bundle(find_bundle("unet_2d"), cells, run, changes=SMALL, device="cpu", tracking_uri=server_command.uri)
    client = mlflow.MlflowClient(tracking_uri=server_command.uri)
    experiment = client.get_experiment_by_name("medunet").experiment_id
    [fold] = [one for one in client.search_runs([experiment]) if one.info.run_name == "mine fold 0"]
    shots = Path(os.environ.get("MEDUNET_SCREENSHOTS") or tmp_path)
    runs = f"{server_command.uri}/#/experiments/{experiment}/runs"
    pages = {
        "runs": (runs, ["mine", "cells"]),  # the run and its data
        "run": (
            f"{runs}/{fold.info.run_id}",
            ["mine fold 0", "Finished", "val_mean_dice", "Changed from unet_2d", "network_def::channels", "[4, 8]"],
        ),
        "metrics": (f"{runs}/{fold.info.run_id}/model-metrics", ["cross_entropy", "data_wait"]),
        "system": (f"{runs}/{fold.info.run_id}/system-metrics", ["cpu_utilization_percentage"]),
        "artifacts": (f"{runs}/{fold.info.run_id}/artifacts", ["validation", "bundle.zip"]),
    }
    with page(tmp_path) as tab:
        for name, (address, words) in pages.items():
            tab.open(address)
            for word in words:
                tab.wait(f"document.body.innerText.includes({json.dumps(word)})")
            if name == "metrics":
                tab.wait("document.querySelectorAll('.js-plotly-plot .scatterlayer path').length > 2")
            if name == "artifacts":
                tab.click_text("validation")
                tab.click_text("_worst.png")
                tab.wait("[...document.images].some(image => image.naturalWidth > 200)")
            tab.screenshot(shots / f"mlflow_{name}.png")
        assert "cells_00" not in tab.run("document.documentElement.outerHTML")
        assert not [text for text in tab.errors if not any(own in text for own in MLFLOWS_OWN)]
