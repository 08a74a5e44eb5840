"""A wrong clock and a slow drive do not change the result."""

import time
from pathlib import Path
from typing import Any

import pytest
from small import SMALL_2D, untrained_run

from medunet.bundle import find_bundle
from medunet.datasets import prune_store
from medunet.prediction import Predictor
from medunet.runs import train_bundle

pytestmark = pytest.mark.filterwarnings("ignore")


def test_prepared_cases_with_a_time_in_the_future_are_kept(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDUNET_CACHE_DIR", str(tmp_path))
    changes = {**SMALL_2D, "epochs": 1, "folds": 2, "num_workers": 0, "tracking_uri": ""}
    train_bundle(find_bundle("unet_2d"), cells, tmp_path / "run", changes=changes, device="cpu")
    monkeypatch.setattr(time, "time", lambda: 1e9)  # 2001
    assert prune_store(unused_days=1) == []


def test_a_slow_drive_changes_no_result(volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sorted((volumes / "imagesTr").iterdir())[:2]
    run = untrained_run(tmp_path / "run")
    fast = list(Predictor(run, output_dir=tmp_path / "fast", device="cpu").predict(images))
    touched: list[str] = []
    for name in ("open", "read_bytes", "stat", "replace", "iterdir"):  # as on a network drive that is far away
        real = getattr(Path, name)

        def late(self: Path, *arguments: Any, _real: Any = real, **options: Any) -> Any:
            touched.append(str(self))
            time.sleep(0.01)
            return _real(self, *arguments, **options)

        monkeypatch.setattr(Path, name, late)
    slow = list(Predictor(run, output_dir=tmp_path / "slow", device="cpu").predict(images))
    assert len(touched) > 20
    for a, b in zip(slow, fast, strict=True):
        assert a.error is None and a.path is not None and b.path is not None
        assert a.path.read_bytes() == b.path.read_bytes()
