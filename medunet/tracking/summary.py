"""What a cross-validation came to, in the parent run of its folds."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .anonymous import pack_bundle
from .case_codes import CaseCodes
from .journal import Journal
from .logged_model import model_name
from .sender import Delivery
from .server import Server
from .spool import Spool
from .state import PARENT_NAME, RunState

logger = logging.getLogger(__name__)

SPOOL = Path("eval") / "tracking"
"""In the folder of a cross-validation, as in that of a run."""


def track_cross_validation(
    folder: Path, *, uri: str | None, summary: Mapping[str, Any], table: Path, names: Iterable[str]
) -> None:
    """Log out-of-fold metrics, the per-case table and the ensemble to the parent run; without one nothing happens.

    Args:
        folder: of the cross-validation, which is the bundle of the ensemble.
        uri: of the store; None: the one that the training noted.
        summary: of :func:`medunet.metrics.summarise`.
        table: its ``metrics.csv``.
        names: of all cases.
    """
    state = RunState.load(folder / PARENT_NAME)
    if state is None or not state.run_id:
        return
    try:
        codes = CaseCodes(names)
        spool = Spool(folder / SPOOL)
        journal = Journal(spool, run_id=state.run_id)
        values = {"out_of_fold_mean_dice": summary["mean_dice"]}
        for name, entry in summary["classes"].items():
            values |= {f"out_of_fold_{key}_{name}": score["mean"] for key, score in entry["scores"].items()}
        journal.metrics({key: value for key, value in values.items() if value is not None}, step=0)
        journal.file("out_of_fold/metrics.csv", _anonymous_table(table.read_text(encoding="utf-8"), codes))
        packed = pack_bundle(folder, codes)
        journal.file("bundle.zip", packed)
        journal.model(packed, name=model_name(folder.resolve().name))
        journal.status("FINISHED")
        Delivery(spool, Server(uri or state.uri), folder / PARENT_NAME).run()
        if len(spool):
            logger.warning("%d records wait for MLflow; `medunet runs sync %s` sends them", len(spool), folder)
    except Exception as error:  # what was trained is there; it must not end in an error
        logger.warning("the cross-validation could not be logged: %s", error, exc_info=True)


def _anonymous_table(text: str, codes: CaseCodes) -> str:
    rows = list(csv.DictReader(io.StringIO(text)))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else ["case"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "case": codes[row["case"]]} for row in rows)
    return out.getvalue()
