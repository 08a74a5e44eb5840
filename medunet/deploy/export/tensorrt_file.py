"""TensorRT engines, for one kind of NVIDIA GPU and one release of TensorRT."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch

from medunet.errors import ConfigError

from .formats import ExportFormat, Runner, on_cpu, to_text
from .onnx_file import OnnxFile
from .tile_network import TileNetwork
from .tile_sizes import largest_tile


class TensorRtFile(ExportFormat):
    """An engine made of the ONNX file, without TF32, tuned for the usual tile.

    An engine has no room for a description: it lies beside it, in the file of the same name with `.json` added.
    Not run yet, for want of a GPU; the comparison guards it as all others.
    """

    name = "tensorrt"
    suffix = ".engine"

    @property
    def program(self) -> str:
        """TensorRT and the GPU."""
        return f"TensorRT {self._tensorrt().__version__}, {torch.cuda.get_device_name()}"

    def check(self) -> None:
        """A GPU, tensorrt, and what ONNX needs."""
        if not torch.cuda.is_available():
            raise ConfigError(
                "a TensorRT engine is made on the GPU that will run it, and torch sees none",
                received=f"torch {torch.__version__}",
                expected="an NVIDIA GPU, its driver, a CUDA build of torch, and `pip install tensorrt`",
                remedy="run this on the machine with the GPU, or export --to onnx and build there by trtexec",
            )
        self._tensorrt()
        OnnxFile().check()

    def largest(self, network: TileNetwork) -> tuple[int, ...]:
        """Of the profile: an engine sets memory aside for it."""
        return largest_tile(network.shapes, network.patch)

    def write(self, network: TileNetwork, path: Path) -> None:
        """Write the engine and its description."""
        trt = self._tensorrt()
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        definition = builder.create_network(0)
        parser = trt.OnnxParser(definition, logger)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "network.onnx"
            OnnxFile().write(network, source)
            if not parser.parse_from_file(str(source)):
                raise RuntimeError("; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
        profile = builder.create_optimization_profile()
        smallest, largest, channels = network.sizes.least, self.largest(network), network.channels
        profile.set_shape("image", (1, channels, *smallest), (1, channels, *network.patch), (2, channels, *largest))
        settings = builder.create_builder_config()
        settings.clear_flag(trt.BuilderFlag.TF32)  # ten bits of fraction are not float32
        settings.add_optimization_profile(profile)
        engine = builder.build_serialized_network(definition, settings)
        if engine is None:
            raise RuntimeError("TensorRT could not build an engine")
        path.write_bytes(bytes(engine))
        _beside(path).write_text(to_text(network.description), encoding="utf-8")

    def open(self, path: Path) -> Runner:
        """Run on the current GPU."""
        trt = self._tensorrt()
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise RuntimeError("this GPU or this TensorRT cannot read the engine")
        context = engine.create_execution_context()

        def run(image: torch.Tensor) -> torch.Tensor:
            given = on_cpu(image).cuda()
            if not context.set_input_shape("image", tuple(given.shape)):
                raise RuntimeError(f"the engine does not take tiles of {tuple(given.shape)}")
            logits = torch.empty(tuple(context.get_tensor_shape("logits")), device="cuda")
            context.set_tensor_address("image", given.data_ptr())
            context.set_tensor_address("logits", logits.data_ptr())
            stream = torch.cuda.current_stream()
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError("TensorRT could not run the engine")
            stream.synchronize()
            return logits.cpu()

        return run

    def read_text(self, path: Path) -> str | None:
        """Of the file beside."""
        beside = _beside(path)
        return beside.read_text(encoding="utf-8") if beside.is_file() else None

    def _tensorrt(self) -> Any:
        if importlib.util.find_spec("tensorrt") is None:
            raise ConfigError(
                "tensorrt is needed for export to TensorRT", received="no such package", remedy="pip install tensorrt"
            )
        return importlib.import_module("tensorrt")


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")
