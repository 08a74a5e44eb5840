"""Predicting labelled cases with a bundle and measuring what came of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.bundle.read import read_own
from medunet.datasets import MAX_CLASSES, datalist, label_values, open_dataset, refuse_instances
from medunet.datasets.layouts.manifest import MANIFEST, labels_of, load_manifest
from medunet.errors import ConfigError, DataError, GeometryError
from medunet.files import claim
from medunet.io.options import ReadOptions
from medunet.metrics import Summary, summarise, write_tables
from medunet.metrics.evaluation import BACKGROUND
from medunet.prediction import (
    ClassRule,
    Pair,
    Predictor,
    choose_region_rules,
    choose_rules,
    evaluate_pairs,
    pair_files,
    reason,
)
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.runs.seen import EVALUATION, SeenCases, seen_cases
from medunet.trust import require_trust

logger = logging.getLogger(__name__)

SECTIONS = ("unseen", "validation", "all", "test", "training")
"""Which cases of a data set can be evaluated."""

OUT_OF_FOLD = "out_of_fold"
"""Folder in a cross-validation's output: predictions of cases by the fold that did not see them, measured."""


def evaluate_bundle(
    bundle: Path,
    data: Path,
    output: Path | None = None,
    *,
    section: str = "unseen",
    device: str = "auto",
    em: bool | None = None,
    trust: bool = False,
) -> Summary:
    """Predict labelled images with a bundle and evaluate the result on the source grid.

    Args:
        bundle: folder of a bundle or run with weights.
        data: labelled data set.
        output: gets ``predictions/``, ``metrics.csv`` and ``metrics.json``; None takes ``evaluation`` in the bundle,
            or ``evaluation_NAME`` for a data set that the bundle was not trained on.
        section: ``unseen`` takes every labelled case that the bundle was not trained on: of its own data set the
            validation cases, of another one all. ``validation`` takes the fold that ``evaluate.json`` names, ``all``
            every labelled case, ``test`` the labelled cases of ``imagesTs``.
        device: as in :func:`train_bundle`.
        em: also compute the ISBI 2012 scores; None computes them for 2D data with two labels.
        trust: as in :func:`train_bundle`.

    Returns:
        Statistics of the cases that could be predicted and measured; `failed_cases` names the others with the reason,
        `trained_on` the measured cases and `left_out` the other ones that the bundle was trained on.

    Raises:
        ConfigError: unknown section, or one in which the data set has no case for this bundle.
        DataError: no case could be measured, or another process writes into the output.
    """
    if section not in SECTIONS:
        raise ConfigError("unknown section", received=section, expected=", ".join(SECTIONS))
    require_trust(bundle, trust=trust)
    config = read_own(bundle, "evaluate")
    # a case that cannot be read fails by name when it is predicted, and the others are evaluated
    dataset = open_dataset(data, problems=[], read=ReadOptions.of_config(config))
    seen = seen_cases(bundle, dataset, is_test=section == "test")
    output = output or bundle / seen.folder
    with claim(output):
        items = _items(bundle, data, config, section, seen)
        predictor = Predictor(bundle, output_dir=output / "predictions", device=device, overwrite=True, trust=trust)
        pairs, failed = _predicted(predictor, items)
        labels = class_values(config)
        names = {str(item["name"]) for item in items}
        trained_on = sorted(seen.names & names) if seen.is_known else None
        left_out = sorted(seen.names - names) if section == "unseen" else []
        return measure(
            pairs,
            labels,
            output,
            failed=failed,
            facts={"section": section, "trained_on": trained_on, "left_out": left_out},
            regions=region_values_of(config),
            em=wants_em(em, dataset.spatial_dims, labels),
            ignore=dataset.ignore,
        )


def _items(
    bundle: Path, data: Path, config: Mapping[str, Any], section: str, seen: SeenCases
) -> list[dict[str, str | list[str]]]:
    """Return the labelled items of a section."""
    is_ensemble = ENSEMBLE_FOLDS in config
    if section in ("validation", "training") and (is_ensemble or (seen.is_known and not seen.names)):
        raise ConfigError(
            "the data set has no such cases for this bundle",
            file=bundle,
            received=f"--section {section}",
            expected="a run of one fold, and the data set that it was trained on",
            remedy="leave out --section: every case that the bundle was not trained on is evaluated",
        )
    items = datalist(
        data,
        section="all" if section == "unseen" else section,  # type: ignore[arg-type] # checked by the caller
        fold=config["fold"],
        folds=config["folds"],
        validation_cases=() if section == "unseen" else config["validation_cases"],
        skip_cases=config.get("skip_cases", ()),
    )
    items = [item for item in items if "label" in item]
    if section == "unseen":
        items = [item for item in items if item["name"] not in seen.names]
    if items:
        return items
    if section == "unseen":
        where = f"read {OUT_OF_FOLD}/metrics.json, or " if is_ensemble else ""
        raise ConfigError(
            "the bundle was trained on every case of the data set",
            file=bundle,
            remedy=f"{where}give other data; --section all evaluates the training cases, too",
        )
    raise DataError("no labelled case to evaluate", file=data, received=f"--section {section}")


