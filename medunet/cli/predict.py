"""`medunet predict`."""

from __future__ import annotations

import contextlib
import csv
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from medunet.cli import completion
from medunet.cli import options as opt
from medunet.cli.output import at_end, document_text, print_json, with_json
from medunet.cli.registry import examples
from medunet.config import parse_settings
from medunet.errors import ConfigError
from medunet.files import atomic_path, check_target, claim, require_new, require_path, write_atomically
from medunet.resources import find_bundle

if TYPE_CHECKING:
    from medunet.deploy.cluster import Outcome
    from medunet.prediction import Manifest, Prediction, PredictOptions

ON_HELP = "ray: distribute the cases over a Ray cluster, one worker per GPU."
INPUTS_HELP = "Images, folders or DICOM series; or one CSV file of a cohort, or the URL of a DICOMweb store."
FORMAT_HELP = "Format of the label maps. auto: that of the input, or DICOM SEG if highdicom is installed."
OBJECTS_HELP = "For numbered objects: also write their outlines for QuPath (geojson) or ImageJ (imagej); repeatable."
MEASURE_HELP = "Also measure each structure, as `medunet measure` does."
REVIEW_HELP = "Also estimate the Dice of each result and flag what training never had: review.json, .csv and .html."
NOT_CALIBRATED = "the run is not calibrated; calibrate it by `medunet evaluate RUN --data DATA --calibrate`"
BELOW_HELP = "With --review: exit with code 3 if the expected Dice of a class is below this value."
SKIP_HELP = "Skip cases that have results, to continue an interrupted command."
ENSEMBLE_HELP = "Another run, such as another fold, to average class probabilities with; repeatable."
ENSEMBLE = typer.Option(metavar="RUN", help=ENSEMBLE_HELP, autocompletion=completion.runs)
TIMEOUT_HELP = "With --on ray: timeout per case; a case that times out is retried on another worker."
TIMEOUT = opt.duration(TIMEOUT_HELP, default="60min")
QUERY_HELP = "Select series of a DICOMweb store, such as Modality=CT; repeatable."
ISOLATE_HELP = "Decode untrusted images in a child process with limits of memory and time."
DEIDENTIFY_HELP = "Name cases by numbers, and de-identify DICOM results by the basic profile of PS3.15."
KEY_HELP = "With --deidentify: derive names from the secret key in this file, always the same for a case."
MANIFEST_HELP = "Write a JSON record for an audit: software, model, device, settings, digests of inputs and results."
TABLE_HELP = "With --deidentify: write the name and the input of each case to this CSV file."


# `medunet.io.ResultFormat`, repeated because `--help` does not import the library; a test compares the two
ResultFormat = Literal["auto", "nii.gz", "seg.nrrd", "dicom-seg", "rtstruct"]


class ObjectFormat(str, Enum):  # typer has no lists of literals
    """Formats of outlines of objects."""

    geojson = "geojson"
    imagej = "imagej"


