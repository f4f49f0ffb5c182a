"""Worker processes that convert files.

Results come in order, few tasks are open at a time, no process is left behind.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeout
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

import cv2

from dataset.load.modules import FROM_FILES, import_modules

PATIENCE = 600.0  # seconds that a task may take
AHEAD = 8  # tasks in flight per worker: enough to keep it busy, few enough for any number of tasks


def map_ordered(function: Callable[[Any], Any], tasks: Iterable, workers: int) -> Iterator:
    """Yield `function(task)` for each task, in the order of the tasks.

    The tasks are drawn as results leave, so that neither is ever held in full.

    Args:
        function: of a module, so that another process can import it.
        workers: processes; with 1 the work is done in this process.

    Raises:
        OSError: where the system has ended a worker, or one has given nothing for `PATIENCE` seconds.
        Whatever `function` raises.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Forked from a clean server, not from this process, which may have threads whose locks a fork would copy while
    # they are held. The server imports PyTorch once, for all workers.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(dict(FROM_FILES),))
    running: deque = deque()
    try:
        for task in tasks:
            running.append(pool.submit(_answer, function, task))
            if len(running) >= AHEAD * workers:
                yield _result(running)
        while running:
            yield _result(running)
    except BrokenProcessPool:
        raise OSError(
            "a worker process was ended by the system, probably for lack of memory; the same command goes on "
            "where it stopped, with fewer --workers"
        ) from None
    except FuturesTimeout:
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()  # one that is stopped would be waited for
        raise OSError(
            f"a worker process gave nothing for {PATIENCE:g} s: it was stopped, or a disk does not answer; the same "
            "command goes on where it stopped"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _answer(function: Callable[[Any], Any], task: Any) -> tuple[Any, Exception | None]:
    try:
        return function(task), None
    except (ValueError, OSError) as error:
        return None, error  # as a value: raised here, it would arrive with the traceback of another process


def _result(running: deque) -> Any:
    result, error = running.popleft().result(PATIENCE)
    if error is not None:
        raise error
    return result


def _start_worker(modules: dict[str, str]) -> None:
    import_modules(modules)
    # Ctrl-C reaches the whole process group: the parent alone answers it, and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    wait([parent.sentinel])
    os._exit(1)
