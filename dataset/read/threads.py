"""Works on items by threads, in order, few at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD = 32  # items in flight for each thread

S = TypeVar("S")
T = TypeVar("T")


def map_threads(function: Callable[[S], T], items: Iterable[S], workers: int) -> Iterator[T]:
    """Yield `function(item)` for each item, in their order.

    The items are drawn as results leave, so that any number of them takes the same memory.
    """
    running: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > AHEAD * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
