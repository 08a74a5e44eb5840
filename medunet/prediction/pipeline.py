"""Three overlapping stages: cases are read while another is computed and others are written."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

Source = TypeVar("Source")
Work = TypeVar("Work")
Result = TypeVar("Result")


def overlap(
    sources: Iterable[Source],
    *,
    read: Callable[[Source], Work],
    compute: Callable[[Work], Work],
    write: Callable[[Work], Result],
    in_flight: int,
    threads: int = 1,
) -> Generator[Result, None, None]:
    """Read, compute and write case after case; yield results in the order of the sources, each as soon as it exists.

    ::

        reading threads  | read 1 | read 2 | read 3 |
        calling thread            | comp 1 | comp 2 | comp 3 |
        writing threads                    | writ 1 | writ 2 | writ 3 |

    An exception of a stage ends everything and is raised here. A stage that must not stop other cases returns its error
    with its work. If the caller stops early (``close()``, an exception, Ctrl-C), the threads finish their current case:
    a file that is being written is complete, and nothing else starts.

    Args:
        sources: iterated in a thread of its own.
        read: called in the reading threads.
        compute: called in the calling thread, which owns the GPU's context, autocast and Ctrl-C.
        write: called in the writing threads.
        in_flight: largest number of cases between reading and result, which bounds the memory; 1 overlaps nothing.
        threads: number of reading and of writing threads.

    Examples:
        >>> list(overlap("ab", read=str.upper, compute=lambda x: x * 2, write=lambda x: f"<{x}>", in_flight=3))
        ['<AA>', '<BB>']
    """
    iterator = iter(sources)
    end: Any = object()

    def start_read() -> None:
        reads.append(reader.submit(read_next, iterating.submit(next, iterator, end)))

    def read_next(source: Future[Any]) -> Any:
        return end if source.result() is end else read(source.result())

    iterating, reader, writer = pools = tuple(map(ThreadPoolExecutor, (1, threads, threads)))
    reads: deque[Future[Any]] = deque()
    for _ in range(in_flight):
        start_read()
    writes: deque[Future[Result]] = deque()
    more = True
    try:
        while more or writes:
            # a result is reported while the next case is still being read
            first: list[Future[Any]] = [queue[0] for queue in (reads, writes) if queue]
            wait(first, return_when=FIRST_COMPLETED)
            if writes and writes[0].done():
                result = writes.popleft().result()
                start_read()  # one case less is in flight
                yield result
                continue
            work = reads.popleft().result()
            more = more and work is not end
            if more:
                writes.append(writer.submit(write, compute(work)))
            del work  # the volume's memory is free as soon as it is written
    finally:
        for is_waiting in (False, True):  # first nothing else starts, then the current cases end
            for pool in pools:
                pool.shutdown(wait=is_waiting, cancel_futures=True)
