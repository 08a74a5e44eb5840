"""`isolated=True` changes where images are decoded, and no voxel."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from medunet.errors import ConfigError
from medunet.io import MedunetReader, read_volume
from medunet.io.isolation import shared_process
from medunet.prediction import Predictor

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux"),
]


def test_the_result_is_the_same_and_a_damaged_file_is_reported(bundle: Path, volume: Path, tmp_path: Path) -> None:
    plain = Predictor(bundle, output_dir=tmp_path / "plain", device="cpu").predict_case(volume)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(volume.read_bytes()[:200])
    predictor = Predictor(bundle, output_dir=tmp_path / "apart", device="cpu", isolated=True)
    first, second = predictor.predict([volume, broken])
    assert shared_process().pid is not None
    assert first.path is not None
    assert read_volume(first.path).image.equal(read_volume(plain).image)
    assert "broken.nii.gz: truncated gzip file" in str(second.error)


def test_a_bundle_that_reads_by_something_else_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="reading cannot be isolated"):
        monkeypatch.setattr("medunet.prediction.isolation.MedunetReader", type("Other", (MedunetReader,), {}))
        Predictor(bundle, output_dir=tmp_path, device="cpu", isolated=True)
