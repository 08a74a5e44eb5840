"""The results of a training run in the README of its bundle, which is the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunet.files import write_atomically

_HEADING = "\n## Results\n"


def write_results(run: Path, entry: Mapping[str, Any], *, cases: int, is_selected: bool) -> None:
    """Write the validation Dice of the kept epoch into `docs/README.md` of a run; an earlier section is replaced.

    Args:
        run: folder of the run.
        entry: entry of the history of the kept epoch.
        cases: number of validation cases.
        is_selected: whether the validation cases selected the epoch.
    """
    path, scores = run / "docs" / "README.md", entry.get("val_dice", {})
    if not path.is_file() or not scores:
        return
    about = f"Epoch {entry['epoch']}, {cases} validation cases, on the grid of the network."
    if is_selected:
        about += " These cases selected the epoch, so their Dice is optimistic."
    lines = ["", about, "", "| class | validation Dice |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3f} |" for name, value in scores.items()]
    text = without_results(path.read_text(encoding="utf-8"))
    write_atomically(path, "\n".join([text, _HEADING, *lines[1:], ""]))


def without_results(text: str) -> str:
    """Return the README of a run without the section that :func:`write_results` adds."""
    return text.partition(_HEADING)[0].rstrip() + "\n"
