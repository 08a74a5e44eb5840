"""Nothing that identifies a patient leaves the DICOM files, except into DICOM results of the same study."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from canary import LINKS, SECRETS, WORDS, leaks
from monai.bundle import ConfigParser

from medunet.bundle import find_bundle, specialise
from medunet.cli.app import main
from medunet.io import read_header
from medunet.io.dicom.references import read_planes, save_dataset
from medunet.io.dicom.seg import make_dicom_seg
from medunet.io.segments import as_segments
from medunet.runtime import save_weights

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    changes = {"network_def::channels": [4, 8], "patch_size": [16, 16, 8], "autocast_dtype": "float32"}
    classes = {"label_values": [0, 1, 2], "label_names": ["background", "kidney", "liver"]}
    folder = specialise(find_bundle("unet_3d"), tmp_path / "written" / "run", {**changes, **classes})
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    (folder / "models").mkdir()
    save_weights(parser.get_parsed_content("network_def").state_dict(), folder / "models" / "model.pt")
    return folder


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Call:
    """Run a command; its exit code, and all that it printed and logged, tracebacks included."""
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
        shown = capfd.readouterr()
        return code, shown.out + shown.err + caplog.text + trace

    return run_command


@pytest.fixture
def series(tmp_path: Path, make_series: Callable[..., Path]) -> Path:
    return make_series(tmp_path / "in" / "case_a" / "ct", **LINKS, **SECRETS)


def test_prediction_leaks_nothing(tmp_path: Path, run: Path, series: Path, call: Call) -> None:
    pytest.importorskip("highdicom")
    formats = ("auto", "rtstruct", "nii.gz", "seg.nrrd")
    for index, kind in enumerate(formats):
        more = ["--verbose", "--probabilities"] if kind == "nii.gz" else []
        code, shown = call("predict", run, series, "-o", tmp_path / "written" / f"o{index}", "--format", kind, *more)
        assert code == 0, shown
        assert not [word for word in WORDS if word in shown], shown
    linked = {word for value in LINKS.values() for word in value.split("^")}
    for index in (0, 1):
        (result,) = (tmp_path / "written" / f"o{index}").glob("*.dcm")
        header = pydicom.dcmread(result)
        source = pydicom.dcmread(next(series.iterdir()))
        assert header.StudyInstanceUID == source.StudyInstanceUID
        assert header.PatientID == LINKS["PatientID"]
        assert leaks(result.parent, words=WORDS - linked) == set()
        result.unlink()
    assert leaks(tmp_path / "written", words=WORDS) == set()


def test_errors_leak_nothing(tmp_path: Path, run: Path, series: Path, call: Call) -> None:
    files = sorted(series.iterdir())
    for index, change in enumerate(({"PixelSpacing": "Zyxqwv"}, {"RescaleSlope": "19031129"}, {"Rows": None})):
        header = pydicom.dcmread(files[index])
        for tag, value in change.items():
            header.pop(tag, None)
            if value is not None:
                element = pydicom.DataElement(tag, "LO", value)  # a wrong type: what pydicom says of it has the value
                header[tag] = element
        header.save_as(files[index])
    files[3].write_bytes(files[3].read_bytes()[:-100])
    for command in (
        ("predict", run, series, "-o", tmp_path / "written" / "o", "--verbose"),
        ("check", series.parent.parent),
    ):
        for debug in ([], ["--debug"]):
            code, shown = call(*command, *debug)
            assert code in (3, 4)
            assert "remedy" in shown or "would fail" in shown
            assert not [word for word in WORDS if word in shown], shown
    assert leaks(tmp_path / "written", words=WORDS) == set()


@pytest.mark.slow
def test_no_command_leaks_what_a_data_set_holds(tmp_path: Path, make_series: Callable[..., Path], call: Call) -> None:
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
    small = ["epochs=1", "steps_per_epoch=2", "batch_size=1", "val_interval=1", "network_def::channels=[4,8]"]
    sets = [word for value in small for word in ("--set", value)]
    commands: list[tuple[object, ...]] = [
        ("check", data, "--sheet", written / "sheet.png"),
        ("check", data, "--json"),
        ("plan", data, "-o", written / "plan", "--estimate"),
        ("train", "unet_3d", "--data", data, "--output", written / "run", *sets, "--set", "patch_size=[16,16,8]"),
        ("evaluate", written / "run", "--data", data, "-o", written / "evaluation"),
        ("evaluate", written / "run", "--data", data),
        ("report", written / "run"),
        ("runs", "list", "--runs", written),
        ("runs", "compare", "--runs", written),
    ]
    for command in commands:
        code, shown = call(*command)
        assert code == 0, shown
        assert not [word for word in WORDS if word in shown], shown
    for result in written.rglob("*.dcm"):
        linked = {word for value in LINKS.values() for word in value.split("^")}
        assert not [word for word in WORDS - linked if word.encode() in result.read_bytes()]
        result.unlink()
    stores = [path for path in written.rglob("mlruns*") if path.stat().st_size]
    assert stores and (written / "run" / "report.html").is_file()
    assert leaks(written, words=WORDS) == set()
    # where the data lie stands in the configs that read them and in the user's cache, and nowhere else
    named = {name for name, _ in leaks(written, words={"Pathnix"})}
    assert {name for name in named if not name.startswith("cache/store/")} == {
        "run/configs/train.json",
        "run/configs/evaluate.json",
    }


def test_deidentified_results_and_lines_name_nobody(tmp_path: Path, run: Path, series: Path, call: Call) -> None:
    pytest.importorskip("highdicom")
    named = series.parent / "Namix_John"
    series.rename(named)
    broken = series.parent / "Brokenix.nii.gz"
    broken.write_bytes(b"\x1f\x8b")
    table = tmp_path / "table.csv"
    words = WORDS | {"Namix", "Brokenix"}
    for index, kind in enumerate(("auto", "rtstruct", "nii.gz", "seg.nrrd")):
        out = tmp_path / "written" / f"o{index}"
        more = ["--verbose", "--probabilities"] if kind == "nii.gz" else []
        options = ["-o", out, "--format", kind, "--deidentify", "--pseudonym-table", table, *more]
        code, shown = call("predict", run, broken, named, *options)
        assert code == 3, shown
        assert "case_0001: " in shown and "case_0002" in shown
        lines = shown.replace(str(tmp_path), "")
        assert not [word for word in words if word in lines], lines
        assert all(path.name.startswith("case_0002") for path in out.iterdir())
        for result in out.glob("*.dcm"):
            assert pydicom.dcmread(result).PatientIdentityRemoved == "YES"
        again = call("predict", run, broken, named, *options, "--skip-existing")
        assert "1 were there already" in again[1]
        rows = table.read_text(encoding="utf-8").splitlines()
        assert rows == ["case,input", f"case_0001,{broken}", f"case_0002,{named}"]
        assert table.stat().st_mode & 0o77 == 0
    assert leaks(tmp_path / "written", words=words) == set()
