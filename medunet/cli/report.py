"""`medunet report`."""

from pathlib import Path
from typing import Annotated

import typer

from medunet.cli import completion
from medunet.cli import options as opt
from medunet.cli.registry import examples
from medunet.files import require_new, require_path
from medunet.resources import find_bundle

RUNS = typer.Argument(
    metavar="RUN...", help="Runs to show; later ones are compared with the first.", autocompletion=completion.runs
)
DATA_HELP = "Data set: the one trained on, if it was moved, or another one to evaluate."
MAX_SIZE = opt.size("Maximum size of the page; the worst cases are drawn first.", default="5MB")
OUTPUT_HELP = "HTML file to write. Default: RUN/report.html, or ./report.html for several runs."


@examples(
    "medunet report runs/mine",
    "medunet report runs/mine runs/other --data TEST_DATA -o comparison.html --max-size 20MB",
)
def report(
    runs: Annotated[list[str], RUNS],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help=OUTPUT_HELP)] = None,
    data: Annotated[Path | None, typer.Option(help=DATA_HELP)] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    max_size: Annotated[int, MAX_SIZE] = 5 << 20,
    force: opt.Force = False,
    figures: Annotated[bool, typer.Option(help="Also write the figures as PNG files beside the page.")] = True,
    device: opt.Device = "auto",
) -> None:
    """Write a self-contained HTML report of runs: curves, scores, slices of every case and the configuration."""
    folders = [Path(run) for run in runs]
    for folder in folders:
        find_bundle(folder.absolute())  # by its path: a shipped bundle has nothing to report
    require_path(data)
    page = output or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    require_new(page, force=force)
    from medunet.runs import report_runs

    written = report_runs(
        folders, page, data=data, title=title, device=device, megabytes=max_size / 1e6, figures=figures
    )
    size = written.page.stat().st_size / (1 << 20)
    typer.echo(f"report: {written.page} ({written.cases} cases, {written.drawn} with slices, {size:.1f} MB)")
    if written.figures is not None:
        typer.echo(f"figures: {written.figures}")
