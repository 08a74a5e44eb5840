"""Training a bundle from Python, as `python -m monai.bundle run` does."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import merge_kv

from medunet.bundle.read import judged_config, read_own
from medunet.bundle.specialise import write_specialised
from medunet.config import SEPARATOR, to_json
from medunet.datasets import (
    FOLDS,
    Finding,
    SegmentationDataset,
    check_dataset,
    datalist,
    open_dataset,
    raise_on_error,
    split_patients,
    usable,
)
from medunet.errors import ConfigError, DataError, MedunetError
from medunet.files import check_target, claim
from medunet.io.options import ReadOptions
from medunet.planning import adapt
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.runtime import resolve_device
from medunet.training import BEST_NAME, LAST_NAME, PREVIOUS_NAME, kept_entry, weights_of
from medunet.trust import record_weights, require_trust

logger = logging.getLogger(__name__)

EpochReport = Callable[[Mapping[str, Any]], None]
"""Takes an entry of ``history.json``."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that can be trained, on this machine or on another one that sees its folder.

    Args:
        folder: of the run.
        configs: its configs by name as the trust check saw them; the files may have changed since.
    """

    folder: Path
    configs: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training run.

    Args:
        run: folder of the run, a bundle with weights.
        epochs: trained epochs, including those before a resume.
        kept_epoch: the epoch whose weights are kept.
        best_epoch: the epoch with the best validation; 0 if nothing was validated.
        kept_dice: validation Dice by class name at the kept epoch.
        history: one dictionary per epoch.
        left_out: names of cases that could not be used (``skip_bad``).
    """

    run: Path
    epochs: int
    kept_epoch: int
    best_epoch: int = 0
    kept_dice: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    left_out: tuple[str, ...] = ()


def train_bundle(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    device: str = "auto",
    resume: bool = False,
    tracking_uri: str | None = None,
    trust: bool = False,
    skip_bad: bool = False,
) -> TrainingResult:
    """Fit a bundle to a data set and train it.

    Args:
        bundle: folder of the bundle to start from.
        data: data set in a layout that :func:`medunet.datasets.open_dataset` knows.
        output: folder of the run.
        changes: values by config id, over those that follow from the data.
        presets: overlays of the bundle, under what follows from the data.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        resume: go on after the last whole epoch in ``output``.
        tracking_uri: MLflow's store for this call; ``""``: none, None: as the bundle has it.
        trust: train a bundle that could run code of its own, see :func:`medunet.trust.require_trust`.
        skip_bad: leave out cases that cannot be used, which otherwise are an error; every voxel is read to find them.

    Raises:
        SecurityError: the bundle is not trusted.
        MedunetError: a data set, an option or a device that cannot work; an output folder that cannot be written, that
            another process writes into, or that holds a trained run when ``resume`` is False.
    """
    chosen = resolve_device(device)
    require_trust(bundle, trust=trust)
    if (output / "models" / LAST_NAME).is_file() and not resume:
        raise DataError(
            "the output folder holds a trained run",
            file=output,
            remedy="go on with --resume, or give another --output",
        )
    with claim(output):
        check_target(output)
        run = prepare_run(bundle, data, output, changes=changes, presets=presets, skip_bad=skip_bad, resume=resume)
        return train_prepared(run, resume=resume, device=chosen, tracking_uri=tracking_uri)


def train_prepared(
    run: PreparedRun,
    *,
    resume: bool,
    device: torch.device,
    tracking_uri: str | None = None,
    overlays: Sequence[str] = (),
    is_writer: bool = True,
    on_epoch: EpochReport | None = None,
) -> TrainingResult:
    """Train a run.

    Args:
        run: what :func:`prepare_run`, :func:`write_run` or :func:`judged_run` returns.
        resume: continue after its last completed epoch, if there is one.
        device: where to train.
        tracking_uri: as in :func:`train_bundle`.
        overlays: configs of the run beside ``train``.
        is_writer: False on all but the first of several processes.
        on_epoch: called with every new entry of the history.
    """
    tracking = {} if tracking_uri is None else {"tracking_uri": tracking_uri}
    workflow = run_training(run, overlays=overlays, on_epoch=on_epoch, resume=resume, device=device, **tracking)
    if is_writer:
        record_weights(run.folder, exclude=(LAST_NAME, PREVIOUS_NAME), to_text=to_json)
    state = workflow.parser.get_parsed_content("train::trainer").state
    history = list(getattr(state, "history", []))
    kept = kept_entry(history)
    return TrainingResult(
        run=run.folder,
        epochs=state.epoch,
        kept_epoch=kept.get("epoch", state.epoch),
        best_epoch=getattr(state, "best_epoch", 0),
        kept_dice=kept.get("val_dice", {}),
        history=history,
        left_out=tuple(run.configs["train"].get("skip_cases", ())),
    )


