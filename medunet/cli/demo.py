"""`medunet demo`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from medunet.cli import options as opt
from medunet.cli.registry import examples

OUTPUT = Path("medunet_demo")
EPOCHS_HELP = "Number of epochs. Default: 40, or those of the demo to be resumed."


@examples("medunet demo", "medunet demo --epochs 2 --device cpu -o short_demo")
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for data, run and report.")] = OUTPUT,
    epochs: Annotated[int | None, typer.Option(help=EPOCHS_HELP)] = None,
    device: opt.Device = "auto",
) -> None:
    """Train a 3D U-Net on synthetic CT volumes, evaluate it on unseen ones, and number the nuclei in a real image."""
    from medunet.runs.demo import run_demo

    table = Table("organ", "Dice", title="unseen test cases")
    dice, nuclei = run_demo(output, epochs=epochs, device=device)
    for name, value in dice.items():
        table.add_row(name, f"{value:.3f}")
    opt.plain_console().print(table)
    typer.echo(f"run (a MONAI bundle): {output / 'run'}")
    typer.echo(f"report: {output / 'report.html'}")
    typer.echo(f"{nuclei} nuclei in a tissue section: {output / 'nuclei.png'}")
