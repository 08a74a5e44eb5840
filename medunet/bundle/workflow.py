"""Training and measuring a bundle from Python, as `python -m monai.bundle run` does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from medunet.bundle.ensemble import ENSEMBLE_FOLDS
from medunet.bundle.render import to_json
from medunet.bundle.specialise import read_json, specialise
from medunet.datasets import (
    Finding,
    SegmentationDataset,
    check_dataset,
    datalist,
    label_values,
    open_dataset,
    raise_on_error,
    usable,
)
from medunet.errors import ConfigError, DataError, GeometryError, MedunetError
from medunet.files import check_target, claim
from medunet.metrics import Summary, summarise, write_tables
from medunet.networks import resolve_device
from medunet.planning import adapt
from medunet.prediction import ClassRule, Pair, Predictor, evaluate_pairs, pair_files, reason
from medunet.training import BEST_NAME, LAST_NAME, PREVIOUS_NAME, weights_of
from medunet.trust import record_weights, require_trust

logger = logging.getLogger(__name__)

EpochReport = Callable[[Mapping[str, Any]], None]
"""Takes an entry of ``history.json``."""

OUT_OF_FOLD = "out_of_fold"
"""Folder in a cross-validation's output: predictions of cases by the fold that did not see them, measured."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training came to.

    Args:
        run: folder of the run, a bundle with weights.
        epochs: how many were trained, earlier parts of a resumed training included.
        best_epoch: the epoch whose weights are kept.
        best_dice: validation Dice by class name at that epoch.
        history: one dictionary an epoch.
        left_out: names of cases that could not be used (``skip_bad``).
    """

    run: Path
    epochs: int
    best_epoch: int
    best_dice: dict[str, float] = field(default_factory=dict)
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
        prepare_run(bundle, data, output, changes=changes or {}, presets=presets, skip_bad=skip_bad)
        return train_prepared(output, resume=resume, device=chosen, tracking_uri=tracking_uri)


def train_prepared(
    run: Path,
    *,
    resume: bool,
    device: torch.device,
    tracking_uri: str | None = None,
    overlays: Sequence[str] = (),
    is_writer: bool = True,
    on_epoch: EpochReport | None = None,
) -> TrainingResult:
    """Train a run that :func:`prepare_run` made.

    Args:
        run: its folder.
        resume: go on after its last whole epoch, if there is one.
        device: where to train.
        tracking_uri: as in :func:`train_bundle`.
        overlays: configs of the run beside ``train``.
        is_writer: False on all but the first of several processes.
        on_epoch: called with every new entry of the history.
    """
    tracking = {} if tracking_uri is None else {"tracking_uri": tracking_uri}
    workflow = run_training(run, overlays=overlays, on_epoch=on_epoch, resume=resume, device=device, **tracking)
    if is_writer:
        record_weights(run, exclude=(LAST_NAME, PREVIOUS_NAME), to_text=to_json)
    state = workflow.parser.get_parsed_content("train::trainer").state
    history = list(getattr(state, "history", []))
    validated = [entry for entry in history if entry.get("val_dice")]
    best: dict[str, Any] = max(validated, key=_mean_dice, default={})
    return TrainingResult(
        run=run,
        epochs=state.epoch,
        best_epoch=best.get("epoch", state.epoch),
        best_dice=best.get("val_dice", {}),
        history=history,
        left_out=tuple(read_json(run / "configs" / "train.json").get("skip_cases", ())),
    )


def _mean_dice(entry: Mapping[str, Any]) -> float:
    values = entry["val_dice"].values()
    return float(sum(values) / len(values))


def prepare_run(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    changes: Mapping[str, Any],
    presets: Sequence[str] = (),
    skip_bad: bool = False,
) -> SegmentationDataset:
    """Make a run: a bundle fitted to a data set, with the options of this training written into its configs.

    Arguments as of :func:`train_bundle`.

    Returns:
        The data set.
    """
    dataset, values = fit_data(bundle, data, skip_bad=skip_bad)
    write_run(bundle, data, output, values={**values, **changes}, presets=presets)
    return dataset


def fit_data(bundle: Path, data: Path, *, skip_bad: bool = False) -> tuple[SegmentationDataset, dict[str, Any]]:
    """Open a data set, check its headers, and say what a bundle's configuration takes over from it.

    Args:
        bundle: folder of the bundle.
        data: the data set.
        skip_bad: leave out cases that cannot be used; their voxels are checked, too.

    Returns:
        The data set, and values by config id.

    Raises:
        ConfigError: the bundle is an ensemble of folds, or does not fit the data.
        DataError: cases that cannot be used, all of them in one error; or nothing else.
    """
    if ENSEMBLE_FOLDS in read_json(bundle / "configs" / "inference.json"):
        raise ConfigError(
            "an ensemble of folds cannot be trained", file=bundle, remedy="start from the bundle that its folds were of"
        )
    config = read_json(bundle / "configs" / "train.json")
    problems: list[MedunetError] = []
    dataset = open_dataset(data, problems=problems)
    if not skip_bad:
        known = [Finding.of(problem, file=data) for problem in problems]
        raise_on_error([*known, *check_dataset(dataset, level="header")])
        return dataset, adapt(dataset, config)
    dataset, left_out = usable(dataset, problems)
    skipped: dict[str, Any] = {"skip_cases": left_out} if left_out else {}
    return dataset, {**adapt(dataset, config), **skipped}


def write_run(
    bundle: Path, data: Path, output: Path, *, values: Mapping[str, Any], presets: Sequence[str] = ()
) -> None:
    """Write a run's configs.

    Args:
        bundle: folder of the bundle to start from.
        data: what it trains on.
        output: folder of the run.
        values: by config id.
        presets: overlays of the bundle, under the values.
    """
    source = values.get("init_from")
    if source and not weights_of(source).is_file():
        raise DataError("no weights to start from", file=source, expected=f"a run with models/{BEST_NAME}")
    where = {"dataset_dir": str(data.resolve())}
    specialise(bundle, output, values, only={"train": where, "evaluate": where}, presets=presets)


def run_training(
    run: Path, *, overlays: Sequence[str] = (), on_epoch: EpochReport | None = None, **overrides: Any
) -> ConfigWorkflow:
    """Train a prepared run.

    Args:
        run: its folder.
        overlays: configs of the run beside ``train``.
        on_epoch: called with every new entry of the history.
        **overrides: values by config id for this call only, e.g. ``resume=True``.

    Returns:
        The finished workflow; its ``trainer`` holds the state.
    """
    workflow = ConfigWorkflow(
        config_file=[str(run / "configs" / f"{name}.json") for name in ("train", *overlays)],
        meta_file=str(run / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="training",
        bundle_root=str(run),
        **overrides,
    )
    workflow.initialize()
    if on_epoch is not None:
        trainer = workflow.parser.get_parsed_content("train::trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: on_epoch(engine.state.history[-1]))
    workflow.run()
    workflow.finalize()
    return workflow


def evaluate_bundle(
    bundle: Path,
    data: Path,
    output: Path,
    *,
    section: str = "validation",
    device: str = "auto",
    em: bool | None = None,
    trust: bool = False,
) -> Summary:
    """Predict labelled images with a bundle and measure the result on the source grid.

    Args:
        bundle: folder of a bundle or run with weights.
        data: labelled data set.
        output: gets ``predictions/``, ``metrics.csv`` and ``metrics.json``.
        section: ``validation`` takes the fold that the bundle's ``evaluate.json`` names, ``all`` every labelled case.
        device: as in :func:`train_bundle`.
        em: also the ISBI 2012 scores; ``None``: where the data are 2D with two labels.
        trust: as in :func:`train_bundle`.

    Returns:
        Statistics of the cases that could be predicted and measured; `failed_cases` names the others, with the reason.

    Raises:
        DataError: no case could be measured.
    """
    if section not in ("validation", "all", "training"):
        raise ConfigError("unknown section", received=section, expected="validation or all")
    require_trust(bundle, trust=trust)
    dataset = open_dataset(data)
    config = read_json(bundle / "configs" / "evaluate.json")
    if section == "validation" and ENSEMBLE_FOLDS in config:
        raise ConfigError(
            "every case of an ensemble's data set has trained one of its members",
            file=bundle,
            remedy=f"read {OUT_OF_FOLD}/metrics.json there, or measure other data with --section all",
        )
    predictor = Predictor(bundle, output_dir=output / "predictions", device=device, overwrite=True, trust=trust)
    items = datalist(
        data,
        section=section,  # type: ignore[arg-type] # checked above
        fold=config["fold"],
        folds=config["folds"],
        validation_cases=config["validation_cases"],
        skip_cases=config.get("skip_cases", ()),
    )
    labels = class_values(config)
    pairs: list[Pair] = []
    failed: dict[str, str] = {}
    results = predictor.predict([source_of(item) for item in items])
    for index, (item, result) in enumerate(zip(items, results, strict=True), start=1):
        if result.path is None or result.error is not None:
            failed[str(item["name"])] = reason(result.error or DataError("no label map"))
            logger.error("not predicted: %s", result.error)
            continue
        pairs.append(pair_of(item, result.path))
        logger.info("predicted %d/%d %s", index, len(items), item["name"])
    return measure(
        pairs,
        labels,
        output,
        failed=failed,
        regions=region_values_of(config),
        em=wants_em(em, dataset.spatial_dims, labels),
        ignore=dataset.ignore,
    )


def source_of(item: Mapping[str, str | list[str]]) -> Path | list[Path]:
    """The image, or its channels, of an item of :func:`medunet.datasets.datalist`."""
    images = item["image"]
    return Path(images) if isinstance(images, str) else [Path(image) for image in images]


def pair_of(item: Mapping[str, str | list[str]], pred: Path) -> Pair:
    """An item's reference beside a prediction."""
    source = source_of(item)
    image = source if isinstance(source, Path) else source[0]
    return Pair(name=str(item["name"]), pred=pred, ref=Path(str(item["label"])), image=image)


