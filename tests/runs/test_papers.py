"""Evaluation as papers need it: intervals over patients, subgroups, lesions, several annotators."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Capture, Medunet
from scipy.optimize import linear_sum_assignment

from medunet.errors import DataError
from medunet.io import write_volume
from medunet.metrics import evaluate_case, lesion_scores, overlaps, summarise
from medunet.metrics.evaluation import statistics
from medunet.runs.subgroups import read_subgroups

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_interval_is_that_of_drawn_patients() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.8, 0.1, 40)
    patients = [f"p{n // 4}" for n in range(40)]
    values += np.repeat(rng.normal(0, 0.1, 10), 4)  # images of a patient are alike
    found = statistics([*values, np.nan], [*patients, "p0"])
    means = [values.reshape(10, 4)[rng.integers(10, size=10)].mean() for _ in range(20000)]
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.005)
    alone = statistics(list(values))
    assert alone["high"] - alone["low"] < 0.8 * (found["high"] - found["low"])
    assert (found["n"], found["mean"]) == (40, pytest.approx(values.mean()))
    assert np.isnan(statistics([0.5, 0.6], ["a", "a"])["low"])  # one patient


def test_lesions_are_matched_one_to_one_by_the_best_assignment() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = rng.random((2, 24, 24)) > 0.86
        masks[1, :, :12] = masks[0, :, :12]
        scores = lesion_scores(*masks)
        from scipy import ndimage

        table = overlaps(*(ndimage.label(mask, np.ones((3, 3)))[0] for mask in masks))
        dense = np.zeros((len(table.pred_ids), len(table.ref_ids)))
        dense[table.pred, table.ref] = table.iou >= 0.1
        found = dense[linear_sum_assignment(-dense)].sum()
        assert scores["lesions_fp"] == len(table.pred_ids) - found
        assert scores["lesion_sensitivity"] == pytest.approx(found / len(table.ref_ids))
    nothing = lesion_scores(np.zeros((5, 5), bool), np.zeros((5, 5), bool))
    assert np.isnan(nothing["lesion_f1"])


def test_size_errors_and_the_surface_dice_of_missed_and_spurious_classes() -> None:
    ref = np.zeros((9, 9, 9), int)
    ref[2:6, 2:6, 2:6] = 1
    pred = np.where(np.arange(9) < 5, ref, 0)
    options = {"spacing_mm": (1, 1, 1), "labels": {"background": 0, "a": 1}}
    one = evaluate_case(pred, ref, **options, tolerance_mm=0.5)["classes"]["a"]
    assert (one["size_error_percent"], one["size_abs_error_percent"]) == (-25, 25)
    assert 0 < one["nsd"] < 1
    assert evaluate_case(pred, ref, **options, tolerance_mm=1)["classes"]["a"]["nsd"] == 1
    missed, spurious, absent = (
        evaluate_case(a, b, **options)["classes"]["a"] for a, b in ((0 * ref, ref), (ref, 0 * ref), (0 * ref, 0 * ref))
    )
    assert (missed["nsd"], spurious["nsd"]) == (0, 0)
    assert np.isnan(absent["nsd"])
    assert np.isnan(spurious["size_error_percent"])
    summary = summarise([evaluate_case(pred, ref, **options, name=name) for name in "ab"], groups={"a": "p", "b": "p"})
    assert np.isnan(summary["classes"]["a"]["scores"]["dice"]["low"])


@pytest.fixture
def readers(tmp_path: Path) -> Path:
    """Label maps of three readers; the second is one voxel off, the third also misses in half of the cases."""
    for case in range(8):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:10, 4:10, 4:10] = 1
        for reader, shift in (("reader_1", 0), ("reader_2", 1), ("reader_3", 1 if case < 4 else 4)):
            write_volume(np.roll(label, shift, axis=0), tmp_path / reader / f"case_{case}.nii.gz", affine=np.eye(4))
    rows = [f"case_{case},{'AB'[case // 4]},{40 + case}" for case in range(8)]
    (tmp_path / "patients.csv").write_text("\n".join(["case,site,age", *rows, "other,C,9"]) + "\n")
    return tmp_path


def test_the_weakest_subgroup_is_named(readers: Path, medunet: Medunet, capsys: Capture) -> None:
    words = ["evaluate", "--pred", readers / "reader_3", "--ref", readers / "reader_1", "--labels", "liver=1"]
    assert medunet(*words, "--subgroups", readers / "patients.csv", "--tolerance", 2) == 0
    printed = capsys.readouterr().out
    assert "weakest subgroup: site B" in printed
    summary = json.loads((readers / "reader_3_evaluation" / "metrics.json").read_text())["summary"]
    assert {value: one["n"] for value, one in summary["subgroups"]["site"].items()} == {"A": 4, "B": 4}
    assert set(summary["subgroups"]["age"]) == {"<= 43.5", "> 43.5"}
    assert (summary["weakest"], summary["tolerance_mm"]) == ({"column": "site", "value": "B"}, 2)
    assert summary["subgroups"]["site"]["B"]["mean"] < summary["classes"]["liver"]["scores"]["dice"]["low"]


def test_files_of_subgroups_that_cannot_be_used_are_errors(readers: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text, message in (
        ("name,site\na,A\n", "columns are missing"),
        ("case\na\n", "columns are missing"),
        ("case,site\na,A\na,B\n", "a case must have one row"),
        ("case,site\nz,A\n", "none of the evaluated cases"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_subgroups(path, ["a", "b"])
    path.write_text("case,site\na,A\n")
    assert read_subgroups(path, ["a", "b"]) == {"site": {"a": "A", "b": "unknown"}}


def test_every_pair_of_annotators_is_compared(readers: Path, medunet: Medunet, capsys: Capture) -> None:
    refs = [word for name in ("reader_2", "reader_3") for word in ("--ref", readers / name)]
    words = ["evaluate", "--pred", readers / "reader_1", *refs, "--labels", "liver=1", "-o", readers / "out"]
    assert medunet(*words, "--json") == 0
    agreement = json.loads(capsys.readouterr().out)["agreement"]
    assert list(agreement) == ["reader_1 reader_2", "reader_1 reader_3", "reader_2 reader_3"]
    dice = [one["classes"]["liver"]["scores"]["dice"]["mean"] for one in agreement.values()]
    assert dice == pytest.approx([5 / 6, (5 / 6 + 2 / 6) / 2, (1 + 3 / 6) / 2])
    assert (readers / "out" / "reader_2_reader_3" / "metrics.csv").is_file()
    assert medunet(*words, "--force") == 0
    assert "reader_2 reader_3" in capsys.readouterr().out
    assert medunet("evaluate", *refs[:2], *refs[:2]) == 2  # one folder twice
