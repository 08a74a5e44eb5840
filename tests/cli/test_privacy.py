"""Nothing that identifies a patient leaves the DICOM files, except into DICOM results of the same study."""

import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from canary import LINKS, SECRETS, WORDS, leaks
from commands import sets
from small import SMALL_3D, untrained_run

from medunet.cli.app import main
from medunet.io import read_header
from medunet.io.dicom.references import read_planes, save_dataset
from medunet.io.dicom.seg import make_dicom_seg
from medunet.io.segments import as_segments

pytestmark = pytest.mark.filterwarnings("ignore")
Call = Callable[..., tuple[int, str]]
LINKED = {word for value in LINKS.values() for word in value.split("^")}  # what DICOM results may contain


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return untrained_run(tmp_path / "written" / "run", patch_size=[16, 16, 8])


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Call:
    """Run a command; return its exit code, and all that it printed and logged, tracebacks included."""
    for key, name in {"MEDUNET_CACHE_DIR": "cache", "MEDUNET_CONFIG_DIR": "config"}.items():
        monkeypatch.setenv(key, str(tmp_path / "written" / name))
    caplog.set_level(logging.DEBUG)

    def run_command(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["medunet", *map(str, words)])
        caplog.clear()
        code, trace = 0, ""
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            code, trace = 1, traceback.format_exc()
        printed = capfd.readouterr()
        return code, printed.out + printed.err + caplog.text + trace

    return run_command


@pytest.fixture
def series(tmp_path: Path, make_series: Callable[..., Path]) -> Path:
    return make_series(tmp_path / "in" / "case_a" / "ct", **LINKS, **SECRETS)


def words_in(text: str, words: set[str] = WORDS) -> list[str]:
    return [word for word in words if word in text]


def test_prediction_leaks_nothing(tmp_path: Path, run: Path, series: Path, call: Call) -> None:
    pytest.importorskip("highdicom")
    source = pydicom.dcmread(next(series.iterdir()))
    for kind in ("auto", "rtstruct", "nii.gz", "seg.nrrd"):
        out = tmp_path / "written" / kind
        more = ["--verbose", "--probabilities"] if kind == "nii.gz" else []
        code, printed = call("predict", run, series, "-o", out, "--format", kind, *more)
        assert (code, words_in(printed)) == (0, []), printed
        for result in out.glob("*.dcm"):
            header = pydicom.dcmread(result)
            assert header.StudyInstanceUID == source.StudyInstanceUID
            assert header.PatientID == LINKS["PatientID"]
            assert leaks(out, words=WORDS - LINKED) == set()
            result.unlink()
    assert leaks(tmp_path / "written", words=WORDS) == set()


def test_errors_leak_nothing(tmp_path: Path, run: Path, series: Path, call: Call) -> None:
    files = sorted(series.iterdir())
    for index, change in enumerate(({"PixelSpacing": "Zyxqwv"}, {"RescaleSlope": "19031129"}, {"Rows": None})):
        header = pydicom.dcmread(files[index])
        for tag, value in change.items():
            header.pop(tag, None)
            if value is not None:  # a wrong type: pydicom's message about it has the value
                header[tag] = pydicom.DataElement(tag, "LO", value)
        header.save_as(files[index])
    files[3].write_bytes(files[3].read_bytes()[:-100])
    predict = ("predict", run, series, "-o", tmp_path / "written" / "o", "--verbose")
    for command in (predict, ("check", series.parent.parent)):
        for debug in ([], ["--debug"]):
            code, printed = call(*command, *debug)
            assert code in (3, 4)
            assert "remedy" in printed or "would fail" in printed
            assert not words_in(printed), printed
    assert leaks(tmp_path / "written", words=WORDS) == set()


@pytest.mark.slow
def test_no_command_leaks_what_a_data_set_contains(
    tmp_path: Path, make_series: Callable[..., Path], call: Call
) -> None:
    pytest.importorskip("highdicom")
    voxels = np.zeros((23, 19, 6), np.uint8)
    voxels[3:12, 4:15, 1:5] = 1
    voxels[14:20, 4:12, 0:5] = 2
    data, written = tmp_path / "Pathnix" / "data", tmp_path / "written"
    written.mkdir()
    for name in ("a", "b", "c"):
        series = make_series(data / name / "ct", **LINKS, **SECRETS)
        planes = read_planes((record := read_header(series)).frames, record.geometry)
        segments = as_segments({"background": 0, "kidney": 1, "liver": 2})
        label = make_dicom_seg(voxels, segments, planes, algorithm={"name": "one", "version": "1"})
        save_dataset(label, data / name / "label.dcm")
    small = sets({**SMALL_3D, "patch_size": [16, 16, 8], "epochs": 1})
    commands: list[tuple[object, ...]] = [
        ("check", data, "--sheet", written / "sheet.png"),
        ("check", data, "--json"),
        ("plan", data, "-o", written / "plan", "--estimate"),
        ("train", "unet_3d", "--data", data, "--output", written / "run", *small),
        ("evaluate", written / "run", "--data", data, "-o", written / "evaluation"),
        ("evaluate", written / "run", "--data", data),
        ("report", written / "run"),
        ("runs", "list", "--runs", written),
        ("runs", "compare", "--runs", written),
    ]
    for command in commands:
        code, printed = call(*command)
        assert (code, words_in(printed)) == (0, []), printed
    for result in written.rglob("*.dcm"):
        assert not [word for word in WORDS - LINKED if word.encode() in result.read_bytes()]
        result.unlink()
    assert [path for path in written.rglob("mlruns*") if path.stat().st_size]
    assert (written / "run" / "report.html").is_file()
    assert leaks(written, words=WORDS) == set()
    # only the configs that read the data, and the user's cache, have their path
    named = {name for name, _ in leaks(written, words={"Pathnix"}) if not name.startswith("cache/store/")}
    assert named == {"run/configs/train.json", "run/configs/evaluate.json"}


def test_deidentified_results_and_lines_have_no_names(tmp_path: Path, run: Path, series: Path, call: Call) -> None:
    pytest.importorskip("highdicom")
    named = series.rename(series.parent / "Namix_John")
    broken = series.parent / "Brokenix.nii.gz"
    broken.write_bytes(b"\x1f\x8b")
    words = WORDS | {"Namix", "Brokenix"}
    for kind in ("auto", "rtstruct", "nii.gz", "seg.nrrd"):
        out, table = tmp_path / "written" / kind, tmp_path / f"{kind}.csv"
        more = ["--verbose", "--probabilities"] if kind == "nii.gz" else []
        options = ["-o", out, "--format", kind, "--deidentify", "--pseudonym-table", table, *more]
        code, printed = call("predict", run, broken, named, *options)
        assert code == 3, printed
        assert "case_0001: " in printed and "case_0002" in printed
        assert not words_in(printed.replace(str(tmp_path), ""), words), printed
        assert all(path.name.startswith("case_0002") for path in out.iterdir())
        for result in out.glob("*.dcm"):
            assert pydicom.dcmread(result).PatientIdentityRemoved == "YES"
        assert "1 were there already" in call("predict", run, broken, named, *options, "--skip-existing")[1]
        rows = table.read_text(encoding="utf-8").splitlines()
        assert rows == ["case,input", f"case_0001,{broken}", f"case_0002,{named}"]
        assert table.stat().st_mode & 0o77 == 0
    assert leaks(tmp_path / "written", words=words) == set()
