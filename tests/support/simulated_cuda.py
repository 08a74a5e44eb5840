"""A simulated CUDA device: CPU tensors with a device label, under CUDA's rules about devices and synchronisation.

Every tensor stays a CPU tensor, so that MetaTensor, autograd and optimizers run and return numbers, but its storage may
have the label `cuda:N`. Inside a `SimulatedCuda` block,

* `torch.cuda` reports a GPU, `tensor.device` reports the label, and `.to("cuda")` and `device="cuda"` work;
* an operation on tensors of two devices raises what CUDA raises, and so does `numpy()` on a labelled tensor;
* operations that make the host wait for the GPU (item, bool, nonzero, boolean masks, copies) are counted by place;
* bytes of live tensors are counted, memory can run out, and streams have an order (`simulated_memory.py`);
* after `is_broken` is set, every operation raises, as after an illegal memory access.

What it cannot see: kernels and their index ranges, the workspace of cuDNN, fragments of the allocator, speed, numerics
of the GPU (also bfloat16 and TF32), real concurrency, CUDA graphs, `torch.compile`, MIG's isolation, and NCCL. It needs
neither a GPU nor a CUDA build.
"""

import collections
import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from simulated_memory import Ledger
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

GIB = 1 << 30
UNDECIDED = "undecided"  # label of a tensor made inside a C++ operation: its device is that of the other operands
UPLOAD = "host to device, pageable"
FACTORIES = {function.__name__ for function in _device_constructors()} | {n for n in dir(torch) if n.endswith("_like")}
FACTORIES = {name for name in FACTORIES if hasattr(torch, name)}
NEW_METHODS = [name for name in dir(torch.Tensor) if name.startswith("new_")]
COPIES = {
    *("aten._has_compatible_shallow_copy_type.default", "aten.copy_.default", "aten._to_copy.default"),
    *("aten.set_.source_Tensor", "aten._copy_from.default"),
}
INDEXING = {
    *("aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default"),
    *("aten._index_put_impl_.default", "aten._unsafe_index.Tensor"),
}
SYNCHRONISING = {
    "aten._local_scalar_dense.default": "item",  # also of int() and float()
    "aten.nonzero.default": "nonzero",
    "aten.masked_select.default": "masked_select",
    "aten.equal.default": "equal",
    "aten.is_nonzero.default": "bool",
    "aten._unique2.default": "unique",
    "aten.unique_dim.default": "unique",
    "aten.unique_consecutive.default": "unique",
    "aten.bincount.default": "bincount",
    "aten.repeat_interleave.Tensor": "repeat_interleave",
}


