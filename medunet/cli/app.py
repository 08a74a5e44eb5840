"""The command `medunet`. A command imports the library when it runs, so that `--help` is fast."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import medunet
from medunet import log
from medunet.cli import bundle, check, demo, evaluate, info, label, plan, predict, report, runs, store, train, tune
from medunet.cli.options import EXIT_BAD_INPUT, EXIT_INTERRUPTED, HELP, print_error
from medunet.errors import find_cause

# what continues an interrupted command; of the other commands nothing is left that could be continued
RESUME = {
    "train": "add --resume to the same command to continue from the last completed epoch",
    "tune": "add --resume to the same command to continue the search",
    "predict": "all written files are complete; add --skip-existing to continue",
    "plan": "rerun the same command; cases that are measured are not measured again",
    "demo": "rerun the same command to continue",
    "runs": "rerun the same command to continue from the last completed epoch",
}


class Commands(TyperGroup):
    """The commands; Ctrl-C and SIGTERM end each of them with one line that says how to continue."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; a KeyboardInterrupt with a text replaces the command's line by that text."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            how = str(stop) or RESUME.get(ctx.invoked_subcommand, "rerun the same command to start again")
            typer.echo(f"interrupted: {how}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=Commands,
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


def interrupt_on_sigterm() -> None:
    """Treat SIGTERM like Ctrl-C: job schedulers send it when the time of a job is up."""
    own = os.getpid()

    def interrupt(number: int, _: object) -> None:
        if os.getpid() == own:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)  # a forked worker inherits the handler, and ends silently
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, interrupt)


def main() -> None:
    """Run the command line; print a typed error as one line on standard error and exit with code 2."""
    interrupt_on_sigterm()
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
