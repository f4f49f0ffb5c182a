"""PyTorch's DataLoader, for training and for evaluation.

In training the order is that of `sampler.py`, in evaluation a given one.
"""

import atexit
import gc
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypedDict

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dataset.base import Key, Sample, SegDataset
from dataset.load.modules import Modules
from dataset.load.sampler import StepSampler
from dataset.load.uniform import ClassUniform
from dataset.read import DataError

SHARED = Path("/dev/shm")  # what workers hand their batches over in (Linux)
PREFETCHED = 2  # batches that each worker makes ahead
GRACE = 5.0  # seconds between two looks for dead workers, and in which one ends whose connection is broken
TIMEOUT = 600.0  # seconds that a batch may take (environment: LOADER_TIMEOUT)


class Batch(TypedDict):
    """A micro-batch.

    image: uint8 (n, 3, h, w), its memory channels last. label: uint8 (n, h, w). name: n names.
    """

    image: torch.Tensor
    label: torch.Tensor
    name: list[str]


class Loader(DataLoader):
    """DataLoader that raises the error of a sample as it was.

    DataLoader itself puts the worker's traceback into the message; sent as a value the error keeps its one line. A
    worker that has ended, or gives nothing for LOADER_TIMEOUT seconds, raises `WorkerLost`.
    """

    _persistent: list[BaseProcess] = []  # workers that are used by every iteration

    def __init__(self, dataset: Dataset, num_workers: int = 0, **options: Any):
        # PyTorch looks for dead workers each time that its timeout is over.
        super().__init__(dataset, num_workers=num_workers, timeout=GRACE if num_workers else 0, **options)
        self.patience = patience()

    def __iter__(self) -> Iterator:  # type: ignore[override]  # PyTorch names a private class
        others = multiprocessing.active_children()
        # PyTorch's handler of SIGCHLD raises wherever the process is when a worker dies, in a destructor say, where the
        # error is lost. Without it the death is seen here, when the next batch is waited for.
        in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
        before = signal.getsignal(signal.SIGCHLD) if in_main else None
        with _signals_later():  # a worker that is just starting has not yet set what it does at one
            iterator = super().__iter__()
        if in_main:
            signal.signal(signal.SIGCHLD, before)
        workers = [child for child in multiprocessing.active_children() if child not in others] or self._persistent
        if self.persistent_workers:
            self._persistent = workers
        watch = _Watch(workers, self.patience)
        try:
            while True:
                item = self._next(iterator, workers, watch)
                if item is None:
                    return
                if isinstance(item, Exception):
                    try:
                        raise item
                    finally:
                        del item  # the traceback holds this frame: without the cycle the workers end with the error
                yield item
        finally:
            watch.over.set()

    def _next(self, iterator: Iterator, workers: list[BaseProcess], watch: "_Watch") -> Any:
        """Return the next item, or None at the end.

        Raises:
            WorkerLost: a worker has ended, or `watch` has ended them.
        """
        watch.asked = time.monotonic()
        try:
            while True:
                try:
                    return next(iterator, None)
                except RuntimeError as error:
                    if not str(error).startswith("DataLoader timed out"):
                        raise
        except (RuntimeError, OSError, EOFError) as error:
            # A worker that dies while it hands a batch over is seen as a broken connection.
            broken = not isinstance(error, RuntimeError) or str(error).startswith("DataLoader worker")
            if not workers or not broken or not wait([worker.sentinel for worker in workers], GRACE):
                raise
            raise WorkerLost(workers, watch.reason) from None
        finally:
            watch.asked = None


class _Watch:
    """A thread that ends the workers of a loader where a batch takes too long.

    The main process cannot look itself: it may be inside of a call that waits for a worker that stands still.
    """

    def __init__(self, workers: list[BaseProcess], patience: float):
        self.over = threading.Event()
        self.asked: float | None = None  # since when the next batch is waited for
        self.reason: str | None = None
        if workers:
            threading.Thread(target=self._run, args=(workers, patience), name="loader", daemon=True).start()

    def _run(self, workers: list[BaseProcess], patience: float) -> None:
        while not self.over.wait(min(1.0, patience)):
            asked = self.asked
            if asked is not None and time.monotonic() - asked > patience:
                self.reason = _stuck(workers, patience)
                for worker in workers:
                    worker.kill()
                return


