"""The split of a run: of a new one, of one that is resumed, and as its config records it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from medunet.config import read_json
from medunet.datasets import SegmentationDataset, checked_split, make_folds
from medunet.errors import ConfigError, DataError
from medunet.training import LAST_NAME

IDS = ("folds", "split", "validation_cases", "skip_cases", "instances")  # with `fold`, they decide which cases validate


def split_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `medunet.datasets.datalist`, other than the fold, with which a config splits cases."""
    return {id_: config[id_] for id_ in IDS if id_ in config}


def fit_split(
    dataset: SegmentationDataset,
    config: Mapping[str, Any],
    values: Mapping[str, Any],
    changes: Mapping[str, Any],
    *,
    output: Path | None = None,
    others: Collection[str] = (),
) -> dict[str, Any]:
    """Return the values `split` and `folds` of a run.

    A trained run in `output` keeps its split. A new run takes the first of: the split in `changes`, that of the data
    set (`regroup`), that of the bundle if it names a case of the data, and the default split. With `validation_cases`
    the run has no split.

    Args:
        dataset: the data set; its `split` is what the user gives.
        config: `train.json` of the bundle.
        values: overlay of the run, with `changes`.
        changes: values that the user sets.
        output: folder of the run or cross-validation.
        others: names of cases that are left out.

    Raises:
        DataError: the split does not fit the data, or a trained run has another one or none.
        ConfigError: the number of folds is not that of the split, or `validation_cases` are set beside it.
    """
    merged, given = {**config, **values}, changes.get("split") or dataset.split
    if merged["validation_cases"]:
        if given:
            received = merged["validation_cases"]
            raise ConfigError("a split and validation_cases exclude each other", received=received)
        return {"split": []}
    recorded = _recorded(output)
    names = {case.name for case in dataset.cases}
    is_inherited = "split" not in changes and not names.isdisjoint(name for part in config["split"] for name in part)
    split = given or recorded or (config["split"] if is_inherited else [])
    if not split:
        made = make_folds(dataset.cases, merged["folds"])
        return {"split": [[case.name for case in part] for part in made]}
    remedy = None if given else "give a new split, or set split to [] for the default one"
    if split is recorded:
        remedy = "the data set has changed since the run began: give another --output"
    parts = checked_split(split, dataset.cases, others=others, file=dataset.root, remedy=remedy)
    if recorded and [sorted(part) for part in parts] != [sorted({*part} - {*others}) for part in recorded]:
        remedy = "omit the new split, or give another --output"
        raise DataError("the output folder contains a run with another split", file=output, remedy=remedy)
    if "folds" in changes and changes["folds"] != len(parts):
        cause, remedy = "folds must be those of the split", "set split to [], or give a split with as many folds"
        raise ConfigError(cause, received=changes["folds"], expected=len(parts), remedy=remedy)
    return {"split": parts, "folds": len(parts)}


def _recorded(output: Path | None) -> list[list[str]] | None:
    """Return the split of a trained run in a folder, or of a trained fold; None without one."""
    if output is None:
        return None
    for run in (output, *sorted(output.glob("fold_*"))):
        if (run / "models" / LAST_NAME).is_file() and (file := run / "configs" / "train.json").is_file():
            split = read_json(file).get("split")
            if split is None:
                cause, remedy = "the run does not record its split", "start a new run in another --output"
                raise DataError(cause, file=run, remedy=remedy)
            return list(split)
    return None
