"""`medunet evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from medunet.cli import completion
from medunet.cli import options as opt
from medunet.cli.output import print_json, with_json
from medunet.cli.registry import examples
from medunet.errors import ConfigError
from medunet.files import check_target, require_path
from medunet.resources import find_bundle

if TYPE_CHECKING:
    from medunet.metrics import Summary
    from medunet.metrics.evaluation import Statistics

LABELS_HELP = "With --pred: names of the label values. Default: those of dataset.json."
CASES_HELP = (
    "With RUN: labelled cases to evaluate. unseen: those that the run was not trained on; validation: its fold; "
    "test: imagesTs. Default: unseen for the data set that the run was trained on, all for another one."
)
RUN_HELP = "A run, or a bundle with weights. Needs --data."
RUN = typer.Argument(metavar="RUN", help=RUN_HELP, autocompletion=completion.runs)
Cases = Literal["unseen", "validation", "all", "test"]
REF_HELP = "Folder of reference label maps. Several, one per annotator: the agreement of every pair, and with --pred."
TOLERANCE_HELP = "Tolerance of the normalised surface Dice in mm, pixels for pictures."
SUBGROUPS_HELP = "CSV file with the column case and others, such as site or sex: name the weakest subgroup."
INSTANCES_HELP = "With --pred: the label maps number objects, so objects are compared. A run knows it."
EM_HELP = "Also compute V_rand, V_info and warping error. Default: for 2D images with two labels."
CALIBRATE_HELP = "Only calibrate `predict --review` and `--probabilities` of RUN on cases that it was not trained on."
OUTPUT_HELP = "Folder for the tables. Default: evaluation or evaluation_NAME in the run, PRED_evaluation with --pred."

COUNTED = ("objects_ref", "objects_pred", "missed", "spurious", "merged", "split")
OBJECT_ROWS = {
    "objects_ref": "in the reference",
    "objects_pred": "in the prediction",
    "mean_ap": "mean AP at IoU 0.5 to 0.95",
    "ap_50": "AP at IoU 0.5",
    "ap_75": "AP at IoU 0.75",
    "f1": "F1 at IoU 0.5",
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "aji": "AJI",
    "seg": "SEG",
    "det": "DET",
    "missed": "missed",
    "spurious": "spurious",
    "merged": "merged",
    "split": "split",
}


@examples(
    "medunet evaluate runs/mine --data DATA --json | jq .mean_dice",
    "medunet evaluate runs/mine --data DATA --cases test -o test_scores",
    "medunet evaluate --pred results --ref DATA/labelsTs --labels liver=1,tumour=2",
    "medunet evaluate --pred results --ref DATA/labels --instances",
    "medunet evaluate --ref reader_1 --ref reader_2 --tolerance 2",
)
@with_json("evaluate")
def evaluate(
    bundle: Annotated[str | None, RUN] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled data set to predict and evaluate.")] = None,
    pred: Annotated[Path | None, typer.Option(help="Folder of predicted label maps.")] = None,
    ref: Annotated[list[Path] | None, typer.Option(help=REF_HELP)] = None,
    labels: Annotated[str | None, typer.Option(metavar="NAME=VALUE,...", help=LABELS_HELP)] = None,
    cases: Annotated[Cases | None, typer.Option(help=CASES_HELP)] = None,
    instances: Annotated[bool, typer.Option("--instances", help=INSTANCES_HELP)] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP)] = None,
    tolerance: Annotated[float, typer.Option(min=0, metavar="MM", help=TOLERANCE_HELP)] = 1.0,
    subgroups: Annotated[Path | None, typer.Option(metavar="FILE", help=SUBGROUPS_HELP)] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help=CALIBRATE_HELP)] = False,
    em: Annotated[bool | None, typer.Option("--em/--no-em", help=EM_HELP)] = None,
    tta: opt.Tta = None,
    device: opt.Device = "auto",
    trust: opt.Trust = False,
    force: opt.Force = False,
) -> None:
    """Evaluate a run on labelled images, or compare a folder of predictions with references."""
    require_path(data, pred, subgroups, *(ref or ()))
    if output is not None:
        check_target(output)
    from_files = pred is not None or ref or labels is not None or instances
    folders = [*(() if pred is None else (pred,)), *(ref or ())]
    scoring: dict[str, Any] = {"em": em, "force": force, "tolerance_mm": tolerance, "subgroups": subgroups}
    if calibrate and (bundle is None or data is None or from_files or cases or output or tta or subgroups):
        raise ConfigError("--calibrate needs RUN and --data, and none of --cases, --output, --subgroups and --tta")
    if bundle is not None and data is not None and not from_files:
        folder = find_bundle(bundle)
        if calibrate:
            from medunet.runs.review import calibrate as fit_review

            document = fit_review(folder, data, device=device, trust=trust)
            print_json(**document)
            count, source, error = (document[key] for key in ("cases", "source", "error"))
            typer.echo(f"{count} {source}: mean error of the expected Dice {error:.3f}")
            typer.echo(f"temperature of the probabilities: {document['probabilities']['temperature']:.3g}")
            return
        from medunet.runs import evaluate_bundle

        options: dict[str, Any] = {"section": cases, "tta": tta, "device": device}
        result = evaluate_bundle(folder, data, output, trust=trust, **options, **scoring)
    elif ref and len(folders) > 1 and (bundle, data, cases, tta) == (None,) * 4:
        options = {"labels": parse_labels(labels), "instances": instances, **scoring}
        from medunet.runs import compare_annotators, evaluate_folders

        if len(ref) > 1:
            _show_agreement(compare_annotators(folders, output or Path("agreement"), **options))
            return
        result = evaluate_folders(folders[0], ref[0], output, **options)
    else:
        files = "--pred DIR --ref DIR [--labels NAME=VALUE,... | --instances]"
        raise ConfigError(f"evaluate needs either RUN --data DATA [--cases CASES] [--tta TTA], or {files}")
    print_json(**result)
    _show(result)
    failed = result.get("failed_cases", {})
    for name, cause in failed.items():
        opt.print_error(cause, name=name)
    if failed:
        raise typer.Exit(opt.EXIT_SOME_FAILED)


def parse_labels(text: str | None) -> dict[str, int] | None:
    """Return the value by name of --labels."""
    if text is None:
        return None
    try:
        return {name.strip(): int(value) for name, _, value in (word.rpartition("=") for word in text.split(","))}
    except ValueError as error:
        expected = "such as liver=1,tumour=2"
        raise ConfigError("--labels must be NAME=VALUE,...", received=text, expected=expected) from error


def _show(result: Summary) -> None:
    from medunet.datasets import shown

    if "objects" in result:
        _show_objects(result)
    else:
        _show_classes(result)
    console = opt.plain_console()
    for name, statistics in result.get("em", {}).items():
        console.print(f"{name}: {statistics['mean']:.5f}")
    trained_on = result.get("trained_on", [])
    if trained_on is None:
        console.print("[yellow]warning[/] the bundle does not record which cases it was trained on")
    elif trained_on:
        console.print(f"[yellow]warning[/] evaluated cases that were trained on: {escape(shown(trained_on))}")
    if left_out := result.get("left_out"):
        console.print(f"left out, because the run was trained on them: {escape(shown(left_out))}")
    for column, values in result.get("subgroups", {}).items():
        table = Table(escape(column), "cases", "mean Dice", "95 % interval")
        for value, one in values.items():
            table.add_row(escape(value), str(one["n"]), f"{one['mean']:.4f}", _interval(one))
        opt.wide_console().print(table)
    if weakest := result.get("weakest"):
        console.print(escape(f"weakest subgroup: {weakest['column']} {weakest['value']}"))
    typer.echo(f"tables: {result['folder']}")


def _show_agreement(result: dict[str, Any]) -> None:
    """Print a row per pair of annotators and class."""
    print_json(**result)
    table = Table("pair", "class", "cases", "Dice", "95 % interval", "surface Dice", "lesion F1")
    for pair, summary in result["agreement"].items():
        for name, entry in summary["classes"].items():
            scores = [entry["scores"][key] for key in ("dice", "nsd", "lesion_f1") if key in entry["scores"]]
            dice, *others = scores
            cells = [f"{dice['n']}", f"{dice['mean']:.4f}", _interval(dice), *(f"{one['mean']:.4f}" for one in others)]
            table.add_row(escape(pair), escape(name), *cells)
    opt.wide_console().print(table)
    typer.echo(f"tables: {result['folder']}")


def _interval(statistics: Statistics) -> str:
    return f"{statistics['low']:.4f} to {statistics['high']:.4f}"


def _show_classes(result: Summary) -> None:
    count, unit = result["cases"], result.get("unit", "mm")
    columns = ["class", "Dice", "95 % interval", "median", "IoU", f"HD95 {unit}", f"surface distance {unit}"]
    columns += [f"surface Dice {result.get('tolerance_mm', 1):g} {unit}", "size error %", "missed", "spurious"]
    is_lesions = any(entry["scores"]["lesions_ref"]["mean"] > 1 for entry in result["classes"].values())
    columns += ["lesion F1", "lesion sensitivity", "false lesions per case"] if is_lesions else []
    table = Table(*columns, title=f"{opt.count(count, 'case')}, mean (sd)")
    for name, entry in result["classes"].items():
        scores, status = entry["scores"], entry["status"]
        dice = scores["dice"]
        cells = [_cell(dice, 4, count), _interval(dice), f"{dice['median']:.4f}", _cell(scores["iou"], 4, count)]
        cells += [_cell(scores[key], 2, count) for key in ("hd95_mm", "msd_mm")]
        cells += [_cell(scores["nsd"], 4, count), _cell(scores["size_error_percent"], 1, count)]
        cells += [str(status["missed"]), str(status["spurious"])]
        lesions = ("lesion_f1", "lesion_sensitivity", "lesions_fp") if is_lesions else ()
        table.add_row(escape(name), *cells, *(_cell(scores[key], 2, count) for key in lesions))
    opt.wide_console().print(table)
    opt.plain_console().print(f"mean Dice of the classes: {result['mean_dice']:.4f}")


def _show_objects(result: Summary) -> None:
    """Print the scores of all objects together, and those of an image on average, one column per class."""
    objects = result["objects"]
    table = Table("objects", title=f"{opt.count(result['cases'], 'case')}, pooled (mean over cases)")
    for name in objects:
        table.add_column(escape(name), justify="right")
    for key, title in OBJECT_ROWS.items():
        cells = []
        for name, of_class in objects.items():
            pooled, mean = of_class["pooled"][key], result["classes"][name]["scores"][key]["mean"]
            cells.append(f"{pooled:.0f}" if key in COUNTED else f"{pooled:.4f} ({mean:.4f})")
        table.add_row(title, *cells)
    opt.wide_console().print(table)
    opt.plain_console().print(f"mean AP of the classes: {result['mean_ap']:.4f}")


def _cell(statistics: Statistics, digits: int, cases: int) -> str:
    """Return mean and standard deviation, with the number of cases unless it is all of them."""
    text = f"{statistics['mean']:.{digits}f} ({statistics['std']:.{digits}f})"
    return text if statistics["n"] == cases else f"{text} n={statistics['n']}"
