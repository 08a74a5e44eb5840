"""`medunet plan`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medunet.cli import options as opt
from medunet.cli.output import print_json, with_json
from medunet.cli.registry import examples
from medunet.errors import ConfigError
from medunet.files import check_target, reject_other_files, require_path

Dims = Literal["auto", "2", "3"]
JOBS_HELP = "Cases to measure simultaneously, each in memory. Default: as many as fit."
DIMS_HELP = "Dimensions of the network. auto: those of the images; 2: slice by slice, also for volumes."
MEMORY = opt.size("Memory that training may use, such as 8GB. Default: the free memory.")
TIME = opt.duration("Time that training may take, such as 30min or 4h.")
ESTIMATE_HELP = "Skip the trial training step: estimate memory and keep the default number of epochs."


@examples(
    "medunet plan DATA -o my_bundle --time 4h", "medunet plan DATA -o my_bundle --memory 8GB --dims 2 --device cuda:0"
)
@with_json("plan")
def plan(
    data: opt.DataFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.")],
    dims: Annotated[Dims, typer.Option(help=DIMS_HELP)] = "auto",
    memory: Annotated[int | None, MEMORY] = None,
    time: Annotated[float | None, TIME] = None,
    device: opt.Device = "auto",
    estimate: Annotated[bool, typer.Option("--estimate", help=ESTIMATE_HELP)] = False,
    instances: opt.Instances = False,
    skip_bad: opt.SkipBad = False,
    split: opt.Split = None,
    group_by: opt.GroupBy = None,
    force: opt.Force = False,
    jobs: Annotated[int | None, typer.Option(help=JOBS_HELP)] = None,
    dry_run: opt.DryRun = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Measure a data set and create a bundle that fits it, the machine and the time; its docs explain every value."""
    if time is not None and estimate:
        raise ConfigError("a time cannot be planned without measuring a step", received="--time and --estimate")
    require_path(data)
    opt.check_grouping(split, group_by)
    reject_other_files(output, own="configs/train.json")
    check_target(output)
    from medunet.bundle import plan_bundle, show
    from medunet.datasets import shown
    from medunet.io import ReadOptions
    from medunet.planning import default_cache, spell_time

    console, errors = Console(), opt.plain_console(stderr=True)
    with opt.progress_bar(errors) as update:
        result = plan_bundle(
            data,
            output,
            dims=None if dims == "auto" else int(dims),
            memory=memory,
            seconds=time,
            device=device,
            measure=not estimate,
            jobs=jobs,
            instances=instances,
            skip_bad=skip_bad,
            force=force,
            split=split,
            group_by=group_by,
            write=not dry_run,
            read=ReadOptions(**reading),
            cache=default_cache(),
            started=lambda total: update(total=total, description="measuring cases"),
            done=lambda: update(advance=1),
            measured=lambda: update(description="trying a training step"),
        )
    fingerprint = result.plan.fingerprint
    print_json(
        bundle=output,
        cases=len(fingerprint.cases),
        left_out=result.left_out,
        training_seconds=result.plan.seconds,
        decisions=[vars(decision) for decision in (*result.plan.decisions, *result.plan.notes)],
    )
    table = Table(title=escape(f"{fingerprint.name}: {len(fingerprint.cases)} cases"))
    table.add_column("id", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("reason")
    for decision in (*result.plan.decisions, *result.plan.notes):
        numbers = f"\n[dim]{escape(decision.numbers)}[/]" if decision.numbers else ""
        table.add_row(escape(decision.id), escape(show(decision.value)), escape(decision.reason) + numbers)
    console.print(table)
    if result.left_out:
        listed = shown([f"{name}: {cause}" for name, cause in result.left_out.items()], separator="; ")
        errors.print(f"[yellow]{len(result.left_out)} left out[/] {escape(listed)}")
    if result.plan.seconds is not None:
        console.print(f"training will take about {spell_time(result.plan.seconds)}", highlight=False)
    if dry_run:
        typer.echo(f"nothing was written; the bundle would be {output}")
        return
    typer.echo(f"bundle: {output}")
    opt.print_next("train", output, "--data", data)
