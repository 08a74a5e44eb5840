"""`medunet train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from medunet.cli.options import Device, Set, parse_settings


def train(
    bundle: Annotated[str, typer.Argument(help="A shipped bundle (unet_3d, unet_2d, unet_2015) or a bundle's folder.")],
    data: Annotated[Path, typer.Option("--data", help="MSD or nnU-Net folder, or a folder with images/ and labels/.")],
    fold: Annotated[int, typer.Option(help="Validate the cases FOLD, FOLD+5, ... of the sorted names.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Epochs; the bundle's number by default.")] = None,
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/BUNDLE_DATA_foldK by default.")] = None,
    init_from: Annotated[
        Path | None, typer.Option("--init-from", metavar="RUN", help="Start from the weights of another run.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --output stopped.")] = False,
    settings: Set = None,
) -> None:
    """Train a bundle on labelled images. The run's folder is a bundle itself."""
    from medunet.bundle import find_bundle, train_bundle

    source = find_bundle(bundle)
    changes = {"fold": fold, **parse_settings(settings)}
    if epochs is not None:
        changes["epochs"] = epochs
    if init_from is not None:
        changes["init_from"] = str(init_from.resolve())
    data_name = data.resolve().parent.name if data.is_file() else data.resolve().name
    output = output or Path("runs") / f"{source.resolve().name}_{data_name}_fold{fold}"
    result = train_bundle(source, data, output, changes=changes, device=device, resume=resume)

    console = Console()
    if result.best_dice:
        table = Table("class", "validation Dice", title=f"best epoch {result.best_epoch} of {result.epochs}")
        for name, value in result.best_dice.items():
            table.add_row(name, f"{value:.4f}")
        console.print(table)
    console.print(f"run: {output}", highlight=False, soft_wrap=True)
    console.print(f"next: medunet predict {output} IMAGES --output DIR", highlight=False, soft_wrap=True)
