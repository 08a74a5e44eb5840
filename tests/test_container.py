"""The Dockerfile and the files around it agree; tests/deploy/test_image.py builds the images."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
COPIED = [
    source
    for words in (line.split()[1:] for line in LINES if line.startswith("COPY "))
    if not words[0].startswith("--from")
    for source in words[:-1]
]


def test_copied_files_exist_and_are_not_ignored() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert COPIED
    for source in COPIED:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(file, f"{source.rstrip('/')}*") for file in allowed), source


def test_the_sources_of_the_wheel_are_copied_and_its_extras_exist() -> None:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel, project = content["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"], content["project"]
    assert {*wheel, project["readme"], "pyproject.toml", "LICENSE"} <= set(COPIED)
    extras = next(line for line in LINES if line.startswith("ARG EXTRAS=")).partition("=")[2]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("stage", ["runtime", "label"])
def test_no_stage_ends_as_root(stage: str) -> None:
    begin = next(i for i, line in enumerate(LINES) if line.startswith("FROM") and line.endswith(f" AS {stage}"))
    end = next((i for i in range(begin + 1, len(LINES)) if LINES[i].startswith("FROM")), len(LINES))
    assert [line for line in LINES[begin:end] if line.startswith("USER")][-1] == "USER 10001"
