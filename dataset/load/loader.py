"""The loaders that carry out the order of `sampler.py`, for training and for evaluation."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from dataset.base import SegDataset
from dataset.load.batch import Single, begin_batch
from dataset.load.buffers import Buffers, new_pinned
from dataset.load.sampler import StepSampler
from dataset.load.threads import run_ahead
from dataset.load.uniform import ClassUniform

# Samples a thread that are begun before their batch is asked for, but at least one batch; processes have two batches
# each, as torch does it.
AHEAD = 2


class TrainLoader:
    """Iterable over training micro-batches, without end; every `iter` begins at the start step.

    A batch: dict(image uint8 (n,3,h,w), label uint8 (n,h,w), name list of n, epoch, step); the pictures'
    memory is channels last. `steps_per_epoch`: optimiser steps of an epoch; a last incomplete one is dropped.
    """

    def __init__(self, dataset: SegDataset, sampler: StepSampler, workers: int, pin_memory: bool, loader: str):
        self.dataset = dataset
        self.steps_per_epoch = sampler.steps_per_epoch
        self._open = _opener(partial(begin_batch, dataset), sampler, sampler.part, workers, loader, pin_memory)

    def __iter__(self) -> Iterator[dict]:
        for batch in self._open():
            yield batch
            del batch  # its memory serves the next


class EvalLoader:
    """Iterable over single samples (as `SegDataset.__getitem__` gives them) in the order of `indices`."""

    def __init__(self, dataset: SegDataset, indices: Sequence[int], workers: int, loader: str):
        self.dataset = dataset
        self.indices = [int(index) for index in indices]
        self._open = _opener(partial(Single, dataset), self.indices, 1, workers, loader)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict]:
        return self._open()


def build_loader(
    dataset: SegDataset,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    seed: int = 0,
    start_step: int = 0,
    accumulate: int = 1,
    pin_memory: bool = False,
    uniform: ClassUniform | None = None,
    loader: str = "auto",
) -> TrainLoader:
    """The training batches of process `rank`; `batch_size` counts a step's pictures on all processes.

    uniform: class-uniform sampling, see `uniform.py`; None: every sample once an epoch. loader: what the workers
    are, see `worker_kind`.

    Raises ValueError for a batch size that does not divide or exceeds the data set, and for samples without
    label. A file that cannot be read raises, from the iteration, the same error with and without workers.
    """
    unlabelled = [image for image, label in dataset.samples if label is None]
    if unlabelled:
        raise ValueError(
            f"{dataset.list_file}: {len(unlabelled)} of {len(dataset)} lines name no label "
            f"(first: {unlabelled[0]}); training needs `image label` on every line"
        )
    sampler = StepSampler(len(dataset), batch_size, rank, world_size, seed, start_step, accumulate, uniform)
    dataset.source.prepare(workers)
    return TrainLoader(dataset, sampler, workers, pin_memory, worker_kind(dataset, loader))


def build_eval_loader(
    dataset: SegDataset, indices: Sequence[int], workers: int = 0, loader: str = "auto"
) -> EvalLoader:
    """The samples `indices` one by one, not stacked, in that order, whatever the number of workers."""
    dataset.source.prepare(workers)
    return EvalLoader(dataset, indices, workers, worker_kind(dataset, loader))


def worker_kind(dataset: SegDataset, loader: str = "auto") -> str:
    """ "threads" or "processes", as `loader` says; for "auto", threads where the data set's source only copies or
    unpacks (packed data, the memory cache), and processes where files are decoded.

    Threads write straight into the batch, and nothing is sent between processes; but the fast PNG decoder, and a
    transform written in Python, let only one thread run at a time.
    """
    if loader not in ("auto", "threads", "processes"):
        raise ValueError(f"loader: {loader!r}; auto, threads or processes")
    if loader == "auto":
        return "threads" if dataset.source.threads else "processes"
    return loader


# The jobs of a batch are made when asked for: kept in the batch, whose methods they are, they would be a cycle, and its
# memory would be free only when Python looks for cycles.


def _opener(
    begin: Callable, keys, part: int, workers: int, kind: str, pin_memory: bool = False
) -> Callable[[], Iterator[dict]]:
    """What starts an iteration over `begin(key).finish()`, its jobs done here, in threads or in processes.

    part: the samples of a key.
    """
    ahead = threads_ahead(workers, part)
    if kind == "threads" and workers:
        # Those begun, the one that is handed on, and the one before it, which the consumer still has.
        return lambda: run_ahead(
            keys, partial(begin, new=new_pinned if pin_memory else Buffers(ahead + 2).take), workers, ahead
        )
    if not workers:
        begin = partial(begin, new=Buffers(2).take)
    # Without a generator of its own a loader draws from the global one, and a continued run, which makes
    # its loaders at other moments, would see other dropout.
    loader = DataLoader(
        _Done(begin),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
        pin_memory=pin_memory,
        persistent_workers=workers > 0 and isinstance(keys, list),
    )
    return lambda: _raise_errors(loader)


def threads_ahead(workers: int, part: int) -> int:
    """How many batches of `part` samples threads begin before they are asked for."""
    return max(1, -(-AHEAD * workers // part))


class _Done(Dataset):
    """Keys to finished batches or samples; a user's mistake comes back as a value (see `_raise_errors`)."""

    def __init__(self, begin: Callable):
        self.begin = begin

    def __getitem__(self, key) -> dict | Exception:
        try:
            item = self.begin(key)
            for job in item.jobs:
                job()
            return item.finish()
        except (ValueError, OSError) as error:
            return error


def _unchanged(item):
    return item


def _start_worker(worker: int) -> None:
    # Ctrl-C and a scheduler's signals reach the whole process group; the parent alone answers them and ends
    # the workers when it is done.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, args=(multiprocessing.parent_process().pid,), daemon=True).start()
    cv2.setNumThreads(0)
    gc.freeze()  # a collection would write to every object of the parent, and so copy its memory


def _end_with_parent(parent: int) -> None:
    """Ends the worker at a SIGTERM of its parent; takes no notice of one sent to the whole group."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _raise_errors(loader: DataLoader) -> Iterator[dict]:
    """An error raised inside a worker would arrive wrapped in the worker's traceback; sent as a value it
    keeps its type and its one line."""
    for item in loader:
        if isinstance(item, Exception):
            try:
                raise item
            finally:
                # The error's traceback holds this frame: without the cycle the workers end with the error.
                del item
        yield item
