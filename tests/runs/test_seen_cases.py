"""An evaluation takes every case of other data, and no case that the run was trained on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import Capture, Medunet
from small import SMALL_2D

from medunet.bundle import find_bundle
from medunet.datasets import image_digest, open_dataset, write_phantom_dataset
from medunet.errors import ConfigError, DataError
from medunet.files import claim
from medunet.runs import evaluate_bundle, report_runs, train_bundle
from medunet.runs.seen import seen_cases

# MONAI and ignite warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def other(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three new cases, and one that the run was trained on under another name."""
    root = tmp_path_factory.mktemp("other") / "hospital B"
    write_phantom_dataset(root, kind="cells", cases=4, size=(48, 48), seed=7)
    for folder in ("imagesTr", "labelsTr"):
        shutil.copyfile(cells / folder / "cells_001.png", root / folder / "cells_003.png")
    return root


@pytest.fixture
def run(run_2d: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_2d, tmp_path / "run"))


def names_in(folder: Path) -> list[str]:
    return [case["name"] for case in json.loads((folder / "metrics.json").read_text())["cases"]]


def test_only_the_validation_cases_of_the_runs_own_data_are_evaluated(run: Path, cells: Path, tmp_path: Path) -> None:
    summary = evaluate_bundle(run, cells, device="cpu")
    assert names_in(run / "evaluation") == ["cells_000", "cells_002"]
    assert (summary["trained_on"], summary["left_out"]) == ([], ["cells_001", "cells_003"])
    moved = Path(shutil.copytree(cells, tmp_path / "moved"))
    assert seen_cases(run, open_dataset(moved)).folder == "evaluation"


def test_every_case_of_other_data_is_evaluated(run: Path, other: Path, medunet: Medunet, capsys: Capture) -> None:
    summary = evaluate_bundle(run, other, section="unseen", device="cpu")
    assert names_in(run / "evaluation_hospital_B") == ["cells_000", "cells_001", "cells_002"]
    assert summary["left_out"] == ["cells_003"]
    assert not (run / "evaluation").exists()
    assert medunet("evaluate", run, "--data", other, "--force") == 0
    assert names_in(run / "evaluation_hospital_B") == ["cells_000", "cells_001", "cells_002", "cells_003"]
    out = capsys.readouterr().out
    assert "evaluated cases that were trained on: cells_003" in out and "HD95 px" in out


def test_test_cases_are_evaluated_beside_the_validation_cases(run: Path, cells: Path, tmp_path: Path) -> None:
    summary = evaluate_bundle(run, cells, section="test", device="cpu")
    assert names_in(run / "evaluation_test") == ["cells_004", "cells_005"]
    assert summary["trained_on"] == []
    assert not (run / "evaluation").exists()
    data = Path(shutil.copytree(cells, tmp_path / "data"))
    (data / "dataset.json").unlink()
    shutil.rmtree(data / "labelsTs")
    with pytest.raises(DataError, match="no labelled case"):
        evaluate_bundle(run, data, section="test", device="cpu")


def test_a_fold_of_other_data_is_rejected(run: Path, tmp_path: Path) -> None:
    write_phantom_dataset(tmp_path / "new", kind="cells", cases=4, size=(48, 48), seed=8)
    with pytest.raises(ConfigError, match="no such cases for this bundle"):
        evaluate_bundle(run, tmp_path / "new", section="validation", device="cpu")


def test_training_cases_of_the_initial_run_count_as_trained_on(run: Path, cells: Path, tmp_path: Path) -> None:
    changes = {**SMALL_2D, "epochs": 1, "fold": 1, "tracking_uri": "", "init_from": str(run)}
    changes["split"] = json.loads((run / "configs" / "train.json").read_text())["split"]
    train_bundle(find_bundle("unet_2d"), cells, tmp_path / "second", changes=changes, device="cpu")
    assert seen_cases(tmp_path / "second", open_dataset(cells)).names == {f"cells_00{number}" for number in range(4)}


def test_a_bundle_without_a_record_is_evaluated_on_every_case(run: Path, other: Path) -> None:
    (run / "eval" / "trained_on.json").unlink()
    summary = evaluate_bundle(run, other, device="cpu")
    assert (summary["cases"], summary["trained_on"]) == (4, None)


def test_a_report_on_other_data_evaluates_that_data(run: Path, cells: Path, other: Path, tmp_path: Path) -> None:
    evaluate_bundle(run, cells, device="cpu")
    page = tmp_path / "r.html"
    assert report_runs([run], page, data=other, device="cpu", figures=False).cases == 3
    assert "none of them trained on" in page.read_text()
    assert names_in(run / "evaluation") == ["cells_000", "cells_002"]


def test_a_report_does_not_evaluate_into_a_folder_that_another_process_uses(run: Path, tmp_path: Path) -> None:
    with claim(run / "evaluation"), pytest.raises(DataError, match="another process"):
        report_runs([run], tmp_path / "r.html", device="cpu")


def test_an_image_is_recognised_by_its_content(tmp_path: Path) -> None:
    large = tmp_path / "large.raw"
    large.write_bytes(np.random.default_rng(0).bytes(3 << 20))
    copy = Path(shutil.copyfile(large, tmp_path / "renamed.raw"))
    assert image_digest(copy) == image_digest(large)
    content = bytearray(large.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert image_digest(copy) != image_digest(large)
    for folder, names in (("a", "123"), ("b", "312")):  # names and order of DICOM files do not matter
        (tmp_path / folder).mkdir()
        for text, name in zip("xyz", names, strict=True):
            (tmp_path / folder / f"{name}.dcm").write_text(text)
    assert image_digest(tmp_path / "a") == image_digest(tmp_path / "b")
