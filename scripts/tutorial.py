"""Run the code blocks of a tutorial page in order, and with --write put their output and pictures into the page.

    python scripts/tutorial.py docs/tutorials/hippocampus.md --data Task04_Hippocampus --write

A `bash` or `python` block runs in a working folder; the `text` block after it holds its output. Pictures that the page
shows and the code writes are copied beside the page. `--replace 5min=1min` changes the code, for a quick test.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```\n(?:\n```text\n.*?^```\n)?", re.MULTILINE | re.DOTALL)
PROGRESS = re.compile(r"(preparing|predicted|drawn) \d+|epoch .* step |$")  # lines that the page leaves out
LINES = 24  # of output that the page shows; the middle of longer output is left out
PICTURE_PIXELS = 1200


def run_block(language: str, code: str, namespace: dict[str, Any]) -> str:
    """Run one block in the current folder and return its output; raise if it fails."""
    if language == "bash":
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "COLUMNS": "110", "MPLBACKEND": "agg"}
        command = ["bash", "-euo", "pipefail", "-c", code]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        expected = re.search(r"# exit code (\d+)", code)
        if done.returncode != (int(expected[1]) if expected else 0):
            raise RuntimeError(f"{code}\n{done.stdout}")
        return done.stdout
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "tutorial", "exec"), namespace)  # the tutorial's own code
    return output.getvalue()


def shorten(text: str) -> str:
    """Return the text without progress lines, and without its middle if more than LINES lines remain."""
    lines = [line.rstrip() for line in text.splitlines() if not PROGRESS.match(line.strip())]
    if len(lines) > LINES:
        lines[LINES // 2 : -LINES // 2] = ["..."]
    return "\n".join(lines)


def run_page(text: str, replacements: dict[str, str]) -> str:
    """Run all blocks of a page in the current folder and return the page with their output."""
    namespace: dict[str, Any] = {}

    def replaced(match: re.Match[str]) -> str:
        language, code = match.groups()
        shown = f"```{language}\n{code}```\n"
        for old, new in replacements.items():
            code = code.replace(old, new)
        output = shorten(run_block(language, code, namespace))
        print(output, flush=True)
        return f"{shown}\n```text\n{output}\n```\n" if output else shown

    return BLOCK.sub(replaced, text)


def copy_pictures(text: str, page: Path, folder: Path) -> None:
    """Copy the pictures that the page shows from the working folder, reduced to PICTURE_PIXELS."""
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        picture = folder / Path(target).name
        if picture.is_file():
            (page.parent / target).parent.mkdir(exist_ok=True)
            with Image.open(picture) as image:
                image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
                image.convert("RGB").quantize().save(page.parent / target, optimize=True)


def main() -> None:
    """Run the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data, linked into the working folder")
    parser.add_argument("--replace", nargs="*", default=[], metavar="OLD=NEW", help="replacements in the code")
    parser.add_argument("--write", action="store_true", help="write output and pictures into the page")
    options = parser.parse_args()
    page = options.page.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / options.data.name).symlink_to(options.data.resolve())
        text = page.read_text(encoding="utf-8")
        os.chdir(folder)
        text = run_page(text, dict(pair.split("=", 1) for pair in options.replace))
        if options.write:
            page.write_text(text, encoding="utf-8")
            copy_pictures(text, page, folder)


if __name__ == "__main__":
    main()
