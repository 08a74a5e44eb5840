"""The Dockerfile as text: no container program runs in the tests."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()


def words(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.split()[:1] == [instruction]]


def copied() -> list[str]:
    """What comes from the folder of the build."""
    return [source for parts in words("COPY") if not parts[0].startswith("--from") for source in parts[:-1]]


def stage_of(name: str) -> list[str]:
    """Its lines."""
    begin = next(i for i, line in enumerate(LINES) if line.startswith("FROM") and line.endswith(f" AS {name}"))
    end = next((i for i in range(begin + 1, len(LINES)) if LINES[i].startswith("FROM")), len(LINES))
    return LINES[begin:end]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(file, f"{source.rstrip('/')}*") for file in allowed), source


def test_all_that_the_wheel_is_made_of_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {*wheel, project["project"]["readme"], "pyproject.toml", "LICENSE"} <= set(copied())


def test_torch_comes_first_and_all_by_the_constraints() -> None:
    installs = [" ".join(parts) for parts in words("RUN") if parts[:2] == ["pip", "install"]]
    assert installs[0].split()[-1] == "torch"
    assert all("--constraint scripts/constraints.txt" in line for line in installs)
    extras = next(line for line in LINES if line.startswith("ARG EXTRAS=")).partition("=")[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("stage", "installs"), [("build", '--index-url "$TORCH_INDEX" torch'), ("label", '--torch-index "$TORCH_INDEX"')]
)
def test_every_torch_comes_from_the_index_of_the_build(stage: str, installs: str) -> None:
    first = next(i for i, line in enumerate(LINES) if line.startswith("FROM"))
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu" in LINES[:first]
    lines = stage_of(stage)
    # an argument of the whole file is empty in a stage that does not name it again
    declared, used = lines.index("ARG TORCH_INDEX"), next(i for i, line in enumerate(lines) if installs in line)
    assert declared < used


@pytest.mark.parametrize("stage", ["runtime", "label"])
def test_no_stage_ends_as_root(stage: str) -> None:
    users = [line.split()[1] for line in stage_of(stage) if line.startswith("USER")]
    assert users[-1] == "10001"


def test_what_is_built_without_a_target_is_the_runtime() -> None:
    assert words("FROM")[-1] == ["runtime"]
    assert words("ENTRYPOINT") == [['["medunet"]']]
