"""PyTorch's DataLoader, for training and for evaluation.

In training the order is that of `sampler.py`, in evaluation a given one.
"""

import gc
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypedDict

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dataset.base import Key, Sample, SegDataset
from dataset.load.sampler import StepSampler
from dataset.load.uniform import ClassUniform
from dataset.read import DataError

SHARED = Path("/dev/shm")  # what workers hand their batches over in (Linux)
PREFETCHED = 2  # batches that each worker makes ahead


class Batch(TypedDict):
    """A micro-batch.

    image: uint8 (n, 3, h, w), its memory channels last. label: uint8 (n, h, w). name: n names.
    """

    image: torch.Tensor
    label: torch.Tensor
    name: list[str]


class Loader(DataLoader):
    """DataLoader that raises the error of a sample as it was.

    DataLoader itself puts the worker's traceback into the message; sent as a value the error keeps its one line.
    """

    def __iter__(self) -> Iterator:  # type: ignore[override]  # PyTorch names a private class
        others = multiprocessing.active_children()
        # PyTorch's handler of SIGCHLD raises wherever the process is when a worker dies, in a destructor say, where the
        # error is lost. Without it the death is seen here, when the next batch is waited for.
        in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        before = signal.getsignal(signal.SIGCHLD) if in_main else None
        iterator = super().__iter__()
        if in_main:
            signal.signal(signal.SIGCHLD, before)
        workers = [child for child in multiprocessing.active_children() if child not in others]
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                raise WorkerLost(error, [worker.exitcode for worker in workers if worker.exitcode]) from None
            if isinstance(item, Exception):
                try:
                    raise item
                finally:
                    del item  # the traceback holds this frame: without the cycle the workers end with the error
            yield item


class WorkerLost(RuntimeError):
    """A loader worker ended, mostly by the system.

    codes: the exit codes of those that ended, negative for a signal.
    """

    def __init__(self, error: RuntimeError, codes: list[int]):
        names = {signal.Signals(-code).name for code in codes if code < 0}
        if "SIGBUS" in names:
            why = "SIGBUS: /dev/shm is full. Give it more (docker run --shm-size=8g, or --ipc=host) or loader.workers=0"
        elif "SIGKILL" in names:
            why = "SIGKILL: by the system for lack of memory, or by somebody. Fewer loader.workers need less memory"
        else:
            why = ", ".join(sorted(names)) or f"exit codes {codes}"
        super().__init__(f"{str(error).splitlines()[0]}, {why}; the same command continues from the last checkpoint")


class ErrorsAsValues(Dataset):
    """Data set that returns a user's mistake instead of raising it."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: Key | int) -> object:
        try:
            return self.dataset[key]
        except (ValueError, OSError) as error:
            return error


def stack(samples: list[Sample | Exception]) -> Batch | Exception:
    """Stack samples of one size, or return the first error among them."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
        good.append(sample)
    # In a worker `default_collate` stacks into memory that the training process sees too: nothing is copied on its way.
    image = default_collate([sample["image"].permute(1, 2, 0) for sample in good]).permute(0, 3, 1, 2)
    label = default_collate([sample["label"] for sample in good])
    return {"image": image, "label": label, "name": [sample["name"] for sample in good]}


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
) -> Loader:
    """Build the loader of a training: one process's micro-batches, without end.

    They are `Batch`es, from `start_step` on.

    Args:
        dataset: with a transform, which makes all samples one size.
        workers: processes that read samples; 0: this one does.
        pin_memory: give batches in page-locked memory, from which a GPU copies while the host goes on.
        batch_size, rank, world_size, seed, start_step, accumulate, uniform: see `StepSampler`.

    Raises:
        DataError: the batch size does not divide or exceeds the data set, samples have no label, or there is no
            transform. Iterating raises the error of a file that cannot be read, the same with and without workers.
    """
    if dataset.samples.unlabelled:
        first = next(image for image, label in dataset.samples if label is None)
        raise DataError(
            f"{dataset.list_file}: {dataset.samples.unlabelled} of {len(dataset)} lines name no label "
            f"(first: {first}); training needs `image label` on every line"
        )
    if dataset.transform is None:
        raise DataError("images of different sizes cannot be stacked; give the data set a transform with a crop")
    sampler = StepSampler(len(dataset), batch_size, rank, world_size, seed, start_step, accumulate, uniform)
    height, width = dataset.transform.crop
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    check_shared_memory(4 * height * width * sampler.micro_batch, workers, processes)
    return Loader(
        ErrorsAsValues(dataset),
        batch_sampler=sampler,
        collate_fn=stack,
        num_workers=workers,
        worker_init_fn=_start_worker,
        prefetch_factor=PREFETCHED if workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def check_shared_memory(batch: int, workers: int, processes: int) -> None:
    """Refuse loader workers whose batches have no room in shared memory.

    Too little ends a worker by a bus error, in the middle of a run.

    Args:
        batch: bytes of a micro-batch.
        workers: of each process.
        processes: on this machine.

    Raises:
        DataError: how much is there and needed, and what to do.
    """
    if not workers or not SHARED.is_dir():
        return
    needed = batch * (PREFETCHED * workers + 1) * processes
    free = shutil.disk_usage(SHARED).free
    if needed > free:
        raise DataError(
            f"{SHARED} has {free / 1e6:.0f} MB free, the batches of {processes} x {workers} loader workers need "
            f"{needed / 1e6:.0f} MB: give it more (docker run --shm-size=8g, or --ipc=host), or set loader.workers=0"
        )


def build_eval_loader(dataset: Dataset, indices: Sequence[int], workers: int = 0) -> Loader:
    """Build the loader that yields the `Sample`s `indices` one by one."""
    return Loader(
        ErrorsAsValues(dataset),
        batch_size=None,
        sampler=[int(index) for index in indices],
        num_workers=workers,
        worker_init_fn=_start_worker,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )


# The loaders have a generator of their own: else they draw from PyTorch's global one, and a continued run, which makes
# its loaders at other moments, would see other dropout.


def _start_worker(worker: int) -> None:
    # Ctrl-C and a scheduler's signals reach the whole process group; the parent alone answers them and ends
    # the workers when it is done.
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    threading.Thread(target=_end_with_parent, args=(parent.sentinel,), daemon=True).start()
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_asked, args=(parent.pid,), daemon=True).start()
    cv2.setNumThreads(0)
    gc.freeze()  # a collection would write to every object of the parent, and so copy its memory


def _end_with_parent(parent: int) -> None:
    """Ends the worker, and what it holds of locks, with a parent that was killed."""
    wait([parent])
    os._exit(1)


def _end_when_asked(parent: int) -> None:
    """End the worker at a SIGTERM of its parent.

    One that is sent to the whole group does not count.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
