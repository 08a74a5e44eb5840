"""`medunet tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from medunet.cli import options as opt
from medunet.config import parse_settings
from medunet.files import require_path
from medunet.resources import find_bundle

RESUME_HELP = "Continue the search in --output; all other arguments must be the same."
RANGE = typer.Option(metavar="KEY=LOW:HIGH[:log][:int]", help="Values to try, as a range or as KEY=A|B|C; repeatable.")


def tune(
    bundle: opt.Bundle,
    data: opt.TrainingData,
    trials: Annotated[int, typer.Option(help="Number of training runs; bad ones end early.")],
    set_range: Annotated[list[str], RANGE],
    time: Annotated[str | None, typer.Option(help="Time after which the search ends, such as 2h.")] = None,
    epochs: opt.Epochs = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the search. Default: runs/BUNDLE_DATA_tune.")] = None,
    device: opt.Device = "auto",
    preset: opt.Preset = None,
    tracking_uri: opt.TrackingUri = None,
    resume: Annotated[bool, typer.Option("--resume", help=RESUME_HELP)] = False,
    settings: opt.Set = None,
    trust: opt.Trust = False,
) -> None:
    """Search for better values with Ray Tune: Optuna proposes them and ASHA ends bad runs. Needs `medunet[ray]`."""
    source = find_bundle(bundle)
    require_path(data)
    changes = parse_settings(settings) | ({} if epochs is None else {"epochs": epochs})
    from medunet.deploy.cluster import parse_ranges, tune_bundle
    from medunet.planning import parse_time
    from medunet.tracking import default_store

    output = output or Path("runs") / f"{source.resolve().name}_{data.resolve().name}_tune"
    results = tune_bundle(
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
    keys = sorted({key for trial in results for key in trial.values})
    table = Table("trial", *keys, "epochs", "validation Dice")
    for trial in results:
        values = [f"{value:.3g}" if isinstance(value := trial.values.get(key), float) else str(value) for key in keys]
        score = escape(trial.error or "none") if trial.metric is None else f"{trial.metric:.4f}"
        table.add_row(trial.run.name, *map(escape, values), str(trial.epochs), score)
    opt.plain_console().print(table)
    if not results or results[0].metric is None:
        raise typer.Exit(opt.EXIT_SOME_FAILED)
    typer.echo(f"best: {results[0].run}")
    opt.print_next_predict(results[0].run)
