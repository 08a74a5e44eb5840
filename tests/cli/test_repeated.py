"""A rejected command does not block its corrected repetition, and no command overwrites what a person has edited."""

from pathlib import Path
from typing import NamedTuple

import pytest
from commands import Medunet
from small import untrained_run

from medunet.datasets import open_dataset, write_phantom_dataset

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = "--epochs 1 --set network_def::channels=[4,8] --set patch_size=[16,16,16] --set steps_per_epoch=1"
TRAIN = f"train unet_3d --data data --no-tracking {SMALL} --set batch_size=1"


class Command(NamedTuple):
    """A command, options that it rejects, and a file that it writes."""

    words: str
    bad: tuple[str, ...]
    edit: str
    has_force: bool = False


CONFIG = "configs/train.json"
COMMANDS = {
    "plan": Command("plan data -o OUT --estimate", ("--memory 1MB", "--device cuda:99"), CONFIG),
    "train": Command(f"{TRAIN} --output OUT", ("--fold 7", "--set optimizer::lr=-1", "--set form=guess"), CONFIG),
    "train --folds": Command(
        f"{TRAIN} --folds 0 --output OUT", ("--folds 9", "--set val_interval=0"), f"fold_0/{CONFIG}"
    ),
    "predict": Command("predict run data/imagesTs -o OUT", ("--set form=guess", "--device cuda:99"), "ct_003.nii.gz"),
    "bundle init": Command("bundle init unet_3d -o OUT", ("--set nosuch=1", "--preset nosuch"), CONFIG),
    "bundle export": Command("bundle export run --to torchscript -o OUT/run.ts", ("--image nosuch.nii.gz",), "run.ts"),
    "bundle package": Command("bundle package run -o OUT/run.zip", ("--name a/b",), "run.zip"),
    "evaluate": Command(
        "evaluate run --data data --cases all -o OUT", ("--cases nosuch", "--device cuda:99"), "metrics.json", True
    ),
    "report": Command("report run -o OUT/report.html", ("--max-size -1", "--data nosuch"), "report.html", True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    write_phantom_dataset(root / "data", kind="ct", cases=3, test_cases=1, size=(32, 32, 24))
    labels = open_dataset(root / "data").labels
    untrained_run(root / "run", label_values=list(labels.values()), label_names=list(labels))
    return root


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_rejected_command_does_not_block_the_corrected_one(name: str, folder: Path, medunet: Medunet) -> None:
    command, out = COMMANDS[name], f"out_{list(COMMANDS).index(name)}"
    words = command.words.replace("OUT", out)
    for bad in command.bad:
        assert medunet(*f"{words} {bad}".split()) in (2, 3), bad
    assert medunet(*words.split()) == 0
    edited = folder / out / command.edit
    assert edited.is_file()
    before = edited.read_bytes()
    before = before.replace(b'"seed": 0', b'"seed": 1') if b'"seed": 0' in before else before + b"edited"
    edited.write_bytes(before)
    assert medunet(*words.split()) in (2, 3)
    assert edited.read_bytes() == before
    if command.has_force:
        assert medunet(*words.split(), "--force") == 0
        assert edited.read_bytes() != before


def test_an_edited_run_is_not_replaced_before_it_was_trained(folder: Path, medunet: Medunet) -> None:
    words = f"{TRAIN} --output untrained"
    assert medunet(*f"{words} --set optimizer::lr=-1".split()) == 2
    config = folder / "untrained" / CONFIG
    edited = config.read_text().replace('"seed": 0', '"seed": 1')
    config.write_text(edited)
    assert medunet(*words.split()) == 2
    assert config.read_text() == edited
