"""`medunet check`, as a user types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Capture, Medunet
from PIL import Image

from medunet.datasets import write_phantom_dataset
from medunet.io import write_volume

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI's own, which the command line silences in its process


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    write_phantom_dataset(tmp_path / "data", kind="ct", cases=3, test_cases=1, size=(17, 18, 19))
    return tmp_path / "data"


def test_a_valid_data_set_passes_and_is_drawn(data: Path, tmp_path: Path, medunet: Medunet, capsys: Capture) -> None:
    assert medunet("check", data, "--sheet", tmp_path / "out" / "sheet.png") == 0
    out = capsys.readouterr().out
    for text in ("3 cases and 1 test case, 3D", "kidneys", "0 errors, 0 warnings: training can start"):
        assert text in out
    with Image.open(tmp_path / "out" / "sheet.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 300


def test_equal_findings_share_a_row_and_fail(data: Path, medunet: Medunet, capsys: Capture) -> None:
    labels = sorted((data / "labelsTr").iterdir())
    for number, label in enumerate(labels[1:3]):
        write_volume(np.zeros((5, 6, 7 + number), np.uint8), label)
    assert medunet("check", data, "--headers") == 4
    out = capsys.readouterr().out
    assert out.count("different shapes") == 1
    assert f"labelsTr/{labels[1].name}" in out
    assert "2 errors, 0 warnings: training would fail" in out


def test_json_is_one_document(data: Path, medunet: Medunet, capsys: Capture) -> None:
    sorted((data / "imagesTr").iterdir())[0].write_bytes(b"")
    assert medunet("check", data, "--json") == 4
    document = json.loads(capsys.readouterr().out)
    assert document["fails"] is True
    assert (document["findings"][0]["severity"], document["findings"][0]["case"]) == ("error", "ct_000")
    assert document["summary"]["cases"] == len(document["cases"]) == 3


def test_a_folder_without_a_data_set_fails(tmp_path: Path, medunet: Medunet, capsys: Capture) -> None:
    assert medunet("check", tmp_path) == 4
    assert "no data set found" in capsys.readouterr().out
