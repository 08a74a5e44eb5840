"""`medunet cache` lists the cached cases and removes those that are not needed."""

from pathlib import Path

import numpy as np
import pytest
from commands import Capture, Medunet
from monai.transforms import Compose, LoadImaged

from medunet.datasets import StoreDataset
from medunet.files import CAN_LOCK
from medunet.io import MedunetReader, write_volume


@pytest.mark.skipif(not CAN_LOCK, reason="the system has no such locks")
def test_cases_are_listed_and_removed(
    tmp_path: Path, medunet: Medunet, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cache(*options: str) -> str:
        assert medunet("cache", "--folder", tmp_path / "store", *options) == 0
        return capsys.readouterr().out

    monkeypatch.setenv("COLUMNS", "200")
    image = write_volume(np.zeros((8, 9, 10), np.float32), tmp_path / "data" / "a.nii.gz", affine=np.eye(4))
    load = LoadImaged("image", reader=MedunetReader(channels=1), ensure_channel_first=True)
    dataset = StoreDataset([{"image": str(image)}], Compose([load]), store_dir=tmp_path / "store")
    dataset.prepare()
    out = cache()
    assert dataset.folder.name in out
    assert "1 case," in out
    assert "removed 0 cases" in cache("--prune", "--limit", "1B")  # in use
    del dataset
    assert "removed 0 cases" in cache("--prune")
    out = cache("--prune", "--limit", "1B")
    assert "1 case: the cache is larger than its limit" in out
    assert "removed 1 case," in out
    assert "0 cases" in cache()
