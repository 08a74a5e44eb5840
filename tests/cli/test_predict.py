"""`medunet predict` over many cases, as a user types it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Capture, Medunet
from small import untrained_run

from medunet.io import write_volume
from medunet.prediction import STAGES, Predictor

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        write_volume(rng.normal(size=(17, 16, 13)).astype(np.float32), tmp_path / "in" / f"{name}.nii.gz")
    return tmp_path / "in"


def test_existing_results_are_rejected_skipped_or_replaced(
    run: Path, images: Path, tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert medunet("predict", run, images / "b.nii.gz", "-o", out) == 0
    stamp = (out / "b.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert medunet("predict", run, images, "-o", out, "--skip-existing") == 0
    printed = capsys.readouterr()
    assert [line.split()[-2:] == ["there", "already"] for line in printed.out.splitlines()] == [False, True, False]
    assert "2 of 3 written" in printed.err
    assert "1 were there already" in printed.err
    assert (out / "b.nii.gz").stat().st_mtime_ns == stamp
    assert medunet("predict", run, images, "-o", out) == 3
    assert capsys.readouterr().err.count("result exists already") == 3
    assert medunet("predict", run, images, "-o", out, "--force") == 0
    assert (out / "b.nii.gz").stat().st_mtime_ns > stamp
    assert medunet("predict", run, images, "-o", out, "--force", "--skip-existing") == 2


def test_a_review_is_written_worst_first_and_sets_the_exit_code(
    run: Path, images: Path, tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert medunet("predict", run, images, "-o", out, "--review") == 0
    assert "the run is not calibrated" in capsys.readouterr().err
    cases = json.loads((out / "review.json").read_text())["cases"]
    assert {case["case"] for case in cases} == {"a", "b", "c"}
    assert medunet("predict", run, images, "-o", out, "--force", "--review", "--review-below", "1") == 3
    assert "reviewed 3, 0 flagged, 3 below 1" in capsys.readouterr().err
    assert medunet("predict", run, images, "-o", out, "--force", "--review-below", "0.8") == 2
    assert medunet("evaluate", run, "--data", images, "--calibrate", "--cases", "all") == 2


def test_benchmark_prints_every_stage_and_verbose_the_windows(
    *, run: Path, images: Path, tmp_path: Path, medunet: Medunet, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    assert medunet("predict", run, images, "-o", tmp_path / "out", "--benchmark", "--verbose") == 0
    table = capsys.readouterr().err
    assert re.search(r"3 cases in [\d.]+ s: [\d.]+ cases/s", table)
    for stage in (*STAGES, "all stages"):
        assert re.search(rf"{stage} .*[\d.]+ .*[\d.]+ .*\d+%", table), stage
    assert any("windows" in record.getMessage() for record in caplog.records if "inferers" in record.name)


def test_after_ctrl_c_the_number_of_results_and_how_to_continue_are_printed(
    *, run: Path, images: Path, tmp_path: Path, medunet: Medunet, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(self: Predictor, sources: list[Path], **options: Any):
        yield from original(self, sources[:1], **options)
        raise KeyboardInterrupt

    original = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", interrupted)
    assert medunet("predict", run, images, "-o", tmp_path / "out") == 130
    error = capsys.readouterr().err
    assert "1 of 3 written" in error
    assert "--skip-existing" in error


def test_the_command_starts_without_the_packages_of_training_and_pictures(
    run: Path, images: Path, tmp_path: Path
) -> None:
    program = "import sys\nfrom medunet.cli.app import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", program, "predict", run, images, "-o", tmp_path / "out"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
    imported = set(done.stderr.split())
    assert "monai" in imported and not {"matplotlib", "mlflow", "pandas", "sklearn"} & imported
