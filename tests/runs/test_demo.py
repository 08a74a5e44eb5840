"""The demo on small volumes: it ends with a real image; another length replaces its run."""

import functools
import json
from pathlib import Path

import pytest
from small import SMALL_3D

from medunet.datasets import write_phantom_dataset
from medunet.runs import demo

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_demo_is_repeated_with_another_number_of_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAINING_CASES", 4)
    monkeypatch.setattr(demo, "TEST_CASES", 1)
    monkeypatch.setattr(demo, "DEMO_CHANGES", {**SMALL_3D, "folds": 2, "tracking_uri": ""})
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "write_phantom_dataset", functools.partial(write_phantom_dataset, size=(36, 34, 26)))
    dice, nuclei = demo.run_demo(tmp_path, device="cpu")
    assert "liver" in dice
    assert 200 < nuclei < 450
    assert (tmp_path / "nuclei.png").read_bytes().startswith(b"\x89PNG")
    assert "liver" in (tmp_path / "report.html").read_text()
    demo.run_demo(tmp_path, epochs=2, device="cpu")
    history = json.loads((tmp_path / "run" / "eval" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
