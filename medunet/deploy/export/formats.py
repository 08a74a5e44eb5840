"""Formats of exported files: how each is written, run and read."""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medunet.errors import ConfigError, DataError
from medunet.io.extras import import_extra
from medunet.runtime.openvino import compiled, core

from .description import KEY
from .network import TileNetwork, largest_tile

EXTRA_FILE = f"{KEY}.json"  # the description in formats that store extra files
MONAI_FILE = "metadata.json"  # the bundle's metadata, for `monai.data.load_net_with_metadata` and MONAI Deploy
OPSET = 18  # old enough for engines of some years ago, new enough for a U-Net

Runner = Callable[[torch.Tensor], torch.Tensor]  # maps `(B, C, *spatial)` float32 to logits, both on the CPU


@dataclass(frozen=True)
class ExportFormat:
    """A file format."""

    suffix: str
    # returns the name and version of the program that runs the file; raises a ConfigError if a package is missing
    program: Callable[[], str]
    write: Callable[[TileNetwork, Path], None]  # writes a network with its description; further files get the same stem
    open: Callable[[Path], Runner]  # loads a file for this machine
    read_text: Callable[[Path], str | None]  # returns the description in a file
    largest: Callable[[TileNetwork], tuple[int, ...] | None] = lambda network: None  # largest tile; None for any

    def describe(self, path: Path) -> dict[str, Any]:
        """Return the description in a file; raise a DataError if another program wrote the file."""
        text = self.read_text(path)
        if not text:
            raise DataError("the file has no description by medunet", file=path)
        content: dict[str, Any] = json.loads(text)
        return content


def to_text(description: Mapping[str, Any]) -> str:
    """Return a description as files store it."""
    return json.dumps(description, ensure_ascii=False, sort_keys=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings, because exporters use deprecated parts of torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def on_cpu(image: torch.Tensor) -> torch.Tensor:
    """Return an image for a runner; raise a ConfigError for an image on another device."""
    if image.device.type != "cpu":
        raise ConfigError("exported files run on CPU images only", received=image.device, expected="cpu")
    return (image.as_tensor() if hasattr(image, "as_tensor") else image).detach().float().contiguous()


@quiet()
def _need(name: str, *, extra: str, purpose: str) -> Any:
    return import_extra(name, extra=extra, purpose=purpose)


def _run_module(module: Runner, image: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return module(on_cpu(image))


@quiet()
def _extra_text(load: Callable[..., Any], option: str, path: Path) -> str:
    content: dict[str, Any] = {EXTRA_FILE: ""}
    load(str(path), **{option: content})
    text: str | bytes = content[EXTRA_FILE]
    return text.decode() if isinstance(text, bytes) else text


# TorchScript: one file for LibTorch, MONAI Deploy and old programs; it takes every size that the network takes


@quiet()
def _write_torchscript(network: TileNetwork, path: Path) -> None:
    """Write the scripted network without lines of source code and their paths, which torch stores for its errors."""
    extra = {EXTRA_FILE: to_text(network.description), MONAI_FILE: to_text(network.metadata)}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source = str(Path(folder) / path.name)
        torch.jit.save(torch.jit.script(network.module), source, _extra_files=extra)
        reader, writer = torch._C.PyTorchFileReader(source), torch._C.PyTorchFileWriter(str(path))
        written_by_torch = {"version", "byteorder", ".data/version", ".data/serialization_id"}
        for name in reader.get_all_records():
            if not name.endswith(".debug_pkl") and name not in written_by_torch:
                content = reader.get_record(name)
                writer.write_record(name, content, len(content))
        writer.write_end_of_file()


@quiet()
def _open_torchscript(path: Path) -> Runner:
    return partial(_run_module, torch.jit.load(str(path), map_location="cpu").eval())


# torch.export: the successor of TorchScript, and the input of AOTInductor and ExecuTorch


@quiet()
def _write_torch_export(network: TileNetwork, path: Path) -> None:
    torch.export.save(network.export(), str(path), extra_files={EXTRA_FILE: to_text(network.description)})


@quiet()
def _open_torch_export(path: Path) -> Runner:
    return partial(_run_module, torch.export.load(str(path)).module())


# ONNX: the format that most engines read

_onnx = partial(_need, "onnx", extra="export", purpose="export to ONNX")
_onnx_runtime = partial(_need, "onnxruntime", extra="export", purpose="running ONNX")


def _onnx_program() -> str:
    _onnx()
    _need("onnxscript", extra="export", purpose="export to ONNX")
    return f"ONNX Runtime {_onnx_runtime().__version__}"


def _write_onnx(network: TileNetwork, path: Path) -> None:
    """Write a model with variable batch and tile sizes; ONNX requires a second file for weights over 2 GB."""
    onnx = _onnx()
    program = network.export()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it lists operators of absent packages
    with quiet():
        written: Any = torch.onnx.export(
            program, (), input_names=["image"], output_names=["logits"], opset_version=OPSET, verbose=False
        )
    model = written.model_proto
    graph, axes = model.graph, "xyz"[: network.shapes.spatial_dims]
    shrunk = [f"{name} - {2 * m}" if m else name for name, m in zip(axes, network.shapes.margin, strict=True)]
    for value, names in ((graph.input[0], ["batch", None, *axes]), (graph.output[0], ["batch", None, *shrunk])):
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name is not None:
                dim.dim_param = name  # readable names of variable sizes
    del graph.value_info[:]  # engines infer the sizes within the graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]  # the Python code of each node
    model.producer_name, model.doc_string = "medunet", str(network.description["name"])
    model.metadata_props.add(key=KEY, value=to_text(network.description))
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def _open_onnx(path: Path) -> Runner:
    """Run a file with ONNX Runtime on the CPU, with torch's number of threads."""
    runtime = _onnx_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": on_cpu(image).numpy()})[0])


def _read_onnx(path: Path) -> str | None:
    model = _onnx().load(str(path), load_external_data=False)
    return next((str(entry.value) for entry in model.metadata_props if entry.key == KEY), None)


# OpenVINO IR: the graph (.xml) and its weights (.bin)

_openvino = partial(_need, "openvino", extra="openvino", purpose="export to OpenVINO")


def _write_openvino(network: TileNetwork, path: Path) -> None:
    """Write a model with variable batch and tile sizes and float32 weights; by default, OpenVINO stores float16."""
    openvino = _openvino()
    with quiet():
        model = openvino.convert_model(network.export())
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"logits"})
    model.set_rt_info(to_text(network.description), [KEY])
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _open_openvino(path: Path) -> Runner:
    """Run a file on the CPU in float32, with torch's number of threads."""
    request = compiled(str(path), "f32")

    def run(image: torch.Tensor) -> torch.Tensor:
        request.infer({0: on_cpu(image).numpy()})
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return run


