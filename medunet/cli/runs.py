"""`medunet runs`: list, compare, best, resume and sync."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from medunet.cli import options as opt
from medunet.cli.output import print_json, with_json
from medunet.cli.registry import examples, group
from medunet.cli.train import show_folds, show_training
from medunet.files import require_path

if TYPE_CHECKING:
    from medunet.tracking import TrackedRun

Folder = Annotated[Path, typer.Option("--runs", help="Folder that contains the folders of the runs.")]
URI_HELP = "Tracking URI of MLflow. Default: MLFLOW_TRACKING_URI, else mlruns.db in the folder."
Uri = Annotated[str | None, typer.Option("--tracking-uri", metavar="URI", help=URI_HELP)]
Experiment = Annotated[str, typer.Option("--experiment", help="Name of the MLflow experiment.")]
Folds = Annotated[bool, typer.Option("--folds", help="Show every fold.")]
NAMES_HELP = "Names of runs, or the beginnings of their ids. Default: all runs."
METRIC_HELP = "Metric to rank by; lower is better for losses, distances and times."
RUNS, EXPERIMENT = Path("runs"), "medunet"

_COLOURS = {"FINISHED": "green", "RUNNING": "cyan", "FAILED": "bold red", "KILLED": "yellow"}


@examples("medunet runs list", "medunet runs list --runs /data/runs --folds")
@with_json("runs list")
def list_(folder: Folder = RUNS, uri: Uri = None, experiment: Experiment = EXPERIMENT, folds: Folds = False) -> None:
    """List training runs, newest first."""
    runs = _runs(folder, uri, experiment, folds=folds)
    from medunet.tracking import BEST_METRIC

    print_json(runs=[_facts(run) for run in runs])
    table = Table("run", "id", "status", "started", "time", "epochs", "Dice", "changed from the preset")
    for run in runs:
        colour = _COLOURS.get(run.status, "white")
        best = run.metrics.get(BEST_METRIC)
        table.add_row(
            escape(run.name if run.kind == "training" else f"  {run.name}"),
            run.run_id[:8],
            f"[{colour}]{run.status.lower()}[/]",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started / 1000)),
            "" if run.seconds is None else str(timedelta(seconds=round(run.seconds))),
            run.params.get("epochs", ""),
            "" if best is None else f"{best:.4f}",
            escape(", ".join(run.changed[:4]) + (" ..." if len(run.changed) > 4 else "")),
        )
    opt.wide_console().print(table)


@examples("medunet runs compare", "medunet runs compare first second --folds")
@with_json("runs compare")
def compare(
    names: Annotated[list[str], typer.Argument(help=NAMES_HELP)] = [],  # noqa: B006
    folder: Folder = RUNS,
    uri: Uri = None,
    experiment: Experiment = EXPERIMENT,
    folds: Folds = False,
) -> None:
    """Compare runs: the parameters that differ, and the metrics."""
    known = _runs(folder, uri, experiment, folds=folds or bool(names))
    from medunet.tracking import differing, find_run

    runs = [find_run(name, known) for name in names] if names else known
    table = Table("", *(escape(f"{run.name}\n{run.run_id[:8]}") for run in runs))
    differences = differing(runs)
    print_json(runs=[_facts(run) for run in runs], differences=differences)
    for name, values in differences.items():
        table.add_row(escape(name), *map(escape, values))
    table.add_section()
    for name in sorted({name for run in runs for name in run.metrics if not name.startswith("system/")}):
        table.add_row(escape(name), *(f"{run.metrics[name]:.4g}" if name in run.metrics else "" for run in runs))
    opt.wide_console().print(table)


@examples("medunet runs best", "medunet runs best --metric val_loss --runs /data/runs")
@with_json("runs best")
def best(
    metric: Annotated[str, typer.Option("--metric", help=METRIC_HELP)] = "",
    folder: Folder = RUNS,
    uri: Uri = None,
    experiment: Experiment = EXPERIMENT,
    folds: Folds = False,
) -> None:
    """Show the best training run by a metric, and its folder."""
    runs = _runs(folder, uri, experiment, folds=folds)
    from medunet.tracking import BEST_METRIC, best_run, folder_of

    metric = metric or BEST_METRIC
    run = best_run(runs, metric)
    path = folder_of(run, folder)
    print_json(run=_facts(run), metric=metric, value=run.metrics[metric], folder=path)
    opt.plain_console().print(escape(f"{run.name} ({run.run_id}): {metric} {run.metrics[metric]:.4f}"))
    if path is not None:
        opt.print_next("predict", path, "IMAGES", "--output", "DIR")


@examples("medunet runs resume mine", "medunet runs resume 1f0c33a2 --device cuda:1")
@with_json("runs resume")
def resume(
    name: Annotated[str, typer.Argument(help="Name of a training run, or the beginning of its id.")],
    folder: Folder = RUNS,
    uri: Uri = None,
    experiment: Experiment = EXPERIMENT,
    device: opt.Device = "auto",
    trust: opt.Trust = False,
) -> None:
    """Resume an interrupted training run from its last completed epoch."""
    runs = _runs(folder, uri, experiment)
    from medunet.errors import DataError
    from medunet.runs import TrainingResult
    from medunet.runs.folds import resume_run
    from medunet.tracking import default_store, find_run, folder_of

    run = find_run(name, runs)
    path = folder_of(run, folder)
    if path is None:
        remedy = "pass its parent folder as --runs"
        raise DataError("the folder of the run is missing", file=folder, received=run.name, remedy=remedy)
    result = resume_run(path, device=device, tracking_uri=uri or default_store(folder), trust=trust)
    if isinstance(result, TrainingResult):
        show_training(result)
    else:
        show_folds(result)


@examples("medunet runs sync", "medunet runs sync runs/mine --tracking-uri https://mlflow.example.org")
@with_json("runs sync")
def sync(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, or of several runs.")] = RUNS, uri: Uri = None
) -> None:
    """Send to MLflow what it lacks because the tracking server was down or rejected the login."""
    require_path(folder)
    from medunet.tracking import sync_runs

    sent, missing = sync_runs(folder, uri)
    print_json(sent_runs=sent, unsent_runs=missing)
    opt.plain_console().print(f"{opt.count(sent, 'run')} sent, {missing} could not be sent")
    if missing:
        raise typer.Exit(opt.EXIT_SOME_FAILED)


def _facts(run: TrackedRun) -> dict[str, Any]:
    started = datetime.fromtimestamp(run.started / 1000, timezone.utc).isoformat(timespec="seconds")
    facts = {"name": run.name, "id": run.run_id, "kind": run.kind, "status": run.status.lower(), "started": started}
    return facts | {key: getattr(run, key) for key in ("seconds", "metrics", "changed")}


def _runs(folder: Path, uri: str | None, experiment: str, *, folds: bool = False) -> list[TrackedRun]:
    if not uri and not os.environ.get("MLFLOW_TRACKING_URI"):
        require_path(folder)
    from medunet.tracking import default_store, list_runs

    return list_runs(uri or default_store(folder), experiment_name=experiment, folds=folds)


app = group("List, compare and resume training runs that MLflow has tracked.", list_, compare, best, resume, sync)
