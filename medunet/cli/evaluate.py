"""`medunet evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medunet.cli.options import Device, Trust
from medunet.cli.predict import EXIT_SOME_FAILED


def evaluate(
    bundle: Annotated[str | None, typer.Argument(help="A run or a bundle with weights; not with --pred.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Labelled data set; predicts and measures.")] = None,
    pred: Annotated[Path | None, typer.Option("--pred", help="Folder of predicted label maps.")] = None,
    ref: Annotated[Path | None, typer.Option("--ref", help="Folder of reference label maps.")] = None,
    section: Annotated[str, typer.Option(help="validation (the cases the run did not train on) or all")] = "validation",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for metrics.csv and metrics.json.")
    ] = None,
    em: Annotated[
        bool | None,
        typer.Option("--em/--no-em", help="V_rand, V_info, warping error; by default for 2D with two labels."),
    ] = None,
    device: Device = "auto",
    trust: Trust = False,
) -> None:
    """Measure a run on labelled images, or a folder of predictions against references."""
    from medunet.bundle import evaluate_bundle, evaluate_folders, find_bundle
    from medunet.errors import ConfigError
    from medunet.files import claim

    if bundle is not None and data is not None and pred is None and ref is None:
        folder = find_bundle(bundle)
        output = output or folder / "evaluation"
        with claim(output):
            result = evaluate_bundle(folder, data, output, section=section, device=device, em=em, trust=trust)
    elif pred is not None and ref is not None and bundle is None and data is None:
        output = output or pred
        result = evaluate_folders(pred, ref, output, em=em)
    else:
        raise ConfigError("evaluate takes either BUNDLE --data DATA, or --pred DIR --ref DIR")

    table = Table("class", "Dice", "IoU", "HD95 mm", "surface mm", title=f"{result['cases']} cases, mean (sd)")
    for name, entry in result["classes"].items():
        values = entry["scores"]
        cells = [f"{values[key]['mean']:.4f} ({values[key]['std']:.4f})" for key in ("dice", "iou")]
        cells += [f"{values[key]['mean']:.2f} ({values[key]['std']:.2f})" for key in ("hd95_mm", "msd_mm")]
        table.add_row(name, *cells)
    console = Console()
    console.print(table)
    console.print(f"mean Dice of the classes: {result['mean_dice']:.4f}")
    for name, statistics in result.get("em", {}).items():
        console.print(f"{name}: {statistics['mean']:.5f}")
    typer.echo(f"tables: {output}")
    failed = result.get("failed_cases", {})
    for name, cause in failed.items():
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"[bold red]error[/] {escape(name)}: {escape(cause)}"
        )
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
