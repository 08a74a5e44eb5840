"""Print a random sample of docstrings, messages and help texts of medunet, to be read against the style guide.

python scripts/sample_prose.py [SEED]
"""

from __future__ import annotations

import ast
import inspect
import random
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "medunet"
SIZES = {"docstring": 100, "message": 50, "help": 20}
LOGGING = ("warning", "info", "error")


def texts(path: Path) -> Iterator[tuple[str, int, str]]:
    """Yield the kind, line and text of every docstring, error or log message, and help text of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield "docstring", getattr(node, "lineno", 1), text
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if (name.endswith("Error") or name in LOGGING) and node.args and is_text(node.args[0]):
                yield "message", node.lineno, ast.unparse(node)
            for keyword in node.keywords:
                if keyword.arg == "help" and is_text(keyword.value):
                    yield "help", node.lineno, ast.unparse(keyword.value)


def is_text(node: ast.expr) -> bool:
    """Whether an expression is a literal or formatted string."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    found: dict[str, list[str]] = {kind: [] for kind in SIZES}
    for path in sorted(PACKAGE.rglob("*.py")):
        for kind, line, text in texts(path):
            found[kind].append(f"{path.relative_to(PACKAGE.parent)}:{line}\n{inspect.cleandoc(text)}")
    for kind, size in SIZES.items():
        for number, entry in enumerate(random.Random(seed).sample(found[kind], min(size, len(found[kind]))), 1):
            print(f"--- {kind} {number}: {entry}\n")


if __name__ == "__main__":
    main()
