"""The batches of a step, on the device before the step needs them."""

from collections.abc import Iterator

import torch

MOVED = ("image", "label")


class Prefetch:
    """Iterator over optimiser steps: each a list of `parts` micro-batches whose picture and label are on the device.

    On a GPU they are copied from pinned memory on a stream of their own, so that the copy and the step before run at
    once; `stage` fetches and copies the next step's batches while the GPU still computes. On the CPU nothing is
    copied or fetched ahead.
    """

    def __init__(self, batches: Iterator[dict], device: torch.device, parts: int = 1):
        self.batches, self.device, self.parts = batches, device, parts
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.staged: list[dict] | None = None

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> list[dict]:
        self.stage(always=True)
        ready, self.staged = self.staged, None
        if self.stream is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self.stream)
            for part in ready:
                for name in MOVED:
                    for tensor in part[name] if isinstance(part[name], list) else [part[name]]:
                        tensor.record_stream(computing)  # else the next copy could be given its memory too early
        return ready

    def stage(self, always: bool = False) -> None:
        """Fetches the next step's batches, if that is of use now: on a GPU, whose work goes on meanwhile."""
        if self.staged is not None or (self.stream is None and not always):
            return
        parts = [next(self.batches) for _ in range(self.parts)]
        if self.stream is not None:
            with torch.cuda.stream(self.stream):
                parts = [part | {name: copied(part[name], self.device) for name in MOVED} for part in parts]
        self.staged = parts


def copied(value: torch.Tensor | list[torch.Tensor], device: torch.device) -> torch.Tensor | list[torch.Tensor]:
    """A tensor, or a list of them, on the device; from pinned memory the host does not wait."""
    if isinstance(value, list):
        return [copied(each, device) for each in value]
    return value.to(device, non_blocking=True)
