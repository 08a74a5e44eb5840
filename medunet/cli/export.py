"""`medunet bundle export` and `medunet bundle package`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from medunet.cli import options as opt
from medunet.cli.registry import examples
from medunet.files import require_path
from medunet.resources import find_bundle

IMAGE_HELP = "Also compare the labels predicted for this image or series."
NAME_HELP = "Name of the bundle and of the folder in the .zip. Default: that of the file."
OUTPUT_HELP = "File to write: .onnx, .ts, .pt2, .xml (with a .bin beside it) or .engine."


# keys of `medunet.deploy.export.FORMATS`, repeated because `--help` does not import torch; a test compares the two
FileFormat = Literal["onnx", "torchscript", "torch-export", "openvino", "tensorrt"]


@examples(
    "medunet bundle export runs/mine --to onnx -o mine.onnx",
    "medunet bundle export runs/mine --to openvino -o mine.xml --image scan.nii.gz",
)
def export(
    bundle: opt.Trained,
    to: Annotated[FileFormat, typer.Option(help="File format.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help=OUTPUT_HELP)],
    image: Annotated[Path | None, typer.Option(metavar="CASE", help=IMAGE_HELP)] = None,
    force: opt.Force = False,
    trust: opt.Trust = False,
) -> None:
    """Export the network to one file for another inference engine.

    The file is run and compared with PyTorch; if the outputs differ, it is rejected and removed. It contains only the
    network and a description of preprocessing, tiles and labels, which scripts/onnx_example.py follows.
    """
    folder = find_bundle(bundle)
    require_path(image)
    from medunet.deploy.export import export_bundle

    done = export_bundle(folder, output, to=to, image=image, overwrite=force, trust=trust)
    console = opt.plain_console()
    for path in done.paths:
        console.print(escape(f"{path}  {path.stat().st_size / 1e6:.1f} MB"))
    console.print(escape(f"run by {done.program} and compared with PyTorch in float32 ({done.seconds:.0f} s):"))
    for line in done.agreement.lines():
        console.print(escape(f"  {line}"))


@examples(
    "medunet bundle package runs/mine -o mine.zip",
    "medunet bundle package runs/mine -o liver.zip --name liver --torchscript",
)
def package(
    bundle: opt.Trained,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The .zip file to write.")],
    name: Annotated[str | None, typer.Option(help=NAME_HELP)] = None,
    torchscript: Annotated[bool, typer.Option("--torchscript", help="Add models/model.ts (TorchScript).")] = False,
    force: opt.Force = False,
    trust: opt.Trust = False,
) -> None:
    """Package a bundle as MONAI's model zoo requires, without paths, case names or traces of this machine."""
    folder = find_bundle(bundle)
    from medunet.deploy.export import package_bundle

    done = package_bundle(folder, output, name=name, torchscript=torchscript, overwrite=force, trust=trust)
    console = opt.plain_console()
    console.print(escape(f"{done.path}  {done.path.stat().st_size / 1e6:.1f} MB, {len(done.files)} files"))
    console.print(f"SHA-256 {done.sha256}")
    console.print(f"SHA-1   {done.sha1}  (the checksum in the zoo's model_info.json)")
    for line in done.remarks:
        console.print(escape(line))
