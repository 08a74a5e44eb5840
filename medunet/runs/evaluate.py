"""Evaluation: predict labelled cases and score the result, or compare two folders of label maps."""

import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medunet.bundle.read import read_own
from medunet.datasets import MAX_CLASSES, Case, datalist, label_values, open_as, refuse_instances
from medunet.datasets.layouts.instances import are_instances, class_labels, refuse_classes, with_classes
from medunet.datasets.layouts.labels import MAX_LABELS, MIN_OBJECTS
from medunet.datasets.layouts.manifest import MANIFEST, labels_of, load_manifest
from medunet.errors import ConfigError, DataError, GeometryError
from medunet.files import claim, require_new
from medunet.metrics import Summary, summarise, write_tables
from medunet.metrics.evaluation import BACKGROUND, TOLERANCE_MM
from medunet.metrics.tables import JSON_NAME
from medunet.prediction import ClassRule, Pair, Predictor, evaluate_pairs, pair_files, reason
from medunet.runs.ensemble import ENSEMBLE_FOLDS
from medunet.runs.seen import EVALUATION, SeenCases, seen_cases
from medunet.runs.split import split_options
from medunet.runs.subgroups import read_subgroups, score_subgroups
from medunet.trust import require_trust

logger = logging.getLogger(__name__)

SECTIONS = ("unseen", "validation", "all", "test", "training")  # which cases of a data set can be evaluated
OUT_OF_FOLD = "out_of_fold"  # folder in a cross-validation with the metrics of each case by the fold that held it out
PICTURES = frozenset({".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg"})  # files of 2D label maps

Item = dict[str, "str | list[str]"]  # of medunet.datasets.datalist


def evaluate_bundle(
    bundle: Path,
    data: Path,
    output: Path | None = None,
    *,
    section: str | None = None,
    device: str = "auto",
    em: bool | None = None,
    tta: str | None = None,
    trust: bool = False,
    force: bool = True,
    tolerance_mm: float = TOLERANCE_MM,
    subgroups: Path | None = None,
) -> Summary:
    """Predict labelled images with a bundle and evaluate the result on the source grid.

    Args:
        bundle: folder of a bundle or run with weights.
        data: labelled data set.
        output: gets `predictions/`, `metrics.csv` and `metrics.json`; None uses `evaluation` in the bundle, or
            `evaluation_NAME` for a data set that the bundle was not trained on.
        section: `unseen` takes every labelled case that the bundle was not trained on, `validation` the fold that
            `evaluate.json` names, `all` every labelled case, `test` the labelled cases of `imagesTs`. None is `unseen`
            for the data set that the bundle was trained on, and `all` for another one.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        em: also compute the ISBI 2012 scores; None computes them for 2D data with two labels.
        tta: test-time augmentation, `none`, `mirror` or `views`; None: as the bundle says.
        trust: approve a bundle that could run its own code.
        force: replace an earlier evaluation in `output`, which is an error otherwise.
        tolerance_mm: of the normalised surface Dice.
        subgroups: CSV file with the column `case` and others; the scores of each value of a column are compared.

    Returns:
        Statistics of the evaluated cases. `failed_cases` has the reason by name of each other case, `trained_on` the
        evaluated cases that the bundle was trained on, `left_out` those that were not evaluated for this reason.

    Raises:
        ConfigError: The section is unknown, or the data set has no case of it for this bundle.
        DataError: No case could be evaluated, or another process uses the output folder.
    """
    if section not in (None, *SECTIONS):
        raise ConfigError("unknown section", received=section, expected=", ".join(SECTIONS))
    require_trust(bundle, trust=trust)
    config = read_own(bundle, "evaluate")
    # an unreadable case fails by name when it is predicted, and the others are evaluated
    instances = bool(config.get("instances", False))
    dataset = open_as(config, data, [])
    if dataset.instances and not instances:
        raise DataError("the labels number objects, but the bundle predicts classes", file=data, received=bundle.name)
    seen = seen_cases(bundle, dataset, is_test=section == "test")
    section = section or ("unseen" if seen.folder == EVALUATION else "all")
    output = output or bundle / seen.folder
    require_new(output / JSON_NAME, force=force)
    with claim(output):
        items = _items(bundle, data, config, section, seen)
        options: dict[str, Any] = {"device": device, "tta": tta, "overwrite": True, "trust": trust}
        predictor = Predictor(bundle, output_dir=output / "predictions", **options)
        pairs, failed = predict_items(predictor, items)
        names = {str(item["name"]) for item in items}
        facts = {
            "section": section,
            **({} if tta is None else {"tta": tta}),
            "trained_on": sorted(seen.names & names) if seen.is_known else None,
            "left_out": sorted(seen.names - names) if section == "unseen" else [],
        }
        labels, regions = class_values(config), region_values(config)
        options = {"dims": dataset.spatial_dims, "em": em, "ignore": dataset.ignore, "instances": instances}
        options |= {"groups": dataset.groups, "tolerance_mm": tolerance_mm, "subgroups": subgroups}
        return measure(pairs, labels, output, failed=failed, facts=facts, regions=regions, **options)


