"""The order of the samples, and the loaders that carry it out.

Step `s` of epoch `e` takes the entries [s*B, (s+1)*B) of a permutation drawn from (seed, e) alone, B being
the global batch size; each process takes its contiguous share. So neither the number of processes nor of
workers changes which pictures a step sees, and a run continues at any step without replaying the steps
before. With class-uniform sampling (`uniform.py`) the order of an epoch, then no permutation, is drawn from
(seed, e) alone as well.
"""

import gc
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset.base import SegDataset
from dataset.buffers import Buffers, new_pinned, new_shared, to_pinned
from dataset.skip import Skips
from dataset.threads import run_ahead
from dataset.uniform import ClassUniform

# See `base.AUGMENTATION_STREAM`: the two random streams must not share a seed.
ORDER_STREAM = 2
# Samples a thread that are begun before their batch is asked for, but at least one batch; processes have two batches
# each, as torch does it.
AHEAD = 2


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one process: the global optimiser step it belongs to, the epoch, the samples.

    With class-uniform sampling also the position of the first sample in the epoch, and the point (row,
    column) that each crop must hold, or None.
    """

    step: int
    epoch: int
    indices: tuple[int, ...]
    position: int = 0
    points: tuple[tuple[int, int] | None, ...] | None = None

    @property
    def keys(self) -> list[tuple]:
        """What the data set is asked for."""
        if self.points is None:
            return [(self.epoch, index) for index in self.indices]
        pairs = enumerate(zip(self.indices, self.points, strict=True), start=self.position)
        return [(self.epoch, index, position, point) for position, (index, point) in pairs]


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The permutation of 0..length-1 in which epoch `epoch` visits the samples."""
    return np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(length)


