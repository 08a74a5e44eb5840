"""Every command names a truncated file among good ones, does the rest, and reports it by its exit code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import SMALL_2D

from medunet.bundle import find_bundle
from medunet.datasets import datalist, write_phantom_dataset
from medunet.files import claim
from medunet.runs import train_bundle

pytestmark = pytest.mark.filterwarnings("ignore")
SETS = [f"--set={id_}={value}" for id_, value in {**SMALL_2D, "epochs": 1, "folds": 2}.items()]
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(medunet: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> Call:
    def run_command(*words: object) -> tuple[int, str]:
        code = medunet(*words)
        return code, " ".join(" ".join(capfd.readouterr()).split())

    return run_command


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("good") / "data"
    write_phantom_dataset(data, kind="cells", cases=6, size=(48, 48))
    return data


@pytest.fixture(scope="module")
def run(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options: dict[str, Any] = {"changes": {**SMALL_2D, "epochs": 1, "folds": 2}, "device": "cpu", "tracking_uri": ""}
    return train_bundle(find_bundle("unet_2d"), good, tmp_path_factory.mktemp("run") / "run", **options).run


def cut(path: Path, *, keep: float = 0.7) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Return a data set with a truncated image and a truncated label, and the names of the two cases."""
    data = tmp_path / "data"
    shutil.copytree(good, data)
    images, labels = sorted((data / "imagesTr").iterdir()), sorted((data / "labelsTr").iterdir())
    return data, [cut(images[1]).name.split(".")[0].removesuffix("_0000"), cut(labels[3]).name.split(".")[0]]


def test_check_and_plan_list_all_bad_cases_and_fail_without_skip_bad(
    bad: tuple[Path, list[str]], call: Call, tmp_path: Path
) -> None:
    data, names = bad
    code, text = call("check", data, "--json")
    assert code == 4
    assert all(name in text for name in names)
    code, text = call("plan", data, "-o", tmp_path / "plan", "--estimate")
    assert code == 2
    assert "2 cases cannot be used" in text and "--skip-bad" in text
    assert all(name in text for name in names)
    assert not (tmp_path / "plan").exists()
    code, text = call("plan", data, "-o", tmp_path / "plan", "--estimate", "--skip-bad")
    assert code == 0, text
    assert "2 left out" in text and all(name in text for name in names)
    assert set(json.loads((tmp_path / "plan" / "docs" / "fingerprint.json").read_text())["broken"]) == set(names)
    with claim(tmp_path / "plan"):
        code, text = call("plan", data, "-o", tmp_path / "plan", "--estimate", "--skip-bad", "--force")
    assert code == 2 and "another process writes" in text


def test_training_lists_all_bad_cases_and_fails_without_skip_bad(
    bad: tuple[Path, list[str]], call: Call, tmp_path: Path
) -> None:
    data, names = bad
    command = ("train", "unet_2d", "--data", data, "--output", tmp_path / "run", "--no-tracking", *SETS)
    code, text = call(*command)
    assert code == 2
    assert all(name in text for name in names), text
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    code, text = call(*command, "--skip-bad")
    assert code == 0, text
    assert f"left out {', '.join(sorted(names))}" in text
    config = json.loads((tmp_path / "run" / "configs" / "train.json").read_text())
    assert config["skip_cases"] == sorted(names)
    assert "skip_cases" not in (tmp_path / "run" / "docs" / "changes.json").read_text()
    code, text = call("evaluate", tmp_path / "run", "--data", data)
    assert code == 0, text
    (data / "dataset.json").unlink()  # without it, label values are found by reading the labels
    code, text = call("evaluate", tmp_path / "run", "--data", data, "--force")
    assert code == 0, text


def test_evaluation_reports_a_case_that_was_damaged_later_and_evaluates_the_others(
    good: Path, run: Path, call: Call, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(good, data)
    items = datalist(data, section="validation", fold=0, folds=2)
    assert len(items) == 3
    cut(Path(str(items[0]["image"])))
    cut(Path(str(items[1]["label"])))
    code, text = call("evaluate", run, "--data", data, "-o", tmp_path / "measured")
    assert code == 3
    assert "1 case, mean (sd)" in text
    content = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    assert set(content["summary"]["failed_cases"]) == {items[0]["name"], items[1]["name"]}
    assert str(tmp_path) not in json.dumps(content)
    for name in content["summary"]["failed_cases"]:
        assert f"error {name}: " in text


def test_prediction_reports_bad_cases_at_the_end(good: Path, run: Path, call: Call, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(good / "imagesTr", images)
    broken = cut(sorted(images.iterdir())[2])
    code, text = call("predict", run, images, "-o", tmp_path / "out")
    assert code == 3
    assert f"{broken.name}: " in text and "5 of 6 written" in text
    code, text = call("evaluate", "--pred", tmp_path / "out", "--ref", good / "labelsTr", "-o", tmp_path / "m")
    assert code == 0, text
    written = cut(sorted((tmp_path / "out").iterdir())[0])
    compare = ("evaluate", "--pred", tmp_path / "out", "--ref", good / "labelsTr", "-o", tmp_path / "m")
    code, text = call(*compare, "--force")
    assert code == 3 and f"error {written.stem}" in text and "4 cases" in text


def test_damaging_a_case_moves_no_other_case_of_a_run_to_another_fold(good: Path, run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(good, data)
    (data / "dataset.json").unlink()  # without it, label values are found by reading the labels
    items = datalist(data, section="all")
    names = [str(item["name"]) for item in items]
    for item in (items[0], items[2]):  # a list opens no label; reading the case reports the damage
        cut(Path(str(item["label"])))
        split = json.loads((run / "configs" / "train.json").read_text())["split"]
        validated = datalist(data, section="validation", fold=0, folds=2, split=split, skip_cases=[names[0]])
        assert [item["name"] for item in validated] == [name for name in split[0] if name != names[0]]


def test_a_list_with_missing_files_is_rejected_also_with_skip_bad(good: Path, tmp_path: Path, call: Call) -> None:
    data = tmp_path / "data"
    shutil.copytree(good, data)
    next((data / "imagesTr").iterdir()).unlink()
    code, text = call("train", "unet_2d", "--data", data, "--output", tmp_path / "run", "--skip-bad")
    assert code == 2 and "1 listed files are missing" in text
