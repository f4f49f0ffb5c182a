"""The processes of a run. This file and agent.py, which starts them, are the only ones that import
`torch.distributed`. Everything is a no-op on one process.

Environment, in seconds: DIST_TIMEOUT (600), how long a collective operation waits for the slowest process;
PEER_TIMEOUT (60), how long a process may be silent before it counts as lost. Where the processes' work differs, as
in a validation, or one works for all, they wait for each other up to `UNEQUAL` times DIST_TIMEOUT.
"""

import ctypes
import inspect
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util.dist.peers import ANSWER, DONE, Lost, Peers, give_up_after, reachable

UNEQUAL = 12
PEER_LOST = 69  # exit status (EX_UNAVAILABLE): another process is gone; restarted, this one can go on

_peers: Peers | None = None
_meetings = 0


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def seconds(name: str, default: float) -> float:
    """A time from the environment.

    Raises:
        ValueError: it is no positive number.
    """
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={text}: expected a number of seconds above 0")
    return value


def at(what: str) -> None:
    """What this process is doing, for the others to tell if it falls silent."""
    if _peers is not None:
        _peers.at = what


def init(lost: Callable[[str], None] | None = None) -> torch.device:
    """Joins the process group that torchrun's environment describes, if any; returns this process's device.

    Args:
        lost: called from a thread, with the reason, before the process ends because another one was silent for
            PEER_TIMEOUT seconds.

    Raises:
        ValueError: the address of the process group is taken, or there are more processes than GPUs.
        Lost: rank 0 cannot be reached.
    """
    _end_with_launcher()
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
            dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=_timeout())
        except dist.DistNetworkError as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            if "EADDRINUSE" not in str(error):
                raise Lost(f"the process group at {address} did not start: it cannot be reached") from None
            raise ValueError(
                f"the process group at {address} did not start, its port is in use. Set another MASTER_PORT "
                "(or RDZV_ENDPOINT=HOST:PORT for several machines)."
            ) from None
        _watch(lost)
    return device


def _timeout() -> timedelta:
    return timedelta(seconds=seconds("DIST_TIMEOUT", 600))


def _end_with_launcher() -> None:
    """Has the system end this process with the launcher that started it, where it is told which that is (Linux).

    A launcher that is killed leaves its processes behind, which would go on beside those of the next launcher.
    """
    launcher = os.environ.get("LAUNCHER_PID")
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == 1 != int(launcher):
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(lost: Callable[[str], None] | None) -> None:
    global _peers
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    def end(reason: str) -> None:
        if lost is not None:
            lost(reason)
        os._exit(PEER_LOST)  # the main thread may be inside an operation that never returns

    patience = seconds("PEER_TIMEOUT", 60)

    def connect():
        if not reachable(host, port):
            raise Lost(f"nobody listens at {host}:{port}")
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ANSWER))
        give_up_after(patience)
        return store

    _peers = Peers(rank(), world_size(), connect, patience, end)


def lost_peer(error: RuntimeError) -> str | None:
    """In one line what became of another process, if `error` came of that; None for an error of this process."""
    text = str(error)
    if isinstance(error, Lost):
        return text
    if _peers is None or not (isinstance(error, dist.DistError) or "gloo" in text.lower() or "NCCL" in text):
        return None
    return _peers.explain() or f"the processes lost each other: {text.strip().splitlines()[0]}"


def close(end: str = DONE) -> None:
    """Leaves the group; `end`: what the other processes are told, an error for example."""
    global _peers
    if _peers is not None:
        _peers.close(end)
        _peers = None
    if dist.is_initialized() and end == DONE:  # after an error the others may wait in an operation for ever
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all processes, however different their work was; ends early if one dies."""
    global _meetings
    if world_size() == 1:
        return
    if _peers is None:
        dist.barrier()
        return
    _meetings += 1
    _peers.announce(f"{_meetings}/{rank()}")
    _wait([f"{_meetings}/{r}" for r in range(world_size())])


def _wait(keys: list[str]) -> None:
    _peers.wait(keys, UNEQUAL * _timeout().total_seconds())


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
    """Gives every process the buffers of rank 0, the running means of batch norm: those that a checkpoint holds.

    A training step does not read them, so they are shared where they are, not at every step.
    """
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
    """`function()` of rank 0, run there alone, as long as it takes; an error there reaches every process."""
    global _meetings
    _meetings += 1
    outcome = None
    if is_main():
        try:
            outcome = (True, function())
        except (ValueError, OSError) as error:
            if world_size() == 1:
                raise
            outcome = (False, error)
    if world_size() > 1:
        if _peers is not None:
            if is_main():
                _peers.announce(f"{_meetings}/main")
            _wait([f"{_meetings}/main"])
        box = [outcome]
        dist.broadcast_object_list(box, src=0)
        outcome = box[0]
    good, value = outcome
    if not good:
        value.told = not is_main()
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


# Operators of their own, so that a compiled graph takes them as they are. Inductor would join the arithmetic in double
# with the sums over a map, and Triton 3.6 cannot compile such a kernel ("operand does not dominate this use").


def wrap(model: nn.Module, device: torch.device, static: bool = True) -> nn.Module:
    """`model` in DistributedDataParallel; itself on one process.

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
        **{buffers: False},  # see share_buffers
    )


def no_sync(model: nn.Module):
    """Context in which backward does not yet average the gradients (all but the last part of a batch)."""
    return model.no_sync()
