"""`medunet measure`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from medunet.cli import options as opt
from medunet.cli.evaluate import parse_labels
from medunet.cli.output import print_json, with_json
from medunet.cli.registry import examples
from medunet.files import check_target, require_path

MASKS = typer.Argument(metavar="MASKS", help="A label map, or a folder of label maps.")
IMAGES_HELP = "The image of all masks, or a folder with an image for each. Default: measure sizes only."
COMPARE_HELP = "Earlier measurements (measurements.json, or its folder): also print the growth since then."
LABELS_HELP = "Names of the label values. Default: those of dataset.json beside the masks, or in the files."
OUTPUT_HELP = "Folder for the tables. Default: MASKS_measurements; masks in a data set need it."
INSTANCES_HELP = "The label maps number objects, so each object is measured."
URI_HELP = "Also log the mean of each measurement over the cases to this MLflow store. Default: no tracking."
COLUMNS = ["case", "structure", "object", "volume_mm3", "area_mm2", "area_px", "long_axis_mm", "long_axis_px"]
COLUMNS += ["short_axis_mm", "short_axis_px", "intensity_mean", "intensity_std", "is_cut_off"]
SHOWN = 40  # rows of a table; the files have all


@examples(
    "medunet measure results --images IMAGES",
    "medunet measure followup --images IMAGES --compare baseline_measurements",
    "medunet measure lesion.dcm --images CT_SERIES -o report",
)
@with_json("measure")
def measure(
    masks: Annotated[Path, MASKS],
    images: Annotated[Path | None, typer.Option(help=IMAGES_HELP)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP)] = None,
    compare: Annotated[Path | None, typer.Option(metavar="FILE", help=COMPARE_HELP)] = None,
    labels: Annotated[str | None, typer.Option(metavar="NAME=VALUE,...", help=LABELS_HELP)] = None,
    instances: Annotated[bool, typer.Option("--instances", help=INSTANCES_HELP)] = False,
    tracking_uri: Annotated[str | None, typer.Option("--tracking-uri", metavar="URI", help=URI_HELP)] = None,
    force: opt.Force = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Measure volume, surface, diameters, intensities and position of each structure.

    A DICOM SEG with its series also gets a DICOM SR.
    """
    require_path(masks, images, compare)
    if output is not None:
        check_target(output)
    options: dict[str, Any] = {"labels": parse_labels(labels), "instances": instances, "compare": compare, **reading}
    from medunet.runs.measure import measure as measure_files

    result = measure_files(masks, images, output, force=force, **options)
    if tracking_uri is not None:
        from medunet.runs.measure import mean_values
        from medunet.tracking import track_values

        track_values(tracking_uri, mean_values(result["measurements"]), name=masks.resolve().name, kind="measurement")
    print_json(**result)
    show_rows(result["measurements"], COLUMNS, "measurements")
    if growth := result.get("growth"):
        show_rows(growth, list(growth[0]), "growth")
    typer.echo(f"tables: {result['folder']}")
    for name, cause in result["failed_cases"].items():
        opt.print_error(cause, name=name)
    if result["failed_cases"]:
        raise typer.Exit(opt.EXIT_SOME_FAILED)


def show_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], title: str) -> None:
    """Print the first rows of a table, and those of its columns that have a value."""
    used = [name for name in columns if any(row.get(name) is not None for row in rows)]
    table = Table(*used, title=title if len(rows) <= SHOWN else f"first {SHOWN} of {len(rows)} {title}")
    for row in rows[:SHOWN]:
        cells = [row.get(name) for name in used]
        table.add_row(*(f"{c:.5g}" if isinstance(c, float) else "" if c is None else escape(str(c)) for c in cells))
    opt.wide_console().print(table)
