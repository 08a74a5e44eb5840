"""`medunet store`."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from medunet.datasets import StoredCase


def store(
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove cases whose sources changed, and cases that were not used for a long time."
        ),
    ] = False,
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --prune: also remove the least recently used cases until the store has this size.",
        ),
    ] = None,
    unused: Annotated[
        float, typer.Option(metavar="DAYS", help="With --prune: remove cases that were not used for this many days.")
    ] = 30.0,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the store (store_dir). Default: in medunet's cache folder.")
    ] = None,
) -> None:
    """List the preprocessed cases that training runs share, by configuration; --prune removes old ones.

    Cases that a running process uses are never removed.
    """
    from medunet.datasets import list_store, prune_store
    from medunet.datasets.cache.prune import store_folder
    from medunet.errors import ConfigError
    from medunet.inferers.memory import parse_memory

    console = Console(highlight=False, soft_wrap=True)
    if limit is not None and not prune:
        raise ConfigError("--limit needs --prune")
    if prune:
        removed = prune_store(folder, unused_days=unused, max_bytes=None if limit is None else parse_memory(limit))
        for reason, count in Counter(reason for _, reason in removed).items():
            console.print(f"{count} cases: {reason}")
        console.print(f"removed {len(removed)} cases, {sum(case.nbytes for case, _ in removed) / 1e9:.2f} GB")
    cases = list_store(folder)
    groups: dict[Path, list[StoredCase]] = {}
    for case in cases:
        groups.setdefault(case.path.parent, []).append(case)
    table = Table("configuration", "cases", "GB", "days unused", "in use", "images in")
    for group, members in groups.items():
        sources = {str(Path(case.source).parent) for case in members if case.source}
        days = (time.time() - max(case.last_used for case in members)) / 86_400
        gigabytes = f"{sum(case.nbytes for case in members) / 1e9:.2f}"
        used = "yes" if any(case.in_use for case in members) else ""
        table.add_row(group.name, str(len(members)), gigabytes, f"{max(days, 0):.0f}", used, ", ".join(sorted(sources)))
    if groups:
        console.print(table)
    console.print(f"{len(cases)} cases, {sum(case.nbytes for case in cases) / 1e9:.2f} GB in {store_folder(folder)}")