def place() -> str:
    """Return file and line of the innermost frame of medunet, or of MONAI if medunet is not on the stack."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(None)]
    own = [entry for entry in frames if "/medunet/" in entry[0] and "/tests/" not in entry[0]]
    library = [entry for entry in frames if "/monai/" in entry[0] or "/ignite/" in entry[0]]
    name, line = next(iter([*own, *library]), ("?", 0))
    return f"{'/'.join(name.split('/')[-3:])}:{line}"


class SimulatedCuda(contextlib.AbstractContextManager["SimulatedCuda"]):
    """Simulate CUDA devices inside a `with` block.

    `waits` counts host synchronisations by kind and place, `side_waits` those on a thread's own stream, for which
    neither the default stream nor other threads wait.

    Args:
        devices: number of devices.
        free: free bytes of each device, or one number per device.
        total: bytes of each device.
    """

    def __init__(self, devices: int = 1, *, free: int | tuple[int, ...] = 138 * GIB, total: int = 140 * GIB) -> None:
        self.devices, self.free, self.total = devices, free, total
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.side_waits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.is_broken = False
        self.ledger = Ledger(self)
        self._labels: dict[int, tuple[StorageWeakRef, Any]] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        self._lock = threading.RLock()
        self._local = threading.local()
        self._patch = pytest.MonkeyPatch()

    _real_device = torch._C.TensorBase.device

    def real_device(self, tensor: torch.Tensor) -> torch.device:
        return SimulatedCuda._real_device.__get__(tensor)  # type: ignore[no-any-return]

    def device(self, value: Any) -> torch.device | None:
        """Return a device with an index, or None; one that is not simulated is an error."""
        if value is None:
            return None
        device = torch.device("cuda", value) if isinstance(value, int) else torch.device(value)
        if device.type != "cuda":
            return device
        if (device.index or 0) >= self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", device.index or 0)

    def label(self, tensor: torch.Tensor) -> Any:
        """Return None for the CPU, a device, or `UNDECIDED`."""
        try:
            key = tensor.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError):
            return None
        with self._lock:
            reference, label = self._labels.get(key, (None, None))
            if reference is not None and reference.expired():
                del self._labels[key]
                return None
            return label

    def mark(self, tensor: torch.Tensor, label: Any) -> torch.Tensor:
        """Give the storage of a tensor a label."""
        storage = tensor.untyped_storage()
        with self._lock:
            if label is None:
                self._labels.pop(storage._cdata, None)
                self.ledger.remove(storage)
            else:
                if isinstance(label, torch.device):
                    self.ledger.add(tensor, label.index)
                self._labels[storage._cdata] = StorageWeakRef(storage), label
            if len(self._labels) > 20_000:
                self._labels = {key: entry for key, entry in self._labels.items() if not entry[0].expired()}
        return tensor

    def is_cuda(self, tensor: torch.Tensor) -> bool:
        return isinstance(self.label(tensor), torch.device)

    def in_factory(self) -> bool:
        """Return whether this thread is inside a factory function, which labels its result itself."""
        return getattr(self._local, "depth", 0) > 0

    def count_wait(self, kind: str) -> None:
        self.raise_if_broken()
        self.ledger.host_waits()
        (self.side_waits if self.ledger.on_side_stream else self.waits)[kind, place()] += 1

    def raise_if_broken(self) -> None:
        if self.is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def is_pinned(self, tensor: torch.Tensor, *_: Any) -> bool:
        entry = self._pinned.get(tensor.untyped_storage()._cdata)
        return entry is not None and not entry.expired()

    def move(
        self, tensor: torch.Tensor, device: torch.device | None, make: Callable[[], Any], *, non_blocking: bool = False
    ) -> Any:
        """Return what `make` returns with the label of a device, and count the transfer."""
        own = self.label(tensor)
        own = None if own == UNDECIDED else own
        target = own if device is None or device.type == "meta" else None if device.type == "cpu" else device
        result = make()
        if self.real_device(result).type != "cpu":
            return result
        if target != own:
            if result.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                with _disable_current_modes():
                    result = result.clone()
            if target is None:
                if not non_blocking:  # else the copy is in pinned memory, and an event tells when it is complete
                    self.count_wait("device to host")
            elif not (self.is_pinned(tensor) and non_blocking):
                self.count_wait(UPLOAD)
        return self.mark(result, target)

    def __enter__(self) -> "SimulatedCuda":
        self._patch_tensor()
        for holder, names in ((torch, FACTORIES), (torch.Tensor, NEW_METHODS)):
            for name in names:
                self._set(holder, name, self._factory(name, getattr(holder, name)))
        self._patch_torch()
        self._mode = _Dispatch(self)
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        self._patch.undo()

    def _set(self, holder: Any, name: str, value: Any) -> None:
        self._patch.setattr(holder, name, value, raising=False)

    def _patch_tensor(self) -> None:
        me, tensor = self, torch.Tensor
        real_to, real_deepcopy = torch._C.TensorBase.to, tensor.__deepcopy__

        def to(t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            copy, device, rest = kwargs.pop("copy", False), kwargs.pop("device", None), list(args)
            if rest and isinstance(rest[0], torch.Tensor):
                kwargs.setdefault("dtype", rest[0].dtype)
                device = rest.pop(0).device
            # Module.to(dtype=...) passes the device as well, as None
            elif rest and (rest[0] is None or isinstance(rest[0], str | torch.device) or type(rest[0]) is int):
                device = rest.pop(0)
            if rest and (rest[0] is None or isinstance(rest[0], torch.dtype)):
                kwargs["dtype"] = rest.pop(0)
            if rest:
                kwargs["non_blocking"] = rest.pop(0)
            copy = rest.pop(0) if rest else copy
            target = me.device(device)
            if target is not None and target.type not in ("cpu", "cuda"):
                kwargs["device"] = target
            options = {"dtype": t.dtype, **{key: value for key, value in kwargs.items() if value is not None}}
            is_async = bool(kwargs.get("non_blocking"))
            return me.move(t, target, lambda: real_to(t, copy=copy, **options), non_blocking=is_async)

        def on_cpu_only(name: str, real: Any) -> Any:
            def call(t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                if me.is_cuda(t):
                    raise TypeError(f"can't convert {me.label(t)} device type tensor to numpy [{name}]")
                return real(t, *args, **kwargs)

            return call

        def deepcopy(t: torch.Tensor, memo: Any) -> Any:
            with _disable_current_modes():
                result = real_deepcopy(t, memo)
            return me.mark(result, me.label(t)) if me.is_cuda(t) else result

        def pin(t: torch.Tensor, *args: Any) -> Any:
            if me.is_cuda(t):
                raise RuntimeError("cannot pin a CUDA tensor: only dense CPU tensors can be pinned")
            with torch.no_grad():
                result = t.clone()
            storage = result.untyped_storage()
            me._pinned[storage._cdata] = StorageWeakRef(storage)
            return result

        self._set(tensor, "device", property(lambda t: me.label(t) if me.is_cuda(t) else me.real_device(t)))
        self._set(tensor, "is_cuda", property(me.is_cuda))
        self._set(tensor, "get_device", lambda t: me.label(t).index if me.is_cuda(t) else -1)
        self._set(tensor, "to", to)
        self._set(tensor, "cpu", lambda t, *args, **kwargs: t.to("cpu"))
        self._set(tensor, "cuda", lambda t, device=None, **kwargs: t.to(me.device(device or "cuda")))
        self._set(tensor, "numpy", on_cpu_only("numpy", torch._C.TensorBase.numpy))
        self._set(tensor, "__array__", on_cpu_only("__array__", tensor.__array__))
        self._set(tensor, "__deepcopy__", deepcopy)
        self._set(tensor, "pin_memory", pin)
        self._set(tensor, "is_pinned", lambda t, *args: me.is_pinned(t))

    def _factory(self, name: str, real: Any) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            device = self.device(kwargs.get("device"))
            if name in ("as_tensor", "asarray") and args and isinstance(args[0], torch.Tensor) and device:
                plain = {key: value for key, value in kwargs.items() if key != "device"}
                return self.move(args[0], device, lambda: real(args[0], **plain))
            is_cuda = device is not None and device.type == "cuda"
            self._local.depth = getattr(self._local, "depth", 0) + 1
            try:
                result = real(*args, **{**kwargs, "device": "cpu"} if is_cuda else kwargs)
            finally:
                self._local.depth -= 1
            if is_cuda and name in ("tensor", "as_tensor", "asarray"):
                self.count_wait(UPLOAD)
            if device is not None and device.type in ("cuda", "cpu"):
                self.mark(result, device if is_cuda else None)
            return result

        return make

    def _patch_torch(self) -> None:
        me, real_generator, real_load = self, torch.Generator, torch.load
        real_autocast, real_enabled = torch.amp.autocast_mode.autocast.__init__, torch.is_autocast_enabled
        real_run = threading.Thread.run

        class Kind(type):
            def __instancecheck__(cls, value: Any) -> bool:
                return isinstance(value, real_generator)

        class Generator(metaclass=Kind):  # a class, because isinstance and unions of types need one
            def __new__(cls, device: Any = "cpu") -> Any:
                return real_generator("cpu")

        def load(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
            device = me.device(map_location) if isinstance(map_location, str | torch.device) else None
            if device is None or device.type != "cuda":
                return real_load(file, map_location=map_location, **kwargs)
            content = real_load(file, map_location="cpu", **kwargs)
            for leaf in tree_leaves(content):
                if isinstance(leaf, torch.Tensor):
                    me.mark(leaf, device)
            return content

        def autocast(this: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
            real_autocast(this, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

        def run(thread: threading.Thread) -> None:
            with _Dispatch(me):
                real_run(thread)

        real_group = torch._C._group_tensors_by_device_and_dtype

        def group(lists: Any, *args: Any) -> Any:
            groups = real_group(lists, *args)
            return {(found[0][0][0].device, dtype): found for (_, dtype), found in groups.items()}

        self._set(torch._C, "_group_tensors_by_device_and_dtype", group)
        self._set(torch.accelerator, "is_available", lambda: True)  # the DataLoader pins batches
        self._set(torch.accelerator, "current_accelerator", lambda check_available=False: None)
        self._set(torch, "Generator", Generator)
        self._set(torch, "load", load)
        self._set(torch.amp.autocast_mode.autocast, "__init__", autocast)
        self._set(torch, "is_autocast_enabled", lambda kind="cpu": real_enabled("cpu" if kind == "cuda" else kind))
        facts: dict[str, Any] = {
            "is_available": True,
            "device_count": me.devices,
            "current_device": 0,
            "set_device": None,
            "get_device_capability": (9, 0),
            "get_device_name": "NVIDIA H200 (simulated)",
            "max_memory_reserved": GIB,
            "empty_cache": None,
            "is_bf16_supported": True,
        }
        for name, value in facts.items():
            self._set(torch.cuda, name, lambda *_, value=value, **__: value)
        self.ledger.patch(self._set)
        self._set(torch.cuda, "synchronize", lambda device=None: me.count_wait("synchronize"))
        self._set(torch.version, "cuda", "13.0")
        self._set(torch.backends.cudnn, "version", lambda: 91900)
        self._set(threading.Thread, "run", run)


class _Dispatch(TorchDispatchMode):
    """Check and label every operation of one thread."""

    def __init__(self, simulation: SimulatedCuda) -> None:
        super().__init__()
        self.simulation = simulation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # composite operations, such as item, arrive undivided there
            with self:
                divided = func.decompose(*args, **kwargs)
            if divided is not NotImplemented:
                return divided
        me, name = self.simulation, str(func)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        labels = [me.label(tensor) for tensor in inputs]
        gpu = next((label for label in labels if isinstance(label, torch.device)), None)
        if gpu is not None:
            if name in INDEXING:
                self._check_indexing(name, args)
            elif name not in COPIES:
                self._check_devices(name, inputs, labels, gpu)
            me.raise_if_broken()
            me.ledger.use(inputs, gpu.index, written=inputs[0] if func._schema.is_mutable else None)
            self._count(name, args, labels)
        result = func(*args, **kwargs)
        known = {id(tensor) for tensor in inputs}
        for out in tree_leaves(result):
            if isinstance(out, torch.Tensor) and id(out) not in known and me.real_device(out).type == "cpu":
                if gpu is not None:  # `.to` corrects the label of a copy afterwards
                    me.mark(out, UNDECIDED if labels[0] == UNDECIDED and name in COPIES else gpu)
                elif not inputs and not me.in_factory():
                    me.mark(out, UNDECIDED)
        return result

    def _check_devices(self, name: str, inputs: list[torch.Tensor], labels: list[Any], gpu: torch.device) -> None:
        for tensor, label in zip(inputs, labels, strict=True):
            is_scalar = label is None and tensor.dim() == 0
            if label not in (gpu, UNDECIDED) and not is_scalar and self.simulation.real_device(tensor).type != "meta":
                devices = f"{gpu} and {label or 'cpu'}"
                raise RuntimeError(f"Expected all tensors to be on the same device, found {devices} in {name}")

    def _check_indexing(self, name: str, args: Any) -> None:
        label = self.simulation.label
        own = label(args[0])
        indices = [label(leaf) for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)]
        if own is None and any(isinstance(index, torch.device) for index in indices):
            raise RuntimeError(f"indices should be on the CPU or on the device of the indexed tensor (cpu) [{name}]")
        values = [leaf for leaf in tree_leaves(args[2:]) if isinstance(leaf, torch.Tensor)]
        if any(value.dim() and label(value) not in (own, UNDECIDED) for value in values):
            raise RuntimeError(f"Expected all tensors to be on the same device: values of {name}")

    def _count(self, name: str, args: Any, labels: list[Any]) -> None:
        me = self.simulation
        if name in SYNCHRONISING:
            me.count_wait(SYNCHRONISING[name])
        elif name in INDEXING:
            for index in tree_leaves(args[1]):
                if isinstance(index, torch.Tensor):
                    if index.dtype in (torch.bool, torch.uint8) and me.is_cuda(index):
                        me.count_wait("boolean mask")
                    elif me.label(index) is None and me.label(args[0]) is not None:
                        me.count_wait("index on the CPU")
        elif name == "aten.copy_.default" and UNDECIDED not in labels[:2] and len(labels) > 1:
            target, source = (isinstance(label, torch.device) for label in labels[:2])
            if target != source:
                me.count_wait("copy_ host to device" if target else "copy_ device to host")


@contextlib.contextmanager
def counted(simulation: SimulatedCuda) -> Iterator[collections.Counter[tuple[str, str]]]:
    """Count the host synchronisations of a block alone."""
    simulation.waits, simulation.side_waits = collections.Counter(), collections.Counter()
    yield simulation.waits
