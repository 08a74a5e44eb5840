"""From a bundle to a file that is known to answer as the bundle does."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medunet.errors import ConfigError, DataError, MedunetError
from medunet.files import check_target

from .agreement import Agreement, compare
from .formats import ExportFormat
from .onnx_file import OnnxFile
from .openvino_file import OpenVinoFile
from .tensorrt_file import TensorRtFile
from .tile_network import TileNetwork, load_tile_network
from .torch_export_file import TorchExportFile
from .torchscript_file import TorchScriptFile

FORMATS: Mapping[str, ExportFormat] = {
    each.name: each for each in (OnnxFile(), TorchScriptFile(), TorchExportFile(), OpenVinoFile(), TensorRtFile())
}
"""By their names on the command line."""


@dataclass(frozen=True)
class Export:
    """What was written, and how well it agrees.

    Args:
        paths: the file, then those that belong to it.
        program: what ran it, with its release.
        agreement: with PyTorch in float32.
        seconds: for writing and comparing.
    """

    paths: tuple[Path, ...]
    program: str
    agreement: Agreement
    seconds: float


def find_format(name: str) -> ExportFormat:
    """A format by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        raise ConfigError("unknown format", received=name, expected=", ".join(FORMATS))
    return FORMATS[name]


def format_of(path: Path) -> ExportFormat:
    """The format of a file, by its ending.

    Example:
        >>> format_of(Path("liver.onnx")).name
        'onnx'

    Raises:
        ConfigError: no format has this ending.
    """
    for each in FORMATS.values():
        if path.suffix == each.suffix:
            return each
    endings = ", ".join(each.suffix for each in FORMATS.values())
    raise ConfigError("no format has this ending", file=path, received=path.suffix, expected=endings)


def export_bundle(
    bundle: Path,
    output: Path,
    *,
    to: str,
    image: Path | None = None,
    overwrite: bool = False,
    trust: bool = False,
) -> Export:
    """Write a bundle's network to a file, run that, and compare; a file that answers wrongly is not left behind.

    Args:
        bundle: folder of a bundle or run with weights.
        output: the file, with the ending of its format.
        to: name of the format, see :data:`FORMATS`.
        image: a case whose labels are compared as well.
        overwrite: replace a file that exists.
        trust: of a bundle that could run code of its own, see :func:`medunet.trust.require_trust`.

    Raises:
        SecurityError: the bundle is not trusted.
        ConfigError: a package or device is missing, another ending than the format's, or the network cannot be written
            in this format.
        DataError: the file exists, or it does not answer as the network does.
    """
    begun = time.perf_counter()
    chosen = find_format(to)
    if output.suffix != chosen.suffix:
        raise ConfigError(
            f"files of {to} have another ending",
            file=output,
            received=output.suffix or "none",
            expected=chosen.suffix,
            remedy=f"--output {output.with_suffix(chosen.suffix)}",
        )
    if output.exists() and not overwrite:
        raise DataError("exists already", file=output, remedy="choose another name, or repeat with --force")
    chosen.check()
    check_target(output.parent)
    network = load_tile_network(bundle, trust=trust)
    network = network.limited(chosen.largest(network))
    output.parent.mkdir(parents=True, exist_ok=True)
    # what has not been compared never has the name that the user gave
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder:
        written = Path(folder) / output.name
        agreement = _write_and_compare(chosen, network, written, image=image, trust=trust)
        if agreement.fault is not None:
            raise DataError(
                f"the exported network answers otherwise than PyTorch: {agreement.fault}; no file is left",
                file=output,
                remedy="export to another format, and report this with the bundle's configs",
            )
        paths = tuple(_moved(written, output.parent))
    return Export(paths, chosen.program, agreement, time.perf_counter() - begun)


def _write_and_compare(
    chosen: ExportFormat, network: TileNetwork, path: Path, *, image: Path | None, trust: bool
) -> Agreement:
    try:
        chosen.write(network, path)
        if chosen.describe(path) != network.description:
            raise DataError("the description was not written as it is", file=path.name)
        return compare(network, chosen.open(path), image=image, trust=trust)
    except MedunetError:
        raise
    except Exception as error:  # exporters raise what they like
        cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"the network cannot be written as {chosen.name}: {cause[:300]}",
            file=network.bundle,
            remedy="export to another format",
        ) from error


def _moved(written: Path, folder: Path) -> list[Path]:
    """Give the files of an export their places; the one that names the others comes last."""
    others = sorted(path for path in written.parent.iterdir() if path != written)
    for path in (*others, written):
        path.replace(folder / path.name)
    return [folder / written.name, *(folder / path.name for path in others)]
