"""`medunet cache`."""

import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from medunet.cli import options as opt
from medunet.cli.output import print_json, with_json
from medunet.cli.registry import examples
from medunet.errors import ConfigError
from medunet.files import require_path
from medunet.units import GB

DAY = 86_400.0  # seconds
MONTH = 30 * DAY
PRUNE_HELP = "Remove cases whose sources changed, and cases that were not used for a long time."
LIMIT = opt.size("With --prune: also remove the least recently used cases until the cache has this size.")
UNUSED = opt.duration("With --prune: remove cases that were not used for this long.", default="30d")
FOLDER_HELP = "Folder of the cache (store_dir). Default: in medunet's cache folder."


@examples("medunet cache --json", "medunet cache --prune --unused 14d --limit 50GB")
@with_json("cache")
def cache(
    prune: Annotated[bool, typer.Option("--prune", help=PRUNE_HELP)] = False,
    limit: Annotated[int | None, LIMIT] = None,
    unused: Annotated[float, UNUSED] = MONTH,
    folder: Annotated[Path | None, typer.Option(help=FOLDER_HELP)] = None,
) -> None:
    """List the preprocessed cases that training runs share, by configuration; --prune removes old ones.

    Cases that a running process uses are never removed.
    """
    if limit is not None and not prune:
        raise ConfigError("--limit needs --prune")
    require_path(folder)
    from medunet.datasets import list_store, prune_store
    from medunet.datasets.cache.prune import store_folder

    console, removed = opt.plain_console(), []
    if prune:
        removed = prune_store(folder, unused_days=unused / DAY, max_bytes=limit)
        for reason, count in Counter(reason for _, reason in removed).items():
            console.print(f"{opt.count(count, 'case')}: {reason}")
        console.print(
            f"removed {opt.count(len(removed), 'case')}, {sum(case.nbytes for case, _ in removed) / GB:.2f} GB"
        )
    cases = sorted(list_store(folder), key=lambda case: case.path.parent)
    rows: list[dict[str, object]] = []
    table = Table("configuration", "cases", "GB", "days unused", "in use", "images in")
    for group, members in groupby(cases, key=lambda case: case.path.parent):
        parts = list(members)
        sources = {str(Path(case.source).parent) for case in parts if case.source}
        days = max(0, time.time() - max(case.last_used for case in parts)) / DAY
        nbytes, is_used = sum(case.nbytes for case in parts), any(case.in_use for case in parts)
        row = {"name": group.name, "cases": len(parts), "bytes": nbytes, "unused_days": days, "in_use": is_used}
        rows.append({**row, "folders": sorted(sources)})
        cells = (str(len(parts)), f"{nbytes / GB:.2f}", f"{days:.0f}", "yes" if is_used else "")
        table.add_row(group.name, *cells, ", ".join(sorted(sources)))
    print_json(folder=store_folder(folder), removed_cases=len(removed), configurations=rows)
    if cases:
        console.print(table)
    console.print(
        f"{opt.count(len(cases), 'case')}, {sum(case.nbytes for case in cases) / GB:.2f} GB in {store_folder(folder)}"
    )