def class_values(config: Mapping[str, Any]) -> dict[str, int]:
    """Value in the files by class name, in the order of the network's output."""
    return {name: int(value) for name, value in zip(config["label_names"], config["label_values"], strict=True)}


def region_values_of(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Values in the files by the name of a region; empty where classes do not overlap."""
    return dict(zip(config.get("region_names", ()), config.get("region_values", ()), strict=True))


def evaluate_folders(predictions: Path, references: Path, output: Path, *, em: bool | None = None) -> Summary:
    """Measure label maps against the references of the same names.

    Args:
        predictions: folder of predicted label maps.
        references: folder of reference label maps, or a labelled data set.
        output: gets ``metrics.csv`` and ``metrics.json``.
        em: as in :func:`evaluate_bundle`.
    """
    pairs = pair_files(predictions, references)
    found, failed = {0}, dict[str, str]()
    for pair in pairs:
        try:
            found |= {value for path in (pair.pred, pair.ref) for value in label_values(path)}
        except (DataError, GeometryError) as error:
            failed[pair.name] = reason(error)
            logger.error("not measured: %s", error)
    values = sorted(found)
    pairs = [pair for pair in pairs if pair.name not in failed]
    labels = {("background" if value == 0 else f"label_{value}"): value for value in values}
    if not pairs:
        raise DataError("no case could be measured", file=predictions, received="; ".join(failed.values()))
    if len(labels) == 1:
        raise DataError("predictions and references are all background", file=predictions)
    planar = pairs[0].ref.suffix.lower() in {".png", ".tif", ".tiff", ".bmp"}
    return measure(pairs, labels, output, em=wants_em(em, 2 if planar else 3, labels), failed=failed)


def measure(
    pairs: list[Pair],
    labels: Mapping[str, int],
    output: Path,
    *,
    em: bool,
    regions: Mapping[str, Sequence[int]] | None = None,
    rules: Sequence[ClassRule] = (),
    ignore: int | None = None,
    failed: Mapping[str, str] | None = None,
) -> Summary:
    """Measure pairs of files, cleaned by rules, and write the tables.

    A pair that cannot be read is named in the summary's `failed_cases`, beside those that have failed before.

    Raises:
        DataError: none could be measured.
    """
    lost = dict(failed or {})
    results = list(
        evaluate_pairs(pairs, labels=labels, regions=regions, em=em, rules=rules, ignore=ignore, failed=lost)
    )
    if not results:
        raise DataError("no case could be measured", file=output, received="; ".join(lost.values()) or "no case")
    summary = summarise(results)
    if lost:
        summary["failed_cases"] = dict(sorted(lost.items()))
    write_tables(results, output, summary=summary)
    return summary


def wants_em(em: bool | None, spatial_dims: int, labels: Mapping[str, int]) -> bool:
    """Whether the ISBI 2012 scores are computed; unless somebody says so, for 2D data with two labels."""
    return (spatial_dims == 2 and len(labels) == 2) if em is None else em
