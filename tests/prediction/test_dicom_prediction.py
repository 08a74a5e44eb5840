"""A DICOM series predicted by a bundle: what the reader recorded reaches the user and the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from medunet.io import Pseudonyms
from medunet.prediction import Predictor

pytestmark = pytest.mark.filterwarnings("ignore")

SHARED = {"series_uid": "1.2.3", "StudyInstanceUID": "1.2.4", "FrameOfReferenceUID": "1.2.5"}


@pytest.fixture
def two_phases(tmp_path: Path, make_series: Callable[..., Path]) -> Path:
    folder = make_series(tmp_path / "Secret", slices=16, TemporalPositionIdentifier=1, **SHARED)
    for file in make_series(tmp_path / "other", slices=16, TemporalPositionIdentifier=2, **SHARED).iterdir():
        file.rename(folder / f"other_{file.name}")
    return folder


def test_result_refers_to_the_chosen_phase_and_the_readers_warnings_are_logged(
    bundle: Path, two_phases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("highdicom")
    predictor = Predictor(bundle, output_dir=tmp_path / "out", device="cpu", overrides={"phase": 1})
    result = pydicom.dcmread(predictor.predict_case(two_phases))
    assert result.Modality == "SEG"
    [series] = result.ReferencedSeriesSequence
    images = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, two_phases.iterdir())}
    referred = [images[item.ReferencedSOPInstanceUID] for item in series.ReferencedInstanceSequence]
    assert {header.TemporalPositionIdentifier for header in referred} == {2}
    assert f"{two_phases}: phase 1 of 2 read (TemporalPositionIdentifier 2)" in caplog.messages


def test_warnings_of_a_case_with_another_name_do_not_tell_its_own(
    bundle: Path, two_phases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pseudonyms = Pseudonyms()
    predictor = Predictor(
        bundle, output_dir=tmp_path / "out", device="cpu", overrides={"phase": 1}, pseudonyms=pseudonyms
    )
    predictor.predict_case(two_phases)
    [warning] = [message for message in caplog.messages if "phase 1 of 2" in message]
    assert "Secret" not in caplog.text
    assert warning.startswith(pseudonyms.code(two_phases))