def prepare_run(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    presets: Sequence[str] = (),
    skip_bad: bool = False,
    resume: bool = False,
) -> PreparedRun:
    """Fit a bundle to a data set, and write it as a run. Arguments as of :func:`train_bundle`."""
    _, values = fit_data(bundle, data, changes=changes, skip_bad=skip_bad)
    return write_run(bundle, data, output, values={**values, **(changes or {})}, presets=presets, resume=resume)


def judged_run(folder: Path, *, trust: bool = False) -> PreparedRun:
    """Check whether a run that is there may run, and return it with the configs that were checked.

    Raises:
        SecurityError: it is not trusted.
    """
    verdict = require_trust(folder, trust=trust)
    names = [Path(file).stem for file, content in verdict.configs.items() if isinstance(content, dict)]
    return PreparedRun(folder, {name: judged_config(verdict, name) for name in names})


def fit_data(
    bundle: Path, data: Path, *, changes: Mapping[str, Any] | None = None, skip_bad: bool = False
) -> tuple[SegmentationDataset, dict[str, Any]]:
    """Open a data set, check its headers, and say what a bundle's configuration takes over from it.

    Args:
        bundle: folder of the bundle.
        data: the data set.
        changes: the user's values by config id; how to read files counts here.
        skip_bad: leave out cases that cannot be used; their voxels are checked, too.

    Returns:
        The data set, and values by config id.

    Raises:
        ConfigError: the bundle is an ensemble of folds, or does not fit the data.
        DataError: cases that cannot be used, all of them in one error; or nothing else.
    """
    if ENSEMBLE_FOLDS in read_own(bundle, "inference"):
        raise ConfigError(
            "an ensemble of folds cannot be trained", file=bundle, remedy="start from the bundle that its folds were of"
        )
    config = read_own(bundle, "train")
    problems: list[MedunetError] = []
    read = ReadOptions.of_config({**config, **(changes or {})})
    dataset = open_dataset(data, problems=problems, read=read)
    skipped: dict[str, Any] = {}
    if skip_bad:
        dataset, left_out = usable(dataset, problems)
        skipped = {"skip_cases": left_out} if left_out else {}
    else:
        known = [Finding.of(problem, file=data) for problem in problems]
        raise_on_error([*known, *check_dataset(dataset, level="header")])
    for finding in split_patients(dataset.cases, folds=config.get("folds", FOLDS)):
        logger.warning("%s; %s", finding.cause, finding.remedy)
    values = {**adapt(dataset, config), **skipped}
    _check_split(data, {**config, **values, **(changes or {})})
    return dataset, values


def _check_split(data: Path, config: Mapping[str, Any]) -> None:
    """Reject a fold or validation cases that the data set does not have, before anything is written."""
    ids = ("fold", "folds", "validation_cases", "skip_cases")
    if not any(id_.replace("#", SEPARATOR) == "train::dataset::data" for id_ in config) and set(ids) <= config.keys():
        datalist(data, section="training", **{id_: config[id_] for id_ in ids})


def write_run(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    values: Mapping[str, Any],
    presets: Sequence[str] = (),
    resume: bool = False,
) -> PreparedRun:
    """Write a run.

    Args:
        bundle: folder of the bundle to start from.
        data: what it trains on.
        output: folder of the run.
        values: by config id.
        presets: overlays of the bundle, under the values.
        resume: accept a trained run with other epochs.
    """
    source = values.get("init_from")
    goes_on = any((output / "models" / name).is_file() for name in (LAST_NAME, PREVIOUS_NAME))
    if source and not goes_on and not weights_of(source).is_file():
        raise DataError("no weights to start from", file=source, expected=f"a run with models/{BEST_NAME}")
    where = {"dataset_dir": str(data.resolve())}
    only = {"train": where, "evaluate": where}
    return PreparedRun(
        output,
        write_specialised(bundle, output, values, only=only, presets=presets, is_run=True, resume=resume),
    )


def run_training(
    run: PreparedRun, *, overlays: Sequence[str] = (), on_epoch: EpochReport | None = None, **overrides: Any
) -> ConfigWorkflow:
    """Train a run.

    Args:
        run: the run.
        overlays: configs of the run beside ``train``.
        on_epoch: called with every new entry of the history.
        **overrides: values by config id for this call only, e.g. ``resume=True``.

    Returns:
        The finished workflow; its ``trainer`` holds the state.
    """
    names = ("train", *overlays)
    workflow = ConfigWorkflow(
        config_file=[str(run.folder / "configs" / f"{name}.json") for name in names],
        meta_file=str(run.folder / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="training",
    )
    merged = ConfigParser(config={})  # of what was judged, and not of what the files contain by now
    for name in names:
        for key, value in run.configs[name].items():
            merge_kv(merged, key, copy.deepcopy(value))
    workflow.parser.read_config(merged.get())
    workflow.parser.read_meta(dict(run.configs["metadata"]))
    workflow.parser.update({"bundle_root": str(run.folder), **overrides})
    workflow.initialize()
    if on_epoch is not None:
        trainer = workflow.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: on_epoch(engine.state.history[-1]))
    workflow.run()
    workflow.finalize()
    return workflow
