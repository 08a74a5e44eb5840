"""`torch.export`: what follows TorchScript, and what AOTInductor and ExecuTorch start from."""

from __future__ import annotations

from pathlib import Path

import torch

from .formats import EXTRA_FILE, ExportFormat, Runner, module_runner, quiet, to_text
from .tile_network import TileNetwork


class TorchExportFile(ExportFormat):
    """A program of `torch.export` with open batch and tile sizes; the description is its extra file `medunet.json`."""

    name = "torch-export"
    suffix = ".pt2"

    @property
    def program(self) -> str:
        """Torch."""
        return f"torch.export, torch {torch.__version__}"

    def check(self) -> None:
        """Torch has it all."""

    def write(self, network: TileNetwork, path: Path) -> None:
        """Write one file."""
        with quiet():
            extra = {EXTRA_FILE: to_text(network.description)}
            torch.export.save(network.export(), str(path), extra_files=extra)

    def open(self, path: Path) -> Runner:
        """Run by torch, without medunet's classes."""
        with quiet():
            return module_runner(torch.export.load(str(path)).module())

    def read_text(self, path: Path) -> str | None:
        """Of the extra file."""
        content = {EXTRA_FILE: ""}
        with quiet():
            torch.export.load(str(path), extra_files=content)
        return content[EXTRA_FILE]
