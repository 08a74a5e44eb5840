"""Memory and streams of the simulated CUDA device: bytes of live tensors, and the order of work on several streams.

The ledger counts what operations return, not the workspace inside a kernel or fragments of the allocator. A stream is
only an order: a tensor written on one stream must not be used on another before an event or a host synchronisation.
Nothing really runs at the same time, and memory that is freed too early is not noticed.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Stream:
    """An order of work; `seen` has the last tick of other streams that this one has waited for."""

    def __init__(self, ledger: "Ledger", device: torch.device) -> None:
        self.ledger, self.device = ledger, device
        self.seen: dict[Stream, int] = {}

    def record_event(self, event: Any = None) -> Any:
        event = event or self.ledger.make_event()
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        self.seen[event.stream] = max(event.tick, self.seen.get(event.stream, 0))

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self.ledger.simulation.count_wait("stream")


@dataclass
class _Storage:
    reference: StorageWeakRef
    nbytes: int
    index: int  # of the device
    stream: Stream
    tick: int


class Ledger:
    """Live bytes and last writers of the storages of a simulation."""

    def __init__(self, simulation: Any) -> None:
        self.simulation = simulation
        self.storages: dict[int, _Storage] = {}
        self.peaks: dict[int, int] = {}
        self.tick = 0
        self.waited: dict[Stream, int] = {}  # last tick of a stream that the host has waited for
        self._lock = threading.RLock()
        self._local = threading.local()
        self._defaults: dict[int, Stream] = {}

    def allocated(self, index: int) -> int:
        with self._lock:
            self.storages = {key: item for key, item in self.storages.items() if not item.reference.expired()}
            return sum(item.nbytes for item in self.storages.values() if item.index == index)

    def capacity(self, index: int) -> int:
        free = self.simulation.free
        return int(free if isinstance(free, int) else free[index])

    def add(self, tensor: torch.Tensor, index: int) -> None:
        """Count the storage of a tensor once; raise what torch raises if there is no room."""
        with self._lock:
            storage = tensor.untyped_storage()
            known = self.storages.get(storage._cdata)
            if known is not None and not known.reference.expired():
                return
            used = self.allocated(index) + storage.nbytes()
            if used > self.capacity(index):
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {storage.nbytes()} bytes")
            item = _Storage(StorageWeakRef(storage), storage.nbytes(), index, self.current(index), self.tick)
            self.storages[storage._cdata] = item
            self.peaks[index] = max(self.peaks.get(index, 0), used)

    def remove(self, storage: Any) -> None:
        self.storages.pop(storage._cdata, None)

    def default(self, index: int = 0) -> Stream:
        with self._lock:
            return self._defaults.setdefault(index, Stream(self, torch.device("cuda", index)))

    def current(self, index: int = 0) -> Stream:
        stream = getattr(self._local, "stream", None)
        return stream if stream is not None and stream.device.index == index else self.default(index)

    @property
    def on_side_stream(self) -> bool:
        return getattr(self._local, "stream", None) is not None

    def host_waits(self) -> None:
        """Everything that the current stream has been given is complete."""
        stream = getattr(self._local, "stream", None)
        for one in [stream] if stream is not None else self._defaults.values():
            self.waited[one] = self.tick

    def use(self, tensors: list[torch.Tensor], index: int, *, written: torch.Tensor | None) -> None:
        """Check that all tensors are complete on the current stream, and note that one of them is written there."""
        stream = self.current(index)
        with self._lock:
            self.tick += 1
            for tensor in tensors:
                item = self.storages.get(tensor.untyped_storage()._cdata)
                if item is None:
                    continue
                known = max(stream.seen.get(item.stream, -1), self.waited.get(item.stream, -1))
                if item.stream is not stream and item.tick > known:
                    raise RuntimeError("race: a tensor of another stream is used before its event")
                if tensor is written:
                    item.stream, item.tick = stream, self.tick

    @contextlib.contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        before = getattr(self._local, "stream", None)
        self._local.stream = stream
        try:
            yield
        finally:
            self._local.stream = before

    def make_event(self, **_: Any) -> Any:
        return Event(self)

    def patch(self, replace: Any) -> None:
        """Replace torch's functions about memory and streams."""

        def index_of(device: Any) -> int:
            return 0 if device is None else self.simulation.device(device).index or 0

        def reset(device: Any = None) -> None:
            self.peaks[index_of(device)] = self.allocated(index_of(device))

        functions = {
            "mem_get_info": lambda device=None: (
                self.capacity(index_of(device)) - self.allocated(index_of(device)),
                int(self.simulation.total),
            ),
            "memory_allocated": lambda device=None: self.allocated(index_of(device)),
            "memory_reserved": lambda device=None: self.allocated(index_of(device)),
            "max_memory_allocated": lambda device=None: self.peaks.get(index_of(device), 0),
            "reset_peak_memory_stats": reset,
            "Stream": lambda device=None, **_: Stream(self, torch.device("cuda", index_of(device))),
            "Event": self.make_event,
            "stream": self.stream,
            "device": lambda device: contextlib.nullcontext(),
            "current_stream": lambda device=None: self.current(index_of(device)),
            "default_stream": lambda device=None: self.default(index_of(device)),
        }
        for name, function in functions.items():
            replace(torch.cuda, name, function)
        replace(torch.Tensor, "record_stream", lambda tensor, stream: None)


class Event:
    """The place of an event in the order of a stream."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.stream, self.tick = ledger, ledger.current(), ledger.tick

    def record(self, stream: Stream | None = None) -> None:
        self.stream, self.tick = stream or self.ledger.current(), self.ledger.tick

    def synchronize(self) -> None:
        self.ledger.simulation.count_wait("event")

    def query(self) -> bool:
        return True
