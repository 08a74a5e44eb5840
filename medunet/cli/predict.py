"""`medunet predict`."""

from __future__ import annotations

import contextlib
import csv
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from medunet.cli.options import (
    EXIT_INTERRUPTED,
    EXIT_SOME_FAILED,
    Device,
    Set,
    Trust,
    Where,
    plain_console,
    print_error,
    with_reading,
)
from medunet.config import parse_settings
from medunet.errors import ConfigError
from medunet.files import check_target, claim, require_path
from medunet.resources import find_bundle

if TYPE_CHECKING:
    from medunet.deploy.cluster import Outcome
    from medunet.prediction import Prediction, PredictOptions


class ResultFormat(str, Enum):
    """`medunet.io.RESULT_FORMATS`, repeated so that `--help` need not import them; a test compares the two."""

    auto = "auto"
    nifti = "nii.gz"
    seg_nrrd = "seg.nrrd"
    dicom_seg = "dicom-seg"
    rtstruct = "rtstruct"


@with_reading
def predict(
    bundle: Annotated[str, typer.Argument(help="A run, or a bundle with weights.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders or DICOM series; or one CSV file of a cohort, or the URL of a DICOMweb store."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the label maps.")],
    device: Device = "auto",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False,
    result_format: Annotated[
        ResultFormat,
        typer.Option(
            "--format",
            help="Format of the label maps. auto: that of the input, or DICOM SEG if highdicom is installed.",
        ),
    ] = ResultFormat.auto,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip cases that have results, to continue an interrupted command.")
    ] = False,
    ensemble: Annotated[
        list[str] | None,
        typer.Option(
            "--ensemble",
            metavar="RUN",
            help="Another run, such as another fold, to average class probabilities with; repeatable.",
        ),
    ] = None,
    on: Annotated[
        Where | None,
        typer.Option("--on", help="ray: distribute the cases over a Ray cluster, with one predictor per GPU."),
    ] = None,
    case_minutes: Annotated[
        float,
        typer.Option(
            "--case-minutes",
            min=0.1,
            help="With --on ray: timeout per case; a case that times out is retried on another worker.",
        ),
    ] = 60.0,
    query: Annotated[
        list[str] | None,
        typer.Option(
            "--query",
            metavar="KEYWORD=VALUE",
            help="Select series of a DICOMweb store, such as Modality=CT; repeatable.",
        ),
    ] = None,
    send_back: Annotated[bool, typer.Option("--send-back", help="Send the DICOM SEGs to the DICOMweb store.")] = False,
    isolate: Annotated[
        bool,
        typer.Option("--isolate", help="Decode untrusted images in a child process with limits of memory and time."),
    ] = False,
    deidentify: Annotated[
        bool,
        typer.Option(
            "--deidentify", help="Name cases by numbers, and de-identify DICOM results by the basic profile of PS3.15."
        ),
    ] = False,
    pseudonym_key: Annotated[
        Path | None,
        typer.Option(
            "--pseudonym-key",
            metavar="FILE",
            help="With --deidentify: derive names from the secret key in this file, always the same for a case.",
        ),
    ] = None,
    pseudonym_table: Annotated[
        Path | None,
        typer.Option(
            "--pseudonym-table",
            metavar="FILE",
            help="With --deidentify: write the name and the input of each case to this CSV file.",
        ),
    ] = None,
    benchmark: Annotated[bool, typer.Option("--benchmark", help="Print the time per stage.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print tiles, how the network is run, and tracebacks.")
    ] = False,
    settings: Set = None,
    trust: Trust = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Segment images. Each label map is named after its input and uses the data set's label values.

    A case that fails is reported, and the others continue. After Ctrl-C all files are complete, and --skip-existing
    continues. For a CSV file, a DICOMweb store or --on ray, ledger.jsonl beside the results records every case, and
    rerunning the command continues.
    """
    if verbose:
        logging.getLogger("medunet").setLevel(logging.DEBUG)
    if (pseudonym_key or pseudonym_table) and not deidentify:
        raise ConfigError("--pseudonym-key and --pseudonym-table need --deidentify")
    # PyTorch takes seconds to import, so wrong arguments are rejected before
    overrides = {**reading, **parse_settings(settings)}
    folder, members = find_bundle(bundle), [find_bundle(name) for name in ensemble or ()]
    is_url = inputs[0].startswith(("http://", "https://"))
    for path in () if is_url else inputs:
        require_path(path)
    check_target(output)
    is_cohort = on is not None or is_url or inputs[0].lower().endswith(".csv")
    if is_cohort and (deidentify or isolate):
        raise ConfigError(
            "not supported for manifests, DICOMweb stores and Ray",
            received="--deidentify" if deidentify else "--isolate",
            remedy="predict files or folders, or put pseudonyms into the column `name` of the manifest",
        )
    from medunet.datasets import list_inputs
    from medunet.io import Pseudonyms
    from medunet.prediction import PredictOptions, Predictor

    pseudonyms = Pseudonyms.from_file(pseudonym_key) if deidentify else None
    options = PredictOptions(
        device=device,
        probabilities=probabilities,
        result_format=result_format.value,
        overrides=overrides,
        ensemble=members,
        benchmark=benchmark,
        trust=trust,
        isolated=isolate or None,
        pseudonyms=pseudonyms,
    )
    if is_cohort:
        _predict_many(
            folder,
            inputs,
            output,
            options,
            query=query or (),
            send_back=send_back,
            where="here" if on is None else on.value,
            replace=force,
            case_seconds=60 * case_minutes,
        )
        return
    begun = time.perf_counter()
    predictor = Predictor(folder, options, output_dir=output, overwrite=force, skip_done=skip_existing)
    sources = list_inputs(inputs, channels=predictor.channels)
    console = plain_console(stderr=True)
    loaded = time.perf_counter()
    results: list[Prediction] = []
    interrupted = False
    # a progress bar and the lines of --verbose would overwrite each other
    silent = verbose or not console.is_terminal
    try:
        with (
            claim(output),
            Progress(console=console, transient=True, disable=silent) as progress,
            contextlib.closing(predictor.predict(sources)) as predictions,
        ):
            for result in progress.track(predictions, total=len(sources), description="predicting"):
                results.append(result)
                _print_result(result)
                if verbose and len(results) == 1:
                    for form in predictor.forms:
                        console.print(f"network {escape(str(form))}")
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - loaded
    if pseudonyms is not None and pseudonym_table is not None:
        _write_table(pseudonyms.table(), pseudonym_table)

    failed = [result for result in results if result.error is not None]
    skipped = sum(result.skipped for result in results)
    for result in failed:
        print_error(str(result.error))
    if benchmark and len(results) > skipped:
        console.print(_time_table(results, wall=seconds, loading=loaded - begun))
    least = "at least " if interrupted else ""  # the file that was being written at Ctrl-C is finished, not reported
    done = f"{least}{len(results) - len(failed) - skipped} of {len(sources)} written to {output} in {seconds:.1f} s"
    console.print(escape(done + (f", {skipped} were there already" if skipped else "")))
    if interrupted:
        console.print("[bold red]interrupted[/] all written files are complete; add --skip-existing to continue")
        raise typer.Exit(EXIT_INTERRUPTED)
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _predict_many(
    bundle: Path,
    inputs: Sequence[str],
    output: Path,
    options: PredictOptions,
    *,
    query: Sequence[str],
    send_back: bool,
    **how: Any,
) -> None:
    """Predict the cases of one manifest, folder or DICOMweb store; the exit code tells whether all have results."""
    from medunet.deploy.cluster import LEDGER_NAME, DicomWebStore, predict_cohort

    if len(inputs) != 1:
        raise ConfigError("a cohort must be one CSV file, folder or store", received=f"{len(inputs)} inputs")
    source: Any = Path(inputs[0])
    if inputs[0].startswith(("http://", "https://")):
        pairs = [text.partition("=") for text in query]
        if not all(key and value for key, _, value in pairs):
            raise ConfigError("--query must be KEYWORD=VALUE", received=" ".join(query), expected="such as Modality=CT")
        if send_back:
            options = replace(options, result_format="dicom-seg")
        selected = {key: value for key, _, value in pairs}
        source = list(DicomWebStore(inputs[0]).series(selected, send_back=send_back))
    elif query or send_back:
        raise ConfigError("--query and --send-back need the URL of a DICOMweb store", received=inputs[0])
    console = plain_console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=None)

        def report(outcome: Outcome) -> None:
            progress.advance(task)
            if outcome.error is not None:
                console.print(f"[bold red]error[/] {escape(outcome.name)}: {escape(outcome.error)}")

        result = predict_cohort(bundle, source, output, options, report=report, **how)
    failed = len(result.failed)
    done = len(result.outcomes) - failed
    console.print(escape(f"{done} of {result.cases} cases have results in {result.output}, {failed} failed"))
    console.print(escape(f"results of every case: {result.output / LEDGER_NAME}"))
    again = "rerun the command without --force" if how["replace"] else "rerun the command"
    if result.is_interrupted:
        console.print(f"[bold red]interrupted[/] all written files are complete; {again} to continue")
        raise typer.Exit(EXIT_INTERRUPTED)
    if failed:
        console.print(f"{again} to retry the failed cases")
        raise typer.Exit(EXIT_SOME_FAILED)


def _write_table(rows: list[tuple[str, str]], path: Path) -> None:
    """Write a table that only its owner may read."""
    from medunet.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("case", "input"), *rows])


def _print_result(result: Prediction) -> None:
    if result.error is None:
        what = "there already" if result.skipped else f"{result.seconds:.1f} s"
        typer.echo(f"{result.path}  {what}")


def _time_table(results: list[Prediction], *, wall: float, loading: float) -> Table:
    """Return the time per stage. Stages of different cases overlap, so the shares may exceed 100 % in total."""
    from medunet.prediction import STAGES

    cases = sum(not result.skipped for result in results)
    table = Table("stage", title=f"{cases} cases in {wall:.2f} s: {cases / wall:.2f} cases/s", title_justify="left")
    for name in ("seconds", "ms per case", "share of wall"):
        table.add_column(name, justify="right")
    total = {stage: sum(getattr(result.stages, stage) for result in results) for stage in STAGES}
    for stage, seconds in total.items():
        table.add_row(stage, f"{seconds:.2f}", f"{1000 * seconds / cases:.1f}", f"{seconds / wall:.0%}")
    table.add_section()
    work = sum(total.values())
    table.add_row("all stages", f"{work:.2f}", f"{1000 * work / cases:.1f}", f"{work / wall:.0%}")
    table.add_row("loading, once", f"{loading:.2f}", "", "")
    return table
