"""The texts of a bundle: its README, the data format in its metadata, and how they are written."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from medunet.bundle.explain import show, table
from medunet.config import TARGET
from medunet.files import write_atomically
from medunet.reports import Setting
from medunet.resources import resource_dir


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
