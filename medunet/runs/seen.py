"""Which cases of a data set a run was trained on."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunet.bundle.read import read_own
from medunet.config import read_json
from medunet.datasets import SegmentationDataset, datalist, image_digest
from medunet.errors import DataError
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.runs.split import split_options
from medunet.training import TRAINED_ON_NAME, weights_of

EVALUATION = "evaluation"  # folder in a run with the metrics of `medunet evaluate` on the run's own data set


@dataclass(frozen=True)
class SeenCases:
    """The cases of a data set that a run was trained on."""

    names: frozenset[str]
    folder: str  # folder in the run for metrics on this data set; those on a test set have a folder of their own
    is_known: bool = True  # whether it is recorded what the run was trained on; if False, `names` is empty


def seen_cases(run: Path, dataset: SegmentationDataset, *, is_test: bool = False) -> SeenCases:
    """Return which images of a data set a run, or the folds of a cross-validation, trained on.

    Images are compared by content, so renamed, moved and copied cases count, as do the cases of the run that this one
    started from (`init_from`). `is_test` compares the data set's test cases instead of its labelled ones.
    """
    config = read_own(run, "evaluate")
    own = Path(str(config.get("dataset_dir", "")))
    is_own = own.is_absolute() and own.exists() and _root(own) == _root(dataset.root)
    other = f"{EVALUATION}_{'test' if is_own else re.sub(r'[^A-Za-z0-9.-]+', '_', dataset.root.name)}"
    trained = _trained_on(run)
    is_own_training = is_own and not is_test
    if not trained:  # such as a bundle that was copied without the record
        names = _split(dataset, config) if is_own_training else frozenset[str]()
        return SeenCases(names, EVALUATION if is_own_training else other, is_known=is_own)
    digests = {case.name: image_digest(case.images) for case in (dataset.test if is_test else dataset.cases)}
    known = trained | _inherited(run)
    names = frozenset(name for name, digest in digests.items() if digest in known)
    return SeenCases(names, EVALUATION if is_own_training or trained <= set(digests.values()) else other)


def _root(path: Path) -> Path:
    """Return the folder of a data set that is given by its folder or its `dataset.json`."""
    return (path.parent if path.is_file() else path).resolve()


def _split(dataset: SegmentationDataset, config: Mapping[str, Any]) -> frozenset[str]:
    """Return the training cases as the config alone determines them."""
    if ENSEMBLE_FOLDS in config:
        return frozenset(case.name for case in dataset.cases)
    items = datalist(dataset.root, section="training", fold=config["fold"], **split_options(config))
    return frozenset(str(item["name"]) for item in items)


def _trained_on(run: Path) -> set[str]:
    """Return the digests of the cases that a run, or its folds, trained on; empty if there is no record."""
    digests: set[str] = set()
    for path in (*run.glob(f"eval/{TRAINED_ON_NAME}"), *run.glob(f"fold_*/eval/{TRAINED_ON_NAME}")):
        try:
            digests |= set(json.loads(path.read_text(encoding="utf-8")).values())
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError("not a record of training cases", file=path) from error
    return digests


def _inherited(run: Path) -> set[str]:
    """Return the digests of the cases of the runs that this one started from, as far as these runs still exist."""
    digests: set[str] = set()
    visited: set[Path] = set()
    while run not in visited and (config := run / "configs" / "train.json").is_file():
        visited.add(run)
        if source := read_json(config).get("init_from"):
            run = weights_of(str(source)).resolve().parent.parent
            digests |= _trained_on(run)
    return digests
