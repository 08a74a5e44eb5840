"""`medunet tune`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from medunet.cli import options as opt
from medunet.cli.registry import examples
from medunet.config import parse_settings
from medunet.files import require_path
from medunet.resources import find_bundle

RESUME_HELP = "Continue the search in --output; all other arguments must be the same."
OUTPUT_HELP = "Folder of the search. Default: runs/BUNDLE_DATA_tune."
TIME = opt.duration("Time after which the search ends, such as 2h.")
RANGE = typer.Option(metavar="KEY=LOW:HIGH[:log][:int]", help="Values to try, as a range or as KEY=A|B|C; repeatable.")


@examples(
    'medunet tune unet_3d --data DATA --trials 20 --set-range "learning_rate=1e-4:1e-2:log" --time 12h',
    'medunet tune my_bundle --data DATA --trials 8 --set-range "network_def::dropout=0|0.1|0.3" -o runs/search',
)
def tune(
    bundle: opt.Bundle,
    data: opt.TrainingData,
    trials: Annotated[int, typer.Option(help="Number of training runs; bad ones end early.")],
    set_range: Annotated[list[str], RANGE],
    time: Annotated[float | None, TIME] = None,
    epochs: opt.Epochs = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP)] = None,
    device: opt.Device = "auto",
    preset: opt.Preset = None,
    tracking_uri: opt.TrackingUri = None,
    no_tracking: opt.NoTracking = False,
    resume: Annotated[bool, typer.Option("--resume", help=RESUME_HELP)] = False,
    settings: opt.Set = None,
    trust: opt.Trust = False,
) -> None:
    """Search for better values with Ray Tune: Optuna proposes them and ASHA ends bad runs. Needs `medunet[ray]`."""
    source = find_bundle(bundle)
    require_path(data)
    changes = parse_settings(settings) | ({} if epochs is None else {"epochs": epochs})
    output = output or Path("runs") / f"{source.resolve().name}_{data.resolve().name}_tune"
    uri = opt.tracking(tracking_uri, output.parent, is_off=no_tracking)
    from medunet.deploy.cluster import parse_ranges, tune_bundle

    results = tune_bundle(
        source,
        data,
        output,
        ranges=parse_ranges(set_range),
        trials=trials,
        seconds=time,
        changes=changes,
        presets=preset or (),
        device=device,
        tracking_uri=uri,
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
    opt.print_next("predict", results[0].run, "IMAGES", "--output", "DIR")
