"""`medunet tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medunet.cli.options import EXIT_SOME_FAILED, Device, Preset, Set, Trust, next_command
from medunet.config import parse_settings
from medunet.files import require_path
from medunet.resources import find_bundle


def tune(
    bundle: Annotated[str, typer.Argument(help="A shipped bundle, or the folder of a bundle.")],
    data: Annotated[Path, typer.Option("--data", help="MSD or nnU-Net folder, or a folder with images/ and labels/.")],
    trials: Annotated[int, typer.Option(help="Number of training runs; bad ones end early.")],
    set_range: Annotated[
        list[str],
        typer.Option(
            "--set-range",
            metavar="KEY=LOW:HIGH[:log][:int]",
            help="Values to try, as a range or as KEY=A|B|C; repeatable.",
        ),
    ],
    time: Annotated[str | None, typer.Option(help="Time after which the search ends, such as 2h.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of a run that does not end early. Default: those of the bundle.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the search. Default: runs/BUNDLE_DATA_tune.")] = None,
    device: Device = "auto",
    preset: Preset = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri", help="Tracking URI of MLflow; '' disables it. Default: mlruns.db beside the folder."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the search in --output; all other arguments must be the same.")
    ] = False,
    settings: Set = None,
    trust: Trust = False,
) -> None:
    """Search for better values with Ray Tune: Optuna proposes them, ASHA ends bad runs early. Needs `medunet[ray]`."""
    source = find_bundle(bundle)
    require_path(data)
    changes = parse_settings(settings) | ({} if epochs is None else {"epochs": epochs})
    from medunet.deploy.cluster import parse_ranges, tune_bundle
    from medunet.planning import parse_time
    from medunet.tracking import default_store

    output = output or Path("runs") / f"{source.resolve().name}_{data.resolve().name}_tune"
    trials_done = tune_bundle(
        source,
        data,
        output,
        ranges=parse_ranges(set_range),
        trials=trials,
        seconds=None if time is None else parse_time(time),
        changes=changes,
        presets=preset or (),
        device=device,
        tracking_uri=default_store(output.parent) if tracking_uri is None else tracking_uri,
        resume=resume,
        trust=trust,
    )
    console = Console(highlight=False, soft_wrap=True)
    keys = sorted({key for trial in trials_done for key in trial.values})
    table = Table("trial", *keys, "epochs", "validation Dice")
    for trial in trials_done:
        values = [f"{value:.3g}" if isinstance(value := trial.values.get(key), float) else str(value) for key in keys]
        score = escape(trial.error or "none") if trial.metric is None else f"{trial.metric:.4f}"
        table.add_row(trial.run.name, *map(escape, values), str(trial.epochs), score)
    console.print(table)
    if not trials_done or trials_done[0].metric is None:
        raise typer.Exit(EXIT_SOME_FAILED)
    typer.echo(f"best: {trials_done[0].run}")
    typer.echo(next_command("predict", trials_done[0].run, "IMAGES", "--output", "DIR"))