def _items(bundle: Path, data: Path, config: Mapping[str, Any], section: str, seen: SeenCases) -> list[Item]:
    """Return the labelled items of a section."""
    is_ensemble, is_unseen = ENSEMBLE_FOLDS in config, section == "unseen"
    if section in ("validation", "training") and (is_ensemble or (seen.is_known and not seen.names)):
        cause, received = "the data set has no such cases for this bundle", f"--cases {section}"
        expected = "a run of one fold, and the data set that it was trained on"
        remedy = "omit --cases to evaluate every case that the bundle was not trained on"
        raise ConfigError(cause, file=bundle, received=received, expected=expected, remedy=remedy)
    listed: Any = "all" if is_unseen else section
    items = datalist(data, section=listed, fold=config["fold"], **split_options(config))
    selected = [item for item in items if "label" in item and not (is_unseen and item["name"] in seen.names)]
    if not selected and is_unseen and any("label" in item for item in items):
        remedy = "pass other data; --cases all evaluates the training cases, too"
        remedy = f"read {OUT_OF_FOLD}/metrics.json, or {remedy}" if is_ensemble else remedy
        raise ConfigError("the bundle was trained on every case of the data set", file=bundle, remedy=remedy)
    if not selected:
        raise DataError("no labelled case to evaluate", file=data, received=f"--cases {section}")
    return selected


def predict_items(predictor: Predictor, items: Sequence[Item]) -> tuple[list[Pair], dict[str, str]]:
    """Predict labelled items; return a pair for each case that worked, and the reason by name for each that failed."""
    pairs: list[Pair] = []
    failed: dict[str, str] = {}
    files = [[item["image"]] if isinstance(item["image"], str) else item["image"] for item in items]
    images = [[Path(path) for path in paths] for paths in files]
    results = predictor.predict([paths if len(paths) > 1 else paths[0] for paths in images])
    for item, paths, result in zip(items, images, results, strict=True):
        name = str(item["name"])
        if result.path is None or result.error is not None:
            failed[name] = reason(result.error or DataError("label map is missing"))
            logger.error("not predicted: %s", result.error)
            continue
        classes = Path(str(item["classes"])) if "classes" in item else None
        ref = Path(str(item["label"]))
        pairs.append(Pair(name=name, pred=result.path, ref=ref, image=paths[0], classes=classes))
        logger.info("predicted %d/%d %s", len(pairs) + len(failed), len(items), name)
    return pairs, failed


