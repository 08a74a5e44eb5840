"""Train a bundle: fit it to the data, write the run, let MONAI's engine train it."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import merge_kv
from torch import distributed

from medunet.bundle.read import checked_config, read_own
from medunet.bundle.specialise import write_specialised
from medunet.config import SEPARATOR, to_json
from medunet.datasets import (
    FOLDS,
    Finding,
    SegmentationDataset,
    check_dataset,
    datalist,
    likely_groups,
    open_as,
    raise_on_error,
    regroup,
    usable,
)
from medunet.errors import ConfigError, DataError, MedunetError
from medunet.files import check_target, claim
from medunet.notebook import Shown, Table
from medunet.planning.adapt import adapt, instance_values
from medunet.planning.choices import FLIP_AXES
from medunet.prediction import Predictor
from medunet.prediction.configuration import CALIBRATION
from medunet.runs.card import write_results
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.runs.objects import fit_objects, predict_maps
from medunet.runs.split import fit_split, split_options
from medunet.runtime import resolve_device
from medunet.training import BEST_NAME, LAST_NAME, PREVIOUS_NAME, is_distributed, kept_entry, weights_of
from medunet.trust import Verdict, record_weights, require_trust

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedRun:
    """A run that can be trained, on this machine or on another one that sees its folder."""

    folder: Path
    configs: Mapping[str, Mapping[str, Any]]  # by name, as the trust check read them; the files may have changed since


@dataclass(frozen=True, repr=False)
class TrainingResult(Shown):
    """The result of a training run."""

    run: Path  # folder of the run, a bundle with weights
    epochs: int  # number of trained epochs, including those before a resume
    kept_epoch: int  # the epoch whose weights are in `model.pt`
    best_epoch: int = 0  # the epoch with the best validation; 0 if nothing was validated
    kept_dice: dict[str, float] = field(default_factory=dict)  # validation Dice by class name at the kept epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # one dictionary per epoch
    left_out: tuple[str, ...] = ()  # names of the cases that could not be used (`skip_bad`)

    def _table(self) -> Table:
        title = f"{self.run}: {self.epochs} epochs, weights of epoch {self.kept_epoch}"
        return title, [("class", "validation Dice"), *self.kept_dice.items()]


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
    split: Path | None = None,
    group_by: str | None = None,
) -> TrainingResult:
    """Fit a bundle to a data set and train it.

    Args:
        bundle: folder of the bundle to start from.
        data: folder of a labelled data set.
        output: folder of the run.
        changes: values by config id; they override those that follow from the data.
        presets: names of overlays of the bundle; the values from the data override them.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        resume: continue after the last completed epoch in `output`.
        tracking_uri: MLflow's tracking URI for this call; `""` disables tracking, None uses the bundle's.
        trust: approve a bundle that could run its own code.
        skip_bad: leave out unusable cases, which are an error otherwise; every voxel is read to find them.
        split: nnU-Net's `splits_final.json`, or a CSV file with the columns `case` and `group`, `fold` or both.
        group_by: regular expression; its first group in a case's name is the patient, which folds do not divide.

    Returns:
        The folder of the run, its history and the Dice of the kept epoch.

    Raises:
        SecurityError: The bundle is not trusted.
        MedunetError: The data set, an option or the device cannot be used. The output folder cannot be written, is in
            use by another process, or contains a trained run and `resume` is False.
    """
    chosen = resolve_device(device)
    options: dict[str, Any] = {"changes": changes, "presets": presets, "trust": trust, "skip_bad": skip_bad}
    options |= {"split": split, "group_by": group_by}
    with prepare_run(bundle, data, output, resume=resume, **options) as run:
        return train_run(run, device=chosen, resume=resume, tracking_uri=tracking_uri)


@contextmanager
def prepare_run(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    presets: Sequence[str] = (),
    resume: bool = False,
    trust: bool = False,
    **options: Any,
) -> Iterator[PreparedRun]:
    """Claim the output folder, fit a bundle and write the run; the arguments are those of `train_bundle`."""
    verdict = require_trust(bundle, trust=trust)
    reject_trained(output, resume=resume)
    with claim(output):
        check_target(output)
        _, values = fit_bundle(bundle, data, output=output, **options)
        yield write_run(verdict, data, output, values=values, presets=presets, resume=resume)


def reject_trained(output: Path, *, resume: bool) -> None:
    """Reject an output folder with a trained run, unless it is resumed."""
    if (output / "models" / LAST_NAME).is_file() and not resume:
        remedy = "pass --resume, or another --output"
        raise DataError("the output folder contains a trained run", file=output, remedy=remedy)


def fit_bundle(
    bundle: Path,
    data: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    skip_bad: bool = False,
    split: Path | None = None,
    group_by: str | None = None,
    output: Path | None = None,
) -> tuple[SegmentationDataset, dict[str, Any]]:
    """Open a data set, check its headers, and return it with the overlay that fits a bundle to it.

    `changes` are part of the overlay. `skip_bad` checks the voxels, too, and leaves out unusable cases. The overlay has
    the split, for which see :func:`medunet.runs.split.fit_split`; trained runs in `output` keep theirs.

    Raises:
        ConfigError: The bundle is an ensemble of folds, or does not fit the data.
        DataError: Some cases cannot be used (one error lists all), or no case is left.
    """
    if ENSEMBLE_FOLDS in read_own(bundle, "inference"):
        remedy = "pass the bundle that its folds were trained from"
        raise ConfigError("an ensemble of folds cannot be trained", file=bundle, remedy=remedy)
    config = read_own(bundle, "train")
    changes = {id_.replace("#", SEPARATOR): value for id_, value in (changes or {}).items()}
    problems: list[MedunetError] = []
    dataset = open_as({**config, **changes}, data, problems)
    skipped: dict[str, Any] = {}
    if skip_bad:
        dataset, names = usable(dataset, problems)
        skipped = {"skip_cases": names} if names else {}
    else:
        known = [Finding.of(problem, file=data) for problem in problems]
        raise_on_error([*known, *check_dataset(dataset, level="header")])
    left_out = skipped.get("skip_cases", ())
    folds = {**config, **changes}.get("folds", FOLDS)
    dataset = regroup(dataset, split, group_by, folds=folds, others=left_out)
    target = changes.get("instance_target") if dataset.instances else None
    views = {"tta_axes": changes[FLIP_AXES]} if FLIP_AXES in changes else {}  # predictions mirror as training does
    values = {**adapt(dataset, config), **(instance_values(target) if target else {}), **views, **skipped, **changes}
    ids = ("fold", "folds", "validation_cases", "skip_cases", "split")
    if "train::dataset::data" not in values and set(ids) <= config.keys():
        values |= fit_split(dataset, config, values, changes, output=output, others=left_out)
        merged = {**config, **values}
        for finding in likely_groups(dataset.cases, merged["split"] or [merged["validation_cases"]]):
            logger.warning("%s; %s", finding.cause, finding.remedy)
        # a fold or validation cases that the data set does not have are rejected before anything is written
        datalist(data, section="training", fold=merged["fold"], **split_options(merged))
    return dataset, values


def write_run(
    verdict: Verdict, data: Path, output: Path, *, values: Mapping[str, Any], presets: Sequence[str] = (), resume: bool
) -> PreparedRun:
    """Write a trusted bundle as a run of a data set, with presets and the overlay of `fit_bundle`.

    `resume` accepts a trained run that has fewer epochs.
    """
    source = values.get("init_from")
    is_begun = any((output / "models" / name).is_file() for name in (LAST_NAME, PREVIOUS_NAME))
    if source and not is_begun and not weights_of(source).is_file():
        raise DataError("no weights to start from", file=source, expected=f"a run with models/{BEST_NAME}")
    configs = write_specialised(verdict, output, values, data=data, presets=presets, is_run=True, resume=resume)
    return PreparedRun(output, configs)


def open_run(folder: Path, *, trust: bool = False) -> PreparedRun:
    """Open an existing run; raise `SecurityError` if it is not trusted."""
    verdict = require_trust(folder, trust=trust)
    names = [Path(file).stem for file, content in verdict.configs.items() if isinstance(content, dict)]
    return PreparedRun(folder, {name: checked_config(verdict, name) for name in names})


def train_run(
    run: PreparedRun,
    *,
    device: torch.device,
    resume: bool = False,
    tracking_uri: str | None = None,
    overlays: Sequence[str] = (),
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainingResult:
    """Train a run that `prepare_run`, `write_run` or `open_run` returns; all training in medunet ends up here.

    Args:
        run: the run.
        device: device to train on.
        resume: continue after its last completed epoch, if there is one.
        tracking_uri: MLflow's tracking URI for this call; `""` disables tracking, None uses the run's.
        overlays: names of further configs of the run, such as the one for several processes.
        on_epoch: called with each new entry of the history.
    """
    is_writer = not is_distributed() or distributed.get_rank() == 0
    names = ("train", *overlays)
    workflow = ConfigWorkflow(
        config_file=[str(run.folder / "configs" / f"{name}.json") for name in names],
        meta_file=str(run.folder / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="training",
    )
    trusted = ConfigParser(config={})  # what the trust check read, not what the files contain by now
    for name in names:
        for key, value in run.configs[name].items():
            merge_kv(trusted, key, copy.deepcopy(value))
    tracking = {} if tracking_uri is None else {"tracking_uri": tracking_uri}
    workflow.parser.read_config(trusted.get())
    workflow.parser.read_meta(dict(run.configs["metadata"]))
    workflow.parser.update({"bundle_root": str(run.folder), "device": device, "resume": resume, **tracking})
    workflow.initialize()
    if on_epoch is not None:
        trainer = workflow.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: on_epoch(engine.state.history[-1]))
    workflow.run()
    workflow.finalize()
    if is_writer and run.configs["train"].get("instances"):
        items = workflow.parser.get_parsed_content("validate::dataset").data
        predictor = Predictor(run.folder, device=str(device), trust=True)  # the run was judged before it was trained
        fit_objects(run.folder, predict_maps(predictor, items))
    if is_writer:
        (run.folder / CALIBRATION).unlink(missing_ok=True)  # of earlier weights
        record_weights(run.folder, exclude=(LAST_NAME, PREVIOUS_NAME), to_text=to_json)
    state = workflow.parser.get_parsed_content("train::trainer").state
    history = list(getattr(state, "history", []))
    kept, config = kept_entry(history), run.configs["train"]
    if is_writer:
        cases = len(workflow.parser.get_parsed_content("validate::dataset"))
        is_selected = bool(config.get("patience")) or config.get("keep_epoch") == "best"
        write_results(run.folder, kept, cases=cases, is_selected=is_selected)
    return TrainingResult(
        run=run.folder,
        epochs=state.epoch,
        kept_epoch=kept.get("epoch", state.epoch),
        best_epoch=getattr(state, "best_epoch", 0),
        kept_dice=kept.get("val_dice", {}),
        history=history,
        left_out=tuple(config.get("skip_cases", ())),
    )
