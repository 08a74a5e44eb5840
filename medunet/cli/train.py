"""`medunet train`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medunet.cli import completion
from medunet.cli import options as opt
from medunet.cli.output import print_json, with_json
from medunet.cli.plan import Dims
from medunet.cli.registry import examples
from medunet.config import parse_settings
from medunet.errors import ConfigError
from medunet.files import check_target, reject_other_files, require_path
from medunet.resources import find_bundle, find_run

if TYPE_CHECKING:
    from medunet.runs import CrossValidation, TrainingResult

RERUN = "rerun the same command to continue from the last completed epoch"
FOLD_HELP = "Fold that is held out for validation, counted from 0. Default: 0."
INIT_HELP = "Start from the weights of another run."
INIT_FROM = typer.Option(metavar="RUN", help=INIT_HELP, autocompletion=completion.runs)
RDZV_HELP = "Rendezvous HOST:PORT on one of the hosts."
FOLDS_HELP = "Train these folds, evaluate each case with the fold that held it out, and join them to an ensemble."
BUNDLE_HELP = f"{opt.BUNDLE_HELP} Default: plan one into DATA_plan beside the run, once."
BUNDLE = typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP, autocompletion=completion.bundles)
TIME = opt.duration("Without BUNDLE: time that training may take, such as 30min or 4h.")
MEMORY = opt.size("Without BUNDLE: memory that training may use, such as 8GB. Default: the free memory.")
DIMS_HELP = "Without BUNDLE: dimensions of the network. auto: those of the images; 2: slice by slice, also for volumes."
OUTPUT_HELP = "Folder of the run. Default: runs/BUNDLE_DATA_foldK, or runs/DATA_foldK without BUNDLE."
RESUME_HELP = "Continue the run in --output from its last completed epoch; --folds always does."


@examples(
    "medunet train --data DATA --time 4h",
    "medunet train unet_3d --data DATA -o runs/mine --epochs 100",
    "medunet train my_bundle --data DATA --folds all --preset sgd_poly",
)
@with_json("train")
def train(
    bundle: Annotated[str | None, BUNDLE] = None,
    *,
    data: opt.TrainingData,
    time: Annotated[float | None, TIME] = None,
    memory: Annotated[int | None, MEMORY] = None,
    dims: Annotated[Dims, typer.Option(help=DIMS_HELP)] = "auto",
    fold: Annotated[int | None, typer.Option(help=FOLD_HELP)] = None,
    folds: Annotated[str | None, typer.Option(metavar="all|K,K", help=FOLDS_HELP)] = None,
    epochs: opt.Epochs = None,
    device: opt.Device = "auto",
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP)] = None,
    init_from: Annotated[Path | None, INIT_FROM] = None,
    resume: Annotated[bool, typer.Option("--resume", help=RESUME_HELP)] = False,
    preset: opt.Preset = None,
    tracking_uri: opt.TrackingUri = None,
    no_tracking: opt.NoTracking = False,
    nproc: Annotated[int | None, typer.Option(help="Number of processes on this host, one per GPU (torchrun).")] = None,
    nnodes: Annotated[int, typer.Option(help="Number of hosts; run the same command on each of them.")] = 1,
    rdzv_endpoint: Annotated[str | None, typer.Option(metavar="HOST:PORT", help=RDZV_HELP)] = None,
    on: Annotated[opt.Where | None, typer.Option(help="ray: train the folds in parallel on a Ray cluster.")] = None,
    settings: opt.Set = None,
    trust: opt.Trust = False,
    skip_bad: opt.SkipBad = False,
    split: opt.Split = None,
    group_by: opt.GroupBy = None,
    dry_run: opt.DryRun = False,
) -> None:
    """Train a bundle on labelled images. The folder of the run is a bundle itself.

    Without BUNDLE, a bundle is planned first, like `medunet plan` does. A repeated command reuses the plan.
    """
    source = None if bundle is None else find_bundle(bundle)
    if source is not None and (time is not None or memory is not None or dims != "auto"):
        raise ConfigError("--time, --memory and --dims are for a plan, and a bundle is given", received=bundle)
    if source is None and nnodes > 1:
        raise ConfigError("several hosts need a bundle", received="no BUNDLE", remedy="run `medunet plan` first")
    init_from = None if init_from is None else find_run(init_from)
    require_path(data, None if resume else init_from)  # only the first step needs `init_from`
    opt.check_grouping(split, group_by)
    changes = parse_settings(settings)
    if epochs is not None:
        changes["epochs"] = epochs
    if init_from is not None:
        changes["init_from"] = str(init_from.resolve())
    if fold is not None and folds is not None:
        raise ConfigError("--fold and --folds exclude each other")
    fold = fold or 0
    is_single, is_launched = folds is None, nproc is not None or nnodes > 1
    if is_launched and not is_single:
        raise ConfigError("--nproc and --nnodes train one fold", received="--folds", remedy="pass --fold K")
    if on is not None and is_single:
        raise ConfigError("--on ray needs --folds")
    selected = _parse_folds(folds)
    data_name = data.resolve().parent.name if data.is_file() else data.resolve().name
    parts = [] if source is None else [source.resolve().name]
    output = output or Path("runs") / "_".join([*parts, data_name, f"fold{fold}" if is_single else "folds"])
    reject_other_files(output, own="configs" if is_single else "fold_*")
    if nnodes == 1:  # several hosts share the folder: the first process checks it
        check_target(output)
    if no_tracking or tracking_uri is not None or "tracking_uri" not in changes:
        tracking_uri = opt.tracking(tracking_uri, output.parent, is_off=no_tracking)
    from medunet.runs import train_bundle, train_folds

    asked: dict[str, Any] = {"dims": None if dims == "auto" else int(dims), "memory": memory, "seconds": time}
    asked |= {"device": device, "skip_bad": skip_bad}
    options: dict[str, Any] = {"presets": preset or (), "device": device, "trust": trust, "skip_bad": skip_bad}
    options |= {"split": split, "group_by": group_by}
    if dry_run:
        options |= {"changes": {"fold": fold, **changes}, "folds": None if is_single else selected or []}
        with TemporaryDirectory(prefix="medunet-") as temporary:
            source = source or _plan(data, output, temporary=Path(temporary), **asked)
            _show_preview(source, data, output, resume=resume, **options)
        return
    source = source or _plan(data, output, **asked)
    options["tracking_uri"] = tracking_uri
    if not is_single:
        if on is not None:
            from medunet.deploy.cluster import folds_on_ray

            options["trainer"] = folds_on_ray
        show_folds(train_folds(source, data, output, folds=selected, changes=changes, **options))
        return
    options |= {"changes": {"fold": fold, **changes}, "resume": resume}
    result: TrainingResult | None
    if is_launched:
        from medunet.deploy.cluster import train_processes

        options |= {"processes": nproc or 1, "hosts": nnodes, "endpoint": rdzv_endpoint}
        result = train_processes(source, data, output, **options)
    else:
        result = train_bundle(source, data, output, **options)
    if result is not None:  # otherwise another host writes and prints the result
        show_training(result)


def _plan(data: Path, output: Path, *, temporary: Path | None = None, **asked: Any) -> Path:
    """Return the plan beside a run. Unless it exists, it is made now, for a dry run in a temporary folder."""
    from medunet.bundle import plan_beside, plan_once
    from medunet.planning import default_cache

    folder = plan_beside(output, data)
    console = opt.plain_console(stderr=True)
    shown = escape(str(folder))
    if not folder.exists():
        console.print(f"planning {shown}")
        folder = folder if temporary is None else temporary / folder.name
    if not plan_once(data, folder, cache=default_cache(), **asked):
        console.print(f"using the plan {shown}")
    return folder


def _show_preview(*paths: Path, **options: Any) -> None:
    """Print what a training run would do."""
    from medunet.runs import preview_training

    result = preview_training(*paths, **options)
    cases = [{"fold": fold, "training": t, "validation": v} for fold, (t, v) in result.cases.items()]
    print_json(**{**vars(result), "cases": cases})
    for fold, (training, validation) in result.cases.items():
        typer.echo(f"fold {fold}: {opt.count(training, 'case')} for training, {validation} for validation")
    if result.left_out:
        typer.echo(f"left out: {', '.join(result.left_out)}")
    patches = f"batches of {result.batch_size} patches of {' x '.join(map(str, result.patch_size))}"
    typer.echo(f"steps: {result.epochs} epochs of {result.steps_per_epoch}, {patches}")
    typer.echo(f"device: {result.device}")
    for name, value in (("memory", result.memory), ("time", result.time)):
        if value is not None:
            typer.echo(f"{name}: {value} according to the plan")
    typer.echo(f"nothing was written; the run would be {result.output}")


def _parse_folds(text: str | None) -> list[int] | None:
    if text in (None, "all"):
        return None
    try:
        return [int(word) for word in str(text).split(",")]
    except ValueError as error:
        raise ConfigError("--folds must be all or numbers", received=text, expected="such as --folds 0,2") from error


def show_training(result: TrainingResult) -> None:
    """Print the result of a training run."""
    from medunet.datasets import shown

    kept = {"kept_epoch": result.kept_epoch, "validation_dice": result.kept_dice}
    print_json(run=result.run, epochs=result.epochs, best_epoch=result.best_epoch, **kept, left_out=result.left_out)
    if result.kept_dice:
        why = "the best validation"
        if result.kept_epoch != result.best_epoch:
            why = f"the last validation (keep_epoch: last); epoch {result.best_epoch} has the best"
        title = f"kept: epoch {result.kept_epoch} of {result.epochs}, {why}"
        table = Table("class", "validation Dice", title=title)
        for name, value in result.kept_dice.items():
            table.add_row(name, f"{value:.4f}")
        Console().print(table)
    if result.left_out:
        opt.plain_console(stderr=True).print(
            f"[yellow]{len(result.left_out)} left out[/] {escape(shown(result.left_out))}"
        )
    typer.echo(f"run: {result.run}")
    opt.print_next("predict", result.run, "IMAGES", "--output", "DIR")


def show_folds(result: CrossValidation) -> None:
    """Print the result of a cross-validation; the exit code tells whether it is complete."""
    from medunet.runs.ensemble import describe_rule

    summary = result.postprocessed or result.summary
    print_json(
        ensemble=result.output if summary else None,
        folds=[vars(outcome) for outcome in result.folds],
        mean_dice=summary and summary["mean_dice"],
        failed_cases=result.failed_cases,
        interrupted=result.is_interrupted,
    )
    for outcome in result.folds:
        typer.echo(f"fold {outcome.fold}: {outcome.status}" + (f", {outcome.seconds:.0f} s" if outcome.seconds else ""))
    if summary is not None and result.summary is not None:
        table = Table(
            "class", "Dice", "with post-processing", title=f"out of fold, {opt.count(result.summary['cases'], 'case')}"
        )
        for rule in result.rules:
            after = f"{rule.dice_after:.4f} ({describe_rule(rule)})" if rule.is_kept else "none used"
            table.add_row(rule.name, f"{rule.dice_before:.4f}", after)
        opt.plain_console().print(table)
        typer.echo(f"mean Dice of the classes: {summary['mean_dice']:.4f}")
        typer.echo(f"ensemble: {result.output}")
        opt.print_next("predict", result.output, "IMAGES", "--output", "DIR")
    errors = {f"fold {outcome.fold}": outcome.error for outcome in result.folds if outcome.error is not None}
    for name, text in {**errors, **result.failed_cases}.items():
        opt.print_error(text, name=name)
    if result.is_interrupted:
        raise KeyboardInterrupt(RERUN)
    if not result.is_whole:
        typer.echo("rerun the command to retry what failed; finished folds are kept", err=True)
        raise typer.Exit(opt.EXIT_SOME_FAILED)
