"""A cohort out of Orthanc, and its segmentations back into it; without a label server."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from medunet.deploy.cluster import DicomWebStore, predict_cohort

from .store import get, orthanc, upload

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is absent"),
]


@pytest.mark.slow
def test_a_cohort_from_orthanc_is_sent_back(bundle: Path, make_series: Callable[..., Path], tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as url:
        upload(url, make_series(tmp_path / "in", columns=16, rows=16, slices=16))
        store = DicomWebStore(f"{url}/dicom-web")
        found = list(store.series({"Modality": "CT"}, send_back=True))
        assert len(found) == 1
        result = predict_cohort(bundle, found, tmp_path / "out", device="cpu", result_format="dicom-seg")
        assert [outcome.status for outcome in result.outcomes] == ["written"]
        modalities = [get(f"{url}/series/{uid}")["MainDicomTags"]["Modality"] for uid in get(f"{url}/series")]
        assert sorted(modalities) == ["CT", "SEG"]
        assert len(list(store.series())) == 1  # a segmentation is no image
