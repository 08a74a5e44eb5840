"""`medunet label`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from medunet.cli.options import Device, Trust
from medunet.resources import find_bundle


def label(
    bundles: Annotated[list[str] | None, typer.Argument(metavar="BUNDLE...", help="Trained runs or bundles.")] = None,
    studies: Annotated[
        str | None, typer.Option("--studies", metavar="DIR|URL", help="Folder of images, or URL of a DICOMweb service.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to bind; another than this machine needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", help="TCP port.")] = 8000,
    work: Annotated[
        Path, typer.Option("--work", help="Folder for working copies of the bundles, trainings and uploads.")
    ] = Path("medunet_label"),
    device: Device = "auto",
    modality: Annotated[
        str | None, typer.Option("--modality", help="Of the DICOM series to offer; all images by default.")
    ] = None,
    setup: Annotated[bool, typer.Option("--setup", help="Make MONAI Label's environment, once.")] = False,
    environment: Annotated[
        Path | None,
        typer.Option("--environment", envvar="MEDUNET_LABEL_ENV", help="Where it lies; medunet's cache by default."),
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", help="Python 3.10 to 3.12 to make it from; this one by default.")
    ] = None,
    torch_index: Annotated[
        str | None,
        typer.Option(
            "--torch-index",
            metavar="URL",
            help="With --setup: package index of torch, such as https://download.pytorch.org/whl/cpu for no CUDA.",
        ),
    ] = None,
    trust: Trust = False,
) -> None:
    """Serve bundles to 3D Slicer and OHIF by MONAI Label; learn from what annotators correct.

    MONAI Label has an environment of its own, which --setup makes. Each request must bear the token of the variable
    MEDUNET_LABEL_TOKEN, if it is set; on addresses that other machines reach it must be.
    """
    folders = [find_bundle(name) for name in bundles or ()]
    from medunet.deploy.monailabel import LabelEnvironment, LabelServer
    from medunet.deploy.monailabel.served import serve
    from medunet.deploy.monailabel.server import TOKEN_VARIABLE, check_port, describe, free_port
    from medunet.errors import ConfigError

    console = Console(highlight=False, soft_wrap=True)
    home = LabelEnvironment(environment)
    if setup:
        home.make(python=python, torch_index=torch_index)
        console.print(f"MONAI Label is set up in {home.folder}")
        if not bundles:
            return
    if studies is None:
        raise ConfigError("--studies is missing", expected="a folder of images, or the URL of a DICOMweb service")
    server = LabelServer(
        bundles=serve(folders),
        studies=studies,
        work=work,
        environment=home,
        host=host,
        port=port or free_port(),
        device=device,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        modality=modality,
        trust=trust,
    )
    home.check()
    check_port(server.host, server.port)
    server.prepare()
    for line in describe(server.bundles):
        console.print(line)
    console.print(f"MONAI Label: {server.address}" + (f", OHIF: {server.address}/ohif/" if server.is_remote else ""))
    command, variables = server.command(), server.variables()
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(command[0], command, variables)
    raise typer.Exit(subprocess.call(command, env=variables))