def _predicted(
    predictor: Predictor, items: Sequence[Mapping[str, str | list[str]]]
) -> tuple[list[Pair], dict[str, str]]:
    """Predict items, and return pairs of the cases that worked and reasons of those that failed."""
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
    return pairs, failed


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


def best_rules(pairs: Sequence[Pair], config: Mapping[str, Any], *, ignore: int | None) -> tuple[ClassRule, ...]:
    """How predictions of a bundle are best cleaned, class by class or region by region.

    Args:
        pairs: predictions of cases that the bundle was not trained on, and their references.
        config: the bundle's ``evaluate.json``.
        ignore: value in the references of voxels that do not count.
    """
    labels, regions = class_values(config), region_values_of(config)
    if not regions:
        return tuple(choose_rules(pairs, labels, ignore=ignore))
    order = config["regions_class_order"]
    return tuple(choose_region_rules(pairs, labels, regions, order=order, ignore=ignore))


def evaluate_folders(
    predictions: Path,
    references: Path,
    output: Path | None = None,
    *,
    labels: Mapping[str, int] | None = None,
    em: bool | None = None,
) -> Summary:
    """Measure label maps against the references of the same names.

    Args:
        predictions: folder of predicted label maps.
        references: folder of reference label maps.
        output: gets ``metrics.csv`` and ``metrics.json``; None takes a folder beside the predictions.
        labels: value by class name; a case with another value fails. None takes the values that occur, with the names
            in the ``dataset.json`` beside the references, if there is one.
        em: as in :func:`evaluate_bundle`.

    Raises:
        DataError: no case could be measured, or another process writes into the output.
    """
    output = output or predictions.with_name(f"{predictions.resolve().name}_{EVALUATION}")
    pairs = pair_files(predictions, references)
    predicted: dict[Path, tuple[int, ...]] = {}
    wanted: dict[Path, tuple[int, ...]] = {}
    failed = dict[str, str]()
    for pair in pairs:
        try:
            predicted[pair.pred] = label_values(pair.pred, limit=None)
            wanted[pair.ref] = label_values(pair.ref, limit=None)
        except (DataError, GeometryError) as error:
            failed[pair.name] = reason(error)
            logger.error("not measured: %s", error)
    values = sorted({0}.union(*predicted.values(), *wanted.values()))
    if len(values) > MAX_CLASSES:
        cause = "label maps have too many values for classes"
        raise DataError(cause, file=references, received=len(values), expected=f"at most {MAX_CLASSES}")
    pairs = [pair for pair in pairs if pair.name not in failed]
    if labels is None:
        names = _names_beside(references)
        if not names:
            is_mask = len({0}.union(*predicted.values())) <= 2
            refuse_instances(wanted if is_mask else {**wanted, **predicted}, is_class_map=is_mask)
        labels = {names.get(value, f"label_{value}" if value else BACKGROUND): value for value in values}
    elif 0 not in labels.values():
        labels = {BACKGROUND: 0, **labels}
    if not pairs:
        raise DataError("no case could be measured", file=predictions, received="; ".join(failed.values()))
    if len(labels) == 1:
        raise DataError("predictions and references are all background", file=predictions)
    planar = pairs[0].ref.suffix.lower() in {".png", ".tif", ".tiff", ".bmp"}
    with claim(output):
        return measure(pairs, labels, output, em=wants_em(em, 2 if planar else 3, labels), failed=failed)


def _names_beside(references: Path) -> dict[int, str]:
    """Return the names of label values in the data set whose labels these are."""
    manifest = references.resolve().parent / MANIFEST
    if not manifest.is_file():
        return {}
    return {value: name for name, value in labels_of(load_manifest(manifest), manifest).labels.items()}


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
    facts: Mapping[str, Any] | None = None,
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
    summary.update(facts or {})  # type: ignore[typeddict-item] # keys of Summary
    if lost:
        summary["failed_cases"] = dict(sorted(lost.items()))
    write_tables(results, output, summary=summary)
    summary["folder"] = str(output)
    return summary


def wants_em(em: bool | None, spatial_dims: int, labels: Mapping[str, int]) -> bool:
    """Whether the ISBI 2012 scores are computed; by default for 2D data with two labels."""
    return (spatial_dims == 2 and len(labels) == 2) if em is None else em
