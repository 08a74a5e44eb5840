"""The results of a cross-validation, in the parent run of its folds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas

from medunet.files import write_atomically

from .anonymous import CaseCodes
from .bundle_model import model_name
from .record import CASES_NAME, LATER, PARENT_NAME, Delivery, RunRecord
from .server import PATIENT_SECONDS, Server, limits, now

logger = logging.getLogger(__name__)


def track_cross_validation(
    folder: Path, *, uri: str | None, summary: Mapping[str, Any], table: Path, names: Iterable[str]
) -> None:
    """Log out-of-fold metrics, the table of cases and the ensemble to the parent run, if there is one.

    Args:
        folder: folder of the cross-validation, which is the bundle of the ensemble.
        uri: the store. None: the one of the folds.
        summary: result of :func:`medunet.metrics.summarise`.
        table: CSV file with the metrics of each case.
        names: names of all cases.
    """
    file = folder / PARENT_NAME
    known = RunRecord.load(file)
    if known is None:
        return
    server, codes = Server(uri or known.uri, experiment_name=known.experiment), CaseCodes(names)
    values = {"out_of_fold_mean_dice": summary["mean_dice"]}
    for name, entry in summary["classes"].items():
        values |= {f"out_of_fold_{key}_{name}": score["mean"] for key, score in entry["scores"].items()}
    try:
        rows = pandas.read_csv(table, dtype=str, keep_default_na=False)
        rows["case"] = [codes[name] for name in rows["case"]]
        write_atomically(
            file.with_suffix("") / "out_of_fold" / "metrics.csv", rows.to_csv(index=False, lineterminator="\n")
        )
        write_atomically(file.with_name(CASES_NAME), json.dumps(codes, indent=1, ensure_ascii=False))
        with RunRecord.edit(file) as record:
            record.add({key: value for key, value in values.items() if value is not None}, time=now(), step=0)
            record.bundle, record.model = ".", model_name(folder.resolve().name)
            record.status, record.end_time, record.is_synced = "FINISHED", now(), False
        server.probe()
        with limits(PATIENT_SECONDS):
            Delivery(server, file).run()
    except Exception as error:  # the folds are trained; the cross-validation must not end in an error
        logger.warning("the cross-validation is not in MLflow (%s); " + LATER, server.describe(error), folder)
