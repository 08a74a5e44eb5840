"""Splits and groups that a user gives decide the folds, or are rejected in one line."""

import json
import shutil
from pathlib import Path

import pytest
from commands import Capture, Medunet
from small import SMALL_2D

from medunet.bundle import find_bundle, plan_bundle
from medunet.config import read_json
from medunet.datasets import datalist, open_dataset, regroup, write_phantom_dataset
from medunet.errors import ConfigError, DataError
from medunet.runs import evaluate_bundle, fit_bundle, train_bundle

# MONAI and ignite warn about themselves
pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = ["p1_a", "p1_b", "p2_a", "p3_a"]


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of three patients."""
    root = tmp_path_factory.mktemp("patients") / "data"
    write_phantom_dataset(root, kind="cells", cases=4, size=(48, 48))
    for number, name in enumerate(NAMES):
        for folder in ("imagesTr", "labelsTr"):
            (root / folder / f"cells_{number:03d}.png").rename(root / folder / f"{name}.png")
    (root / "dataset.json").unlink()
    return root


def nnunet(*folds: tuple[list[str], list[str]]) -> str:
    return json.dumps([{"train": train, "val": val} for train, val in folds])


def split_of(folder: Path, name: str = "train") -> list[list[str]]:
    return read_json(folder / "configs" / f"{name}.json")["split"]


GOOD = {
    "splits_final.json": nnunet(
        (["p1_a_0000.png", "p1_b.nii.gz"], ["p2_a", "p3_a"]), (["p2_a", "p3_a"], ["p1_a_0000", "p1_b.png"])
    ),
    "folds.csv": "case,fold\np1_a,1\np1_b,1\np2_a,0\np3_a,0\n",
    "both.csv": "\ufeffcase;group;fold\np1_a;x;1\np1_b;x;1\np2_a;y;0\np3_a;z;0\n",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_gives_the_folds(name: str, patients: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(GOOD[name], encoding="utf-8")
    assert regroup(open_dataset(patients), tmp_path / name).split == (("p2_a", "p3_a"), ("p1_a", "p1_b"))


def test_one_fold_of_nnunet_holds_out_its_cases(
    patients: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "split.json").write_text(nnunet((["p1_a", "p1_b", "p2_a"], ["p3_a"])))
    _, values = fit_bundle(find_bundle("unet_2d"), patients, split=tmp_path / "split.json")
    assert (values["split"], values["folds"]) == ([["p3_a"]], 1)
    assert not caplog.records  # the two images of p1 are together: both train


@pytest.mark.parametrize("how", ["group.csv", "pattern", "dataset.json"])
def test_folds_keep_groups_together(how: str, patients: Path, tmp_path: Path) -> None:
    data, options = Path(shutil.copytree(patients, tmp_path / "data")), {}
    groups = {name: name[:2] for name in NAMES}
    if how == "dataset.json":
        (data / how).write_text(json.dumps({"groups": groups}))
    elif how == "pattern":
        options = {"group_by": r"^(p\d+)_"}
    else:
        (tmp_path / how).write_text("case,group\n" + "".join(f"{name},{group}\n" for name, group in groups.items()))
        options = {"split": tmp_path / how}
    _, values = fit_bundle(find_bundle("unet_2d"), data, **options)
    assert sorted(values["split"]) == [["p1_a", "p1_b"], ["p2_a"], ["p3_a"]]
    assert values["folds"] == 3


BAD = {
    "unknown cases": (nnunet((["p1_a", "p1_b", "p2_a"], ["p3_a", "x"])), r"unknown cases in fold 0 \(received x\)"),
    "missing": (nnunet((["p1_a", "p1_b"], ["p3_a"])), r"missing cases in fold 0 \(received p2_a\)"),
    "never validated": (
        nnunet((["p1_a", "p1_b", "p2_a"], ["p3_a"]), (["p1_a", "p1_b", "p3_a"], ["p2_a"])),
        r"missing cases in the folds \(received p1_a, p1_b\)",
    ),
    "leaking": (nnunet((NAMES, ["p3_a"])), r"repeated cases in fold 0 \(received p3_a\)"),
    "twice": (
        nnunet((["p1_a", "p1_b"], ["p2_a", "p3_a"]), (["p2_a"], ["p1_a", "p1_b", "p3_a"])),
        r"repeated cases in the folds \(received p3_a\)",
    ),
    "empty fold": (nnunet((NAMES, []), ([], NAMES)), r"a fold has no cases \(received fold 0 of 2"),
    "no training case": (nnunet(([], NAMES)), "no case is left for training"),
    "no fold": ("[]", "no folds"),
    "other JSON": ('{"train": ["p1_a"]}', "not a split"),
    "broken JSON": ("[", "not a split"),
    "columns": ("name,patient\np1_a,1\n", "columns are missing"),
    "csv missing": ("case,group\np1_a,1\np1_b,1\np2_a,2\n", r"missing cases in column case \(received p3_a\)"),
    "csv unknown": ("case,group\nx,1\n", r"unknown cases in column case \(received x\)"),
    "csv repeated": ("case,group\np1_a,1\np1_a,1\n", r"repeated cases in column case \(received p1_a\)"),
    "csv empty group": ("case,group\np1_a,1\np1_b,\np2_a,2\np3_a,3\n", r"no group is given \(received p1_b\)"),
    "csv one group": ("case,group\np1_a,1\np1_b,1\np2_a,1\np3_a,1\n", "at least two groups are needed"),
    "csv gap": ("case,fold\np1_a,0\np1_b,0\np2_a,2\np3_a,2\n", r"from 0 without gaps \(received 0, 2\)"),
    "csv huge": ("case,fold\np1_a,0\np1_b,0\np2_a,2\np3_a,99999999999\n", "from 0 without gaps"),
    "csv word": ("case,fold\np1_a,0\np1_b,0\np2_a,one\np3_a,1\n", r"from 0 without gaps \(received 0, 1, one\)"),
    "csv divided": (
        "case,group,fold\np1_a,x,0\np1_b,x,1\np2_a,y,0\np3_a,z,1\n",
        r"groups are in several folds \(received x\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_does_not_fit_is_rejected(name: str, patients: Path, tmp_path: Path) -> None:
    text, cause = BAD[name]
    file = tmp_path / ("split.csv" if "," in text.partition("\n")[0] and text[0] not in "[{" else "split.json")
    file.write_text(text)
    with pytest.raises(DataError, match=f"{file.name}: .*{cause}") as caught:
        regroup(open_dataset(patients), file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "cause"),
    [
        (r"^(p[12])_", r"must match every case .*not p3_a"),
        ("(p)", "at least two groups"),
        ("p1", "not a regular expression with a group"),
        ("(", "not a regular expression with a group"),
    ],
)
def test_a_pattern_that_does_not_fit_is_rejected(pattern: str, cause: str, patients: Path) -> None:
    with pytest.raises(ConfigError, match=cause):
        regroup(open_dataset(patients), group_by=pattern)


def test_commands_reject_a_bad_split_in_one_line_and_write_nothing(
    patients: Path, tmp_path: Path, medunet: Medunet, capsys: Capture
) -> None:
    file, out = tmp_path / "split.json", tmp_path / "out"
    file.write_text(nnunet((["p1_a"], ["p3_a"])))
    for words in (("plan", patients, "--estimate"), ("train", "unet_2d", "--data", patients)):
        options = (("--split", file), ("--group-by", "(p)"), ("--split", file, "--group-by", "(p.)"))
        for option in options:
            assert medunet(*words, "--output", out, *option) == 2
            assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert medunet("check", patients, "--group-by", "(p)") == 2
    assert medunet("check", patients, "--group-by", "^(p.)") == 0
    assert not out.exists()


def test_a_planned_split_is_used_by_runs_resumed_runs_and_evaluations(patients: Path, tmp_path: Path) -> None:
    bundle = plan_bundle(patients, tmp_path / "bundle", device="cpu", measure=False, group_by="^(p.)").folder
    wanted = [["p1_a", "p1_b"], ["p2_a"], ["p3_a"]]
    assert sorted(split_of(bundle)) == sorted(split_of(bundle, "evaluate")) == wanted
    run, fold = tmp_path / "run", split_of(bundle).index(wanted[0])
    depth = len(read_json(bundle / "configs" / "train.json")["network_def"]["channels"])
    changes = {"network_def::channels": [4] * depth, "batch_size": 2, "steps_per_epoch": 1, "epochs": 1, "fold": fold}
    changes |= {"tracking_uri": ""}
    train_bundle(bundle, patients, run, changes=changes, device="cpu")
    assert sorted(json.loads((run / "eval" / "trained_on.json").read_text())) == ["p2_a", "p3_a"]
    summary = evaluate_bundle(run, patients, section="validation", device="cpu")
    assert (summary["cases"], summary["trained_on"]) == (2, [])

    (tmp_path / "other.csv").write_text("case,fold\np1_a,0\np1_b,1\np2_a,1\np3_a,0\n")
    with pytest.raises(DataError, match="run with another split"):
        fit_bundle(find_bundle("unet_2d"), patients, output=run, split=tmp_path / "other.csv")
    _, values = fit_bundle(find_bundle("unet_2d"), patients, output=run)
    assert values["split"] == split_of(run)  # not the default split
    grown = Path(shutil.copytree(patients, tmp_path / "grown"))
    for folder in ("imagesTr", "labelsTr"):
        shutil.copyfile(grown / folder / "p3_a.png", grown / folder / "p4_a.png")
    with pytest.raises(DataError, match=r"missing cases .*received p4_a.*data set has changed since the run began"):
        fit_bundle(bundle, grown, output=run)
    with pytest.raises(DataError, match=r"missing cases .*received p4_a.*set split to"):
        fit_bundle(bundle, grown)


def test_a_split_of_other_data_is_replaced(patients: Path, cells: Path) -> None:
    changes = {**SMALL_2D, "split": [["x"], ["y"]]}
    with pytest.raises(DataError, match="unknown cases"):
        fit_bundle(find_bundle("unet_2d"), patients, changes=changes)
    _, values = fit_bundle(find_bundle("unet_2d"), cells)
    assert sorted(name for part in values["split"] for name in part) == [f"cells_00{n}" for n in range(4)]


def test_folds_beside_a_split_must_have_its_number(patients: Path) -> None:
    split = [["p1_a", "p1_b"], ["p2_a", "p3_a"]]
    with pytest.raises(ConfigError, match=r"folds must be those of the split \(received 3, expected 2"):
        fit_bundle(find_bundle("unet_2d"), patients, changes={"split": split, "folds": 3})
    with pytest.raises(ConfigError, match=r"unknown fold of the split \(received fold 2 of 2"):
        datalist(patients, section="training", fold=2, folds=2, split=split)
    with pytest.raises(ConfigError, match="a split and validation_cases exclude each other"):
        fit_bundle(find_bundle("unet_2d"), patients, changes={"split": split, "validation_cases": ["p1_a"]})
