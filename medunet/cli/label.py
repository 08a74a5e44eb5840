"""`medunet label`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from medunet.cli import options as opt
from medunet.errors import ConfigError
from medunet.resources import find_bundle

STUDIES_HELP = "Folder of images, or URL of a DICOMweb service."
HOST_HELP = "Address to bind. Addresses that other machines can reach need a token."
WORK_HELP = "Folder for working copies of the bundles, training runs and uploads."
PYTHON_HELP = "With --setup: a Python 3.10 to 3.12 to create it with. Default: this one."
INDEX_HELP = "With --setup: package index for torch, such as https://download.pytorch.org/whl/cpu without CUDA."
ENVIRONMENT = typer.Option(envvar="MEDUNET_LABEL_ENV", help="MONAI Label's environment. Default: in the cache folder.")


def label(
    bundles: Annotated[list[str] | None, typer.Argument(metavar="BUNDLE...", help="Trained runs or bundles.")] = None,
    studies: Annotated[str | None, typer.Option(metavar="DIR|URL", help=STUDIES_HELP)] = None,
    host: Annotated[str, typer.Option(help=HOST_HELP)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    work: Annotated[Path, typer.Option(help=WORK_HELP)] = Path("medunet_label"),
    device: opt.Device = "auto",
    modality: Annotated[str | None, typer.Option(help="Modality of the series to offer. Default: all images.")] = None,
    setup: Annotated[bool, typer.Option("--setup", help="Create the Python environment of MONAI Label, once.")] = False,
    environment: Annotated[Path | None, ENVIRONMENT] = None,
    python: Annotated[str | None, typer.Option(help=PYTHON_HELP)] = None,
    torch_index: Annotated[str | None, typer.Option(metavar="URL", help=INDEX_HELP)] = None,
    trust: opt.Trust = False,
) -> None:
    """Serve bundles to 3D Slicer and OHIF with MONAI Label, and train them on corrected labels.

    MONAI Label runs in its own Python environment, which --setup creates. If MEDUNET_LABEL_TOKEN is set, each request
    must carry this token; it must be set on addresses that other machines can reach.
    """
    folders = [find_bundle(name) for name in bundles or ()]
    if studies is None and (folders or not setup):
        raise ConfigError("--studies is missing", expected="a folder of images, or the URL of a DICOMweb service")
    from medunet.deploy.monailabel import LabelEnvironment, LabelServer
    from medunet.deploy.monailabel.served import serve
    from medunet.deploy.monailabel.server import TOKEN_VARIABLE, usable_port

    console = opt.plain_console()
    home = LabelEnvironment(environment)
    if setup:
        home.make(python=python, torch_index=torch_index)
        console.print(f"MONAI Label is set up in {home.folder}")
    if studies is None:
        return
    server = LabelServer(
        bundles=serve(folders),
        studies=studies,
        work=work,
        environment=home,
        host=host,
        port=port or usable_port(),
        device=device,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        modality=modality,
        trust=trust,
    )
    home.check()
    usable_port(server.host, server.port)
    server.prepare()
    for bundle in server.bundles:
        console.print(f"{bundle.name}: {bundle.spatial_dims}D, {', '.join(bundle.labels)}")
    console.print(f"MONAI Label: {server.address}" + (f", OHIF: {server.address}/ohif/" if server.is_remote else ""))
    command, variables = server.command(), server.variables()
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(command[0], command, variables)
    raise typer.Exit(subprocess.call(command, env=variables))
