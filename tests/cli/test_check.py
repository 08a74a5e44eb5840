"""`medunet check`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunet.datasets import write_phantom_dataset
from medunet.io import read_volume, write_volume

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI's own, which the command line silences in its process


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    write_phantom_dataset(tmp_path / "data", kind="mr", cases=3, test_cases=1, size=(17, 18, 19))
    return tmp_path / "data"


def test_sound_data_set_passes(data: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert medunet("check", data) == 0
    out = capsys.readouterr().out
    assert "3 cases and 1 test cases, 3D" in out
    assert "ventricles" in out
    assert "0 errors, 0 warnings: training can start" in out


def test_exit_code_is_1_when_training_would_fail(
    data: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    label = sorted((data / "labelsTr").iterdir())[1]
    write_volume(np.zeros((5, 6, 7), np.uint8), label)
    assert medunet("check", data) == 4
    out = capsys.readouterr().out
    assert f"labelsTr/{label.name}" in out
    assert "different shapes" in out
    assert "1 errors, 0 warnings: training would fail" in out


def test_equal_findings_share_a_row(
    data: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, label in enumerate(sorted((data / "labelsTr").iterdir())[:3]):
        write_volume(np.zeros((5, 6, 7 + number), np.uint8), label)
    assert medunet("check", data, "--headers") == 4
    out = capsys.readouterr().out
    assert out.count("different shapes") == 1
    assert "3 errors" in out


def test_warnings_alone_pass(data: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    label = sorted((data / "labelsTr").iterdir())[0]
    volume = read_volume(label)
    write_volume(volume.image[0].numpy(), label, affine=volume.image.affine, dtype=np.float32)
    assert medunet("check", data) == 0
    assert "stored as float32" in capsys.readouterr().out


def test_json_is_one_document(data: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    sorted((data / "imagesTr").iterdir())[0].write_bytes(b"")
    assert medunet("check", data, "--json") == 4
    document = json.loads(capsys.readouterr().out)
    assert document["fails"] is True
    assert document["findings"][0]["severity"] == "error"
    assert document["findings"][0]["case"] == "mr_000"
    assert document["summary"]["cases"] == 3
    assert len(document["cases"]) == 3


def test_contact_sheet_is_a_picture(data: Path, medunet: Callable[..., int], tmp_path: Path) -> None:
    assert medunet("check", data, "--sheet", tmp_path / "out" / "sheet.png") == 0
    with Image.open(tmp_path / "out" / "sheet.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 300


def test_folders_without_a_data_set_fail(
    tmp_path: Path, medunet: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert medunet("check", tmp_path) == 4
    assert "no data set found" in capsys.readouterr().out
    assert medunet("check", tmp_path / "nowhere") == 2
    assert "does not exist" in capsys.readouterr().err
