"""`medunet bundle`: init, render, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medunet.cli.options import Preset, Set, parse_settings

app = typer.Typer(help="Make and check bundles.", no_args_is_help=True)


@app.command()
def init(
    bundle: Annotated[str, typer.Argument(help="Bundle to start from: unet_3d, unet_2d, unet_2015 or a folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    preset: Preset = None,
    settings: Set = None,
) -> None:
    """Make a bundle of your own: a self-contained copy with values changed."""
    from medunet.bundle import find_bundle, specialise

    specialise(find_bundle(bundle), output, parse_settings(settings), presets=preset or ())
    Console(soft_wrap=True, highlight=False).print(f"bundle: {output}")


@app.command()
def render(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when a file differs.")] = False,
    sources: Annotated[Path | None, typer.Option(help="Folder of YAML sources.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the bundles.")] = None,
) -> None:
    """Render the shipped bundles from their YAML sources."""
    from medunet.bundle import render_all

    console = Console(soft_wrap=True, highlight=False)
    changed = render_all(sources=sources, output=output, check=check)
    for path in changed:
        console.print(f"{'differs' if check else 'written'}: {path}")
    if check and changed:
        raise typer.Exit(1)
    console.print("up to date" if not changed else f"{len(changed)} files")


@app.command()
def verify(bundle: Annotated[str, typer.Argument(help="A bundle's folder or the name of a shipped one.")]) -> None:
    """Check a bundle: files, metadata, references, properties, the network's input and output, weights."""
    from medunet.bundle import find_bundle, verify_bundle

    console = Console(soft_wrap=True, highlight=False)
    results = verify_bundle(find_bundle(bundle))
    for name, fault in results.items():
        console.print(
            f"{'ok  ' if fault is None else '[bold red]FAIL[/]'} {name}{'' if fault is None else ': ' + fault}"
        )
    if any(fault is not None for fault in results.values()):
        raise typer.Exit(1)
