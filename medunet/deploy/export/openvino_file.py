"""OpenVINO's own format: a description of the graph (.xml) and its weights (.bin)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medunet.runtime.openvino import core

from .description import KEY
from .formats import ExportFormat, Runner, need, on_cpu, quiet, to_text
from .tile_network import TileNetwork

EXTRA = "openvino"


class OpenVinoFile(ExportFormat):
    """OpenVINO IR, run on the CPU in float32.

    Batch and tile sizes stay open. The description lies in `rt_info` under `medunet`. Weights stay float32 (OpenVINO
    would halve them) in the file of the same name with the ending `.bin`.
    """

    name = "openvino"
    suffix = ".xml"

    @property
    def program(self) -> str:
        """OpenVINO."""
        return f"OpenVINO {self._openvino().__version__.partition('-')[0]}"

    def check(self) -> None:
        """Openvino writes and runs."""
        self._openvino()

    def write(self, network: TileNetwork, path: Path) -> None:
        """Write two files."""
        openvino = self._openvino()
        with quiet():
            model = openvino.convert_model(network.export())
        model.inputs[0].get_tensor().set_names({"image"})
        model.outputs[0].get_tensor().set_names({"logits"})
        model.set_rt_info(to_text(network.description), [KEY])
        openvino.save_model(model, str(path), compress_to_fp16=False)

    def open(self, path: Path) -> Runner:
        """Run by OpenVINO with as many threads as torch has; float32 also where the CPU has faster formats."""
        self._openvino()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = core().compile_model(str(path), "CPU", settings)
        request = compiled.create_infer_request()

        def run(image: torch.Tensor) -> torch.Tensor:
            request.infer({0: on_cpu(image).numpy()})
            return torch.from_numpy(request.get_output_tensor(0).data.copy())

        return run

    def read_text(self, path: Path) -> str | None:
        """Of the model's `rt_info`."""
        self._openvino()
        model = core().read_model(str(path))
        return str(model.get_rt_info([KEY]).astype(str)) if model.has_rt_info([KEY]) else None

    def _openvino(self) -> Any:
        return need("openvino", extra=EXTRA, purpose="export to OpenVINO")
