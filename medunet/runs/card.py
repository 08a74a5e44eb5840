"""The results of a training run in the README of its bundle, which is the model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunet.files import write_atomically

_HEADING = "\n## Results\n"


def write_results(run: Path, entry: Mapping[str, Any], *, cases: int, is_selected: bool) -> None:
    """Write the validation Dice of the kept epoch into `docs/README.md` of a run, in place of an earlier one."""
    path, scores = run / "docs" / "README.md", entry.get("val_dice", {})
    if not path.is_file() or not scores:
        return
    about = f"Epoch {entry['epoch']}, {cases} validation cases, on the grid of the network."
    if is_selected:  # by these cases
        about += " These cases selected the epoch, so their Dice is optimistic."
    rows = [f"| {name} | {value:.3f} |" for name, value in scores.items()]
    text = without_results(path.read_text(encoding="utf-8"))
    table = ["| class | validation Dice |", "| --- | --- |", *rows, ""]
    write_atomically(path, "\n".join([text, _HEADING, about, "", *table]))


def without_results(text: str) -> str:
    """Return the README of a run without the section that `write_results` adds."""
    return text.partition(_HEADING)[0].rstrip() + "\n"


def write_section(run: Path, title: str, text: str) -> None:
    """Write the last section of the README of a run, in place of an earlier one of the same title."""
    path = run / "docs" / "README.md"
    if path.is_file():
        before = path.read_text(encoding="utf-8").partition(f"\n## {title}\n")[0].rstrip()
        write_atomically(path, f"{before}\n\n## {title}\n\n{text}\n")
