"""Options that several commands share, and lines that several commands print."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

HELP = {"help_option_names": ["-h", "--help"]}

EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3  # the command finished, and some cases failed
EXIT_CHECK_FAILED = 4
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C: 128 + SIGINT

Bundle = Annotated[str, typer.Argument(help="A shipped bundle (unet_3d, unet_2d, unet_2015), or a bundle's folder.")]
Trained = Annotated[str, typer.Argument(help="A run, or a bundle with weights.")]
DataFolder = Annotated[Path, typer.Argument(help="MSD or nnU-Net folder, images/ and labels/, or DICOM cases.")]
DATA_HELP = "MSD or nnU-Net folder, or a folder with images/ and labels/."
TrainingData = Annotated[Path, typer.Option("--data", help=DATA_HELP)]
Epochs = Annotated[int | None, typer.Option(help="Number of epochs. Default: that of the bundle.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
SET_HELP = "Change a value of the bundle's configs by its id; repeatable."
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP)]
PRESET_HELP = "Apply a preset of the bundle, such as few or sgd_poly; repeatable."
Preset = Annotated[list[str] | None, typer.Option("--preset", metavar="NAME", help=PRESET_HELP)]
URI_HELP = "Tracking URI of MLflow; '' disables it. Default: MLFLOW_TRACKING_URI, else mlruns.db beside the run."
TrackingUri = Annotated[str | None, typer.Option("--tracking-uri", help=URI_HELP)]
TRUST_HELP = "Run a bundle that could run its own code, and remember its exact content as trusted."
Trust = Annotated[bool, typer.Option("--trust", help=TRUST_HELP)]
INSTANCES_HELP = "The labels number the objects in each image, such as cells, instead of classes."
Instances = Annotated[bool, typer.Option("--instances", help=INSTANCES_HELP)]
SKIP_HELP = "Skip unusable cases and list them. Default: stop if there are any."
SkipBad = Annotated[bool, typer.Option("--skip-bad", help=SKIP_HELP)]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


class Where(str, Enum):
    """Where to run work that can be distributed."""

    ray = "ray"


class Views(str, Enum):
    """Keys of `medunet.prediction.options.TTA`, repeated so that `--help` need not import them."""

    none = "none"
    mirror = "mirror"
    views = "views"


TTA_HELP = (
    "Test-time augmentation: mean over mirrored views (8 passes in 3D, 4 in 2D); views: also of the enlarged image "
    "(as 38 and 16 passes). Default: as the bundle says."
)
Tta = Annotated[Views | None, typer.Option("--tta", help=TTA_HELP)]


# options of the commands that read images, by field of `medunet.io.ReadOptions`; None leaves the default
READING: dict[str, Any] = {
    name: Annotated[kind | None, typer.Option(f"--{name.replace('_', '-')}", metavar=metavar, help=text)]
    for name, kind, metavar, text in (
        ("series_uid", str, "UID", "DICOM: SeriesInstanceUID of the series to read."),
        ("phase", int, "N", "DICOM: which volume of a 4D series, or which frame, from 0."),
        ("uneven", str, "refuse|resample", "DICOM: reject or resample slices at uneven distances."),
        ("tilt", str, "keep|resample", "DICOM: keep a gantry tilt as shear, or resample to right angles."),
        ("form", str, "agree|sform|qform|pixdim", "NIfTI: which placement of the header to use."),
        ("fill_value", float, "X", "NIfTI: value that replaces NaN and infinite voxels."),
        ("skip_unreadable", bool, None, "DICOM: skip zeroed, truncated and unreadable files of a series."),
    )
}


def with_reading(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `READING` to a command. The command receives the given ones as the dictionary `reading`."""
    own = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, kind, default=None, annotation=type_) for name, type_ in READING.items()]
    parameters = [parameter for name, parameter in own.parameters.items() if name != "reading"]

    def extended(**arguments: Any) -> None:
        reading = {name: value for name in READING if (value := arguments.pop(name)) is not None}
        command(**arguments, reading=reading)

    extended.__doc__ = command.__doc__
    extended.__signature__ = inspect.Signature([*parameters, *more])  # type: ignore[attr-defined] # typer reads it
    extended.__annotations__ = {}
    return extended


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[..., None]]:
    """Show a bar of cases on a terminal; yield the function that changes its total, count and description."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield partial(progress.update, progress.add_task("opening", total=None))


def next_command(*words: object) -> str:
    """Return the line that suggests the next command, quoted for the shell.

    Examples:
        >>> next_command("predict", "my runs/a", "IMAGES")
        "next: medunet predict 'my runs/a' IMAGES"
    """
    return f"next: {shlex.join(['medunet', *map(str, words)])}"


def print_next_predict(run: Path) -> None:
    """Print the command that predicts with a run."""
    typer.echo(next_command("predict", run, "IMAGES", "--output", "DIR"))


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that neither wraps lines nor colours numbers and paths."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False)


def print_error(text: str, *, name: str | None = None) -> None:
    """Print an error in one line on standard error."""
    plain_console(stderr=True).print(f"[bold red]error[/] {'' if name is None else f'{escape(name)}: '}{escape(text)}")


def wide_console() -> Console:
    """Return a console for tables; in a file or a pipe no column is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)  # characters; no table is as wide
