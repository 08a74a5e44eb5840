"""`medunet bundle export` and `medunet bundle package`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from medunet.cli.options import Trust
from medunet.files import require_path
from medunet.resources import find_bundle


class FileFormat(str, Enum):
    """`medunet.deploy.export.FORMATS`, repeated here so that `--help` need not import them; a test compares the two."""

    onnx = "onnx"
    torchscript = "torchscript"
    torch_export = "torch-export"
    openvino = "openvino"
    tensorrt = "tensorrt"


def export(
    bundle: Annotated[str, typer.Argument(help="A run or a bundle with weights.")],
    to: Annotated[FileFormat, typer.Option("--to", help="The format.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file: .onnx, .ts, .pt2, .xml (with a .bin beside) or .engine.")
    ],
    image: Annotated[
        Path | None, typer.Option("--image", metavar="CASE", help="Compare the labels of this image or series, too.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    trust: Trust = False,
) -> None:
    """Write the network to one file for another engine, with all that is needed to use it.

    The file is run and compared with PyTorch; one that answers otherwise is refused and removed. Only the network is
    in it: preprocessing, tiles and labels are described in the file, scripts/onnx_example.py follows the description.
    """
    folder = find_bundle(bundle)
    require_path(image)
    from medunet.deploy.export import export_bundle

    done = export_bundle(folder, output, to=to.value, image=image, overwrite=force, trust=trust)
    console = Console(soft_wrap=True, highlight=False)
    for path in done.paths:
        console.print(escape(f"{path}  {path.stat().st_size / 1e6:.1f} MB"))
    console.print(escape(f"run by {done.program} and compared with PyTorch in float32 ({done.seconds:.0f} s):"))
    for line in done.agreement.lines():
        console.print(escape(f"  {line}"))


def package(
    bundle: Annotated[str, typer.Argument(help="A run or a bundle with weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .zip.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the bundle, and of the folder in the .zip; by default the file's.")
    ] = None,
    torchscript: Annotated[
        bool, typer.Option("--torchscript", help="Add models/model.ts, which some programs prefer.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    trust: Trust = False,
) -> None:
    """Make the .zip that MONAI and its model zoo take: no path, no case, nothing of this machine."""
    folder = find_bundle(bundle)
    from medunet.deploy.export import package_bundle

    done = package_bundle(folder, output, name=name, torchscript=torchscript, overwrite=force, trust=trust)
    console = Console(soft_wrap=True, highlight=False)
    console.print(escape(f"{done.path}  {done.path.stat().st_size / 1e6:.1f} MB, {len(done.files)} files"))
    console.print(f"SHA-256 {done.sha256}")
    console.print(f"SHA-1   {done.sha1}  (the checksum in the zoo's model_info.json)")
    for line in done.remarks:
        console.print(escape(line))
