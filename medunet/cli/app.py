"""The command `medunet`. A command imports the library when it runs, so that `--help` is fast."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import medunet
from medunet import log
from medunet.cli import bundle, check, demo, evaluate, info, label, plan, predict, report, runs, store, train, tune
from medunet.cli.options import EXIT_BAD_INPUT, HELP, print_error
from medunet.errors import find_cause

app = typer.Typer(
    name="medunet",
    help="U-Nets for medical images, as MONAI bundles.",
    no_args_is_help=True,
    context_settings=HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(name="demo")(demo.demo)
app.command(name="check")(check.check)
app.command(name="plan")(plan.plan)
app.command(name="train")(train.train)
app.command(name="tune")(tune.tune)
app.command(name="predict")(predict.predict)
app.command(name="evaluate")(evaluate.evaluate)
app.command(name="report")(report.report)
app.add_typer(runs.app, name="runs")
app.command(name="store")(store.store)
app.command(name="label")(label.label)
app.add_typer(bundle.app, name="bundle")
app.command(name="list")(info.list_bundles)
app.command(name="info")(info.info)


def _show_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"medunet {medunet.__version__}")
        raise typer.Exit


VERSION = typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, VERSION] = False,
) -> None:
    """U-Nets for medical images, as MONAI bundles."""


def main() -> None:
    """Run the command line; print a typed error as one line on standard error and exit with code 2."""
    # users append --debug to the command that failed, so it is accepted anywhere
    debug = "--debug" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    log.set_up(debug=debug)
    try:
        app(args=arguments)
    except Exception as error:
        cause = find_cause(error)
        if debug or cause is None:
            raise
        print_error(str(cause))
        sys.exit(EXIT_BAD_INPUT)
