"""DICOM SR of measurements: validated by dciodvfy, read by dcmqi and highdicom."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medunet.errors import DataError
from medunet.io import Pseudonyms, SavePredictiond, read_volume
from medunet.io.dicom.sr import make_measurement_report
from medunet.runs.measure import measure

hd = pytest.importorskip("highdicom")
LABELS = {"background": 0, "Leber": 1, "Knöchel": 5}


def save(folder: Path, labels: np.ndarray, output: Path, **options: Any) -> tuple[SavePredictiond, dict[Any, Any]]:
    image = read_volume(folder).image
    saver = SavePredictiond(output_dir=output, labels=LABELS, **options)
    saver.structures = {name: [value] for name, value in LABELS.items() if value}
    item = {"image": image, "measured": image, "pred": image * 0 + labels[None].astype(np.float32)}
    return saver, item


def values(report: pydicom.Dataset) -> dict[str, dict[str, float]]:
    """Return the measurements by the label of a segment and the name of the concept, as highdicom reads them."""
    groups = hd.sr.EnhancedSR.from_dataset(report).content.get_volumetric_roi_measurement_groups()
    return {
        group.tracking_identifier: {
            f"{one.name.meaning}{f' {one.derivation.meaning}' if one.derivation else ''}": one.value
            for one in group.get_measurements()
        }
        for group in groups
    }


def test_a_dicom_seg_has_a_report_with_its_measurements_beside_it(tmp_path, make_series, labelled):
    saver, item = save(make_series(tmp_path / "ct"), labelled(), tmp_path / "out")
    rows = {row["structure"]: row for row in saver(item)["measurements"]}
    seg, report = (pydicom.dcmread(tmp_path / "out" / name) for name in ("ct.dcm", "ct_sr.dcm"))
    found = values(report)
    assert found.keys() == rows.keys() == {"Leber", "Knöchel"}
    for name, row in rows.items():
        assert found[name]["Volume"] == pytest.approx(row["volume_mm3"])
        assert found[name]["Long axis"] == pytest.approx(row["long_axis_mm"])
        assert found[name]["Attenuation Coefficient Mean"] == pytest.approx(row["intensity_mean"])
    assert found["Leber"]["Volume"] == pytest.approx(np.count_nonzero(labelled() == 1) * 0.7 * 0.9 * 2.5)
    assert report.StudyInstanceUID == seg.StudyInstanceUID
    assert (str(report.PatientName), report.SeriesNumber) == ("Müller^Secret", 3003)
    groups = hd.sr.EnhancedSR.from_dataset(report).content.get_volumetric_roi_measurement_groups()
    for group, segment in zip(groups, seg.SegmentSequence, strict=True):
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert reference.referenced_segment_numbers == [segment.SegmentNumber]
        assert [one.value.meaning for one in group.get_qualitative_evaluations()] == ["Yes"]  # both touch the border


def test_measure_writes_the_same_report_for_a_dicom_seg(tmp_path, make_series, labelled):
    folder = make_series(tmp_path / "ct")
    saver, item = save(folder, labelled(), tmp_path / "out")
    rows = saver({**item, "name": "patient_7/ct"})["measurements"]
    out = tmp_path / "out" / "patient_7"
    result = measure(out / "ct.dcm", folder, tmp_path / "tables")
    assert result["measurements"] == [pytest.approx({**row, "case": "ct"}) for row in rows]
    reports = [pydicom.dcmread(path) for path in (out / "ct_sr.dcm", tmp_path / "tables" / "ct_sr.dcm")]
    assert values(reports[0]) == values(reports[1])


def test_dciodvfy_accepts_the_report_and_dcmqi_reads_it(tmp_path, make_series, labelled):
    saver, item = save(make_series(tmp_path / "ct"), labelled(), tmp_path / "out")
    saver(item)
    path = tmp_path / "out" / "ct_sr.dcm"
    if program := shutil.which("dciodvfy"):
        done = subprocess.run([program, "-new", path], capture_output=True, text=True, errors="replace", check=False)
        complaints = [
            line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("Error", "Warning"))
        ]
        known = ("DICOMDIR", "Retired Person Name form", "99MEDUNET")  # a private coding scheme
        assert [line for line in complaints if not any(text in line for text in known)] == []
    reader = Path(sys.executable).parent / "tid1500reader"
    if not reader.is_file():
        pytest.skip("dcmqi is not installed")
    command = [reader, "--inputDICOM", path, "--outputMetadata", tmp_path / "a.json"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    groups = json.loads((tmp_path / "a.json").read_text())["Measurements"]
    assert [group["ReferencedSegment"] for group in groups] == [1, 2], done.stderr
    assert {"103339001", "118565006"} <= {one["quantity"]["CodeValue"] for one in groups[0]["measurementItems"]}


def test_a_deidentified_report_has_no_identity_and_refers_to_the_deidentified_seg(tmp_path, make_series, labelled):
    saver, item = save(make_series(tmp_path / "ct"), labelled(), tmp_path / "out")
    saver.pseudonyms = Pseudonyms()
    saver(item)
    seg, report = (pydicom.dcmread(tmp_path / "out" / f"case_0001{ending}.dcm") for ending in ("", "_sr"))
    content = (tmp_path / "out" / "case_0001_sr.dcm").read_bytes()
    assert not [word for word in (b"Secret", b"4711", b"19500101", b"20200102") if word in content]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert evidence.ReferencedSOPInstanceUID == seg.SOPInstanceUID


def test_a_report_needs_a_segment_and_its_headers(tmp_path, make_series, labelled):
    saver, item = save(folder := make_series(tmp_path / "ct"), labelled(), tmp_path / "out")
    rows = saver(item)["measurements"]
    seg, source = pydicom.dcmread(tmp_path / "out" / "ct.dcm"), pydicom.dcmread(next(folder.iterdir()))
    algorithm = {"name": "medunet", "version": "1"}
    with pytest.raises(DataError, match="needs measurements of a segment"):
        make_measurement_report([{"structure": "other"}], seg, source, algorithm)
    del source.SeriesInstanceUID
    with pytest.raises(DataError, match="rejects the headers"):
        make_measurement_report(rows, seg, source, algorithm)
