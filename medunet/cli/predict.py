"""`medunet predict`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from medunet.cli.options import Device, Set, parse_settings

EXIT_SOME_FAILED = 2


class ResultFormat(str, Enum):
    """`medunet.io.RESULT_FORMATS`, repeated here so that `--help` need not import them; a test compares the two."""

    auto = "auto"
    nifti = "nii.gz"
    seg_nrrd = "seg.nrrd"
    dicom_seg = "dicom-seg"
    rtstruct = "rtstruct"


def predict(
    bundle: Annotated[str, typer.Argument(help="A run or a bundle with weights.")],
    inputs: Annotated[list[Path], typer.Argument(help="Images, folders of images, DICOM series folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the label maps.")],
    device: Device = "auto",
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False,
    result_format: Annotated[
        ResultFormat,
        typer.Option("--format", help="auto: like the input; DICOM SEG for a DICOM series, if highdicom is installed."),
    ] = ResultFormat.auto,
    force: Annotated[bool, typer.Option("--force", help="Replace results that exist.")] = False,
    settings: Set = None,
) -> None:
    """Segment images; a result bears its input's name and holds the data set's label values."""
    from medunet.bundle import find_bundle
    from medunet.datasets import list_inputs
    from medunet.prediction import Predictor

    predictor = Predictor(
        find_bundle(bundle),
        output_dir=output,
        device=device,
        probabilities=probabilities,
        result_format=result_format.value,
        overwrite=force,
        overrides=parse_settings(settings),
    )
    sources = list_inputs(inputs, channels=predictor.channels)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    failed, seconds = [], 0.0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for result in progress.track(predictor.predict(sources), total=len(sources), description="predicting"):
            seconds += result.seconds
            if result.error is not None:
                failed.append(result)
            else:
                Console(soft_wrap=True, highlight=False).print(f"{result.path}  {result.seconds:.1f} s")
    for result in failed:
        console.print(f"[bold red]error[/] {escape(str(result.error))}")
    console.print(f"{len(sources) - len(failed)} of {len(sources)} written to {output} in {seconds:.1f} s")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
