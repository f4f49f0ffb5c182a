"""Sums, agreements and shared gradients of the processes; no-ops on one process."""

import inspect
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util import UserError
from util.dist.group import world_size


def all_reduce_sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over the processes, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def largest(value: int) -> int:
    """Return the largest `value` that a process gives, on every process."""
    box = torch.tensor(value)
    if world_size() > 1:
        dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


class Agreement:
    """Largest number that a process gives, without waiting for anybody.

    Each call starts an exchange and returns the result of the call before; on one process, its own at once.
    """

    def __init__(self):
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def poll(self, value: int) -> int:
        if world_size() == 1:
            return value
        known = self.settle()
        box = torch.tensor(value)  # on the CPU: reading it does not wait for the device
        self._pending = dist.all_reduce(box, dist.ReduceOp.MAX, async_op=True), box
        return known

    def settle(self) -> int:
        """Return the result of the last call, 0 if there was none."""
        if self._pending is None:
            return 0
        work, box = self._pending
        self._pending = None
        work.wait()
        return int(box)


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of rank 0.

    They are the running means of batch norm. They are those that a checkpoint holds. A training step does not read
    them, so they are shared where they are, not at every step.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_objects(value: Any) -> list:
    """Return `value` of every process, in rank order, on every process."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def share(total: int, name: str) -> int:
    """Return the share of a global count that falls to one process.

    Raises:
        UserError: `total` does not divide by the number of processes.
    """
    world = world_size()
    if total % world:
        near = [n for n in (total - total % world, total + world - total % world) if n > 0]
        raise UserError(
            f"{name} {total} does not divide by {world} processes ({total} / {world} = {total / world:.2f}); "
            f"use {' or '.join(map(str, near))}, or another number of processes (NGPU)"
        )
    return total // world


def wrap(model: nn.Module, device: torch.device, static: bool = True) -> nn.Module:
    """Return `model` in DistributedDataParallel; itself on one process.

    static: every step uses the same parameters, in one backward pass each: then parameters that no output depends on
    are allowed. PyTorch does not support it with several passes (`no_sync`).
    """
    if world_size() == 1:
        return model
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before PyTorch 2.15
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=static,
        **cast(dict[str, Any], {buffers: False}),  # see share_buffers
    )


def no_sync(model: nn.Module) -> AbstractContextManager:
    """Return a context in which backward does not average gradients."""
    assert isinstance(model, DistributedDataParallel)
    return model.no_sync()
