"""All decoded pictures and labels of a data set in memory, filled once by several processes before the first batch.

The memory belongs to the training process; its loader threads or forked workers read it in place. Several training
processes on one machine each have their own: for these the packed form (`packed.py`) is better, whose pages they
share.
"""

import mmap
import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from dataset.read.source import sample_size

HEADER_THREADS = 8
# What the cache may take of the memory that is free when it is made; the network needs some too.
SHARE = 0.8
_ALIGNED = 64


def keep_in_memory(datasets: Sequence, processes: int = 1) -> int:
    """Give each data set a `MemoryCache` as its source; the bytes that all of them will fill.

    processes: training processes on this machine that will each have such caches.
    Raises ValueError, with the arithmetic, where the memory does not suffice.
    """
    caches = [MemoryCache(dataset) for dataset in datasets]
    needed = sum(cache.size for cache in caches)
    check_memory(sum(map(len, datasets)), needed, processes)
    for dataset, cache in zip(datasets, caches, strict=True):
        dataset.source = cache
    return needed


class MemoryCache:
    """Serves the samples of a data set from memory, once `prepare` has filled it from the data set's source.

    A sample that cannot be read stays out of the cache, and raises its error at every visit as without the cache.
    The headers of all pictures are read at once, and say how much memory is needed (`size`, bytes).
    """

    def __init__(self, dataset):
        self.source = dataset.source
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            self.sizes = list(pool.map(lambda pair: sample_size(*pair), dataset.samples))
        needed = [
            _aligned(height * width * (3 if label is None else 4))
            for (height, width), (_, label) in zip(self.sizes, dataset.samples, strict=True)
        ]
        self.labelled = [label is not None for _, label in dataset.samples]
        self.starts = np.cumsum([0, *needed])
        self.size = int(self.starts[-1])
        # Shared and anonymous: forked processes fill it, no file and no size of /dev/shm is in the way. The system
        # gives the memory only when it is written to.
        self.memory = mmap.mmap(-1, self.size + len(dataset))
        self.filled = np.frombuffer(self.memory, np.uint8, len(dataset), self.size)
        self.prepared = False

    def __getstate__(self):
        raise ValueError(
            "loader.cache: memory cannot be handed to processes that are not forked; set loader.loader to threads"
        )

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Views of the memory, not to be written to."""
        if not self.filled[index]:
            return self.source.open(index)
        image, label = self._place(index)
        for array in (image, label):
            if array is not None:
                array.flags.writeable = False
        return image, label

    def prepare(self, workers: int) -> None:
        """Read what is not there yet, by `workers` forked processes.

        Raises OSError where one of them is killed.
        """
        if self.prepared:
            return
        self.prepared = True
        missing = np.flatnonzero(self.filled == 0)
        if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
            self._fill(missing)
            return
        context = multiprocessing.get_context("fork")
        shares = [missing[first::workers] for first in range(workers)]
        processes = [context.Process(target=self._fill_as_worker, args=(share,), daemon=True) for share in shares]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed:
            raise OSError(
                f"loader.cache: a process that read the pictures ended with status {failed[0]}; if the "
                "memory ran out, set loader.cache to none"
            )

    def _fill_as_worker(self, indices) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent reports it, and ends its children
        cv2.setNumThreads(0)
        self._fill(indices)

    def _fill(self, indices) -> None:
        for index in indices:
            try:
                image, label = self.source.open(int(index))
            except (ValueError, OSError):
                continue  # it stays out, and `open` raises this error when the sample's turn comes
            image_place, label_place = self._place(int(index))
            np.copyto(image_place, image)
            if label is not None:
                np.copyto(label_place, label)
            self.filled[index] = 1

    def _place(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        height, width = self.sizes[index]
        start = int(self.starts[index])
        image = np.frombuffer(self.memory, np.uint8, height * width * 3, start).reshape(height, width, 3)
        if not self.labelled[index]:
            return image, None
        label = np.frombuffer(self.memory, np.uint8, height * width, start + image.size)
        return image, label.reshape(height, width)


def check_memory(count: int, needed: int, processes: int) -> None:
    """Raise ValueError unless `processes` times `needed` bytes fit into `SHARE` of the free memory."""
    free = free_memory()
    if needed * processes > SHARE * free:
        times = f" x {processes} processes = {_gib(needed * processes)}" if processes > 1 else ""
        raise ValueError(
            f"loader.cache: memory: the {count} pictures are {_gib(needed)} decoded{times}, more than "
            f"{SHARE:.0%} of the {_gib(free)} of free memory; pack them (python -m tool.pack, loader.packed), "
            "or set loader.cache to none"
        )


def free_memory() -> int:
    """Bytes that can be had without swapping: what the system has, or what the control group leaves."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except FileNotFoundError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, int(limit) - int(facts["anon"]) - int(facts["shmem"]))
    return max(free, 0)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED
