"""YAML sources and a recipe in, a self-contained MONAI bundle out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from medunet.bundle.check import check_config
from medunet.config import TARGET, apply, apply_all, leaves, read_yaml, to_json
from medunet.errors import ConfigError
from medunet.files import write_atomically
from medunet.resources import resource_dir
from medunet.trust import missing_from_known, write_expressions
from medunet.trust.known import EXPRESSIONS_FILE, TARGETS_FILE

RENDERED = """\
This bundle was rendered by `medunet bundle render` from YAML sources; change those, or make a copy of your own with
`medunet bundle init {bundle} --output DIR`."""
"""Origin of the shipped bundles."""


def recipes(sources: Path | None = None) -> dict[str, Any]:
    """The recipes by bundle name."""
    return read_yaml((sources or resource_dir("configs")) / "recipes.yaml")


def render(name: str, *, sources: Path | None = None) -> dict[str, str]:
    """Render a bundle in memory.

    Args:
        name: of the recipe.
        sources: folder of YAML sources, by default the one that comes with medunet.

    Returns:
        Text by path inside the bundle.

    Raises:
        ConfigError: no such recipe, unknown key, reference to nothing, argument that a target does not take.
    """
    sources = sources or resource_dir("configs")
    all_recipes = recipes(sources)
    if name not in all_recipes:
        raise ConfigError("no such recipe", received=name, expected=sorted(all_recipes))
    recipe = all_recipes[name]
    configs: dict[str, dict[str, Any]] = {}
    for workflow, parts in recipe["sources"].items():
        config: dict[str, Any] = {}
        for part in parts:
            config = _merge(config, read_yaml(sources / f"{part}.yaml"))
        configs[workflow] = config
    for part in recipe.get("overrides", []):
        configs = apply_all(configs, leaves(read_yaml(sources / f"{part}.yaml")))
    for workflow, config in configs.items():
        check_config(config, source=f"{name}/{workflow}")
    overlays = {key: read_yaml(sources / f"{part}.yaml") for key, part in recipe.get("overlays", {}).items()}
    for key, overlay in overlays.items():
        check_config(apply(configs["train"], overlay, define=True), source=f"{name}/{key}")

    metadata = render_metadata(read_yaml(sources / "metadata.yaml"), recipe["metadata"], configs["inference"])
    files = {f"configs/{key}.json": to_json(config) for key, config in {**configs, **overlays}.items()}
    files["configs/metadata.json"] = to_json(metadata)
    files["configs/logging.conf"] = (sources / "logging.conf").read_text(encoding="utf-8")
    files["docs/README.md"] = render_docs(
        (sources / "docs.md").read_text(encoding="utf-8"),
        metadata,
        configs["inference"],
        bundle=name,
        origin=RENDERED.format(bundle=name),
    )
    files["LICENSE"] = (sources / "LICENSE").read_text(encoding="utf-8")
    return files


def render_metadata(common: Mapping[str, Any], own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """metadata.json: common part, the recipe's part, and the data format that the inference config implies."""
    own = dict(own)
    network_size, output_size = own.pop("network_size"), own.pop("output_size")
    modality = own.pop("modality")
    return {
        **common,
        **own,
        "network_data_format": data_format(
            config, modality=modality, network_size=network_size, output_size=output_size
        ),
    }


def data_format(
    config: Mapping[str, Any], *, modality: str, network_size: list[int], output_size: list[int]
) -> dict[str, Any]:
    """The ``network_data_format`` of metadata.json; its names ``image`` and ``pred`` are MONAI's."""
    channels, names = config["in_channels"], config.get("region_names") or config["label_names"]
    return {
        "inputs": {
            "image": {
                "type": "image",
                "format": "magnitude",
                "modality": modality,
                "num_channels": channels,
                "spatial_shape": network_size,
                "dtype": "float32",
                "value_range": [],
                "is_patch_data": True,
                "channel_def": {str(index): "image" for index in range(channels)},
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "num_channels": len(names),
                "spatial_shape": output_size,
                "dtype": "float32",
                "value_range": [],
                "is_patch_data": True,
                "channel_def": {str(index): name for index, name in enumerate(names)},
            }
        },
    }


