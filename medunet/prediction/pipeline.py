"""Three overlapping stages: one case is read while another is computed and a third is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from enum import Enum
from queue import SimpleQueue
from typing import Any, TypeVar

Source = TypeVar("Source")
Work = TypeVar("Work")
Result = TypeVar("Result")


class _Message(Enum):
    READ = "a case was read"
    WRITTEN = "a case was written"
    END = "no more cases"
    FAILURE = "a thread failed"


def overlap(
    sources: Iterable[Source],
    *,
    read: Callable[[Source], Work],
    compute: Callable[[Work], Work],
    write: Callable[[Work], Result],
    in_flight: int,
) -> Generator[Result, None, None]:
    """Read, compute and write case after case; yield results in the order of the sources, each as soon as it exists.

    ::

        reading thread   | read 1 | read 2 | read 3 |
        calling thread            | comp 1 | comp 2 | comp 3 |
        writing thread                     | writ 1 | writ 2 | writ 3 |

    An exception of a stage ends everything and is raised here; to continue with other cases, a stage stores its error
    in its work. If the caller stops early (``close()``, an exception, Ctrl-C), the threads finish their current case, a
    file that is being written is complete, and nothing else starts.

    Args:
        sources: what to read; iterated in the reading thread.
        read: called in the reading thread.
        compute: called in the calling thread, which owns the GPU's context, autocast and Ctrl-C.
        write: called in the writing thread.
        in_flight: most cases between reading and the written file, which bounds the memory; 1 overlaps nothing.

    Example:
        >>> list(overlap("ab", read=str.upper, compute=lambda x: x * 2, write=lambda x: f"<{x}>", in_flight=3))
        ['<AA>', '<BB>']
    """
    # one inbox, so that the calling thread reports a result while the next case is still being read
    inbox: SimpleQueue[tuple[_Message, Any]] = SimpleQueue()
    to_write: SimpleQueue[tuple[_Message, Any]] = SimpleQueue()
    slots = threading.Semaphore(in_flight)  # bounds both queues together
    stop = threading.Event()

    def reading() -> None:
        for source in sources:
            slots.acquire()
            if stop.is_set():
                return
            inbox.put((_Message.READ, read(source)))
        inbox.put((_Message.END, None))

    def writing() -> None:
        while True:
            message, work = to_write.get()
            if message is _Message.END or stop.is_set():
                return
            result = write(work)
            del work  # frees the volume before the next case takes the slot
            slots.release()
            inbox.put((_Message.WRITTEN, result))

    def guarded(loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            inbox.put((_Message.FAILURE, error))

    # daemons: a second Ctrl-C ends the process while the first one waits for a slow file
    threads = [threading.Thread(target=guarded, args=(loop,), daemon=True) for loop in (reading, writing)]
    for thread in threads:
        thread.start()
    try:
        unfinished, more = 0, True
        while more or unfinished:
            message, content = inbox.get()
            if message is _Message.FAILURE:
                raise content
            if message is _Message.READ:
                unfinished += 1
                to_write.put((message, compute(content)))
            elif message is _Message.WRITTEN:
                unfinished -= 1
                yield content
            else:
                more = False
            del content
    finally:
        stop.set()
        slots.release()  # wakes a reader that waits for a slot
        to_write.put((_Message.END, None))
        for thread in threads:
            thread.join()
