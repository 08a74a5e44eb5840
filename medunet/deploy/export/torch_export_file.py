"""`torch.export`: what follows TorchScript, and what AOTInductor and ExecuTorch start from."""

from __future__ import annotations

from pathlib import Path

import torch

from .description import KEY
from .formats import ExportFormat, Runner, on_cpu, quiet, to_text
from .tile_network import TileNetwork

EXTRA_FILE = f"{KEY}.json"


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
            module = torch.export.load(str(path)).module()

        def run(image: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                logits: torch.Tensor = module(on_cpu(image))
            return logits

        return run

    def read_text(self, path: Path) -> str | None:
        """Of the extra file."""
        content = {EXTRA_FILE: ""}
        with quiet():
            torch.export.load(str(path), extra_files=content)
        return content[EXTRA_FILE]
