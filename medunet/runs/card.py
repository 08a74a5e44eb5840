"""Sections about results in the README of a run, which is the model card of its bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunet.files import write_atomically

RESULTS, EXPECTED_DICE = "Results", "Expected Dice"  # in this order: new results replace both


def write_results(run: Path, entry: Mapping[str, Any], *, cases: int, is_selected: bool) -> None:
    """Write the validation Dice of the kept epoch into `docs/README.md` of a run, in place of an earlier one."""
    if not (scores := entry.get("val_dice", {})):
        return
    about = f"Epoch {entry['epoch']}, {cases} validation cases, on the grid of the network."
    if is_selected:  # by these cases
        about += " These cases selected the epoch, so their Dice is optimistic."
    rows = [f"| {name} | {value:.3f} |" for name, value in scores.items()]
    write_section(run, RESULTS, "\n".join([about, "", "| class | validation Dice |", "| --- | --- |", *rows]))


def write_section(run: Path, title: str, text: str) -> None:
    """Write the last section of the README of a run, in place of an earlier one of the same title and what follows."""
    path = run / "docs" / "README.md"
    if path.is_file():
        before = without_section(path.read_text(encoding="utf-8"), title)
        write_atomically(path, f"{before}\n## {title}\n\n{text}\n")


def without_section(text: str, title: str) -> str:
    """Return the README of a run without the section that `write_section` adds."""
    return text.partition(f"\n## {title}\n")[0].rstrip() + "\n"
