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
INSTANCES_HELP = "With --pred: the label maps number objects, so objects are compared. A run knows it."
EM_HELP = "Also compute V_rand, V_info and warping error. Default: for 2D images with two labels."
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
)
@with_json("evaluate")
def evaluate(
    bundle: Annotated[str | None, RUN] = None,
    data: Annotated[Path | None, typer.Option(help="Labelled data set to predict and evaluate.")] = None,
    pred: Annotated[Path | None, typer.Option(help="Folder of predicted label maps.")] = None,
    ref: Annotated[Path | None, typer.Option(help="Folder of reference label maps.")] = None,
    labels: Annotated[str | None, typer.Option(metavar="NAME=VALUE,...", help=LABELS_HELP)] = None,
    cases: Annotated[Cases | None, typer.Option(help=CASES_HELP)] = None,
    instances: Annotated[bool, typer.Option("--instances", help=INSTANCES_HELP)] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP)] = None,
    em: Annotated[bool | None, typer.Option("--em/--no-em", help=EM_HELP)] = None,
    tta: opt.Tta = None,
    device: opt.Device = "auto",
    trust: opt.Trust = False,
    force: opt.Force = False,
) -> None:
    """Evaluate a run on labelled images, or compare a folder of predictions with references."""
    for path in (data, pred, ref):
        require_path(path)
    if output is not None:
        check_target(output)
    from_files = pred is not None or ref is not None or labels is not None or instances
    if bundle is not None and data is not None and not from_files:
        folder = find_bundle(bundle)
        from medunet.runs import evaluate_bundle

        options: dict[str, Any] = {"section": cases, "tta": tta, "device": device, "em": em}
        result = evaluate_bundle(folder, data, output, trust=trust, force=force, **options)
    elif pred is not None and ref is not None and (bundle, data, cases, tta) == (None,) * 4:
        options = {"labels": parse_labels(labels), "instances": instances, "em": em, "force": force}
        from medunet.runs import evaluate_folders

        result = evaluate_folders(pred, ref, output, **options)
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

    count, unit = result["cases"], result.get("unit", "mm")
    if "objects" in result:
        _show_objects(result)
    else:
        _show_classes(result, count, unit)
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
    typer.echo(f"tables: {result['folder']}")


def _show_classes(result: Summary, count: int, unit: str) -> None:
    columns = ("class", "Dice", "median", "IoU", f"HD95 {unit}", f"surface distance {unit}", "missed", "spurious")
    table = Table(*columns, title=f"{count} case{'s' * (count != 1)}, mean (sd)")
    for name, entry in result["classes"].items():
        scores, status = entry["scores"], entry["status"]
        cells = [_cell(scores["dice"], 4, count), f"{scores['dice']['median']:.4f}", _cell(scores["iou"], 4, count)]
        cells += [_cell(scores[key], 2, count) for key in ("hd95_mm", "msd_mm")]
        table.add_row(escape(name), *cells, str(status["missed"]), str(status["spurious"]))
    opt.wide_console().print(table)
    opt.plain_console().print(f"mean Dice of the classes: {result['mean_dice']:.4f}")


def _show_objects(result: Summary) -> None:
    """Print the scores of all objects together, and those of an image on average, one column per class."""
    count, objects = result["cases"], result["objects"]
    table = Table("objects", title=f"{count} case{'s' * (count != 1)}, pooled (mean over cases)")
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