@examples(
    "medunet predict runs/mine scan.nii.gz -o results",
    "medunet predict runs/mine IMAGES -o results --manifest results/manifest.json",
    "medunet predict runs/mine IMAGES -o results --format dicom-seg --skip-existing",
)
@with_json("predict")
def predict(
    bundle: opt.Trained,
    inputs: Annotated[list[str], typer.Argument(help=INPUTS_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the label maps.")],
    device: opt.Device = "auto",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False,
    result_format: Annotated[ResultFormat, typer.Option("--format", help=FORMAT_HELP)] = "auto",
    tta: opt.Tta = None,
    objects: Annotated[list[ObjectFormat] | None, typer.Option(metavar="FORMAT", help=OBJECTS_HELP)] = None,
    measure: Annotated[bool, typer.Option("--measure", help=MEASURE_HELP)] = False,
    review: Annotated[bool, typer.Option("--review", help=REVIEW_HELP)] = False,
    review_below: Annotated[float | None, typer.Option(min=0, max=1, metavar="DICE", help=BELOW_HELP)] = None,
    force: opt.Force = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help=SKIP_HELP)] = False,
    ensemble: Annotated[list[str] | None, ENSEMBLE] = None,
    on: Annotated[opt.Where | None, typer.Option(help=ON_HELP)] = None,
    case_timeout: Annotated[float, TIMEOUT] = 3600.0,
    query: Annotated[list[str] | None, typer.Option(metavar="KEYWORD=VALUE", help=QUERY_HELP)] = None,
    send_back: Annotated[bool, typer.Option("--send-back", help="Send the DICOM SEGs to the DICOMweb store.")] = False,
    isolate: Annotated[bool, typer.Option("--isolate", help=ISOLATE_HELP)] = False,
    deidentify: Annotated[bool, typer.Option("--deidentify", help=DEIDENTIFY_HELP)] = False,
    pseudonym_key: Annotated[Path | None, typer.Option(metavar="FILE", help=KEY_HELP)] = None,
    pseudonym_table: Annotated[Path | None, typer.Option(metavar="FILE", help=TABLE_HELP)] = None,
    manifest: Annotated[Path | None, typer.Option(metavar="FILE", help=MANIFEST_HELP)] = None,
    benchmark: Annotated[bool, typer.Option("--benchmark", help="Print the time per stage.")] = False,
    settings: opt.Set = None,
    trust: opt.Trust = False,
    dry_run: opt.DryRun = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Segment images. Each label map is named after its input and uses the data set's label values.

    A case that fails is reported, and the others continue. After Ctrl-C all files are complete, and --skip-existing
    continues. For a CSV file, a DICOMweb store or --on ray, ledger.jsonl beside the results records every case, and
    rerunning the command continues.
    """
    if force and skip_existing:
        raise ConfigError("--force and --skip-existing exclude each other")
    if (pseudonym_key or pseudonym_table) and not deidentify:
        raise ConfigError("--pseudonym-key and --pseudonym-table need --deidentify")
    if review_below is not None and not review:
        raise ConfigError("--review-below needs --review")
    # PyTorch takes seconds to import, so wrong arguments are rejected before
    overrides = {**reading, **parse_settings(settings)}
    folder, members = find_bundle(bundle), [find_bundle(name) for name in ensemble or ()]
    is_url = inputs[0].startswith(("http://", "https://"))
    require_new(pseudonym_table, force=force or skip_existing)
    require_path(pseudonym_key, *(() if is_url else inputs))
    require_new(manifest, force=force)
    if not dry_run:
        check_target(output)
        if manifest is not None:
            check_target(manifest.parent)
    is_cohort = on is not None or is_url or inputs[0].lower().endswith(".csv")
    if is_cohort and (deidentify or isolate):
        received = "--deidentify" if deidentify else "--isolate"
        remedy = "predict files or folders, or put pseudonyms into the column `name` of the cohort file"
        raise ConfigError("not supported for cohort files, DICOMweb stores and Ray", received=received, remedy=remedy)
    _import_monai()
    from medunet.datasets import list_inputs
    from medunet.io import Pseudonyms
    from medunet.prediction import Manifest, PredictOptions, Predictor

    pseudonyms = Pseudonyms.from_file(pseudonym_key) if deidentify else None
    options = PredictOptions(
        device=device,
        probabilities=probabilities,
        result_format=result_format,
        tta=tta,
        objects=[kind.value for kind in objects or ()],
        measure=measure,
        review=review,
        overrides=overrides,
        ensemble=members,
        benchmark=benchmark,
        trust=trust,
        isolated=isolate or None,
        digests=manifest is not None,
        pseudonyms=pseudonyms,
    )
    if dry_run:
        if is_url:
            raise ConfigError("--dry-run is not supported for DICOMweb stores", received=inputs[0])
        _show_preview(folder, inputs, replace(options, output_dir=output, overwrite=force, skip_done=skip_existing))
        return
    record = Manifest(folder, replace(options, output_dir=output), is_local=on is None)
    if is_cohort:
        cluster: dict[str, Any] = {"where": on or "here", "case_seconds": case_timeout, "replace": force}
        at_end(lambda code: _publish(record, manifest, code))
        _predict_cohort(
            folder,
            inputs,
            output,
            options,
            record,
            query=query or (),
            send_back=send_back,
            below=review_below,
            **cluster,
        )
        return
    begun = time.perf_counter()
    predictor = Predictor(folder, options, output_dir=output, overwrite=force, skip_done=skip_existing)
    sources = list_inputs(inputs, channels=predictor.channels)
    console = opt.plain_console(stderr=True)
    loaded = time.perf_counter()
    results: list[Prediction] = []
    record.requested, record.networks = len(sources), predictor.forms
    at_end(lambda code: _publish(record, manifest, code, results))
    interrupted = False
    # a progress bar and the lines of --verbose would overwrite each other
    silent = opt.TERMINAL.verbose or opt.TERMINAL.quiet or not console.is_terminal
    try:
        with (
            claim(output),
            Progress(console=console, transient=True, disable=silent) as progress,
            contextlib.closing(predictor.predict(sources, done=results.append)) as predictions,
        ):
            for result in progress.track(predictions, total=len(sources), description="predicting"):
                if result.error is None:
                    typer.echo(f"{result.path}  {'there already' if result.skipped else f'{result.seconds:.1f} s'}")
                if opt.TERMINAL.verbose and result is results[0]:
                    for form in predictor.forms:
                        console.print(f"network {escape(str(form))}")
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - loaded
    doubtful = _write_tables(output, results, predictor.structures, review_below)
    if pseudonyms is not None and pseudonym_table is not None:
        with atomic_path(pseudonym_table) as temporary:
            temporary.touch(mode=0o600)  # only its owner may read it
            with temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("case", "input"), *pseudonyms.table()])

    failed = [result for result in results if result.error is not None]
    skipped = sum(result.skipped for result in results)
    for result in failed:
        opt.print_error(str(result.error))
    if benchmark and len(results) > skipped:
        console.print(_time_table(results, wall=seconds, loading=loaded - begun))
    done = f"{len(results) - len(failed) - skipped} of {len(sources)} written to {output} in {seconds:.1f} s"
    console.print(escape(done + (f", {skipped} were there already" if skipped else "")))
    if interrupted:
        raise KeyboardInterrupt
    if failed or doubtful:
        raise typer.Exit(opt.EXIT_SOME_FAILED)


def _import_monai() -> None:
    """Import MONAI without what only its training and pictures need: predictions start sooner, in less memory."""
    absent = {"matplotlib", "mlflow", "pandas", "sklearn"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: not installed
    import monai  # noqa: F401

    for name in absent:
        del sys.modules[name]


def _write_tables(output: Path, results: Sequence[Prediction], structures: Any, below: float | None) -> int:
    """Write the measurements and reviews, and return the number of cases whose expected Dice is below the limit."""
    if rows := [row for result in results for row in result.measurements]:
        from medunet.runs.measure import add_measurements

        add_measurements(output, rows)
    reviews = [result.review for result in results if result.review is not None]
    doubtful = sum(below is not None and one.is_below(below) for one in reviews)
    if reviews:
        from medunet.runs.review import write_reviews

        console = opt.plain_console(stderr=True)
        page = write_reviews(output, results, structures)
        if not reviews[0].is_calibrated:
            console.print(f"[yellow]warning[/] {NOT_CALIBRATED}")
        count = f"reviewed {len(reviews)}, {sum(bool(one.flags) for one in reviews)} flagged"
        count += "" if below is None else f", {doubtful} below {below:g}"
        console.print(escape(f"{count}: {page}"))
    return doubtful


def _show_preview(bundle: Path, inputs: Sequence[str], options: PredictOptions) -> None:
    """Print the result of each case without predicting it."""
    from medunet.datasets import list_inputs
    from medunet.deploy.cluster import read_cohort
    from medunet.prediction import preview_predictions

    def list_sources(channels: int) -> Sequence[Any]:
        is_table = inputs[0].lower().endswith(".csv")
        return read_cohort(Path(inputs[0]), channels=channels) if is_table else list_inputs(inputs, channels=channels)

    cases = preview_predictions(bundle, list_sources, options)
    print_json(cases=[vars(case) for case in cases])
    for case in cases:
        typer.echo(f"{', '.join(case.images)} -> {case.path}  {case.action}")
    counts = Counter[str](case.action for case in cases)
    what = {"write": "to write", "replace": "to replace", "skip": "to skip", "fail": "would fail: the result exists"}
    typer.echo(", ".join(f"{counts[action]} {text}" for action, text in what.items() if counts[action]))
    if counts["fail"]:
        opt.plain_console(stderr=True).print("add --skip-existing or --force")


def _predict_cohort(
    bundle: Path,
    inputs: Sequence[str],
    output: Path,
    options: PredictOptions,
    record: Manifest,
    *,
    query: Sequence[str],
    send_back: bool,
    below: float | None,
    **cluster: Any,
) -> None:
    """Predict the cases of one cohort file, folder or DICOMweb store; the exit code tells whether all have results."""
    from medunet.bundle.read import read_own
    from medunet.deploy.cluster import LEDGER_NAME, DicomWebStore, predict_cohort
    from medunet.runs.evaluate import structure_values

    if len(inputs) != 1:
        raise ConfigError("a cohort must be one CSV file, folder or store", received=f"{len(inputs)} inputs")
    source: Any = Path(inputs[0])
    if inputs[0].startswith(("http://", "https://")):
        pairs = [text.partition("=") for text in query]
        if not all(key and value for key, _, value in pairs):
            raise ConfigError("--query must be KEYWORD=VALUE", received=" ".join(query), expected="such as Modality=CT")
        if send_back:
            options = replace(options, result_format="dicom-seg")
            record.options = replace(record.options, result_format="dicom-seg")
        selected = {key: value for key, _, value in pairs}
        source = list(DicomWebStore(inputs[0]).series(selected, send_back=send_back))
    elif query or send_back:
        raise ConfigError("--query and --send-back need the URL of a DICOMweb store", received=inputs[0])
    console = opt.plain_console(stderr=True)
    with opt.progress_bar(console) as update:
        update(description="predicting")

        def report(outcome: Outcome) -> None:
            update(advance=1)
            if outcome.warnings and cluster["where"] == "ray":  # elsewhere the reader logs them
                console.print(escape(f"{outcome.name}: {'; '.join(outcome.warnings)}"))
            if outcome.error is not None:
                opt.print_error(outcome.error, name=outcome.name)

        result = predict_cohort(bundle, source, output, options, report=report, **cluster)
    record.requested = result.cases
    record.cases = [
        {**_facts(one), "attempts": one.attempts, "node": one.node, "sent": one.sent} for one in result.outcomes
    ]
    failed = len(result.failed)
    done = len(result.outcomes) - failed
    console.print(
        escape(f"{done} of {opt.count(result.cases, 'case')} have results in {result.output}, {failed} failed")
    )
    console.print(escape(f"results of every case: {result.output / LEDGER_NAME}"))
    structures = structure_values(read_own(bundle, "inference"))
    doubtful = _write_tables(output, [outcome.prediction(output) for outcome in result.outcomes], structures, below)
    again = "rerun the command without --force" if cluster["replace"] else "rerun the command"
    if result.is_interrupted:
        raise KeyboardInterrupt(f"all written files are complete; {again} to continue")
    if failed:
        console.print(f"{again} to retry the failed cases")
    if failed or doubtful:
        raise typer.Exit(opt.EXIT_SOME_FAILED)


def _facts(result: Prediction | Outcome) -> dict[str, Any]:
    """Return what a document says about a case."""
    files = {
        key: [entry if isinstance(entry, dict) else vars(entry) for entry in getattr(result, key)]
        for key in ("inputs", "outputs")
    }
    facts = {"name": result.name, "status": result.status, **files, "seconds": round(result.seconds, 3)}
    measured = {"measurements": rows} if (rows := getattr(result, "measurements", None)) else {}
    measured |= {"review": review.as_dict()} if (review := getattr(result, "review", None)) else {}
    error = None if result.error is None else str(result.error)
    return {**facts, **measured, "warnings": result.warnings, "error": error}


def _publish(record: Manifest, file: Path | None, code: int, results: Sequence[Prediction] = ()) -> None:
    """Print the record of a prediction for --json, and write it for --manifest."""
    record.cases = record.cases or [_facts(result) for result in results]
    if code == opt.EXIT_BAD_INPUT and not record.cases:
        return  # nothing was predicted
    document = record.document(code)
    if file is not None:
        write_atomically(file, document_text("predict", **document))
    print_json(**document)


def _time_table(results: list[Prediction], *, wall: float, loading: float) -> Table:
    """Return the time per stage. Stages of different cases overlap, so the shares may exceed 100 % in total."""
    from medunet.prediction import STAGES

    cases = sum(not result.skipped for result in results)
    table = Table(
        "stage", title=f"{opt.count(cases, 'case')} in {wall:.2f} s: {cases / wall:.2f} cases/s", title_justify="left"
    )
    for name in ("seconds", "ms per case", "share of wall"):
        table.add_column(name, justify="right")
    total = {stage: sum(getattr(result.stages, stage) for result in results) for stage in STAGES}
    for stage, seconds in {**total, "all stages": sum(total.values())}.items():
        table.add_row(stage, f"{seconds:.2f}", f"{1000 * seconds / cases:.1f}", f"{seconds / wall:.0%}")
    table.add_row("loading, once", f"{loading:.2f}", "", "")
    return table
