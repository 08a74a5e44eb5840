"""`medunet label`: setup and serve."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from medunet.cli import completion
from medunet.cli import options as opt
from medunet.cli.registry import examples, group
from medunet.files import require_path
from medunet.resources import find_bundle

STUDIES_HELP = "Folder of images, or URL of a DICOMweb service."
HOST_HELP = "Address to bind. Addresses that other machines can reach need a token."
WORK_HELP = "Folder for working copies of the bundles, training runs and uploads."
PYTHON_HELP = "Python 3.10 to 3.12 to create it with. Default: this one."
INDEX_HELP = "Package index for torch, such as https://download.pytorch.org/whl/cpu without CUDA."
BUNDLES = typer.Argument(metavar="RUN...", help="Trained runs or bundles.", autocompletion=completion.runs)
ENVIRONMENT = typer.Option(envvar="MEDUNET_LABEL_ENV", help="MONAI Label's environment. Default: in the cache folder.")
Environment = Annotated[Path | None, ENVIRONMENT]


@examples("medunet label setup", "medunet label setup --torch-index https://download.pytorch.org/whl/cpu")
def setup(
    environment: Environment = None,
    python: Annotated[str | None, typer.Option(metavar="PROGRAM", help=PYTHON_HELP)] = None,
    torch_index: Annotated[str | None, typer.Option(metavar="URL", help=INDEX_HELP)] = None,
) -> None:
    """Create the Python environment of MONAI Label, once. It is separate because MONAI Label needs older packages."""
    from medunet.deploy.monailabel import LabelEnvironment

    home = LabelEnvironment(environment)
    home.make(python=python, torch_index=torch_index)
    typer.echo(f"MONAI Label is set up in {home.folder}")
    opt.print_next("label", "serve", "RUN", "--studies", "IMAGES")


@examples(
    "medunet label serve runs/mine --studies IMAGES",
    "medunet label serve runs/mine runs/other --studies http://127.0.0.1:8042/dicom-web",
)
def serve(
    bundles: Annotated[list[str], BUNDLES],
    studies: Annotated[str, typer.Option(metavar="DIR|URL", help=STUDIES_HELP)],
    host: Annotated[str, typer.Option(metavar="ADDRESS", help=HOST_HELP)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    work: Annotated[Path, typer.Option(help=WORK_HELP)] = Path("medunet_label"),
    device: opt.Device = "auto",
    modality: Annotated[str | None, typer.Option(help="Modality of the series to offer. Default: all images.")] = None,
    environment: Environment = None,
    trust: opt.Trust = False,
) -> None:
    """Serve bundles to 3D Slicer and OHIF with MONAI Label, and train them on corrected labels.

    MONAI Label runs in its own Python environment, which `medunet label setup` creates. If MEDUNET_LABEL_TOKEN is set,
    each request must carry this token; it must be set on addresses that other machines can reach.
    """
    folders = [find_bundle(name) for name in bundles]
    require_path(None if studies.startswith(("http://", "https://")) else studies)
    from medunet.deploy.monailabel import LabelEnvironment, LabelServer
    from medunet.deploy.monailabel.served import serve as served
    from medunet.deploy.monailabel.server import TOKEN_VARIABLE, usable_port

    console = opt.plain_console()
    home = LabelEnvironment(environment)
    server = LabelServer(
        bundles=served(folders),
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


app = group("Annotate with MONAI Label in 3D Slicer and OHIF.", setup, serve)
