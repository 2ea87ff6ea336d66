"""Stages of different pictures side by side, each in a thread, in order, with a bound on what waits.

NumPy, SciPy, Pillow and torch compute outside Python's lock, so threads do, and nothing is copied between processes.
"""

from __future__ import annotations

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
