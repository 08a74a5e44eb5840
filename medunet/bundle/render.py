"""Render self-contained MONAI bundles from YAML sources."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from medunet.bundle.check import check_config
from medunet.bundle.explain import settings, show, table
from medunet.config import TARGET, apply, apply_all, read_yaml, to_json
from medunet.errors import ConfigError
from medunet.files import write_atomically
from medunet.reports import Setting
from medunet.resources import WORKFLOWS, resource_dir
from medunet.trust import missing_from_known, write_expressions
from medunet.trust.known import EXPRESSIONS_FILE, TARGETS_FILE

_RENDERED = "`medunet bundle render` wrote this bundle from YAML sources. Change those, or change a copy:"


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


def data_format(
    config: Mapping[str, Any],
    *,
    modality: str,
    size: Sequence[int],
    output_size: Sequence[int],
    channels: Iterable[str] = (),
) -> dict[str, Any]:
    """Return `network_data_format` of metadata.json; MONAI gives its tensors the names `image` and `pred`.

    Sizes are in voxels per axis of the network's input and output. Without `channels`, every channel is named image.
    """

    def tensor(format_: str, names: Sequence[str], shape: Sequence[int], **more: Any) -> dict[str, Any]:
        first = {"type": "image", "format": format_, **more, "num_channels": len(names), "spatial_shape": list(shape)}
        channel_def = {str(index): name for index, name in enumerate(names)}
        return {**first, "dtype": "float32", "value_range": [], "is_patch_data": True, "channel_def": channel_def}

    names = list(channels)
    inputs = names if len(names) == config["in_channels"] else ["image"] * config["in_channels"]
    outputs = config.get("region_names") or config["label_names"]
    if config.get("instances") and config["instance_target"] != "gap":
        outputs = [*outputs, "border"] if config["instance_target"] == "border" else [*outputs[1:], "distance"]
    return {
        "inputs": {"image": tensor("magnitude", inputs, size, modality=modality)},
        "outputs": {"pred": tensor("segmentation", outputs, output_size)},
    }


def render_docs(
    metadata: Mapping[str, Any],
    config: Mapping[str, Any],
    rows: Iterable[Setting],
    *,
    origin: str = "Any value may be changed, here or in a copy:",
    sources: Path | None = None,
) -> str:
    """Return `docs/README.md` of a bundle; `origin` states who wrote it, before the command that copies it."""
    network = config["network_def"]
    details = [f"{key} {show(network[key])}" for key in ("channels", "padding", "norm") if key in network]
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    kind = "region" if config.get("region_names") else "label"
    classes = zip(config[f"{kind}_values"], config[f"{kind}_names"], strict=True)
    return Template(((sources or resource_dir("configs")) / "docs.md").read_text(encoding="utf-8")).substitute(
        origin=origin,
        name=metadata.get("name", "U-Net"),
        description=metadata.get("description", ""),
        network=", ".join([f"`{network[TARGET]}`", f"{config['spatial_dims']}-D", *details]),
        num_channels=image["num_channels"],
        network_size=" x ".join(map(str, image["spatial_shape"])),
        output_size=" x ".join(map(str, pred["spatial_shape"])),
        classes=", ".join(f"{value} {label}" for value, label in classes),
        data_source=metadata.get("data_source", "unknown"),
        image_type=metadata["image_type"],
        values=table(rows),
    )


def write_bundle(files: Mapping[str, str], folder: Path) -> None:
    """Write the texts of a bundle into its folder, each atomically."""
    for name, text in files.items():
        write_atomically(folder / name, text)


def differences(files: Mapping[str, str], folder: Path) -> list[str]:
    """Return which of a bundle's files are missing, different or superfluous in a folder."""
    paths = [path for part in ("configs", "docs") for path in folder.glob(f"{part}/*")]
    others = {path.relative_to(folder).as_posix() for path in paths} - files.keys()
    present = {name for name in files if (folder / name).is_file()}
    differ = {name for name in present if (folder / name).read_text(encoding="utf-8") != files[name]}
    return sorted(others | differ | (files.keys() - present))


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
