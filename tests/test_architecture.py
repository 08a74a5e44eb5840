"""The house stands as drawn: imports go down only, nothing is imported late, no star, no print."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medunet"

RANKS = {
    "errors": 0,
    "files": 1,
    "log": 1,
    "overrides": 1,
    "resources": 1,
    "geometry": 2,
    "networks": 2,
    "losses": 2,
    "transforms": 2,
    "metrics": 2,
    "trust": 2,
    "io": 3,
    "inferers": 3,
    "datasets": 4,
    "planning": 5,
    "training": 5,
    "prediction": 5,
    "reports": 5,
    "tracking": 6,
    "bundle": 7,
    "deploy": 8,
    "cli": 9,
    "__main__": 10,
}
MAX_LINES = 400
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.split("/", maxsplit=1)[0].removesuffix(".py")


def imported_rooms(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{module}:{node.lineno} climbs out of its folder by dots"
        for name in names:
            parts = name.split(".")
            if parts[0] == "medunet" and len(parts) > 1 and parts[1] in RANKS:
                yield parts[1], node.lineno


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__.py"])
def test_a_module_imports_only_from_lower_ranks_or_its_own_folder(module: str) -> None:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    own = room(module)
    for other, line in imported_rooms(tree, module):
        assert other == own or RANKS[other] < RANKS[own], f"medunet/{module}:{line} imports from {other}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in ("cli", "__main__")])
def test_nothing_is_imported_inside_a_function(module: str) -> None:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            late = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not late, f"medunet/{module}:{late[0].lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_surface_is_explicit_and_files_are_rooms_not_halls(module: str) -> None:
    text = (PACKAGE / module).read_text(encoding="utf-8")
    stars = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert not stars
    assert len(text.splitlines()) <= MAX_LINES


def test_every_room_has_a_rank() -> None:
    assert {room(module) for module in MODULES} - {"__init__"} == set(RANKS)
