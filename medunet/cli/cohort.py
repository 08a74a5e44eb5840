"""`medunet predict` of a manifest, here or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

if TYPE_CHECKING:
    from medunet.deploy.cluster import CohortResult, Outcome

EXIT_SOME_FAILED = 2
EXIT_INTERRUPTED = 130
"""As shells report a command that Ctrl-C ended: 128 + SIGINT."""


class Where(str, Enum):
    """Where work is done that can be shared out."""

    ray = "ray"


def predict_many(
    bundle: Path, inputs: Sequence[str], output: Path, *, query: Sequence[str], send_back: bool, **options: Any
) -> None:
    """Predict the cases of one manifest, folder or DICOMweb store, and say what became of them."""
    from medunet.deploy.cluster import DicomWebStore, predict_cohort
    from medunet.errors import ConfigError

    if len(inputs) != 1:
        raise ConfigError("a cohort is one CSV, folder or store", received=len(inputs), remedy="list images in a CSV")
    source: Any = Path(inputs[0])
    if inputs[0].startswith(("http://", "https://")):
        pairs = [text.partition("=") for text in query]
        if not all(key and value for key, _, value in pairs):
            raise ConfigError("--query takes KEYWORD=VALUE", received=" ".join(query), expected="such as Modality=CT")
        if send_back:
            options["result_format"] = "dicom-seg"
        wanted = {key: value for key, _, value in pairs}
        source = list(DicomWebStore(inputs[0]).series(wanted, send_back=send_back))
    elif query or send_back:
        raise ConfigError("--query and --send-back are for a DICOMweb store", received=inputs[0])
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=None)

        def report(outcome: Outcome) -> None:
            progress.advance(task)
            if outcome.error is not None:
                console.print(f"[bold red]error[/] {escape(outcome.name)}: {escape(outcome.error)}")

        result = predict_cohort(bundle, source, output, report=report, **options)
    show_cohort(result, was_forced=bool(options.get("replace")))


def show_cohort(result: CohortResult, *, was_forced: bool = False) -> None:
    """Print what was done; the exit code tells whether that is all."""
    from medunet.deploy.cluster import LEDGER_NAME

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    failed = len(result.failed)
    done = len(result.outcomes) - failed
    console.print(escape(f"{done} of {result.cases} cases have results in {result.output}, {failed} failed"))
    console.print(escape(f"every case: {result.output / LEDGER_NAME}"))
    if result.is_interrupted:
        again = "the same command without --force goes on" if was_forced else "the same command goes on"
        console.print(f"[bold red]stopped[/] what is written is whole; {again}")
        raise typer.Exit(EXIT_INTERRUPTED)
    if failed:
        console.print(f"the same command{' without --force' if was_forced else ''} tries again what failed")
        raise typer.Exit(EXIT_SOME_FAILED)