class WorkerLost(RuntimeError):
    """A loader worker ended, or gave nothing for too long.

    The other workers are ended: one that waits for a lost one would not end by itself.
    """

    def __init__(self, workers: list[BaseProcess], reason: str | None = None):
        reason = reason or _ended(workers)
        super().__init__(f"DataLoader worker {reason}; the same command continues from the last checkpoint")
        for worker in workers:
            worker.kill()


def _ended(workers: list[BaseProcess]) -> str:
    """Say which workers ended, and why."""
    for worker in workers:
        if wait([worker.sentinel], 0):
            worker.join(GRACE)  # its exit code comes a moment later
    ended = [worker for worker in workers if worker.exitcode is not None]
    names = {signal.Signals(-worker.exitcode).name for worker in ended if worker.exitcode and worker.exitcode < 0}
    if "SIGBUS" in names:
        why = "SIGBUS: /dev/shm is full. Give it more (docker run --shm-size=8g, or --ipc=host) or loader.workers=0"
    elif "SIGKILL" in names:
        why = "SIGKILL: by the system for lack of memory, or by somebody. Fewer loader.workers need less memory"
    else:
        why = ", ".join(sorted(names)) or f"exit codes {[worker.exitcode for worker in ended]}"
    numbers = ", ".join(str(worker.pid) for worker in ended)
    return f"(process {numbers}) ended, {why}"


def _stuck(workers: list[BaseProcess], seconds: float) -> str:
    """Say which workers give nothing, and why."""
    stopped = [str(worker.pid) for worker in workers if _is_stopped(worker.pid)]
    if stopped:
        why = f"process {', '.join(stopped)} was stopped (SIGSTOP)"
    else:
        why = "a disk or a file server does not answer, or a batch takes longer than LOADER_TIMEOUT"
    return f"gave nothing for {seconds:g} s: {why}"


def _is_stopped(pid: int | None) -> bool:
    """Tell whether a process is stopped by a signal (Linux)."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return content.rpartition(")")[2].split()[:1] == ["T"]


@atexit.register
def _end_stopped() -> None:
    """End children that are stopped: multiprocessing would wait for them without end."""
    for child in multiprocessing.active_children():
        if _is_stopped(child.pid):
            child.kill()


def patience() -> float:
    """Return how many seconds a batch may take.

    Raises:
        DataError: LOADER_TIMEOUT is no positive number.
    """
    text = os.environ.get("LOADER_TIMEOUT", "")
    try:
        seconds = float(text or TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise DataError(f"LOADER_TIMEOUT={text}: expected a number of seconds")
    return seconds


class ErrorsAsValues(Dataset):
    """Data set that returns a user's mistake instead of raising it."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key: Key | int) -> object:
        try:
            return self.dataset[key]
        except (ValueError, OSError) as error:
            return error

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (Modules(), self.dataset)  # in this order: the data set may be of such a module


def _unpickled(imported: None, dataset: Dataset) -> ErrorsAsValues:
    return ErrorsAsValues(dataset)


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

    They are `Batch`es, from `start_step` on. Arguments that are not listed are those of `StepSampler`.

    Args:
        dataset: with a transform, which makes all samples one size.
        workers: processes that read samples; 0: this one does.
        pin_memory: give batches in page-locked memory, from which a GPU copies while the host goes on.

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


# Signals that a terminal or a scheduler sends to the whole process group, beside SIGTERM.
GROUP = {getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name)}


@contextmanager
def _signals_later() -> Iterator[None]:
    """Hold signals of the group back from this thread and its forks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*GROUP, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:
    # Ctrl-C and a scheduler's signals reach the whole process group; the parent alone answers them and ends
    # the workers when it is done.
    for number in GROUP:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    threading.Thread(target=_end_with_parent, args=(parent.sentinel,), daemon=True).start()
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP)
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
