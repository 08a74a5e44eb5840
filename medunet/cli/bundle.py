"""`medunet bundle`: init, render, verify, unpack; export and package have a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from medunet.cli import export
from medunet.cli.options import Preset, Set, Trust, next_command
from medunet.files import check_target, reject_other_files
from medunet.overrides import parse_settings
from medunet.resources import find_bundle

app = typer.Typer(help="Make, check, export and package bundles.", no_args_is_help=True)
app.command(name="export")(export.export)
app.command(name="package")(export.package)


@app.command()
def init(
    bundle: Annotated[str, typer.Argument(help="Bundle to start from: unet_3d, unet_2d, unet_2015 or a folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    preset: Preset = None,
    settings: Set = None,
    trust: Trust = False,
) -> None:
    """Make a bundle of your own: a self-contained copy with values changed."""
    folder, changes = find_bundle(bundle), parse_settings(settings)
    reject_other_files(output, own="configs")
    check_target(output)
    from medunet.bundle import specialise

    specialise(folder, output, changes, presets=preset or (), trust=trust)
    typer.echo(f"bundle: {output}")


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
def verify(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder or the name of a shipped one.")],
    trust: Trust = False,
) -> None:
    """Say whether a bundle could run code of its own; then check files, metadata, references, network, weights.

    The first is done by reading alone. What runs parts of the bundle is left out while it is not trusted.
    """
    folder = find_bundle(bundle)
    from medunet.bundle import verify_bundle
    from medunet.trust import judge, require_trust

    console = Console(soft_wrap=True, highlight=False)
    verdict = require_trust(folder, trust=True) if trust else judge(folder)
    for line in verdict.lines():
        console.print(escape(line), style=None if verdict.is_trusted else "red")
    results = verify_bundle(folder)
    for name, fault in results.items():
        mark = "ok  " if fault is None else "[bold red]FAIL[/]"
        console.print(f"{mark} {name}{'' if fault is None else ': ' + escape(fault)}")
    if any(fault is not None for fault in results.values()):
        raise typer.Exit(1)


@app.command()
def unpack(
    archive: Annotated[Path, typer.Argument(help="A bundle as .zip, .tar or .tar.gz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle; must not exist.")],
) -> None:
    """Unpack a bundle from somebody else: no path outside, no links, not endless; then say whether to trust it."""
    from medunet import trust

    console = Console(soft_wrap=True, highlight=False)
    folder = trust.unpack(archive, output)
    for line in trust.judge(folder).lines():
        console.print(escape(line))
    typer.echo(f"bundle: {folder}")
    typer.echo(next_command("bundle", "verify", folder))
