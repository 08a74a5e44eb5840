"""`medunet get`."""

from pathlib import Path
from typing import Annotated

import typer

from medunet.cli.output import print_json, with_json
from medunet.cli.registry import examples
from medunet.files import require_new
from medunet.resources import model_entry, shipped_models

NAME_HELP = "A trained model, such as hippocampus; see `medunet list --models`."
OUTPUT_HELP = "New folder for a copy of the model."


@examples("medunet get hippocampus", "medunet get hippocampus -o my_model")
@with_json("get")
def get(
    name: Annotated[str, typer.Argument(help=NAME_HELP, autocompletion=shipped_models)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help=OUTPUT_HELP)] = None,
) -> None:
    """Verify a trained model, fetch its weights if they are not installed, and print its folder."""
    entry = model_entry(name)
    require_new(output)
    from medunet.bundle.models import get_model

    folder = get_model(name, output)
    print_json(name=name, folder=str(folder), **entry)
    typer.echo(f"{name} {entry['version']}, {entry['licence']}: {entry['task']}")
    typer.echo(f"model: {folder}")
    typer.echo(f"model card: {folder / entry['card']}")
