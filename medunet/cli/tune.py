"""`medunet tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medunet.cli.options import Device, Preset, Set, Trust, next_command
from medunet.files import require_path
from medunet.overrides import parse_settings
from medunet.resources import find_bundle


def tune(
    bundle: Annotated[str, typer.Argument(help="A shipped bundle or a bundle's folder.")],
    data: Annotated[Path, typer.Option("--data", help="Labelled images, as of `medunet train`.")],
    trials: Annotated[int, typer.Option(help="Trainings to make; bad ones end early.")],
    set_range: Annotated[
        list[str],
        typer.Option("--set-range", metavar="KEY=LOW:HIGH[:log][:int]", help="Or KEY=A|B|C; repeatable."),
    ],
    time: Annotated[str | None, typer.Option(help="Ends the search, such as 2h.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of a training that is not ended early.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder; runs/BUNDLE_DATA_tune by default.")] = None,
    device: Device = "auto",
    preset: Preset = None,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow's store; '' for none; else as of `medunet train`.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search in --output, given the same arguments again.")
    ] = False,
    settings: Set = None,
    trust: Trust = False,
) -> None:
    """Search for better values with Ray Tune: Optuna chooses, ASHA stops what is hopeless. Needs the extra `ray`."""
    source = find_bundle(bundle)
    require_path(data)
    changes = parse_settings(settings) | ({} if epochs is None else {"epochs": epochs})
    from medunet.deploy.cluster import parse_ranges, tune_bundle
    from medunet.planning import parse_time
    from medunet.tracking import default_store

    output = output or Path("runs") / f"{source.resolve().name}_{data.resolve().name}_tune"
    search = tune_bundle(
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
    keys = sorted({key for trial in search.trials for key in trial.values})
    table = Table("trial", *keys, "epochs", "validation Dice")
    for trial in search.trials:
        values = [f"{value:.3g}" if isinstance(value := trial.values.get(key), float) else str(value) for key in keys]
        score = escape(trial.error or "none") if trial.metric is None else f"{trial.metric:.4f}"
        table.add_row(trial.run.name, *map(escape, values), str(trial.epochs), score)
    console.print(table)
    if search.best is None:
        raise typer.Exit(2)
    typer.echo(f"best: {search.best.run}")
    typer.echo(next_command("predict", search.best.run, "IMAGES", "--output", "DIR"))
