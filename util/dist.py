"""Processes: the only file that imports `torch.distributed`. Everything is a no-op on one process."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(minutes=30)  # of every collective; a validation picture on another rank may take a while


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def init() -> torch.device:
    """Joins the process group that torchrun's environment describes, if any; returns this process's device.

    Raises:
        ValueError: the address of the process group is taken, or there are more processes than GPUs.
    """
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    use_gpu = torch.cuda.is_available() and os.environ.get("NGPU") != "0"
    if use_gpu and local >= torch.cuda.device_count():
        raise ValueError(f"process {local} has no GPU: {torch.cuda.device_count()} are visible. Set NGPU.")
    device = torch.device("cuda", local) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        try:
            # gloo beside NCCL: what the hosts tell one another must not wait for the devices
            dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=TIMEOUT)
        except dist.DistNetworkError as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = "its port is in use" if "EADDRINUSE" in str(error) else "it cannot be reached"
            raise ValueError(
                f"the process group at {address} did not start, {reason}. Set another MASTER_PORT "
                "(or RDZV_ENDPOINT=HOST:PORT for several machines)."
            ) from None
    return device


def close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Sums `tensor` over the processes, in place, and returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def largest(value: int) -> int:
    """The largest `value` that a process gives, on every process."""
    box = torch.tensor(value)
    if world_size() > 1:
        dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


class Agreement:
    """Learns at the same call of every process the largest number that one of them gave, and waits for nobody.

    Each call starts an exchange and returns the result of the call before; on one process, its own at once.
    """

    def __init__(self):
        self._pending: tuple | None = None

    def poll(self, value: int) -> int:
        if world_size() == 1:
            return value
        known = self.settle()
        box = torch.tensor(value)  # on the CPU: reading it does not wait for the device
        self._pending = dist.all_reduce(box, dist.ReduceOp.MAX, async_op=True), box
        return known

    def settle(self) -> int:
        """The result of the last call, 0 if there was none."""
        if self._pending is None:
            return 0
        work, box = self._pending
        self._pending = None
        work.wait()
        return int(box)


def share_buffers(module: nn.Module) -> None:
    """Gives every process the buffers of rank 0, the running means of batch norm: those that a checkpoint holds."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_objects(value) -> list:
    """`value` of every process, in rank order, on every process."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def main_first(function):
    """`function()` of rank 0, run there alone; an error there reaches every process."""
    outcome = None
    if is_main():
        try:
            outcome = (True, function())
        except (ValueError, OSError) as error:
            if world_size() == 1:
                raise
            outcome = (False, error)
    if world_size() > 1:
        box = [outcome]
        dist.broadcast_object_list(box, src=0)
        outcome = box[0]
    good, value = outcome
    if not good:
        raise value
    return value


def share(total: int, name: str) -> int:
    """The part of a global count that falls to one process.

    Raises:
        ValueError: `total` does not divide by the number of processes.
    """
    world = world_size()
    if total % world:
        near = [n for n in (total - total % world, total + world - total % world) if n > 0]
        raise ValueError(
            f"{name} {total} does not divide by {world} processes ({total} / {world} = {total / world:.2f}); "
            f"use {' or '.join(map(str, near))}, or another number of processes (NGPU)"
        )
    return total // world


class _AllReduceSum(torch.autograd.Function):
    """Sum over the processes of a tensor of any shape; so is its gradient."""

    @staticmethod
    def forward(ctx, tensor):
        return all_reduce_sum_(tensor.clone())

    @staticmethod
    def backward(ctx, gradient):
        return all_reduce_sum_(gradient.clone())


class _CPUSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm whose mean and variance are those of all processes' batches, on the CPU.

    The GPU has `nn.SyncBatchNorm`; it refuses CPU tensors, and this gives the same numbers there (x is (N, C, H, W)).
    """

    def forward(self, x):
        if not (self.training and world_size() > 1):
            return super().forward(x)
        count = torch.tensor([x.numel() / x.shape[1]], dtype=torch.float64)
        count = float(all_reduce_sum_(count))
        wide = x.double()  # a CPU has the width, and rounding is what two processes differ by
        mean = _AllReduceSum.apply(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        var = _AllReduceSum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).float(), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def convert_sync_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` with batch norm over all processes; unchanged on one process."""
    if world_size() == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = _CPUSyncBatchNorm
    return module


def wrap(model: nn.Module, device: torch.device, static: bool = True) -> nn.Module:
    """`model` in DistributedDataParallel; itself on one process.

    static: every step uses the same parameters, in one backward pass each: then parameters that no output depends on
    are allowed. With several passes (`no_sync`) or a compiled network PyTorch does not support it.
    """
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True,
        static_graph=static,
    )


def no_sync(model: nn.Module):
    """Context in which backward does not yet average the gradients (all but the last part of a batch)."""
    return model.no_sync()


def launch(processes: int, module: str, arguments: list[str]) -> int:
    """Runs `python -m module arguments` in `processes` processes through torchrun; returns the exit status.

    Several machines: NNODES machines with NODE_RANK each, which meet at RDZV_ENDPOINT (host:port of the first).
    """
    from torch.distributed.run import parse_args, run

    nodes = int(os.environ.get("NNODES", 1))
    meeting = ["--standalone"]
    if nodes > 1:
        endpoint = os.environ.get("RDZV_ENDPOINT")
        if not endpoint:
            raise ValueError("NNODES is set: RDZV_ENDPOINT must be HOST:PORT of the first machine")
        meeting = [f"--nnodes={nodes}", "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}"]
        meeting += [f"--rdzv_id={os.environ.get('RDZV_ID', 'run')}", f"--node_rank={os.environ.get('NODE_RANK', 0)}"]
    try:
        run(parse_args([*meeting, f"--nproc_per_node={processes}", "-m", module, *arguments]))
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)
    return 0
