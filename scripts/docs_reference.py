"""Write the generated reference pages. `--check` writes nothing and exits with 1 if a page differs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from medunet.bundle import find_bundle
from medunet.bundle.explain import ConfigId, list_ids, meanings, show
from medunet.cli.app import app
from medunet.cli.registry import EVERYWHERE

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
OPTIONS = "Options"


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every visible command with its full name."""
    for inner_name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from commands(inner, f"{name} {inner_name}")
    if not hasattr(command, "commands"):
        yield name, command


def section(name: str, command: Any) -> list[str]:
    """Return the Markdown of one command."""
    panels: dict[str, list[str]] = {}
    for parameter in command.params:
        if not parameter.hidden and parameter.rich_help_panel != EVERYWHERE:
            panels.setdefault(parameter.rich_help_panel or OPTIONS, []).append(row(parameter))
    arguments = [parameter.metavar for parameter in command.params if parameter.param_type_name == "argument"]
    examples = command.callback.examples
    text = [f"## {name}", "", plain(command.help), "", "```text", " ".join([name, *arguments, "[OPTIONS]"]), "```", ""]
    text += ["```bash", *examples, "```", ""]
    if panels:
        text += ["| option | meaning | default |", "| --- | --- | --- |"]
        for panel, rows in sorted(panels.items(), key=lambda item: item[0] != OPTIONS):
            text += [*([f"| **{panel}** | | |"] if panel != OPTIONS else []), *rows]
        text.append("")
    return text


def plain(text: str | None) -> str:
    """Return a help text without rich's escapes."""
    return (text or "").replace("\\[", "[")


def row(parameter: Any) -> str:
    """Return the table row of an argument or option."""
    choices = parameter.type_descriptor.choices
    value = "|".join(map(str, choices)) if choices else parameter.metavar
    if parameter.param_type_name == "argument":
        label = f"`{value}`"
    else:
        label = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        label += f" `{value}`" if value else ""
    shown = parameter.default if parameter.show_default else None
    default = "required" if parameter.required else "" if shown in (None, False, "", [], ()) else f"`{shown}`"
    cells = (label, " ".join((parameter.help or "").split()), default)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# type and example of values whose default says neither
EXAMPLES = {
    "region_names": ("list", "[whole,core]"),
    "spacing_mm": ("list", "[1.0,1.0,2.5]"),
    "tile_size": ("text or list", "[572,572]"),
    "network_def::norm": ("text or list", "instance"),
    "network_def::act": ("text or list", "leakyrelu"),
    "network_def::dropout": ("number", "0.1"),
    "network_def::deep_supervision": ("integer", "2"),
    "crop_steps": ("list", '["@steps#crop_body"]'),
    "steps::normalize": ("component", "steps::normalize::channel_wise=false"),
    "optimizer": ("component", "optimizer::weight_decay=0.001"),
    "lr_scheduler": ("component", "lr_scheduler::pct_start=0.2"),
    "loss": ("component", "loss::lambda_ce=0.5"),
    "loss_keys": ("list", "[weight]"),
    "augment::deform::axis_scale_range": ("list", "[0.9,1.1]"),
    "augment::deform::swap_labels": ("list", "[[1,2]]"),
    "augment::bias": ("component", "augment::bias::std=[0.0,0.5]"),
    "augment::gamma": ("component", "augment::gamma::gamma=[0.7,1.5]"),
    "augment::blur": ("component", "augment::blur::prob=0.1"),
    "augment::brightness": ("component", "augment::brightness::prob=0.5"),
    "augment::shift": ("component", "augment::shift::offsets=0.1"),
    "augment::noise": ("component", "augment::noise::std=[0.0,0.2]"),
    "split": ("list", "[[case_1,case_7],[case_2,case_3]]"),
    "validation_cases": ("list", "[case_1,case_7]"),
    "init_from": ("text", "runs/other"),
    "device": ("expression", "$torch.device('cuda:1')"),
    "memory_format": ("expression", "$torch.contiguous_format"),
    "ckpt_dir": ("expression", "models"),
    "output_dir": ("expression", "records"),
    "region_values": ("list", "[[1,2,3],[2,3]]"),
    "regions_class_order": ("list", "[1,2]"),
    "series_uid": ("text", "1.2.840.113619.2.1"),
    "phase": ("integer", "0"),
    "fill_value": ("number", "0"),
    "network_def": ("component", "network_def::convs_per_level=3"),
    "steps": ("mapping", "steps::spacing::mode=nearest"),
    "image_steps": ("list", '["@steps#orient","@steps#normalize"]'),
    "label_steps": ("list", '["@steps#encode"]'),
    "augment": ("mapping", "augment::deform::prob=0.5"),
    "augment_steps": ("list", '["@augment#deform"]'),
    "contrast_steps": ("list", '["@augment#gamma"]'),
    "intensity_steps": ("list", '["@augment#noise"]'),
    "skip_cases": ("list", "[case_3]"),
    "num_workers": ("integer", "8"),
    "store_dir": ("text", "/data/cache"),
    "store_limit": ("text", "50GB"),
    "tracking_uri": ("text", "https://mlflow.example.org"),
    "run_name": ("text", "first"),
    "ckpt_path": ("text", "models/last.pt"),
    "network": ("component", "network::backend=openvino"),
    "network::channels_last": ("true or false", "true"),
    "network::dtype": ("text", "float32"),
    "tile_inferer::halo": ("text or integer", "32"),
    "tile_inferer::memory": ("text", "4GB"),
    "tta_axes": ("list", "[0,1]"),
    "mirror_axes": ("list", "[0,1,2]"),
    "mirror_swaps": ("list", "[[1,2]]"),
    "view_scales": ("list", "[1.0,1.3]"),
    "prediction_dir": ("text", "results"),
    "label_colors": ("mapping", "{liver: [200, 60, 60]}"),
    "label_codes": (
        "mapping",
        "{liver: {category: ['91723000', SCT, Anatomical Structure], type: ['10200004', SCT, Liver]}}",
    ),
    "postprocess_steps": ("list", "[{_target_: medunet.transforms.CleanComponentsd, keys: pred, largest: [1]}]"),
}


