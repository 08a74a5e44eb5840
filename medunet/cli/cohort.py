"""`medunet predict` for a manifest, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

if TYPE_CHECKING:
    from medunet.deploy.cluster import CohortResult, Outcome
    from medunet.prediction import PredictOptions

EXIT_SOME_FAILED = 2
EXIT_INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells report it: 128 + SIGINT."""


class Where(str, Enum):
    """Where to run work that can be distributed."""

    ray = "ray"


def predict_many(
    bundle: Path,
    inputs: Sequence[str],
    output: Path,
    options: PredictOptions,
    *,
    query: Sequence[str],
    send_back: bool,
    **how: Any,
) -> None:
    """Predict the cases of one manifest, folder or DICOMweb store, and print a summary."""
    from medunet.deploy.cluster import DicomWebStore, predict_cohort
    from medunet.errors import ConfigError

    if len(inputs) != 1:
        raise ConfigError("a cohort must be one CSV file, folder or store", received=f"{len(inputs)} inputs")
    source: Any = Path(inputs[0])
    if inputs[0].startswith(("http://", "https://")):
        pairs = [text.partition("=") for text in query]
        if not all(key and value for key, _, value in pairs):
            raise ConfigError("--query must be KEYWORD=VALUE", received=" ".join(query), expected="such as Modality=CT")
        if send_back:
            options = replace(options, result_format="dicom-seg")
        wanted = {key: value for key, _, value in pairs}
        source = list(DicomWebStore(inputs[0]).series(wanted, send_back=send_back))
    elif query or send_back:
        raise ConfigError("--query and --send-back need the URL of a DICOMweb store", received=inputs[0])
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=None)

        def report(outcome: Outcome) -> None:
            progress.advance(task)
            if outcome.error is not None:
                console.print(f"[bold red]error[/] {escape(outcome.name)}: {escape(outcome.error)}")

        result = predict_cohort(bundle, source, output, options, report=report, **how)
    show_cohort(result, was_forced=bool(how.get("replace")))


def show_cohort(result: CohortResult, *, was_forced: bool = False) -> None:
    """Print a summary and exit with a code that tells whether all cases have results."""
    from medunet.deploy.cluster import LEDGER_NAME

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    failed = len(result.failed)
    done = len(result.outcomes) - failed
    console.print(escape(f"{done} of {result.cases} cases have results in {result.output}, {failed} failed"))
    console.print(escape(f"results of every case: {result.output / LEDGER_NAME}"))
    if result.is_interrupted:
        again = "rerun the command without --force to continue" if was_forced else "rerun the command to continue"
        console.print(f"[bold red]interrupted[/] all written files are complete; {again}")
        raise typer.Exit(EXIT_INTERRUPTED)
    if failed:
        console.print(f"rerun the command{' without --force' if was_forced else ''} to retry the failed cases")
        raise typer.Exit(EXIT_SOME_FAILED)
