"""`medunet info`, `medunet list` and `medunet get`."""

import importlib.metadata
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from medunet.cli import options as opt
from medunet.cli.output import print_json, with_json
from medunet.cli.registry import examples
from medunet.config import read_json
from medunet.files import cache_folder, config_folder
from medunet.resources import get_model, model_registry, preset_names, resource_dir, shipped_bundles, shipped_models

NAME_HELP = "A trained model, such as hippocampus; see `medunet list --models`."
OUTPUT_HELP = "New folder for a copy of the model."
DEVELOPMENT = ("dev", "bench")  # extras that add nothing for users


@examples("medunet info", "medunet info --json > machine.json")
@with_json("info")
def info() -> None:
    """Show versions, hardware, folders and extras: what a bug report needs."""
    import psutil
    import torch

    from medunet.runtime import fast_dtype, resolve_device
    from medunet.tracking import environment

    device = resolve_device("auto")
    facts: dict[str, Any] = environment()
    hardware = facts.pop("device")
    content = {
        **facts,
        **hardware,
        "free_memory_gb": round(psutil.virtual_memory().available / 1e9, 1),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "fast_format": str(fast_dtype(device)).removeprefix("torch."),
        "cache_folder": str(cache_folder()),
        "config_folder": str(config_folder()),
        "extras": extras(),
    }
    print_json(**content)
    table = Table(show_header=False, box=None)
    for key, value in content.items():
        parts = [f"{name} {part}" for name, part in value.items()] if isinstance(value, dict) else []
        table.add_row(key.replace("_", " "), escape(", ".join(parts) or str(value)))
    opt.wide_console().print(table)


def extras() -> dict[str, str]:
    """Return whether the packages of each extra of medunet are installed: `installed`, or what is missing."""
    installed = {package.name.lower() for package in importlib.metadata.distributions() if package.name}
    missing: dict[str, list[str]] = {}
    for text in importlib.metadata.requires("medunet") or ():
        name, extra = re.match(r"[\w.-]+", text), re.search(r"extra == ['\"](\w+)['\"]", text)
        if name and extra and extra[1] not in DEVELOPMENT:
            missing.setdefault(extra[1], []).extend([name[0]] if name[0].lower() not in installed else [])
    return {extra: f"without {', '.join(names)}" if names else "installed" for extra, names in missing.items()}


@examples("medunet list", "medunet list --models", "medunet list --json")
@with_json("list")
def list_bundles(
    models_only: Annotated[bool, typer.Option("--models", help="Show only the trained models.")] = False,
) -> None:
    """List the shipped bundles with their presets, and the trained models."""
    rows = {}
    for name in shipped_bundles() if not models_only else ():
        folder = resource_dir("bundles") / name / "configs"
        presets = preset_names(path.stem for path in folder.glob("*.json"))
        rows[name] = {"description": read_json(folder / "metadata.json")["description"], "presets": presets}
    models = {}
    for name, entry in model_registry().items():
        metadata = read_json(resource_dir("bundles") / name / "configs" / "metadata.json")
        facts = {key: metadata[key] for key in ("description", "data_source", "copyright")}
        models[name] = {**facts, **entry}
    print_json(**({} if models_only else {"bundles": rows}), models=models)
    table = Table("bundle", "description", "presets")
    for name, row in rows.items():
        table.add_row(name, escape(row["description"]), ", ".join(row["presets"]))
    trained = Table("trained model", "task", "figures on held-out cases", "licence", "size", "data")
    for name, row in models.items():
        figures = ", ".join(f"{key} {value:.3f}" for key, value in row["metrics"].items())
        size = f"{row['size'] / 1e6:.1f} MB"
        cells = f"{name} {row['version']}", row["task"], figures, row["licence"], size, row["data_source"]
        trained.add_row(*map(escape, cells))
    opt.wide_console().print(*([] if models_only else [table]), trained)


@examples("medunet get hippocampus", "medunet get hippocampus -o my_model")
@with_json("get")
def get(
    name: Annotated[str, typer.Argument(help=NAME_HELP, autocompletion=shipped_models)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP)] = None,
) -> None:
    """Verify the weights of a trained model, and print its folder or copy it."""
    folder, entry = get_model(name, output), model_registry()[name]
    print_json(name=name, folder=str(folder), **entry)
    typer.echo(f"{name} {entry['version']}, {entry['licence']}: {entry['task']}")
    typer.echo(f"model: {folder}")
    typer.echo(f"model card: {folder / entry['card']}")
