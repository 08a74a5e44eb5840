"""`medunet evaluate` of label maps that number objects."""

import json

import numpy as np
import pytest
from commands import run_medunet

from medunet.errors import DataError
from medunet.io import write_volume
from medunet.runs import evaluate_folders


@pytest.fixture
def folders(tmp_path):
    """Write two images with three objects: one found and two merged; one found, one missed, one shifted."""
    ref = np.zeros((30, 40), np.uint16)
    ref[2:8, 2:8], ref[2:8, 20:26], ref[2:8, 26:32] = 1, 2, 300
    merged, lost = ref.copy(), ref.copy()
    merged[merged == 300] = 2
    lost[ref == 2], lost[ref == 300] = 0, 0
    lost[2:8, 28:34] = 7
    for name, pred in (("a", merged), ("b", lost)):
        write_volume(ref, tmp_path / "labels" / f"{name}.png")
        write_volume(pred, tmp_path / "pred" / f"{name}.png")
    return tmp_path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = run_medunet(*arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_objects_in_two_folders_are_compared(folders, capsys):
    command = ["evaluate", "--pred", folders / "pred", "--ref", folders / "labels", "-o", folders / "out"]
    code, out, _ = run(capsys, *command, "--instances")
    assert code == 0
    assert "AP at IoU 0.5" in out
    document = json.loads((folders / "out" / "metrics.json").read_text())
    assert document["summary"]["instances"] is True
    pooled = document["summary"]["objects"]["object"]["pooled"]
    assert (pooled["objects_ref"], pooled["merged"], pooled["missed"], pooled["spurious"]) == (6, 1, 1, 0)
    # image a: object 1 and one of the merged two, which are exactly half of the merged one; b: 1, and 300 at IoU 0.5
    assert [case["classes"]["object"]["ap_50"] for case in document["cases"]] == [2 / 3, 2 / 3]
    rows = (folders / "out" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["case", "a", "b"]


def test_undeclared_objects_are_an_error_that_names_the_option(folders, capsys):
    masks = folders / "masks"
    ref = np.zeros((30, 40), np.uint16)
    for number in range(1, 6):
        ref[2:8, 7 * number - 5 : 7 * number] = number
    write_volume(ref, folders / "five" / "a.png")
    write_volume((ref > 0).astype(np.uint8), masks / "a.png")
    code, out, err = run(capsys, "evaluate", "--pred", masks, "--ref", folders / "five")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--instances" in err
    assert not (folders / "masks_evaluation").exists()


def test_classes_of_objects_come_from_tables(folders):
    (folders / "dataset.json").write_text('{"instances": true, "labels": {"background": 0, "round": 1, "long": 2}}')
    (folders / "classes.csv").write_text(
        "case,id,class\n" + "".join(f"{case},1,round\n{case},2,long\n{case},300,long\n" for case in "ab")
    )
    (folders / "pred" / "a_objects.csv").write_text("id,class\n1,round\n2,round\n")
    (folders / "pred" / "b_objects.csv").write_text("id,class\n1,round\n7,long\n")
    summary = evaluate_folders(folders / "pred", folders / "labels", folders / "out")
    assert summary["objects"]["round"]["pooled"]["ap_50"] == 2 / 3
    assert summary["objects"]["long"]["pooled"]["objects_pred"] == 1
    (folders / "pred" / "b_objects.csv").unlink()
    failed = evaluate_folders(folders / "pred", folders / "labels", folders / "out")["failed_cases"]
    assert failed == {"b": "b.png: objects have no classes"}


def test_references_of_classes_are_rejected(folders):
    for case in "ab":
        voxels = np.zeros((30, 40), np.uint8)
        voxels[2:5, 2:5] = voxels[10:15, 10:15] = 1
        for folder in ("labels", "pred"):
            write_volume(voxels, folders / folder / f"{case}.png")
    with pytest.raises(DataError, match="look like class labels"):
        evaluate_folders(folders / "pred", folders / "labels", folders / "out", instances=True)


def test_objects_on_another_grid_are_rejected(folders):
    write_volume(np.ones((31, 40), np.uint16), folders / "pred" / "a.png")
    summary = evaluate_folders(folders / "pred", folders / "labels", folders / "out", instances=True)
    assert "different grids" in summary["failed_cases"]["a"]
    (folders / "pred" / "b.png").unlink()
    with pytest.raises(DataError, match="no case could be evaluated"):
        evaluate_folders(folders / "pred", folders / "labels", folders / "out", instances=True)