class StepSampler(Sampler):
    """Endless micro-batches of one process from `start_step` on. uniform: draws the epochs, None: all samples
    once.

    Raises ValueError, with the arithmetic, where the batch cannot be shared out or exceeds the data set.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0,
                 start_step: int = 0, accumulate: int = 1, uniform: ClassUniform | None = None):
        assert 0 <= rank < world_size and accumulate >= 1 and start_step >= 0
        parts = world_size * accumulate
        if batch_size < 1 or batch_size % parts:
            raise ValueError(
                f"batch size {batch_size} does not divide by {world_size} processes x {accumulate} "
                f"micro-batches = {parts}; the next that does is {max(-(-batch_size // parts), 1) * parts}")
        if batch_size > length:
            most = length // parts * parts
            advice = f"take at most {most}" if most else f"a step has {parts} shares, use fewer"
            raise ValueError(f"batch size {batch_size} exceeds the data set, which has {length} samples; "
                             f"{advice}")
        self.length, self.batch_size, self.seed, self.start_step = length, batch_size, seed, start_step
        self.part, self.uniform = batch_size // parts, uniform
        self.share = batch_size // world_size
        self.first = rank * self.share
        self.steps_per_epoch = length // batch_size

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in itertools.count(self.start_step):
            epoch, place = divmod(step, self.steps_per_epoch)
            if place == 0 or step == self.start_step:
                order, points = self._epoch(epoch)
            first = place * self.batch_size + self.first
            for start in range(first, first + self.share, self.part):
                part = slice(start, start + self.part)
                held = None if points is None else tuple(points[part])
                yield MicroBatch(step, epoch, tuple(order[part].tolist()), start, held)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[tuple[int, int] | None] | None]:
        """The samples of an epoch in their order, and the point that each crop must hold."""
        if self.uniform is None:
            return epoch_order(self.seed, epoch, self.length), None
        order = self.uniform.build_epoch(self.seed, epoch)
        return order.indices, [None if row < 0 else (row, column) for row, column in order.points.tolist()]


class TrainLoader:
    """Iterable over training micro-batches, without end; every `iter` begins at the start step.

    A batch: dict(image uint8 (n,3,h,w), label uint8 (n,h,w), name list of n, epoch, step); the pictures'
    memory is channels last. With a `DeviceTransform` image and label are lists of n, of any size, and "drawn"
    says what is to be done to them. `steps_per_epoch`: optimiser steps of an epoch; a last incomplete one is dropped.
    """

    def __init__(self, dataset: SegDataset, sampler: StepSampler, workers: int, pin_memory: bool, loader: str,
                 skips: Skips | None = None):
        self.dataset, self.skips = dataset, skips
        self.steps_per_epoch = sampler.steps_per_epoch
        self._open = _opener(partial(begin_batch, dataset), sampler, sampler.part, workers, loader, pin_memory)

    def __iter__(self) -> Iterator[dict]:
        for batch in self._open():
            for index, reason in batch.pop("skipped", {}).items():
                self.skips.add(index, reason)
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


def build_loader(dataset: SegDataset, batch_size: int, rank: int = 0, world_size: int = 1,
                 workers: int = 0, seed: int = 0, start_step: int = 0, accumulate: int = 1,
                 pin_memory: bool = False, uniform: ClassUniform | None = None, loader: str = "auto",
                 skips: Skips | None = None) -> TrainLoader:
    """The training batches of process `rank`; `batch_size` counts a step's pictures on all processes.

    uniform: class-uniform sampling, see `uniform.py`; None: every sample once an epoch. loader: what the workers
    are, see `worker_kind`. skips: goes on without samples that cannot be read, and takes note of them.

    Raises ValueError for a batch size that does not divide or exceeds the data set, and for samples without
    label. A file that cannot be read raises, from the iteration, the same error with and without workers.
    """
    unlabelled = [image for image, label in dataset.samples if label is None]
    if unlabelled:
        raise ValueError(f"{dataset.list_file}: {len(unlabelled)} of {len(dataset)} lines name no label "
                         f"(first: {unlabelled[0]}); training needs `image label` on every line")
    if skips is not None and not hasattr(getattr(dataset.transform, "inner", dataset.transform), "crop"):
        raise ValueError("samples can be skipped only with a transform that has a crop size")
    sampler = StepSampler(len(dataset), batch_size, rank, world_size, seed, start_step, accumulate,
                          uniform)
    dataset.skip_errors = skips is not None
    dataset.source.prepare(workers)
    return TrainLoader(dataset, sampler, workers, pin_memory, worker_kind(dataset, loader), skips)


def build_eval_loader(dataset: SegDataset, indices: Sequence[int], workers: int = 0,
                      loader: str = "auto") -> EvalLoader:
    """The samples `indices` one by one, not stacked, in that order, whatever the number of workers."""
    dataset.source.prepare(workers)
    return EvalLoader(dataset, indices, workers, worker_kind(dataset, loader))


def worker_kind(dataset: SegDataset, loader: str = "auto") -> str:
    """"threads" or "processes", as `loader` says; for "auto", threads where the data set's source only copies or
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


class FilledBatch:
    """A batch whose samples, all of the transform's crop size, are written straight into their places."""

    def __init__(self, dataset: SegDataset, key: MicroBatch, new: Callable[[tuple[int, ...]], torch.Tensor]):
        size = (len(key.indices), *dataset.transform.crop)
        self.dataset, self.key = dataset, key
        self.image, self.label = new((*size, 3)), new(size)
        self.skipped: dict[int, str] = {}

    @property
    def jobs(self) -> list[Callable[[], None]]:
        places = zip(self.key.indices, self.key.keys, self.image.numpy(), self.label.numpy(), strict=True)
        return [partial(self._fill, *place) for place in places]

    def _fill(self, index: int, key: tuple, image: np.ndarray, label: np.ndarray) -> None:
        reason = self.dataset.fill(key, image, label)
        if reason is not None:
            self.skipped[index] = reason

    def finish(self) -> dict:
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {"image": self.image.permute(0, 3, 1, 2), "label": self.label, **_names(self.dataset, self.key),
                **skipped}