def render_docs(
    template: str, metadata: Mapping[str, Any], config: Mapping[str, Any], *, bundle: str, origin: str
) -> str:
    """docs/README.md.

    Args:
        template: text of ``docs.md``.
        metadata: of the bundle.
        config: its ``inference.json``.
        bundle: its name on the command line.
        origin: where it comes from, whole sentences.
    """
    network = config["network_def"]
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    classes = zip(config["label_values"], config["label_names"], strict=True)
    if config.get("region_names"):
        classes = zip(config["region_values"], config["region_names"], strict=True)
    return Template(template).substitute(
        bundle=bundle,
        origin=origin,
        name=metadata["name"],
        description=metadata["description"],
        spatial_dims=config["spatial_dims"],
        channels="-".join(str(c) for c in network["channels"]),
        padding=network["padding"],
        norm=network["norm"] or "none",
        num_channels=image["num_channels"],
        network_size=" x ".join(map(str, image["spatial_shape"])),
        output_size=" x ".join(map(str, pred["spatial_shape"])),
        classes=", ".join(f"{value} {label}" for value, label in classes),
        data_source=metadata["data_source"],
    )


def write_bundle(files: Mapping[str, str], folder: Path) -> None:
    """Write rendered files into a bundle's folder."""
    for name, text in files.items():
        write_atomically(folder / name, text)


def differences(files: Mapping[str, str], folder: Path) -> list[str]:
    """Names of the rendered files that are missing in a folder or differ there, and of files that are too many."""
    wrong = [
        name
        for name, text in files.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]
    present = {
        path.relative_to(folder).as_posix() for part in ("configs", "docs") for path in (folder / part).glob("*")
    }
    return sorted([*wrong, *(present - files.keys())])


def render_all(*, sources: Path | None = None, output: Path | None = None, check: bool = False) -> list[Path]:
    """Render every recipe's bundle, or only compare.

    Args:
        sources: folder of YAML sources.
        output: folder that holds the bundles' folders.
        check: write nothing.

    Returns:
        Files that differed (and, without ``check``, were written or removed).

    Raises:
        ConfigError: a shipped recipe with a target that nobody has reviewed.
    """
    own = sources is None and output is None
    output = output or resource_dir("bundles")
    changed: list[Path] = []
    expressions: set[str] = set()
    for name in recipes(sources):
        files = render(name, sources=sources)
        expressions |= _unknown_expressions(files) if own else set()
        wrong = differences(files, output / name)
        changed += [output / name / file for file in wrong]
        if not check:
            write_bundle({file: files[file] for file in wrong if file in files}, output / name)
            for file in set(wrong) - files.keys():
                (output / name / file).unlink()
    if expressions:
        changed.append(EXPRESSIONS_FILE)
        if not check:
            write_expressions(expressions)
    return changed


def _unknown_expressions(files: Mapping[str, str]) -> set[str]:
    """What a rendered bundle would not be trusted for, see :mod:`medunet.trust`."""
    expressions, targets = missing_from_known(json.loads(text) for name, text in files.items() if name.endswith("json"))
    if targets:
        raise ConfigError(
            "a target that nobody has reviewed",
            file=TARGETS_FILE,
            received=", ".join(sorted(targets)),
            remedy="make sure that it runs no string, imports none by name and loads no pickle; then add it",
        )
    return expressions


def _merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Merge level by level; a list, and a component of another target, replace what was there."""
    merged = dict(base)
    for key, value in overlay.items():
        old: Any = merged.get(key)
        merged[key] = _merge(old, value) if _same_component(old, value) else value
    return merged


def _same_component(old: Any, new: Any) -> bool:
    """Whether the new value changes parts of the old one instead of replacing it: two mappings, of one target."""
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    return both and new.get(TARGET, old.get(TARGET)) == old.get(TARGET)
