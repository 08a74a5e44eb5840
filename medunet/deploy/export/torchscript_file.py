"""TorchScript: one file for LibTorch, MONAI Deploy and old programs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from .formats import EXTRA_FILE, ExportFormat, Runner, module_runner, quiet, to_text
from .tile_network import TileNetwork

MONAI_FILE = "metadata.json"
"""Where `monai.data.load_net_with_metadata` and MONAI Deploy look; it holds the bundle's metadata."""

_WRITTEN_BY_TORCH = ("version", "byteorder", ".data/version", ".data/serialization_id")


class TorchScriptFile(ExportFormat):
    """The scripted network, which takes every size that the network takes.

    The description is the extra file `medunet.json` in it. Lines of source code and the paths of their files, which
    torch keeps for its error messages, are left out.
    """

    name = "torchscript"
    suffix = ".ts"

    @property
    def program(self) -> str:
        """LibTorch."""
        return f"TorchScript, torch {torch.__version__}"

    def check(self) -> None:
        """Torch has it all."""

    def write(self, network: TileNetwork, path: Path) -> None:
        """Write one file."""
        with quiet():
            scripted = torch.jit.script(network.module)
            extra = {EXTRA_FILE: to_text(network.description), MONAI_FILE: to_text(network.metadata)}
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                source = Path(folder) / path.name
                torch.jit.save(scripted, str(source), _extra_files=extra)
                _without_sources(source, path)

    def open(self, path: Path) -> Runner:
        """Run by torch, without medunet's classes."""
        with quiet():
            return module_runner(torch.jit.load(str(path), map_location="cpu").eval())

    def read_text(self, path: Path) -> str | None:
        """Of the extra file."""
        content = {EXTRA_FILE: ""}
        with quiet():
            torch.jit.load(str(path), map_location="cpu", _extra_files=content)
        found: str | bytes = content[EXTRA_FILE]
        return found.decode() if isinstance(found, bytes) else found


def _without_sources(source: Path, target: Path) -> None:
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    for name in reader.get_all_records():
        if not name.endswith(".debug_pkl") and name not in _WRITTEN_BY_TORCH:
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
