"""Options that several commands share, and lines that several commands print."""

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medunet.cli import completion
from medunet.errors import ConfigError
from medunet.files import require_path
from medunet.units import parse_duration, parse_size

BUNDLE_HELP = "A shipped bundle (unet_3d, unet_2d, unet_2015), or a bundle's folder."
TILT_HELP = "DICOM: keep a gantry tilt as shear, or resample to right angles."
FORM_HELP = "NIfTI: which placement of the header to use."
HELP = {"help_option_names": ["-h", "--help"]}

EXIT_INTERNAL = 1
EXIT_BAD_INPUT = 2
EXIT_SOME_FAILED = 3  # the command finished, and some cases failed
EXIT_CHECK_FAILED = 4
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C: 128 + SIGINT


@dataclass
class Terminal:
    """What the user wants to see: `--quiet`, `--verbose` and `--debug`."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False


TERMINAL = Terminal()


def parsed_by(parse: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return the parser of an option from a function that raises `ConfigError`; a default is taken as it is."""

    def convert(text: Any) -> Any:
        try:
            return parse(text) if isinstance(text, str) else text
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error

    convert.__name__ = parse.__name__
    return convert


def parse_device(text: str) -> str:
    """Return the name of a device; raise `ConfigError` if it is not one. Whether the device exists is not checked."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ConfigError("unknown device", received=text, expected="auto, cpu, cuda or cuda:N")
    return text


Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help=BUNDLE_HELP, autocompletion=completion.bundles)]
Trained = Annotated[
    str, typer.Argument(metavar="RUN", help="A run, or a bundle with weights.", autocompletion=completion.runs)
]
DataFolder = Annotated[
    Path, typer.Argument(metavar="DATA", help="MSD or nnU-Net folder, images/ and labels/, or DICOM cases.")
]
DATA_HELP = "MSD or nnU-Net folder, or a folder with images/ and labels/."
TrainingData = Annotated[Path, typer.Option("--data", help=DATA_HELP)]
Epochs = Annotated[int | None, typer.Option(help="Number of epochs. Default: that of the bundle.")]
DEVICE = typer.Option(
    "--device",
    metavar="auto|cpu|cuda|cuda:N",
    help="Device to compute on. auto: the GPU if there is one.",
    parser=parsed_by(parse_device),
    autocompletion=lambda: ["auto", "cpu", "cuda", "cuda:0"],
)
Device = Annotated[str, DEVICE]
SET_HELP = "Change a value of the bundle's configs by its id; repeatable."
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET_HELP, autocompletion=completion.config_ids)
]
PRESET_HELP = "Apply a preset of the bundle, such as few or sgd_poly; repeatable."
Preset = Annotated[
    list[str] | None, typer.Option("--preset", metavar="NAME", help=PRESET_HELP, autocompletion=completion.presets)
]
URI_HELP = "Tracking URI of MLflow. Default: MLFLOW_TRACKING_URI, else mlruns.db beside the run."
TrackingUri = Annotated[str | None, typer.Option("--tracking-uri", metavar="URI", help=URI_HELP)]
NoTracking = Annotated[bool, typer.Option("--no-tracking", help="Do not record the run in MLflow.")]
TRUST_HELP = "Run a bundle that could run its own code, and remember its exact content as trusted."
Trust = Annotated[bool, typer.Option("--trust", help=TRUST_HELP)]
INSTANCES_HELP = "The labels number the objects in each image, such as cells, instead of classes."
Instances = Annotated[bool, typer.Option("--instances", help=INSTANCES_HELP)]
SKIP_HELP = "Skip unusable cases and list them. Default: stop if there are any."
SkipBad = Annotated[bool, typer.Option("--skip-bad", help=SKIP_HELP)]
SPLIT_HELP = "Cases of each fold: nnU-Net's splits_final.json, or CSV with case and group, fold or both."
Split = Annotated[Path | None, typer.Option("--split", metavar="FILE", help=SPLIT_HELP)]
GROUP_HELP = "Keep cases together whose names agree in the first group of this pattern, such as '^(p[0-9]+)_'."
GroupBy = Annotated[str | None, typer.Option("--group-by", metavar="REGEX", help=GROUP_HELP)]
DRY_RUN = typer.Option("--dry-run", help="Print what the command would do, without doing it.")
DryRun = Annotated[bool, DRY_RUN]
FORCE_HELP = "Replace earlier results of this command. Other files are never replaced."
Force = Annotated[bool, typer.Option("--force", help=FORCE_HELP)]
# keys of `medunet.prediction.options.TTA`, repeated so that `--help` need not import them; a test compares the two
Views = Literal["none", "mirror", "views"]
TTA_HELP = (
    "Test-time augmentation: mean over views that are mirrored as in training (at most 8 passes in 3D, 4 in 2D); "
    "views: also of the enlarged image (as 38 and 16 passes). Default: as the bundle says."
)
Tta = Annotated[Views | None, typer.Option("--tta", help=TTA_HELP)]
Where = Literal["ray"]  # where to run work that can be distributed


def _quantity(text: str, *, metavar: str, parse: Callable[[str], Any], default: str | None = None) -> Any:
    text = text if default is None else f"{text} Default: {default}."
    return typer.Option(metavar=metavar, help=text, parser=parsed_by(parse), show_default=False)


duration = partial(_quantity, metavar="DURATION", parse=parse_duration)  # an option; the command receives seconds
size = partial(_quantity, metavar="SIZE", parse=parse_size)  # an option; the command receives bytes

# options of the commands that read images, by field of `medunet.io.ReadOptions`; None leaves the default
READING: dict[str, Any] = {
    name: Annotated[kind, typer.Option(f"--{name.replace('_', '-')}", metavar=metavar, help=text)]
    for name, kind, metavar, text in (
        ("series_uid", str | None, "UID", "DICOM: SeriesInstanceUID of the series to read."),
        ("phase", int | None, "N", "DICOM: which volume of a 4D series, or which frame, from 0."),
        ("uneven", Literal["refuse", "resample"] | None, None, "DICOM: reject or resample slices at uneven distances."),
        ("tilt", Literal["keep", "resample"] | None, None, TILT_HELP),
        ("form", Literal["agree", "sform", "qform", "pixdim"] | None, None, FORM_HELP),
        ("fill_value", float | None, "X", "NIfTI: value that replaces NaN and infinite voxels."),
        ("skip_unreadable", bool | None, None, "DICOM: skip zeroed, truncated and unreadable files of a series."),
    )
}


def check_grouping(split: Path | None, group_by: str | None) -> None:
    """Check the options `Split` and `GroupBy` as far as possible without the data set."""
    require_path(split)
    if split is not None and group_by is not None:
        raise ConfigError("--split and --group-by exclude each other")


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[..., None]]:
    """Show a bar of cases on a terminal; yield the function that changes its total, count and description."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal or TERMINAL.quiet
    ) as progress:
        yield partial(progress.update, progress.add_task("opening", total=None))


