"""`medunet listen` between two DICOM nodes: Orthanc sends a study, and gets its segmentation and report."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from medunet.deploy.monailabel.server import usable_port

from .store import get, orthanc, upload

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("pynetdicom") is None, reason="pynetdicom is absent"),
    pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="highdicom is absent"),
]
SECONDS = 300.0  # the command imports PyTorch


def test_orthanc_sends_a_study_and_gets_its_segmentation_and_report(
    bundle: Path, make_series: Callable[..., Path], tmp_path: Path
) -> None:
    port, back = usable_port(), usable_port()
    nodes = {"medunet": ["MEDUNET", "127.0.0.1", port]}
    dicom = {"DicomServerEnabled": True, "DicomAet": "ORTHANC", "DicomPort": back, "DicomModalities": nodes}
    command = [sys.executable, "-m", "medunet", "listen", bundle, "--dicom-port", port, "-o", tmp_path / "out"]
    command += ["--send-to", f"ORTHANC@127.0.0.1:{back}", "--allow", "ORTHANC", "--settle", "2s", "--device", "cpu"]
    with (
        orthanc(tmp_path / "orthanc", **dicom) as url,
        subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        ) as service,
    ):
        try:
            assert service.stderr is not None
            assert service.stdout is not None
            assert any("waiting for studies" in line for line in iter(service.stderr.readline, ""))
            upload(url, make_series(tmp_path / "in", columns=16, rows=16, slices=16))
            (study,) = get(f"{url}/studies")
            for _ in range(2):
                urllib.request.urlopen(f"{url}/modalities/medunet/store", data=study.encode()).read()
                if not (tmp_path / "out" / "results").exists():
                    line = service.stdout.readline()
            assert "1 series segmented" in line
            end = time.monotonic() + SECONDS
            while len(get(f"{url}/studies/{study}")["Series"]) < 3:
                assert time.monotonic() < end
                time.sleep(0.5)
        finally:
            service.send_signal(signal.SIGTERM)
        assert service.wait(SECONDS) == 130
        kinds = {get(f"{url}/series/{uid}")["MainDicomTags"]["Modality"]: uid for uid in get(f"{url}/series")}
        assert sorted(kinds) == ["CT", "SEG", "SR"]
        assert len(get(f"{url}/studies")) == 1
    assert not list((tmp_path / "out" / "results").rglob("*.dcm"))  # everything was sent
    entries = [json.loads(text) for text in (tmp_path / "out" / "ledger.jsonl").read_text().splitlines()]
    assert [entry["sent"] for entry in entries[1:]] == [False, False, True]  # once, although it was sent twice
