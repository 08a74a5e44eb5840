"""The names on the page of the Python API are public; `public_names.txt` lists them with their signatures.

After an intended change, `python tests/test_public_names.py` writes the list again.
"""

import inspect
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, is_typeddict

import medunet

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "api.md"
LIST = Path(__file__).with_name("public_names.txt")
ADVICE = "an intended change needs a line in CHANGELOG.md and `python tests/test_public_names.py`"


def names() -> list[str]:
    """Return the names that the page documents, and those of the modules it documents."""
    return sorted(set(re.findall(r"^::: (\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)))


def signature(name: str, content: Any) -> str:
    """Return one line, without the quotes that Python versions set differently."""
    return f"{name}{inspect.signature(content)}".replace("'", "").replace('"', "")


def lines(name: str) -> Iterator[str]:
    """Return the signature of a function, or those of a class and its public members."""
    content: Any = pydoc.locate(name)
    if inspect.ismodule(content):
        members = [key for key, value in vars(content).items() if getattr(value, "__module__", "") == name]
        yield from (line for key in sorted(members) if key[0] != "_" for line in lines(f"{name}.{key}"))
    elif is_typeddict(content):
        yield f"{name}: {', '.join(sorted(content.__annotations__))}"
    else:
        yield signature(name, content)
        for key in sorted(dir(content)) if inspect.isclass(content) else ():
            member = inspect.getattr_static(content, key)
            member = getattr(member, "__func__", member)  # of a class method or static method
            if key[0] != "_" and isinstance(member, property):
                yield f"{name}.{key}"
            elif key[0] != "_" and inspect.isfunction(member) and member.__module__.startswith("medunet"):
                yield signature(f"{name}.{key}", member)


def snapshot() -> str:
    return "".join(f"{line}\n" for name in names() for line in lines(name))


def test_public_names_and_signatures_change_only_on_purpose() -> None:
    assert LIST.read_text(encoding="utf-8").splitlines() == snapshot().splitlines(), ADVICE


def test_the_page_documents_every_name_of_the_package() -> None:
    documented = {name.rpartition(".")[2] for name in names()} | {"MedunetError"}
    assert set(medunet.__all__) <= documented


if __name__ == "__main__":
    LIST.write_text(snapshot(), encoding="utf-8")