def _read_openvino(path: Path) -> str | None:
    model = core().read_model(str(path))
    return str(model.get_rt_info([KEY]).astype(str)) if model.has_rt_info([KEY]) else None


# TensorRT: an engine for one kind of NVIDIA GPU and one release of TensorRT. Not run yet, for lack of a GPU; the
# comparison guards it like all formats. An engine cannot store a description: that is in a .json file beside it.

_tensorrt = partial(importlib.import_module, "tensorrt")


def _tensorrt_program() -> str:
    if not torch.cuda.is_available():
        cause = "a TensorRT engine is built on the GPU that will run it, and torch sees no GPU"
        remedy = "run this on the machine with the GPU, or export --to onnx and build there with trtexec"
        raise ConfigError(cause, received=f"torch {torch.__version__}", remedy=remedy)
    if importlib.util.find_spec("tensorrt") is None:
        raise ConfigError("export to TensorRT needs tensorrt", remedy="pip install tensorrt")
    _onnx_program()
    return f"TensorRT {_tensorrt().__version__}, {torch.cuda.get_device_name()}"


def _write_tensorrt(network: TileNetwork, path: Path) -> None:
    """Write an engine from the ONNX file, without TF32, tuned for the usual tile."""
    trt = _tensorrt()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    definition = builder.create_network(0)
    parser = trt.OnnxParser(definition, logger)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "network.onnx"
        _write_onnx(network, source)
        if not parser.parse_from_file(str(source)):
            raise RuntimeError("; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    profile = builder.create_optimization_profile()
    largest = largest_tile(network.shapes, network.patch)
    batches = zip((1, 1, 2), (network.sizes.least, network.patch, largest), strict=True)
    profile.set_shape("image", *((batch, network.channels, *size) for batch, size in batches))
    settings = builder.create_builder_config()
    settings.clear_flag(trt.BuilderFlag.TF32)  # it has ten bits of fraction
    settings.add_optimization_profile(profile)
    engine = builder.build_serialized_network(definition, settings)
    if engine is None:
        raise RuntimeError("TensorRT could not build an engine")
    path.write_bytes(bytes(engine))
    path.with_name(f"{path.name}.json").write_text(to_text(network.description), encoding="utf-8")


def _open_tensorrt(path: Path) -> Runner:
    trt = _tensorrt()
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise RuntimeError("this GPU or this TensorRT cannot read the engine")
    context = engine.create_execution_context()

    def run(image: torch.Tensor) -> torch.Tensor:
        given = on_cpu(image).cuda()
        if not context.set_input_shape("image", tuple(given.shape)):
            raise RuntimeError(f"the engine does not accept tiles of {tuple(given.shape)}")
        logits = torch.empty(tuple(context.get_tensor_shape("logits")), device="cuda")
        context.set_tensor_address("image", given.data_ptr())
        context.set_tensor_address("logits", logits.data_ptr())
        stream = torch.cuda.current_stream()
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        stream.synchronize()
        return logits.cpu()

    return run


def _read_tensorrt(path: Path) -> str | None:
    file = path.with_name(f"{path.name}.json")
    return file.read_text(encoding="utf-8") if file.is_file() else None


# by their names on the command line
FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(".onnx", _onnx_program, _write_onnx, _open_onnx, _read_onnx),
    "torchscript": ExportFormat(
        ".ts",
        lambda: f"TorchScript, torch {torch.__version__}",
        _write_torchscript,
        _open_torchscript,
        partial(_extra_text, partial(torch.jit.load, map_location="cpu"), "_extra_files"),
    ),
    "torch-export": ExportFormat(
        ".pt2",
        lambda: f"torch.export, torch {torch.__version__}",
        _write_torch_export,
        _open_torch_export,
        partial(_extra_text, torch.export.load, "extra_files"),
    ),
    "openvino": ExportFormat(
        ".xml",
        lambda: f"OpenVINO {_openvino().__version__.partition('-')[0]}",
        _write_openvino,
        _open_openvino,
        _read_openvino,
    ),
    "tensorrt": ExportFormat(
        ".engine",
        _tensorrt_program,
        _write_tensorrt,
        _open_tensorrt,
        _read_tensorrt,
        lambda network: largest_tile(network.shapes, network.patch),
    ),
}
