"""Idioms that must not return: docs, docstrings, comments and messages use the field's usual words."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOUNS = (
    "axis|batch|box|case|channel|class|device|epoch|file|fold|GPU|group|image|label|level|machine|name|"
    "patch|pixel|process|region|row|run|sample|series|side|slice|step|structure|tensor|thread|tile|value|voxel|window"
)
IDIOMS = {
    r"whole or not at all": "atomically",
    r"for want of": "for lack of",
    r"(?<!there )\b(?:is|are) (?-i:none)\b": "is missing, is not a valid ...",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(is|are|be|been) told\b": "is reported, receives",
    r"\bsays so\b": "reports, warns",
    r"of strangers|from somebody": "untrusted, third-party",
    r"takes? your word|by your word": "trusted",
    r"in earnest|\bhopeless\b": "concrete words",
    r"\bbears\b": "has",
    r"\breckon": "estimate",
    r"goes on (where|with|after|without)|\bgo on (where|with|after|without)": "continues, resumes",
    r"held against": "compared with",
    r"stands in for|\bstands? in the way\b": "replaces, blocks",
    r"\bhas been looked at\b": "checked, validated",
    r"the middle one": "the median",
    r"\bthe same line\b": "the same command",
    rf"\bone an? ({NOUNS})\b": "one per ...",
    r"\bmade (CT|data|cases|volumes|images)\b": "synthetic",
    r"\bas it is said\b|\bit is said\b": "documented",
    r"\b(a|of a|of the|the) training that\b": "a training run that",
}
"""Pattern and what replaces it."""
SUFFIXES = ("*.py", "*.md", "*.yaml", "*.sh", "*.toml", "*.html", "*.txt")
LISTED = subprocess.run(["git", "ls-files", *SUFFIXES], cwd=ROOT, capture_output=True, text=True, check=False).stdout
FILES = sorted(ROOT / name for name in LISTED.splitlines() if name != "tests/test_prose.py")


@pytest.mark.parametrize("idiom", IDIOMS)
def test_no_idiom(idiom: str) -> None:
    pattern = re.compile(idiom, re.IGNORECASE)
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not lines, f"write {IDIOMS[idiom]!r} instead:\n" + "\n".join(lines[:20]) + f"\n{len(lines)} lines"
