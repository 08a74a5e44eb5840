"""The command `medunet`. A command imports the library when it runs, so that `--help` is fast."""

import os
import signal
import sys
from typing import Annotated, Any

import typer

import medunet
from medunet.cli import (
    bundle,
    cache,
    check,
    demo,
    evaluate,
    info,
    label,
    listen,
    measure,
    plan,
    predict,
    report,
    runs,
    train,
    tune,
)
from medunet.cli.options import EXIT_BAD_INPUT, EXIT_INTERNAL, TERMINAL, Terminal, print_error
from medunet.cli.registry import add, group
from medunet.errors import find_cause, first_lines

TITLE = "U-Nets for medical images, as MONAI bundles."

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's UsageError, from typer's own copy of click


def _show_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"medunet {medunet.__version__}")
        raise typer.Exit


VERSION = typer.Option("--version", callback=_show_version, is_eager=True, metavar="", help="Print the version.")
STEPS = (demo.demo, check.check, plan.plan, train.train, tune.tune, predict.predict, measure.measure)
app = group(TITLE, *STEPS, evaluate.evaluate, report.report, version=Annotated[bool, VERSION])
app.add_typer(runs.app, name="runs")
app.add_typer(bundle.app, name="bundle")
app.add_typer(label.app, name="label")
add(app, listen.listen)
add(app, cache.cache)
add(app, info.get)
add(app, info.list_bundles, "list")
add(app, info.info)


def main() -> None:
    """Run the command line; print an error as one line on standard error and exit with its code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # job schedulers send it when the time of a job is up
    if hasattr(os, "register_at_fork"):  # forked workers end silently
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if "OMP_WAIT_POLICY" not in os.environ:  # torch reads it; threads that spin longer stall where a core is shared
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    vars(TERMINAL).update(vars(Terminal()))
    try:
        sys.exit(app(prog_name="medunet", standalone_mode=False))
    except Exception as error:
        if TERMINAL.debug:
            raise
        code, text = _describe(error)
        if text:
            print_error(text)
        sys.exit(code)


def _describe(error: Exception) -> tuple[int, str]:
    """Return the exit code of an error and its line."""
    if isinstance(error, _USAGE_ERROR):
        path = error.ctx.command_path if error.ctx is not None else "medunet"
        text = " ".join(error.format_message().split())
        is_help = type(error).__name__ == "NoArgsIsHelpError"  # typer has printed the help page
        return EXIT_BAD_INPUT, "" if is_help else f"{text.rstrip('.')}; remedy: see `{path} --help`"
    if (cause := find_cause(error)) is not None:
        return EXIT_BAD_INPUT, str(cause)
    remedy = "repeat with --debug, and report the traceback with the output of `medunet info`"
    return EXIT_INTERNAL, f"internal error: {type(error).__name__}: {first_lines(error)}; remedy: {remedy}"
