"""Write the generated reference pages. `--check` writes nothing and exits with 1 if a page differs."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, DefaultPlaceholder, OptionInfo

from medunet.bundle import find_bundle
from medunet.bundle.explain import ConfigId, list_ids, meanings, show
from medunet.cli.app import app

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
METAVARS = {Path: "PATH", int: "INTEGER", float: "NUMBER", str: "TEXT"}


def commands(group: typer.Typer, name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every visible command of a typer application with its full name."""
    for command in group.registered_commands:
        if not command.hidden and command.callback:
            yield f"{name} {command.name or command.callback.__name__.replace('_', '-')}", command.callback
    for inner in group.registered_groups:
        if inner.typer_instance:
            inner_name = (
                inner.name if not isinstance(inner.name, DefaultPlaceholder) else inner.typer_instance.info.name
            )
            yield from commands(inner.typer_instance, f"{name} {inner_name}")


def section(name: str, function: Callable[..., Any]) -> list[str]:
    """Return the Markdown of one command."""
    rows, arguments = [], []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind, info = typing.get_args(parameter.annotation)[:2]
        if info.hidden:
            continue
        rows.append(row(parameter, kind, info))
        if isinstance(info, ArgumentInfo):
            arguments.append(metavar(kind, info, parameter.name))
    usage = " ".join([name, *arguments, "[OPTIONS]"])
    text = inspect.cleandoc(function.__doc__ or "")
    lines = [f"## {name}", "", text, "", "```text", usage, "```", ""]
    return [*lines, "| option | meaning | default |", "| --- | --- | --- |", *rows, ""] if rows else lines


def metavar(kind: Any, info: ArgumentInfo | OptionInfo, name: str) -> str:
    """Return what `--help` shows in the place of a value."""
    if info.metavar:
        return info.metavar
    if isinstance(info, ArgumentInfo):
        return name.upper()
    inner = next((part for part in typing.get_args(kind) if part is not types.NoneType), kind)
    if isinstance(inner, type) and issubclass(inner, Enum):
        return "|".join(str(member.value) for member in inner)
    return METAVARS.get(inner, "TEXT")


def row(parameter: inspect.Parameter, kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    """Return the table row of an argument or option."""
    required = parameter.default in (inspect.Parameter.empty, ...)
    shown = getattr(parameter.default, "value", parameter.default)
    default = "required" if required else "" if shown in (None, False, "", [], ()) else f"`{shown}`"
    if isinstance(info, ArgumentInfo):
        label = f"`{metavar(kind, info, parameter.name)}`"
    else:
        first = [info.default] if isinstance(info.default, str) else []  # typer.Option("--json") keeps it there
        names = [part for text in [*first, *(info.param_decls or ())] for part in text.split("/")]
        names = names or [f"--{parameter.name.replace('_', '-')}"]
        label = ", ".join(f"`{name}`" for name in names)
        label += "" if kind in (bool, bool | None) else f" `{metavar(kind, info, parameter.name)}`"
    cells = (label, " ".join((info.help or "").split()), default)
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
    "augment::brightness": ("component", "augment::brightness::prob=0.5"),
    "augment::shift": ("component", "augment::shift::offsets=0.1"),
    "augment::noise": ("component", "augment::noise::std=[0.0,0.2]"),
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
    "intensity_steps": ("list", '["@augment#noise"]'),
    "skip_cases": ("list", "[case_3]"),
    "num_workers": ("integer", "8"),
    "store_dir": ("text", "/data/cache"),
    "store_limit": ("text", "50GB"),
    "tracking_uri": ("text", "https://mlflow.example.org"),
    "run_name": ("text", "first"),
    "weight_average": ("component", "ema_decay=0.999"),
    "ckpt_path": ("text", "models/last.pt"),
    "network": ("component", "network::backend=openvino"),
    "network::channels_last": ("true or false", "true"),
    "network::dtype": ("text", "float32"),
    "tile_inferer::halo": ("text or integer", "32"),
    "tile_inferer::memory": ("text", "4GB"),
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
    ]
    for name, function in commands(app, "medunet"):
        lines += ["", *section(name, function)[:-1]]
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
