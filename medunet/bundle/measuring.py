"""Predicting labelled cases with a bundle and measuring what came of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medunet.bundle.ensemble import ENSEMBLE_FOLDS
from medunet.bundle.specialise import read_json
from medunet.datasets import MAX_CLASSES, datalist, label_values, open_dataset
from medunet.errors import ConfigError, DataError, GeometryError
from medunet.io.options import ReadOptions
from medunet.metrics import Summary, summarise, write_tables
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
from medunet.trust import require_trust

logger = logging.getLogger(__name__)

OUT_OF_FOLD = "out_of_fold"
"""Folder in a cross-validation's output: predictions of cases by the fold that did not see them, measured."""


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
    config = read_json(bundle / "configs" / "evaluate.json")
    skipped = config.get("skip_cases", ())
    read = ReadOptions.of_config(config)
    dataset = open_dataset(data, problems=[] if skipped else None, read=read)  # of any other bad case `datalist` tells
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
        skip_cases=skipped,
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
            found |= {value for path in (pair.pred, pair.ref) for value in label_values(path, limit=MAX_CLASSES)}
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
