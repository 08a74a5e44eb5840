"""`medunet check`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medunet.cli import options as opt
from medunet.cli.output import print_json, with_json
from medunet.cli.registry import examples
from medunet.errors import ConfigError
from medunet.files import require_new, require_path

if TYPE_CHECKING:
    from medunet.datasets import Examination

MAX_NAMED = 3  # files in one row of the table; `--json` lists all
SMALL_MM = 0.01  # below this many mm² or mm³, sizes are in µm² or µm³
SHEET_HELP = "Also draw all cases with their labels, and the predictions of --run, into this PNG."
RUN_HELP = "Also list the labels that disagree with the predictions of this cross-validation or evaluated run."
_COLOURS = {"error": "bold red", "warning": "yellow"}


@examples(
    "medunet check Task04_Hippocampus", "medunet check DATA --sheet cases.png", "medunet check DATA --headers --json"
)
@with_json("check")
def check(
    data: opt.DataFolder,
    instances: opt.Instances = False,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE", help=SHEET_HELP)] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help=RUN_HELP)] = None,
    group_by: opt.GroupBy = None,
    force: opt.Force = False,
    headers: Annotated[bool, typer.Option("--headers", help="Read only headers: fast, without statistics.")] = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Check a data set before training: every header and voxel, differences between cases, and statistics.

    The exit code is 4 if training would fail, otherwise 0.
    """
    require_path(data, run)
    if sheet is not None and headers:
        raise ConfigError("--sheet needs the voxels, which --headers does not read")
    require_new(sheet, force=force)
    from medunet.datasets import CaseView, examine
    from medunet.io import ReadOptions, read_label
    from medunet.reports import ContactSheet

    pictures, predictions = ContactSheet(), {}
    if run is not None:
        from medunet.runs.audit import audit_labels, held_out_maps

        predictions = held_out_maps(run)

    def visit(view: CaseView) -> None:
        affine = view.record.geometry.affine if view.record.is_placed else None
        label = view.label if view.objects is None else view.objects
        pictures.add(view.case.name, view.image, label, affine=affine, instances=view.objects is not None)
        if view.case.name in predictions:
            pred = read_label(predictions[view.case.name], reference=view.record.geometry).image.numpy()
            pictures.add(f"{view.case.name} (prediction)", view.image, pred, affine=affine)

    errors = Console(stderr=True)
    with opt.progress_bar(errors) as update:
        result = examine(
            data,
            level="header" if headers else "voxels",
            instances=instances,
            group_by=group_by,
            read=ReadOptions(**reading),
            started=lambda total: update(total=total, description="checking"),
            done=lambda: update(advance=1),
            visit=visit if sheet is not None else None,
        )
    if run is not None and result.dataset is not None:
        result.findings.extend(audit_labels(result.dataset, run))
    print_json(**result.as_dict())
    _print_tables(result)
    if sheet is not None and pictures.thumbnails and result.dataset is not None:
        # findings come with errors first, and the first of a case counts
        severities = {finding.case: finding.severity for finding in reversed(result.findings) if finding.case}
        order = [finding.case for finding in result.findings if finding.case]
        order = [name for case in order for name in (case, f"{case} (prediction)")] if predictions else []
        pictures.write(sheet, result.dataset.labels, severities=severities, order=order)
        errors.print(f"contact sheet: {sheet}", highlight=False, soft_wrap=True)
    if result.fails:
        raise typer.Exit(opt.EXIT_CHECK_FAILED)


def _print_tables(result: Examination) -> None:
    console = Console()
    summary = result.summary()
    if summary:
        console.print(_figures(summary))
    if "objects" in summary:
        console.print(_objects(summary["objects"]))
    if "classes" in summary:
        console.print(_classes(summary["classes"], summary["cases"]))
    if "ignored_fraction" in summary:
        share = 100 * summary["ignored_fraction"]
        console.print(f"not annotated (ignored): {share:.3g} % of the voxels; class shares refer to the others")
    if result.findings:
        console.print(_findings(result))
    n_errors = sum(finding.severity == "error" for finding in result.findings)
    n_warnings = len(result.findings) - n_errors
    verdict = "[bold red]training would fail[/]" if result.fails else "[green]training can start[/]"
    counts = f"{opt.count(n_errors, 'error')}, {opt.count(n_warnings, 'warning')}"
    console.print(f"{counts}: {verdict}", highlight=False)


