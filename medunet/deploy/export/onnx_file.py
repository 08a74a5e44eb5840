"""ONNX, the format that most engines read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from .description import KEY
from .formats import ExportFormat, Runner, need, on_cpu, quiet, to_text
from .tile_network import TileNetwork

EXTRA = "export"

OPSET = 18
"""Old enough for engines of some years ago, young enough for all that a U-Net does."""


class OnnxFile(ExportFormat):
    """ONNX through `torch.export`, run by ONNX Runtime on the CPU.

    Batch and tile sizes stay open. The description lies in the model's `metadata_props`.
    """

    name = "onnx"
    suffix = ".onnx"

    @property
    def program(self) -> str:
        """ONNX Runtime."""
        return f"ONNX Runtime {self._runtime().__version__}"

    def check(self) -> None:
        """Onnx and onnxscript write, onnxruntime runs."""
        need("onnx", extra=EXTRA, purpose="export to ONNX")
        need("onnxscript", extra=EXTRA, purpose="export to ONNX")
        self._runtime()

    def write(self, network: TileNetwork, path: Path) -> None:
        """Write one file; weights beyond 2 GB would lie beside it, which the format asks for."""
        onnx = need("onnx", extra=EXTRA, purpose="export to ONNX")
        program = network.export()
        logger = logging.getLogger("torch.onnx")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it names the operators of packages that are not here
        try:
            with quiet():
                written = torch.onnx.export(
                    program, (), input_names=["image"], output_names=["logits"], opset_version=OPSET, verbose=False
                )
        finally:
            logger.setLevel(level)
        if written is None:
            raise RuntimeError("torch.onnx.export gave no program")
        model = written.model_proto
        _tidy(model.graph, network.shapes.margin, spatial_dims=network.shapes.spatial_dims)
        model.producer_name = "medunet"
        model.doc_string = str(network.description["name"])
        model.metadata_props.add(key=KEY, value=to_text(network.description))
        onnx.save(model, str(path))
        onnx.checker.check_model(str(path), full_check=True)

    def open(self, path: Path) -> Runner:
        """Run by ONNX Runtime with as many threads as torch has."""
        runtime = self._runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def run(image: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {"image": on_cpu(image).numpy()})[0])

        return run

    def read_text(self, path: Path) -> str | None:
        """Of the model's properties."""
        onnx = need("onnx", extra=EXTRA, purpose="reading ONNX")
        model = onnx.load(str(path), load_external_data=False)
        return next((str(entry.value) for entry in model.metadata_props if entry.key == KEY), None)

    def _runtime(self) -> Any:
        return need("onnxruntime", extra=EXTRA, purpose="running ONNX")


def _tidy(graph: Any, margin: tuple[int, ...], *, spatial_dims: int) -> None:
    """Give open sizes names that people read, and leave out what only the exporter needs.

    Sizes within the graph engines find again; where in whose Python code a node came from is nobody's business.
    """
    axes = ["batch", None, *"xyz"[:spatial_dims]]
    shrunk = ["batch", None, *(f"{name} - {2 * m}" if m else name for name, m in zip("xyz", margin, strict=False))]
    for value, names in ((graph.input[0], axes), (graph.output[0], shrunk)):
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name is not None:
                dim.dim_param = name
    del graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