def print_next(*words: object) -> None:
    """Suggest the next command, quoted for the shell, unless --quiet is given.

    Examples:
        >>> print_next("predict", "my runs/a", "IMAGES")
        next: medunet predict 'my runs/a' IMAGES
    """
    if not TERMINAL.quiet:
        typer.echo(f"next: {shlex.join(['medunet', *map(str, words)])}")


def tracking(uri: str | None, folder: Path, *, is_off: bool) -> str:
    """Return the tracking URI of a command whose runs are in a folder; an empty one disables tracking."""
    if is_off and uri is not None:
        raise ConfigError("--tracking-uri and --no-tracking exclude each other")
    from medunet.tracking import default_store

    return "" if is_off else default_store(folder) if uri is None else uri


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    Examples:
        >>> count(1, "case"), count(2, "case")
        ('1 case', '2 cases')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def plain_console(*, stderr: bool = False) -> Console:
    """Return a console that neither wraps lines nor colours numbers and paths; --quiet silences standard error."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, quiet=stderr and TERMINAL.quiet)


def print_error(text: str, *, name: str | None = None) -> None:
    """Print an error in one line on standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"[bold red]error[/] {'' if name is None else f'{escape(name)}: '}{escape(text)}"
    )


def wide_console() -> Console:
    """Return a console for tables; in a file or a pipe no column is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)  # characters; no table is as wide