def _figures(summary: dict[str, Any]) -> Table | str:
    test = f" and {opt.count(summary['test_cases'], 'test case')}" if summary["test_cases"] else ""
    title = f"{escape(summary['name'])}: {opt.count(summary['cases'], 'case')}{test}, {summary['spatial_dims']}D"
    table = Table("", "smallest", "median", "largest", title=title)
    for key, name in (("size", "size"), ("spacing_mm", "spacing mm")):
        if key in summary:
            table.add_row(name, *(" x ".join(f"{value:.4g}" for value in row) for row in summary[key].values()))
    for channel, values in summary.get("intensity", {}).items():
        median = f"{values['median']:.5g} ({values['low']:.5g} to {values['high']:.5g})"
        table.add_row(escape(channel), f"{values['minimum']:.5g}", median, f"{values['maximum']:.5g}")
    for key, name in (("orientations", "axes"), ("dtypes", "type")):
        if summary.get(key):
            table.add_row(name, "", ", ".join(f"{word} ({count})" for word, count in summary[key].items()), "")
    return table if table.row_count else title  # --headers reads nothing that has statistics


def _objects(objects: dict[str, float]) -> Table:
    table = Table("objects", "", title=f"{objects['count']} objects")
    few, middle, many = (f"{objects[key]:.0f}" for key in ("fewest_per_image", "median_per_image", "most_per_image"))
    without = f"; {objects['images_without']} without" if objects["images_without"] else ""
    table.add_row("per image", f"{few} to {many}, median {middle}{without}")
    if objects["count"]:
        small, middle, large = (f"{objects[key]:.0f}" for key in ("small_voxels", "median_voxels", "large_voxels"))
        table.add_row("size", f"median {middle} voxels, 90 % have {small} to {large}")
        for power, sign in ((2, "²"), (3, "³")):
            if (size := objects.get(f"median_mm{power}")) is not None:
                is_small = size < SMALL_MM
                text = f"{size * 1000**power:.4g} µm" if is_small else f"{size:.4g} mm"
                table.add_row("median size", text + sign)
        table.add_row("touch another", f"{100 * objects['touching_fraction']:.3g} %")
    return table


def _classes(classes: dict[str, dict[str, float]], n_cases: int) -> Table:
    table = Table("class", "value", "in cases", "voxels", "median size")
    for name, entry in classes.items():
        units = {"median_ml": "ml", "median_mm2": "mm²"}
        size = next((f"{entry[key]:.4g} {unit}" for key, unit in units.items() if key in entry), "")
        cases = f"{entry['cases']} of {n_cases}"
        table.add_row(escape(name), str(entry["value"]), cases, f"{100 * entry['fraction']:.3g} %", size)
    return table


def _findings(result: Examination) -> Table:
    """Return one row per kind of finding."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for finding in result.findings:
        groups.setdefault((finding.severity, finding.kind), []).append(finding)
    table = Table("", "count", "cause", "file", "remedy", show_lines=True)
    root = f"{result.root.absolute()}{os.sep}"
    for (severity, _), group in groups.items():
        files = list(dict.fromkeys(finding.file.removeprefix(root) for finding in group if finding.file))
        more = [f"and {len(files) - MAX_NAMED} more"] if len(files) > MAX_NAMED else []
        cells = (group[0].cause, "\n".join([*files[:MAX_NAMED], *more]), group[0].remedy or "")
        table.add_row(f"[{_COLOURS[severity]}]{severity}[/]", str(len(group)), *map(escape, cells))
    return table
