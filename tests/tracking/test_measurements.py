"""Measurements in MLflow."""

from pathlib import Path

import numpy as np
import pytest
from commands import Medunet
from mlflow import MlflowClient

from medunet.io import write_volume
from medunet.tracking import list_runs

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_means_of_measurements_are_a_run_that_is_no_training(tmp_path: Path, uri: str, medunet: Medunet) -> None:
    for name, size in (("a", 2), ("b", 4)):
        label = np.zeros((9, 9, 9), np.uint8)
        label[2 : 2 + size, 2:4, 2:4] = 1
        write_volume(label, tmp_path / "masks" / f"{name}.nii.gz", affine=np.eye(4), labels={"liver": 1})
    assert medunet("measure", tmp_path / "masks", "--tracking-uri", uri) == 0
    client = MlflowClient(uri)
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.data.metrics["volume_mm3_liver"] == 12
    assert (run.data.tags["medunet.kind"], run.info.status) == ("measurement", "FINISHED")
    assert list_runs(uri) == []