def class_values(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the value in files by class name, in the order of the network's output."""
    return {name: int(value) for name, value in zip(config["label_names"], config["label_values"], strict=True)}


def region_values(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the values in files by region name; empty if classes do not overlap."""
    return dict(zip(config.get("region_names", ()), config.get("region_values", ()), strict=True))


def structure_values(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the values in files of each region, or of each class but the first, the background."""
    classes = {name: [value] for name, value in [*class_values(config).items()][1:]}
    return region_values(config) or classes


def evaluate_folders(
    predictions: Path,
    references: Path,
    output: Path | None = None,
    *,
    labels: Mapping[str, int] | None = None,
    instances: bool = False,
    em: bool | None = None,
    force: bool = True,
    tolerance_mm: float = TOLERANCE_MM,
    subgroups: Path | None = None,
) -> Summary:
    """Evaluate label maps against the references of the same names.

    Args:
        predictions: folder of predicted label maps.
        references: folder of reference label maps.
        output: gets `metrics.csv` and `metrics.json`; None uses a folder beside the predictions.
        labels: value by class name; a case with another value fails. None uses the values that occur, and their names
            from the `dataset.json` beside the references, if there is one.
        instances: the label maps number objects; also if the `dataset.json` beside the references
            declares it.
        em: also compute the ISBI 2012 scores; None computes them for 2D data with two labels.
        force: replace an earlier evaluation in `output`, which is an error otherwise.
        tolerance_mm: of the normalised surface Dice.
        subgroups: CSV file with the column `case` and others; the scores of each value of a column are compared.

    Returns:
        Statistics of the evaluated cases; `failed_cases` has the reason by name of each other case.

    Raises:
        DataError: No case could be evaluated, the values may be classes or objects, or another process uses the
            output folder.
        ConfigError: `labels` for instances.
    """
    output = output or predictions.with_name(f"{predictions.resolve().name}_{EVALUATION}")
    require_new(output / JSON_NAME, force=force)
    manifest = references.resolve().parent / MANIFEST
    content = load_manifest(manifest) if manifest.is_file() else {}
    declared = content.get("groups")
    groups = {str(case): str(group) for case, group in declared.items()} if isinstance(declared, Mapping) else {}
    scoring: dict[str, Any] = {"groups": groups, "tolerance_mm": tolerance_mm, "subgroups": subgroups}
    if are_instances(content, manifest, instances=instances):
        if labels is not None:
            raise ConfigError("labels name the values of classes, but the values are object numbers", received=labels)
        found = pair_files(predictions, references)
        cases = with_classes([Case(pair.name, (), pair.ref) for pair in found], manifest.parent)
        refuse_classes(cases)
        numbered = [replace(pair, classes=case.classes) for pair, case in zip(found, cases, strict=True)]
        classes = class_labels(cases, labels_of(content, manifest), manifest)
        with claim(output):
            return measure(numbered, classes, output, dims=2, em=False, instances=True, **scoring)
    values: dict[Path, tuple[int, ...]] = {}
    pairs: list[Pair] = []
    failed: dict[str, str] = {}
    for pair in pair_files(predictions, references):
        try:
            values |= {path: label_values(path, limit=None) for path in (pair.pred, pair.ref)}
            pairs.append(pair)
        except (DataError, GeometryError) as error:
            failed[pair.name] = reason(error)
            logger.error("not evaluated: %s", error)
    if not pairs:
        raise DataError("no case could be evaluated", file=predictions, received="; ".join(failed.values()))
    occurring = sorted({0}.union(*values.values()))
    names = {value: name for name, value in labels_of(content, manifest).labels.items()} if content else {}
    if labels is None and not names:
        _refuse_undeclared({one.pred: values[one.pred] for one in pairs}, {one.ref: values[one.ref] for one in pairs})
    if len(occurring) > MAX_CLASSES:
        cause = "label maps have too many values for classes"
        raise DataError(cause, file=references, received=len(occurring), expected=f"at most {MAX_CLASSES}")
    if labels is None:
        labels = {names.get(value, f"label_{value}" if value else BACKGROUND): value for value in occurring}
    elif 0 not in labels.values():
        labels = {BACKGROUND: 0, **labels}
    if len(labels) == 1:
        raise DataError("predictions and references are all background", file=predictions)
    dims = 2 if pairs[0].ref.suffix.lower() in PICTURES else 3
    with claim(output):
        return measure(pairs, labels, output, dims=dims, em=em, failed=failed, **scoring)


def compare_annotators(folders: Sequence[Path], output: Path, **options: Any) -> dict[str, Any]:
    """Evaluate every pair of folders, such as predictions and the labels of several annotators.

    Args:
        folders: label maps, with equal names of cases; the second folder of a pair is its reference.
        output: gets a folder of tables per pair.
        **options: keyword arguments of `evaluate_folders`.

    Returns:
        `agreement`: the summary of each pair by its name, such as `reader_1 reader_2`.

    Raises:
        ConfigError: two folders have the same name.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigError("the folders of annotators must have different names", received=", ".join(names))
    agreement = {
        f"{name} {other_name}": evaluate_folders(one, other, output / f"{name}_{other_name}", **options)
        for (name, one), (other_name, other) in itertools.combinations(zip(names, folders, strict=True), 2)
    }
    return {"agreement": agreement, "folder": str(output)}


def _refuse_undeclared(*values: Mapping[Path, Collection[int]]) -> None:
    """Raise an error if values that have no names may be object numbers."""
    counts = [len(set().union(*of_maps.values()) - {0}) for of_maps in values]
    if max(counts) > MAX_LABELS or (max(counts) >= MIN_OBJECTS and min(counts) <= 1):
        raise DataError(
            "label maps with many values must be declared as objects or as classes",
            file=next(iter(values[-1])).parent,
            received=f"number of values: {counts[0]} in the predictions, {counts[1]} in the references",
            remedy="pass --instances for objects, or --labels NAME=VALUE,... for classes",
        )
    for of_maps in values:
        refuse_instances(of_maps)


def measure(
    pairs: list[Pair],
    labels: Mapping[str, int],
    output: Path,
    *,
    dims: int,
    em: bool | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    rules: Sequence[ClassRule] = (),
    ignore: int | None = None,
    instances: bool = False,
    failed: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    groups: Mapping[str, str] | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    subgroups: Path | None = None,
) -> Summary:
    """Postprocess the predictions of pairs by rules, evaluate the pairs and write the tables.

    The summary's `failed_cases` are the cases of `failed` and the pairs that cannot be read.
    """
    failed = dict(failed or {})
    options: dict[str, Any] = {"regions": regions, "rules": rules, "ignore": ignore, "instances": instances}
    options["tolerance_mm"] = tolerance_mm
    columns = {} if subgroups is None else read_subgroups(subgroups, [pair.name for pair in pairs])
    options["em"] = (dims == 2 and len(labels) == 2 and not instances) if em is None else em
    results = list(evaluate_pairs(pairs, labels=labels, failed=failed, **options))
    if not results:
        raise DataError("no case could be evaluated", file=output, received="; ".join(failed.values()) or "no case")
    summary = summarise(results, groups=groups)
    if not instances:
        summary["tolerance_mm"] = tolerance_mm
    if columns:
        summary["subgroups"], summary["weakest"] = score_subgroups(results, columns, groups or {})
    summary.update(facts or {})  # type: ignore[typeddict-item] # keys of Summary
    if failed:
        summary["failed_cases"] = dict(sorted(failed.items()))
    write_tables(results, output, summary=summary)
    summary["folder"], summary["unit"] = str(output), "px" if pairs[0].ref.suffix.lower() in PICTURES else "mm"
    return summary
