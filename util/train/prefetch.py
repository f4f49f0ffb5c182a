"""The batches of a step, on the device before the step needs them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MOVED = ("image", "label")


class Prefetch:
    """Give the micro-batches of one optimiser step after the other, image and label on the device.

    On a GPU these are copied from pinned memory on a stream of their own, so that the copy and the step before run at
    once; `stage` fetches and copies the next step's batches while the GPU still computes. On the CPU nothing is
    copied or fetched ahead. `waits` tells how long the device had nothing to do but to wait for them.

    Args:
        batches: micro-batches, with their tensors `MOVED`.
        device: where they go.
        parts: micro-batches of a step.
    """

    def __init__(self, batches: Iterator[dict], device: torch.device, parts: int = 1):
        self.batches, self.device, self.parts = batches, device, parts
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.waits = Waits(device)
        self.staged: list[dict] | None = None

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> list[dict]:
        self.stage(always=True)
        ready, self.staged = self.staged, None
        if self.stream is not None:
            computing = torch.cuda.current_stream(self.device)
            with self.waits.measured():
                computing.wait_stream(self.stream)
            for part in ready:
                for name in MOVED:
                    part[name].record_stream(computing)  # else the next copy could be given its memory too early
        return ready

    def stage(self, always: bool = False) -> None:
        """Fetch the next step's micro-batches, if that is of use now: on a GPU, whose work goes on meanwhile."""
        if self.staged is not None or (self.stream is None and not always):
            return
        with self.waits.measured():
            parts = [next(self.batches) for _ in range(self.parts)]
        if self.stream is not None:
            with torch.cuda.stream(self.stream):
                for part in parts:
                    part |= {name: part[name].to(self.device, non_blocking=True) for name in MOVED}
        self.staged = parts


class Waits:
    """Measures the seconds that the device is idle.

    On a CPU the host's time. On a GPU the host may well wait for a batch while the GPU is busy with the steps before,
    which costs nothing: so two events are put between the GPU's work, before and after. The GPU comes to the first when
    its work is done, to the second when the host has it, and the time between them is what it stood idle. They are read
    at a log line only.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.spans: list[tuple] = []

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count what is idle inside of the context, unless it ends with an error."""
        begin = self._mark()
        yield
        self.spans.append((begin, self._mark()))

    def _mark(self):
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def take(self) -> float:
        """Give the seconds since the last call; on a GPU this waits until the work before the last context is done."""
        spans, self.spans = self.spans, []
        if self.device.type != "cuda":
            return sum(end - begin for begin, end in spans)
        if spans:
            spans[-1][1].synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) / 1000
