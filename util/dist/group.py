"""Joins and leaves the process group; does nothing on one process.

Environment, in seconds: DIST_TIMEOUT (600), how long a collective operation waits for the slowest process;
PEER_TIMEOUT (60), how long a process may be silent before it counts as lost. Where the processes' work differs, as
in a validation, or one works for all, they wait for each other up to `UNEQUAL` times DIST_TIMEOUT.
DEVICE=mps asks for Apple's GPU.
"""

import atexit
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from util import UserError
from util.dist.peers import ANSWER, DONE, Lost, Peers, give_up_after, reachable

UNEQUAL = 12
POLL = 0.5  # seconds between two looks at who has finished
PEER_LOST = 69  # exit status (EX_UNAVAILABLE): another process is gone; restarted, this one can go on
T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


class _Group:
    """What this process knows of its group: the others' beats, and the number of meetings."""

    peers: Peers | None = None
    meetings = 0
    printed: BaseException | None = None  # by rank 0

    def meet(self, announce: bool, name: str, everybody: list[str]) -> None:
        """Announce `name` at this meeting, and wait for `everybody`."""
        assert self.peers is not None
        if announce:
            self.peers.announce(f"{self.meetings}/{name}")
        self.peers.wait([f"{self.meetings}/{each}" for each in everybody], UNEQUAL * _timeout().total_seconds())


_group = _Group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def seconds(name: str, default: float) -> float:
    """Read a time from the environment.

    Raises:
        UserError: it is no positive number.
    """
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{name}={text}: expected a number of seconds above 0")
    return value


def at(what: str) -> None:
    """Note what this process is doing, for others if it falls silent."""
    if _group.peers is not None:
        _group.peers.at = what


def init(lost: Callable[[str], None] | None = None) -> torch.device:
    """Join the process group, if any; return this process's device.

    torchrun's environment describes the group.

    Args:
        lost: called from a thread, with the reason, before the process ends because another one was silent for
            PEER_TIMEOUT seconds.

    Raises:
        UserError: the address of the process group is taken, or there are more processes than GPUs.
        Lost: rank 0 cannot be reached.
    """
    end_with_launcher()
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if asked := os.environ.get("DEVICE", ""):
        return _apple(asked, world)
    use_gpu = torch.cuda.is_available() and os.environ.get("NGPU") != "0"
    if use_gpu and local >= torch.cuda.device_count():
        raise UserError(f"process {local} has no GPU: {torch.cuda.device_count()} are visible. Set NGPU.")
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
            raise UserError(
                f"the process group at {address} did not start, its port is in use. Set another MASTER_PORT "
                "(or RDZV_ENDPOINT=HOST:PORT for several machines)."
            ) from None
        _watch(lost)
    return device


def _apple(asked: str, world: int) -> torch.device:
    """The device of DEVICE=mps. It is not the default, since PyTorch lacks there what some networks compute."""
    if asked != "mps":
        raise UserError(f"DEVICE={asked}: it can be mps, for Apple's GPU; NGPU=0 asks for the CPU")
    if not torch.backends.mps.is_available():
        raise UserError("DEVICE=mps: PyTorch finds no GPU of Apple here; leave DEVICE unset")
    if world > 1:
        raise UserError(f"DEVICE=mps: one process, not {world}; set NGPU=1")
    return torch.device("mps")


def _timeout() -> timedelta:
    return timedelta(seconds=seconds("DIST_TIMEOUT", 600))


def end_with_launcher() -> None:
    """Have the system end this process with its launcher (Linux).

    That is the process which started it, where LAUNCHER_PID is set.

    A launcher that is killed leaves its processes behind, which would go on beside those of the next launcher.
    """
    launcher = os.environ.get("LAUNCHER_PID")
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() == 1 != int(launcher):
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(lost: Callable[[str], None] | None) -> None:
    """Have a thread end this process when another one has been silent for PEER_TIMEOUT seconds."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    def end(reason: str) -> NoReturn:
        if lost is not None:
            lost(reason)
        os._exit(PEER_LOST)  # the main thread may be inside an operation that never returns

    patience = seconds("PEER_TIMEOUT", 60)

    def connect() -> dist.TCPStore:
        if not reachable(host, port):
            raise Lost(f"nobody listens at {host}:{port}")
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ANSWER))
        give_up_after(patience)
        return store

    _group.peers = Peers(rank(), world_size(), connect, patience, end)
    atexit.register(close, "its program ended")  # a thread that is inside the store when Python ends aborts the process


def lost_peer(error: RuntimeError) -> str | None:
    """Return what became of another process if the error shows that."""
    text = str(error)
    if isinstance(error, Lost):
        return text
    if _group.peers is None or not (isinstance(error, dist.DistError) or "gloo" in text.lower() or "NCCL" in text):
        return None
    return _group.peers.explain() or f"the processes lost each other: {text.strip().splitlines()[0]}"


def close(end: str = DONE) -> None:
    """Leave the group; `end` is the reason that the others are told."""
    if _group.peers is not None:
        _group.peers.close(end)
        _group.peers = None
    if dist.is_initialized() and end == DONE:  # after an error the others may wait in an operation for ever
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes, however different their work; end if one dies."""
    if world_size() == 1:
        return
    if _group.peers is None:
        dist.barrier()
        return
    _group.meetings += 1
    _group.meet(True, str(rank()), [str(each) for each in range(world_size())])


def leave(wait: bool) -> None:
    """Tell torchrun's other processes that this one has finished; join no group.

    torchrun ends all processes when one ends with a status other than 0. One that will, waits here for the others.

    Args:
        wait: until each of them has been here, as long as it takes.
    """
    environment, world = os.environ, int(os.environ.get("WORLD_SIZE", 1))
    if world == 1 or environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    prefix = f"leave/{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}/"
    try:
        store = dist.TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
        store.set(prefix + environment["RANK"], "1")
        while wait and not store.check([f"{prefix}{rank}" for rank in range(world)]):
            time.sleep(POLL)
    except dist.DistError:
        return  # torchrun is gone, and ends nobody any more


def main_first(function: Callable[[], T]) -> T:
    """Return `function()` of rank 0, run there alone.

    The others wait, as long as it takes. An error of it reaches every process.
    """
    if world_size() == 1:
        return function()
    _group.meetings += 1
    box: list = [None, None]  # result, error
    if is_main():
        try:
            box[0] = function()
        except (ValueError, OSError) as error:
            box[1] = error
    if _group.peers is not None:
        _group.meet(is_main(), "main", ["main"])
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise main_tells(box[1])
    return box[0]


def main_tells(error: E) -> E:
    """Have rank 0 alone print an error that all raise; return it."""
    if not is_main():
        _group.printed = error
    return error


def is_printed(error: BaseException) -> bool:
    """Tell whether `error` is one that rank 0 prints."""
    return error is _group.printed
