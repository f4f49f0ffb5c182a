"""Memory of the loaders: what each worker has of its own, and what the batches take, which is the same for any code."""

import multiprocessing
import re
import threading
from collections.abc import Callable
from functools import partial

import torch
from torch.utils._pytree import tree_leaves

from dataset.load.loader import threads_ahead, worker_kind
from tool.bench.report import aligned, shown
from tool.bench.timing import in_own_process
from util.record.memory import return_memory

SHARED = re.compile(r" /dev/shm/| /dev/zero| /memfd:")  # memory of batches and caches
HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
BATCHES = 12  # of a loader of processes; threads, which are faster, four times as many
PAUSE = 0.01  # seconds between two looks


def of_loaders(trial, decoder: Callable) -> dict[str, dict]:
    """Each loader of `data.Trial`, within its `decoder`, see `worker_memory`."""
    workers = trial.args.workers
    prefetched = 2 * workers + 1  # PyTorch's, and the consumer's
    measure = partial(worker_memory, workers=workers)
    out = {f"baseline {trial.baseline}": measure(trial.baseline_loader, BATCHES, live=prefetched, threads=False)}
    for name, (source, fast) in trial.contenders().items():
        threads = worker_kind(trial.dataset(source)) == "threads"
        live = threads_ahead(workers, trial.batch) + 2 if threads else prefetched
        with decoder(fast):
            loader = trial.loader(source)
            batches = 4 * BATCHES if threads else BATCHES
            out[name] = measure(partial(iter, loader), batches, live=live, threads=threads)
    return out


def text(rows: dict[str, dict]) -> str:
    """The figures of `of_loaders` as a table."""
    names = list(next(iter(rows.values())))
    lines = [[name, *(shown(row[key]) for key in names)] for name, row in rows.items()]
    return "\n".join(aligned([["loader memory", *names], *lines]))


def worker_memory(make: Callable[[], object], batches: int, workers: int, live: int, threads: bool) -> dict:
    """MiB of a worker's own at its peak, and MiB of the batches, while `batches` are read from the loader of `make()`.

    live: how many batches the loader holds at once, its consumer's included. A worker process's own memory is what no
    other process has (Linux's private pages), without the batches that it is filling. Threads share their process: of
    what it grows by, the batches are taken off, and the rest is divided by the number of threads.
    """
    own, size = in_own_process(partial(_watch, make, batches, threads))
    if threads:
        own = (own - live * size) / workers
    return {
        "workers": "threads" if threads else "processes",
        "a worker, MiB": round(own, 1),
        "batches, MiB": round(live * size, 1),
        "batches held": live,
    }


def _watch(make: Callable[[], object], batches: int, threads: bool) -> tuple[float, float]:
    """The most MiB of any worker process, or that this process grew by; and MiB of a batch."""
    done, peak = threading.Event(), [0.0]
    return_memory()  # else the batches would stand where the parent's freed memory was, and nothing would grow
    before = anonymous() if threads else 0.0

    def look() -> None:
        if threads:
            peak[0] = max(peak[0], anonymous() - before)
        else:
            peak[0] = max([peak[0], *(private(child.pid) for child in multiprocessing.active_children())])

    def watch() -> None:
        while not done.wait(PAUSE):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        iterator = iter(make())
        for _ in range(batches):
            batch = next(iterator)
        look()
    finally:
        done.set()
        watcher.join()
    return peak[0], sum(leaf.nbytes for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)) / 2**20


def anonymous() -> float:
    """MiB of this process that are of no file and not shared."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


def private(process: int) -> float:
    """MiB that no other process has, but for memory made to be shared; 0 for a process that has just ended."""
    total, counts = 0, True
    try:
        with open(f"/proc/{process}/smaps", encoding="utf-8", errors="replace") as file:
            for line in file:
                if HEAD.match(line):
                    counts = SHARED.search(line) is None
                elif counts and line.startswith(("Private_Clean", "Private_Dirty")):
                    total += int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return total / 1024
