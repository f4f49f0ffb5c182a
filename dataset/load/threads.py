"""Work done ahead of its use by threads, in order: a loader without processes, for what leaves Python's interpreter
lock alone (OpenCV's functions, memory that is only mapped)."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice

import cv2


class ForkGate:
    """Lets the process fork only while no job runs: a child forked meanwhile would inherit locks that a job of
    OpenCV or NumPy holds, and wait for them for ever."""

    def __init__(self):
        self._reset()
        os.register_at_fork(before=self._close, after_in_parent=self._open, after_in_child=self._reset)

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._running += 1

    def __exit__(self, *_) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            self._closed += 1
            self._changed.wait_for(lambda: not self._running)

    def _open(self) -> None:
        with self._changed:
            self._closed -= 1
            self._changed.notify_all()

    def _reset(self) -> None:
        self._changed, self._running, self._closed = threading.Condition(), 0, 0


_GATE = ForkGate() if hasattr(os, "register_at_fork") else nullcontext()  # Windows does not fork


def run_ahead(keys: Iterable, begin: Callable, workers: int, ahead: int) -> Iterator:
    """The results of `keys`, in their order, computed by `workers` threads.

    begin(key) gives an object with `jobs`, functions that the threads call in any order, and `finish()`, called
    when all are done, whose result is handed on. At most `ahead` keys are begun before they are asked for.

    The first error of a job, in the order of the jobs, is raised as it is, and ends the iteration. When the
    iteration ends, or is given up, jobs that have not begun are dropped, and the running ones are waited for.
    """
    keys = iter(keys)
    waiting: deque[tuple[object, list[Future]]] = deque()
    threads_of_opencv = cv2.getNumThreads()
    cv2.setNumThreads(0)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")

    def start(key) -> None:
        item = begin(key)
        waiting.append((item, [pool.submit(_run, job) for job in item.jobs]))

    try:
        for key in islice(keys, ahead):
            start(key)
        while waiting:
            for key in islice(keys, 1):
                start(key)  # first, so that no thread is idle while the last job of a batch is done
            item, futures = waiting.popleft()
            for future in futures:
                future.result()
            result = item.finish()
            del item, futures
            yield result
            del result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        # 0 and 1 mean the same, but at 1 OpenCV ends its threads, and in a forked process waits for the parent's.
        cv2.setNumThreads(threads_of_opencv if threads_of_opencv > 1 else 0)


def _run(job: Callable[[], None]) -> None:
    with _GATE:
        job()
