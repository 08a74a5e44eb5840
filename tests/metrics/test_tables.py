"""Tables are complete and can be read again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from medunet.metrics import evaluate_case, write_tables
from medunet.metrics.evaluation import CaseScores

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def results() -> list[CaseScores]:
    ref = np.zeros((6, 7), int)
    ref[1:4, 1:4] = 1
    return [evaluate_case(ref, ref, spacing_mm=(1, 1), labels=LABELS, name=name) for name in ("a,b", 'c"d')]


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def test_json_has_null_instead_of_nan(tmp_path: Path) -> None:
    _, path = write_tables(results(), tmp_path / "new" / "folder")
    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["cases"][0]["classes"]["spleen"]["dice"] is None
    assert document["cases"][0]["classes"]["liver"]["dice"] == 1.0
    assert document["summary"]["mean_dice"] == 1.0


def test_csv_has_a_row_for_each_case_and_class(tmp_path: Path) -> None:
    path, _ = write_tables(results(), tmp_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [(row["case"], row["class"]) for row in rows]
    assert labels == [(case, label) for case in ("a,b", 'c"d') for label in ("liver", "spleen")]
    assert rows[0]["area_ref_mm2"] == "9.0"
    assert (rows[1]["status"], rows[1]["hd95_mm"]) == ("absent", "")
