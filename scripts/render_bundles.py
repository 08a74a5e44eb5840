"""Write the shipped bundles from the YAML sources in configs, or only compare.

    python scripts/render_bundles.py [--check] [--sources FOLDER] [--output FOLDER]

Exit code 4 with --check if a file differs.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medunet.bundle.check import check_config
from medunet.bundle.explain import settings
from medunet.bundle.render import data_format, differences, render_docs, write_bundle
from medunet.config import apply, apply_all, read_yaml, to_json
from medunet.errors import ConfigError
from medunet.files import write_atomically
from medunet.resources import WORKFLOWS, resource_dir
from medunet.trust.known import (
    EXPRESSION,
    EXPRESSIONS_FILE,
    KNOWN_EXPRESSIONS,
    KNOWN_TARGETS,
    TARGET,
    TARGETS_FILE,
    is_known_expression,
)

_RENDERED = "`scripts/render_bundles.py` wrote this bundle from YAML sources. Change those, or change a copy:"


def render(name: str, *, sources: Path | None = None) -> dict[str, str]:
    """Render a bundle in memory.

    Args:
        name: Its name in `bundles.yaml`.
        sources: Folder of the YAML sources. Default: the shipped ones.

    Returns:
        Text by path in the bundle.

    Raises:
        ConfigError: An unknown bundle or id, a reference to a missing id, or an argument that a target does not take.
    """
    sources = sources or resource_dir("configs")
    recipes, overlays = read_yaml(sources / "bundles.yaml"), read_yaml(sources / "presets.yaml")
    if name not in recipes["bundles"]:
        raise ConfigError("unknown bundle recipe", received=name, expected=sorted(recipes["bundles"]))
    recipe = recipes["bundles"][name]
    configs: dict[str, dict[str, Any]] = {workflow: {} for workflow in WORKFLOWS}
    for workflow, parts in recipes["sources"].items():
        for part in parts:
            configs[workflow] = apply(configs[workflow], read_yaml(sources / f"{part}.yaml"), define=True)
    configs = apply_all(configs, read_yaml(sources / f"{recipe['dims']}.yaml"), define=WORKFLOWS)
    for part in recipe.get("train", ()):
        configs["train"] = apply(configs["train"], overlays[part], define=True)
    configs = apply_all(configs, recipe["values"])
    presets = {
        preset: {id_: value for part in parts for id_, value in overlays[part].items()}
        for preset, parts in recipe["presets"].items()
    }
    with_presets = {preset: apply(configs["train"], overlay, define=True) for preset, overlay in presets.items()}
    for key, config in {**configs, **with_presets}.items():
        check_config(config, source=f"{name}/{key}")

    about = {**recipes["metadata"], **recipe["metadata"]}
    size, modality = configs["train"]["patch_size"], about.pop("modality")
    about["network_data_format"] = data_format(
        configs["train"], modality=modality, size=size, output_size=about.pop("output_size", size)
    )
    files = {f"configs/{key}.json": to_json(config) for key, config in {**configs, **presets}.items()}
    files["configs/metadata.json"] = to_json(about)
    files["configs/logging.conf"] = (sources / "logging.conf").read_text(encoding="utf-8")
    rows = settings(configs["train"], {}, base=name, sources=sources)
    files["docs/README.md"] = render_docs(about, configs["train"], rows, origin=_RENDERED, sources=sources)
    files["LICENSE"] = (sources / "LICENSE").read_text(encoding="utf-8")
    return files


def render_all(*, sources: Path | None = None, output: Path | None = None, check: bool = False) -> list[Path]:
    """Render every bundle, or only compare.

    Args:
        sources: Folder of the YAML sources. Default: the shipped ones.
        output: Folder that contains the bundles. Default: the shipped ones.
        check: Write nothing.

    Returns:
        Files that differ, and without `check` were written or removed.

    Raises:
        ConfigError: A shipped bundle has a target that is not reviewed.
    """
    is_own = sources is None and output is None
    output = output or resource_dir("bundles")
    changed: list[Path] = []
    expressions: set[str] = set()
    for name in read_yaml((sources or resource_dir("configs")) / "bundles.yaml")["bundles"]:
        files = render(name, sources=sources)
        if is_own:
            contents = (json.loads(text) for path, text in files.items() if path.endswith("json"))
            unknown, targets = missing_from_known(contents)
            if targets:
                remedy = "make sure that it runs no string, imports none by name and loads no pickle; then add it"
                received = ", ".join(sorted(targets))
                raise ConfigError("a target is not reviewed", file=TARGETS_FILE, received=received, remedy=remedy)
            expressions |= unknown
        differ = differences(files, output / name)
        changed += [output / name / file for file in differ]
        if not check:
            write_bundle({file: files[file] for file in differ if file in files}, output / name)
            for file in set(differ) - files.keys():
                (output / name / file).unlink()
    if expressions:
        changed.append(EXPRESSIONS_FILE)
        if not check:
            write_expressions(expressions)
    return changed


def missing_from_known(configs: Iterable[Mapping[str, Any]]) -> tuple[set[str], set[str]]:
    """Return expressions and targets of rendered configs that are not on the lists."""
    expressions: set[str] = set()
    targets: set[str] = set()
    waiting: list[Any] = list(configs)
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            targets |= {str(inner) for key, inner in item.items() if key == TARGET}
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and item.startswith(EXPRESSION) and not is_known_expression(item):
            expressions.add(item)
    return expressions, targets - KNOWN_TARGETS


def write_expressions(new: Iterable[str]) -> Path:
    """Add expressions to the list, after a change of the recipes."""
    head = "# What medunet's recipes render. Written by `scripts/render_bundles.py`; lines are added, never removed.\n"
    lines = sorted({*KNOWN_EXPRESSIONS, *new})
    return write_atomically(EXPRESSIONS_FILE, head + "".join(f"{line}\n" for line in lines))


def main() -> None:
    """Render, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--sources", type=Path, help="folder of YAML sources; default: the shipped ones")
    parser.add_argument("--output", type=Path, help="folder of the bundles; default: the shipped ones")
    options = parser.parse_args()
    changed = render_all(**vars(options))
    for path in changed:
        print(f"{'differs' if options.check else 'written'}: {path}")
    if options.check and changed:
        sys.exit(4)
    print("up to date" if not changed else f"{len(changed)} files")


if __name__ == "__main__":
    main()
