"""The micro-batches of a step, on the device in time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MOVED = ("image", "label")


class Prefetch:
    """Yields the micro-batches of one optimiser step after the other.

    Image and label are on the device. On a GPU these are copied from pinned memory on a stream of their own, so that
    the copy and the step before run at once; `stage` fetches and copies the next step's batches while the GPU still
    computes. On the CPU nothing is copied or fetched ahead. `waits` tells how long the device had nothing to do but to
    wait for them.

    Args:
        batches: micro-batches, with their tensors `MOVED`.
        device: where they go.
        accumulate: micro-batches of a step.
    """

    def __init__(self, batches: Iterator[dict], device: torch.device, accumulate: int = 1):
        self.batches, self.device, self.accumulate = batches, device, accumulate
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.waits = Waits(device)
        self.staged: list[dict] | None = None

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> list[dict]:
        ready, self.staged = self.staged or self._fetch(), None
        if self.stream is not None:
            computing = torch.cuda.current_stream(self.device)
            with self.waits.measured():
                computing.wait_stream(self.stream)
            for micro_batch in ready:
                for name in MOVED:
                    micro_batch[name].record_stream(computing)  # else the next copy could be given its memory too early
        return ready

    def stage(self, always: bool = False) -> None:
        """Fetch the next step's micro-batches while a GPU computes."""
        if self.staged is None and (self.stream is not None or always):
            self.staged = self._fetch()

    def _fetch(self) -> list[dict]:
        with self.waits.measured():
            fetched: list[dict] = []
            while len(fetched) < self.accumulate:
                fetched.append(next(self.batches))
        if self.stream is not None:
            with torch.cuda.stream(self.stream):
                for micro_batch in fetched:
                    micro_batch |= {name: micro_batch[name].to(self.device, non_blocking=True) for name in MOVED}
        return fetched


class Waits:
    """Measures the seconds that the device is idle.

    On a CPU the host's time. On a GPU the host may well wait for a batch while the GPU is busy with the steps before,
    which costs nothing: so two events are put between the GPU's work, before and after. The GPU comes to the first when
    its work is done, to the second when the host has it, and the time between them is what it stood idle. They are read
    at a log line only.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.spans: list[tuple[Any, Any]] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count the idle time inside of the context, unless it fails."""
        begin = self._mark()
        yield
        self.spans.append((begin, self._mark()))

    def _mark(self) -> Any:  # seconds on the host, or an event of the GPU
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def take(self) -> float:
        """Return the seconds since the last call.

        On a GPU this waits until the work before the last context is done.
        """
        spans, self.spans = self.spans, []
        if self.device.type != "cuda":
            return sum(end - begin for begin, end in spans)
        if spans:
            spans[-1][1].synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000
