"""Stages of different pictures side by side, each in a thread, in order, with a bound on what waits and on memory.

NumPy, SciPy, Pillow and torch compute outside Python's lock, so threads do, and nothing is copied between processes.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def threads(count: int) -> Iterator[list[Executor]]:
    """`count` executors of one thread each, for `in_order`.

    However the block is left, by an error or Ctrl-C too, what has not begun is dropped and what has is waited for: no
    thread stays behind, and no file half written.
    """
    executors = [ThreadPoolExecutor(1) for _ in range(count)]
    try:
        yield executors
    finally:
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
        for executor in executors:
            executor.shutdown()


def in_order(executor: Executor, function: Callable, items: Iterable, waiting: int = 1) -> Iterator:
    """function(item) for each item, in order: computed by the executor, while the caller works on earlier ones.

    At most `waiting` + 1 items are begun and not yet handed out, however many there are. `items` is gone through in the
    caller's thread, so that one such chain can feed another. Raises what `function` raises, at that item's turn.
    """
    futures = deque()
    for item in items:
        futures.append(executor.submit(function, item))
        del item  # the future alone keeps it, and only until it is done
        if len(futures) > waiting:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def resident_mb() -> float | None:
    """Memory of this process that is held in RAM, in units of 2^20 bytes; None where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def trim() -> None:
    """Hand freed memory back to the system, where the C library is glibc; elsewhere nothing happens."""
    if os.name == "posix":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


class SteadyMemory:
    """Keeps freed memory from piling up in the process, where the C library is glibc; elsewhere it only watches.

    glibc keeps what arrays of many sizes leave behind, for each thread apart. Handing it back after every picture costs
    a fifth of a small picture's time, since the same pages are soon asked for again; so it waits until half as much
    again is held as was once left.
    """

    def __init__(self):
        self._least = 0.0

    def __call__(self) -> float | None:
        """To be called between pictures: hands memory back if it is time, and returns what `resident_mb` then says."""
        held = resident_mb()
        if held is not None and held > 1.5 * self._least:
            trim()
            held = resident_mb()
            self._least = min(self._least or held, held)
        return held
