"""The code matches docs/architecture.md: a module imports only from packages of a lower rank, and files are short."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
RANKS = {name: int(rank) for rank, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, re.MULTILINE)}
MODULES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "medunet").rglob("*.py"))}
MAX_LINES = 400


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "medunet").parts[0].removesuffix(".py")


def imported_packages(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            if parts[0] == "medunet" and len(parts) > 1 and parts[1] in RANKS:
                yield parts[1], node.lineno


def test_modules_import_only_from_lower_ranks_or_their_own_package() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports from {other}"
        for path, text in MODULES.items()
        for other, line in imported_packages(text)
        if package_of(path) != "__init__" and other != package_of(path) and RANKS[other] >= RANKS[package_of(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(text.splitlines()) for path, text in MODULES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_the_architecture_page_lists_every_package() -> None:
    assert {package_of(path) for path in MODULES} - {"__init__"} == set(RANKS)