class StackedBatch:
    """A batch of samples whose size is known only when they are read. pin_memory: read them into page-locked memory."""

    def __init__(self, dataset: SegDataset, key: MicroBatch, pin_memory: bool = False):
        self.dataset, self.key = dataset, key
        self.read = partial(dataset.sample, own=to_pinned) if pin_memory else dataset.sample
        self.samples: list[dict | None] = [None] * len(key.indices)

    @property
    def jobs(self) -> list[Callable[[], None]]:
        return [partial(self._read, place, each) for place, each in enumerate(self.key.keys)]

    def _read(self, place: int, key: tuple) -> None:
        self.samples[place] = self.read(key)

    def finish(self) -> dict:
        first = self.samples[0]
        if "drawn" in first:
            lists = {name: [sample[name] for sample in self.samples] for name in ("image", "label", "drawn")}
            pairs = zip(self.key.indices, self.samples, strict=True)
            skipped = {index: sample["skipped"] for index, sample in pairs if "skipped" in sample}
            return {**lists, **_names(self.dataset, self.key), **({"skipped": skipped} if skipped else {})}
        for sample in self.samples[1:]:
            if sample["image"].shape != first["image"].shape:
                raise ValueError(f"{sample['name']} is {_size(sample)} and {first['name']} {_size(first)}: "
                                 "pictures of different sizes cannot be stacked; give the data set a transform "
                                 "with a crop size")
        image = torch.stack([sample["image"].permute(1, 2, 0) for sample in self.samples]).permute(0, 3, 1, 2)
        label = torch.stack([sample["label"] for sample in self.samples])
        return {"image": image, "label": label, **_names(self.dataset, self.key)}


class Single:
    """One sample as the data set gives it."""

    def __init__(self, dataset: SegDataset, index: int, new: Callable = new_shared):
        self.dataset, self.index, self.sample = dataset, index, {}

    @property
    def jobs(self) -> list[Callable[[], None]]:
        return [self._read]

    def _read(self) -> None:
        self.sample = self.dataset[self.index]

    def finish(self) -> dict:
        return self.sample


def begin_batch(dataset: SegDataset, key: MicroBatch, new: Callable = new_shared) -> FilledBatch | StackedBatch:
    """The batch of `key`, its jobs not yet run. new: gives its memory, see `buffers.py`."""
    if hasattr(dataset.transform, "crop"):
        return FilledBatch(dataset, key, new)
    return StackedBatch(dataset, key, pin_memory=new is new_pinned)


def _names(dataset: SegDataset, key: MicroBatch) -> dict:
    return {"name": [dataset.sample_name(index) for index in key.indices], "epoch": key.epoch, "step": key.step}


def _size(sample: dict) -> str:
    _, height, width = sample["image"].shape
    return f"{width}x{height}"


def _opener(begin: Callable, keys, part: int, workers: int, kind: str,
            pin_memory: bool = False) -> Callable[[], Iterator[dict]]:
    """What starts an iteration over `begin(key).finish()`, its jobs done here, in threads or in processes.

    part: the samples of a key.
    """
    ahead = threads_ahead(workers, part)
    if kind == "threads" and workers:
        # Those begun, the one that is handed on, and the one before it, which the consumer still has.
        return lambda: run_ahead(
            keys, partial(begin, new=new_pinned if pin_memory else Buffers(ahead + 2).take), workers, ahead)
    if not workers:
        begin = partial(begin, new=Buffers(2).take)
    # Without a generator of its own a loader draws from the global one, and a continued run, which makes
    # its loaders at other moments, would see other dropout.
    loader = DataLoader(_Done(begin), batch_size=None, sampler=keys, num_workers=workers, collate_fn=_unchanged,
                        worker_init_fn=_start_worker, generator=torch.Generator(), pin_memory=pin_memory,
                        persistent_workers=workers > 0 and isinstance(keys, list))
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
