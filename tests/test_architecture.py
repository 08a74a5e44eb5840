"""The code matches the architecture page: imports go to lower ranks only, at the top of a module, and by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medunet"

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
RANKS = {
    name: int(rank)
    for rank, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
}
"""Rank of each package, as the architecture page shows it."""

MAX_LINES = 400
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def package_of(module: str) -> str:
    return module.split("/", maxsplit=1)[0].removesuffix(".py")


def imported_packages(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
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
    own = package_of(module)
    for other, line in imported_packages(tree, module):
        assert other == own or RANKS[other] < RANKS[own], f"medunet/{module}:{line} imports from {other}"


@pytest.mark.parametrize("module", [m for m in MODULES if package_of(m) not in ("cli", "__main__")])
def test_nothing_is_imported_inside_a_function(module: str) -> None:
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            late = [n for n in ast.walk(function) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not late, f"medunet/{module}:{late[0].lineno}"


@pytest.mark.parametrize("module", MODULES)
def test_names_are_exported_explicitly_and_files_are_short(module: str) -> None:
    text = (PACKAGE / module).read_text(encoding="utf-8")
    stars = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert not stars
    assert len(text.splitlines()) <= MAX_LINES


def test_the_architecture_page_lists_every_package() -> None:
    assert {package_of(module) for module in MODULES} - {"__init__"} == set(RANKS)