def config_page() -> str:
    """Return the Markdown of all documented config ids, with their defaults in the shipped bundles."""
    bundles = ("unet_3d", "unet_2d")
    defaults = [{entry.id: entry for entry in list_ids(find_bundle(name))} for name in bundles]
    lines = [
        "# Config values",
        "",
        "Every value of a bundle has an id. `--set ID=VALUE` of `train`, `predict` and `bundle init` changes it, like",
        "`--ID VALUE` of `python -m monai.bundle run`. `medunet bundle show BUNDLE` lists the values of a bundle.",
        "",
        "```bash",
        'medunet train unet_3d --data DATA --set epochs=20 --set "patch_size=[64,64,64]"',
        "medunet bundle init unet_3d --output mine --set augment::noise::prob=0.5",
        "medunet bundle show unet_3d augment",
        "```",
        "",
        "| id | meaning | type | default of `unet_3d` | default of `unet_2d` | example |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for id_, meaning in meanings().items():
        found = [entries.get(id_) for entries in defaults]
        kind, value = EXAMPLES.get(id_) or next((entry.type, show(entry.value)) for entry in found if entry)
        example = value if "=" in value else f"{id_}={value}"
        cells = [f"`{id_}`", meaning, kind, *(default(entry) for entry in found), f"`{example}`"]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def default(entry: ConfigId | None) -> str:
    """Return the default of an id in one bundle; empty if the bundle does not have it, or for a mapping."""
    return "" if entry is None or entry.type == "mapping" else f"`{show(entry.value)}`"


def pages() -> dict[str, str]:
    """Return the generated pages by file name."""
    lines = [
        "# Commands",
        "",
        "`medunet COMMAND --help` prints the same. `--set` takes the ids of [Config values](config.md).",
        "",
        "Every command also takes these options, before or after its name:",
        "",
        "| option | meaning |",
        "| --- | --- |",
    ]
    root: Any = get_command(app)
    for parameter in root.params:
        if parameter.rich_help_panel == EVERYWHERE:
            lines.append(row(parameter).removesuffix("  |"))
    for name, command in commands(root, "medunet"):
        lines += ["", *section(name, command)[:-1]]
    return {"commands.md": "\n".join(lines) + "\n", "config.md": config_page()}


def main() -> None:
    differing = []
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            differing.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    print("\n".join(f"differs: {name}" for name in differing) or "up to date")
    if differing and "--check" in sys.argv:
        sys.exit(1)


if __name__ == "__main__":
    main()
