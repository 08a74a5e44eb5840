"""The documentation: every command line parses, every Python block runs, every relative link leads to a file."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from medunet.bundle import find_bundle
from medunet.bundle.explain import list_ids
from medunet.cli.app import app
from medunet.config import apply_all, parse_settings, read_json
from scripts.bench import everyday

ROOT = Path(__file__).parents[1]
ZENSICAL = Path(sys.executable).parent / "zensical"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
WITH_CODE = [page for page in PAGES if page.name not in ("CHANGELOG.md", "commands.md")]
TUTORIALS = {"hippocampus": "Task04_Hippocampus", "nuclei": "DSB2018_nuclei"}  # page and its data
WITH_PYTHON = [page for page in WITH_CODE if page.stem not in TUTORIALS and "\n```python\n" in page.read_text("utf-8")]


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def command_lines(page: Path) -> list[list[str]]:
    """Return the words of every command line of a page, without comments and variables of the environment."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in line if not re.fullmatch(r"[A-Z_]+=\S*", word)] for line in words if line]


def parse(words: list[str]) -> None:
    """Parse a `medunet` command line as the program does, without running it."""
    command: Any = get_command(app)
    words = words[1:]
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no such command: {words[:1]}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context("medunet", list(words))


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_command_lines_parse(page: Path) -> None:
    for words in command_lines(page):
        if words[0] == "medunet" and words[1] != "--install-completion":  # an option of typer
            parse(words)
        for word in words:
            if word.startswith("scripts/"):
                assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_blocks_run(
    page: Path, run_3d: Path, volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(next((volumes / "imagesTr").iterdir()), "scan.nii.gz")
    shutil.copytree(run_3d, "runs/mine")
    namespace: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)  # the documentation's own code


def test_everyday_lines_parse() -> None:
    lines = everyday.read_lines(everyday.PAGE).values()
    assert len(lines) == 42
    for line in lines:
        if not line.startswith("medunet "):
            compile(line, str(everyday.PAGE), "eval")
        elif not line.endswith(" -h"):
            parse(shlex.split(line))


@pytest.mark.slow
def test_everyday_lines_run() -> None:
    command = [sys.executable, "-m", "scripts.bench.everyday"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 42, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorials_run(name: str, test_data: Path) -> None:
    script, page = (str(ROOT / part) for part in ("scripts/tutorial.py", f"docs/tutorials/{name}.md"))
    command = [sys.executable, script, page, "--data", str(test_data / TUTORIALS[name]), "--replace", "5min=1min"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_option_is_detected() -> None:
    with pytest.raises(Exception, match="no-such-option"):
        parse(["medunet", "predict", "RUN", "IMAGES", "--output", "out", "--no-such-option"])


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_reference_pages_are_current() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "docs_reference.py"))
    for name, text in script["pages"]().items():
        assert (script["REFERENCE"] / name).read_text(encoding="utf-8") == text, "run python scripts/docs_reference.py"


def test_the_example_of_every_config_id_can_be_set() -> None:
    page = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    examples = re.findall(r"`([a-z_:]+=[^`]*)` \|$", page, re.MULTILINE)
    assert len(examples) > 90
    for bundle in ("unet_3d", "unet_2d"):
        folder = find_bundle(bundle) / "configs"
        configs = {name: read_json(folder / f"{name}.json") for name in ("train", "evaluate", "inference")}
        known = {entry.id for entry in list_ids(find_bundle(bundle))}
        for example in examples:
            if bundle == "unet_3d" or example.split("=")[0] in known:
                apply_all(configs, parse_settings([example]))


@pytest.mark.skipif(not ZENSICAL.is_file(), reason="zensical is missing")
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    for name in ("docs", "medunet"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [str(ZENSICAL), "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "OverlapTileInferer" in (tmp_path / "site" / "reference" / "api.html").read_text(encoding="utf-8")
