"""`medunet predict --manifest`: what an audit needs to verify a result later."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from commands import Capture, Medunet
from small import untrained_run

from medunet.io import write_volume
from medunet.planning.adapt import instance_values
from medunet.prediction import Prediction, Predictor

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", patch_size=[16, 16, 8])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b")):
        voxels = np.random.default_rng(seed).normal(size=(17, 16, 13)).astype(np.float32)
        write_volume(voxels, tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "in" / "cut.nii.gz").write_bytes(b"\x1f\x8b")
    return tmp_path / "in"


def sha256(path: Path) -> str:
    """Return what the page about audit trails computes with `sha256sum`."""
    files = [path] if path.is_file() else list(path.iterdir())
    digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return digests[0] if path.is_file() else hashlib.sha256("".join(f"{one}\n" for one in digests).encode()).hexdigest()


def changed(document: dict[str, Any]) -> set[str]:
    """Return the files whose content is no longer that of the manifest."""
    listed = {file["path"]: file["sha256"] for case in document["cases"] for file in case["inputs"] + case["outputs"]}
    for model in document["models"]:
        folder = Path(model["folder"])
        listed |= {str(folder / "configs" / name): digest for name, digest in model["configs"].items()}
        listed |= {str(folder / "models" / name): digest for name, digest in model["weights"].items()}
    assert None not in listed.values()
    return {Path(path).name for path, digest in listed.items() if sha256(Path(path)) != digest}


def test_a_manifest_has_the_digest_of_every_file(
    run: Path, images: Path, make_series: Callable[..., Path], tmp_path: Path, medunet: Medunet
) -> None:
    series, file = make_series(tmp_path / "series"), tmp_path / "out" / "manifest.json"
    words = ["predict", run, images, series, "-o", tmp_path / "out", "--manifest", file, "--probabilities"]
    assert medunet(*words, "--ensemble", run, "--set", "tile_size=[32, 32, 32]") == 3
    document = json.loads(file.read_text())
    cases = {case["name"]: case for case in document["cases"]}
    assert {name: case["status"] for name, case in cases.items()} == {
        **dict.fromkeys(("a", "b", "series"), "written"),
        "cut": "failed",
    }
    assert {len(case["outputs"]) for name, case in cases.items() if name != "cut"} == {2}
    assert "truncated" in cases["cut"]["error"]
    assert (document["exit_code"], document["requested_cases"], len(document["models"])) == (3, 4, 2)
    assert document["settings"]["overrides"] == {"tile_size": [32, 32, 32]}
    header = pydicom.dcmread(next(series.iterdir()))
    assert cases["series"]["inputs"][0]["study_uid"] == header.StudyInstanceUID
    assert cases["series"]["inputs"][0]["series_uid"] == header.SeriesInstanceUID
    assert cases["series"]["inputs"][0]["files"] == 6
    assert changed(document) == set()
    (images / "b.nii.gz").write_bytes((images / "a.nii.gz").read_bytes())
    next(series.iterdir()).unlink()
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"")
    assert changed(document) == {"b.nii.gz", "series", "a.nii.gz"}
    stamp = file.read_bytes()
    assert medunet(*words, "--skip-existing") == 2  # a manifest is replaced only on request
    assert file.read_bytes() == stamp


def test_tables_and_outlines_of_objects_are_results(tmp_path: Path, medunet: Medunet) -> None:
    changes = instance_values("border") | {"label_names": ["background", "cell"], "label_values": [0, 1]}
    run, out = untrained_run(tmp_path / "run", bundle="unet_2d", **changes), tmp_path / "out"
    image = write_volume(np.random.default_rng(0).normal(size=(48, 48)).astype(np.float32), tmp_path / "a.tif")
    words = ["predict", run, image, "-o", out, "--objects", "geojson", "--probabilities", "--manifest"]
    for number, more in enumerate(([], ["--skip-existing"])):
        assert medunet(*words, tmp_path / f"{number}.json", *more) == 0
        document = json.loads((tmp_path / f"{number}.json").read_text())
        assert {file["path"] for file in document["cases"][0]["outputs"]} == {*map(str, out.iterdir())}
        assert len(document["cases"][0]["outputs"]) == 4
        assert changed(document) == set()


def test_ctrl_c_leaves_a_manifest_of_every_result(
    *, run: Path, images: Path, tmp_path: Path, medunet: Medunet, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (images / "cut.nii.gz").unlink()

    def interrupted(self: Predictor, *args: Any, **options: Any) -> Iterator[Prediction]:
        predictions = original(self, *args, **options)
        yield next(predictions)
        predictions.close()  # the second case is in the pipeline
        raise KeyboardInterrupt

    original = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", interrupted)
    assert medunet("predict", run, images, "-o", tmp_path / "out", "--manifest", tmp_path / "m.json", "--json") == 130
    document = json.loads((tmp_path / "m.json").read_text())
    assert json.loads(capsys.readouterr().out) == document
    assert document["exit_code"] == 130
    assert {Path(file["path"]) for case in document["cases"] for file in case["outputs"]} == {
        *(tmp_path / "out").glob("*.nii.gz")
    }


def test_warnings_of_the_reader_are_printed_and_recorded(
    *, run: Path, make_series: Callable[..., Path], tmp_path: Path, medunet: Medunet, capsys: Capture, caplog: Any
) -> None:
    series = make_series(tmp_path / "series")
    (series / "report.txt").write_text("no image")
    (series / "DICOMDIR.dcm").write_bytes(next(series.glob("*_001.dcm")).read_bytes()[:200])
    options = ["-o", tmp_path / "out", "--skip-unreadable", "--json"]
    assert medunet("predict", run, series, *options) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["warnings"]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{series}: {'; '.join(case['warnings'])}" in lines


def test_a_deidentified_manifest_names_nobody(
    run: Path, make_series: Callable[..., Path], tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    series = make_series(tmp_path / "Namix_John", series_uid="1.2.3.4711")
    header = pydicom.dcmread(next(series.iterdir()))
    out, file = tmp_path / "out", tmp_path / "m.json"
    options = ["-o", out, "--manifest", file, "--deidentify", "--json", "--series-uid", "1.2.3.4711"]
    assert medunet("predict", run, series, *options) == 0
    document = json.loads(file.read_text())
    (entry,) = document["cases"][0]["inputs"]
    assert entry["path"] == document["cases"][0]["name"] == "case_0001"
    assert entry["sha256"] == sha256(series)
    assert entry["series_uid"] == document["settings"]["overrides"]["series_uid"] != "1.2.3.4711"
    printed = capsys.readouterr()
    for text in (file.read_text(), printed.out, printed.err):
        assert not [word for word in ("Namix", "1.2.3.4711", str(header.StudyInstanceUID)) if word in text]


def test_a_cohort_has_a_manifest_of_all_its_calls(run: Path, images: Path, tmp_path: Path, medunet: Medunet) -> None:
    cohort, out = tmp_path / "cohort.csv", tmp_path / "out"
    cohort.write_text("image,name\nin/a.nii.gz,one/a\nin/cut.nii.gz,two\n")
    assert medunet("predict", run, cohort, "-o", out, "--manifest", tmp_path / "first.json") == 3
    (images / "cut.nii.gz").write_bytes((images / "b.nii.gz").read_bytes())
    assert medunet("predict", run, cohort, "-o", out, "--manifest", tmp_path / "second.json") == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second"))
    assert [case["status"] for case in first["cases"]] == ["written", "failed"]
    assert [case["name"] for case in second["cases"]] == ["one/a", "two"]
    assert second["cases"][0] == first["cases"][0]
    assert changed(second) == set()
    assert changed(first) == {"cut.nii.gz"}
