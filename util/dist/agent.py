"""Starts the processes of a run, and starts them again.

Through torchrun's agent. Restarts up to RESTARTS times after faults that a restart can fix (a killed process, a lost
host), from the last checkpoint. Never after a user's mistake, a loss that is not finite, or a requested stop.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

from torch.distributed.elastic.agent.server import WorkerSpec
from torch.distributed.elastic.agent.server.api import WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from util import UserError
from util.dist import signals
from util.dist.group import PEER_LOST, seconds
from util.dist.peers import give_up_after, reachable

RESTARTS = 3
LINGER = 10.0  # seconds that the host of the rendezvous stays, so that the others learn how it ended
NO_RESTART = (2, signals.PREEMPTED, signals.INTERRUPTED)
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # not on Windows


class Place(NamedTuple):
    """Where the machines meet.

    host and port, the number of machines, this one's number, and whether the host is this one.
    """

    host: str
    port: int
    nodes: int
    rank: int
    own: bool


class Meeting:
    """A rendezvous that may be out of reach while the processes run.

    The processes find out themselves who is missing.
    """

    def __init__(self, handler):
        self._handler = handler

    def __getattr__(self, name: str):
        return getattr(self._handler, name)

    def num_nodes_waiting(self) -> int:
        try:
            return self._handler.num_nodes_waiting()
        except RendezvousConnectionError:
            return 0


class Agent(LocalElasticAgent):
    """torchrun's agent; restarts only what a restart can mend.

    It lets the processes answer a signal. The method it overrides is one that PyTorch names for extending an agent. How
    many restarts are left has no public name: PyTorch's own agent, too, sets `_remaining_restarts` to 0 where a restart
    would be of no use.
    """

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, patience: float):
        super().__init__(spec, logs)
        assert self._remaining_restarts == spec.max_restarts, "PyTorch counts its restarts under another name"
        self.stopping: int | None = None
        self._patience = patience
        self._deadline = float("inf")

    @property
    def started(self) -> bool:
        """Tell whether its processes have run."""
        return self.get_worker_group().state != WorkerState.INIT

    @property
    def restarts_left(self) -> int:
        return self._remaining_restarts

    def catch_signals(self) -> None:
        """Pass the signals that stop a launcher on to the processes."""
        for number in signals.caught():
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame) -> None:
        if self.get_worker_group().state != WorkerState.HEALTHY:  # nothing runs: waiting for the other machines
            raise SignalException(f"got {signal.Signals(number).name}", signal.Signals(number))
        if self.stopping is None:
            self.stopping, self._deadline = number, time.monotonic() + self._patience
        for worker in self.get_worker_group().workers:
            try:
                os.kill(worker.id, number)
            except ProcessLookupError:
                continue

    def _monitor_workers(self, worker_group):
        if self.stopping and time.monotonic() > self._deadline:
            _print_error(f"not ended {self._patience:.0f} s after {signal.Signals(self.stopping).name}: killed")
            self._shutdown(KILL)
        result = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            self._decide({rank: failure.exitcode for rank, failure in result.failures.items()})
        return result

    def _decide(self, statuses: dict[int, int]) -> None:
        """Decide whether the processes are started again after these exit statuses by rank."""
        rank, status = first_cause(statuses)
        if status < 0 and not self.stopping:  # the process could not say so itself
            name = signal.Signals(-status).name
            hint = " (the system may have run out of memory)" if -status == KILL else ""
            _print_error(f"killed by {name}{hint}", rank)
        if self.stopping or status in NO_RESTART:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            _print(f"all processes start again from the last checkpoint ({self._remaining_restarts} restarts left)")


def first_cause(statuses: dict[int, int]) -> tuple[int, int]:
    """Return rank and status of the first that failed by itself."""
    followed = (PEER_LOST, -signal.SIGTERM, signals.PREEMPTED)
    order = sorted(statuses.items(), key=lambda item: (followed.index(item[1]) + 1 if item[1] in followed else 0, item))
    return order[0] if order else (0, 1)


def watch_one(command: list[str], restarts: int) -> int:
    """Run one process to its end; return its exit status.

    Where the system ended it, it is started again.

    The system ends a process, or a loader worker of it, mostly for lack of memory. After a signal to this process it
    has STOP_TIMEOUT seconds to save and end.
    """
    os.environ["LAUNCHER_PID"] = str(os.getpid())
    patience = seconds("STOP_TIMEOUT", 300)
    for left in range(restarts, -1, -1):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts - left)
        with subprocess.Popen(command) as child, signals.passed_on(child.pid) as came:
            deadline = None
            while child.poll() is None:
                if came and deadline is None:
                    deadline = time.monotonic() + patience
                if deadline and time.monotonic() > deadline:
                    _print_error(f"not ended {patience:.0f} s after {signal.Signals(came[0]).name}: killed")
                    child.kill()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(0.5)
        status = child.returncode
        if came and status < 0:
            return signals.STATUS[came[0]]
        if status < 0 and -status not in signals.STATUS:
            _print_error(f"killed by {signal.Signals(-status).name}{' (out of memory?)' if status == -9 else ''}")
        elif status != PEER_LOST:
            break
        if came or not left:
            break
        _print(f"it starts again from the last checkpoint ({left} restarts left)")
    return status if status >= 0 else 128 - status


def launch(processes: int, module: str, arguments: list[str], restarts: int, logs: Path) -> int:
    """Run `python -m module arguments` in several processes; return the status.

    `processes` on each machine. logs: a folder in which PyTorch's agent makes its own. Several machines, NODE_RANK
    each, meet at RDZV_ENDPOINT (host:port of the one with NODE_RANK 0). A machine that is missing, at the start or
    after a fault, is waited for JOIN_TIMEOUT seconds.

    Raises:
        UserError: the environment does not say where to meet, or the port there is in use.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the agent below says it in one line
    os.environ["LAUNCHER_PID"] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"  # torch's handlers end processes before they have saved
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a shared one is not renewed when a machine comes back
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    place = meeting_place()
    join = seconds("JOIN_TIMEOUT", 600)

    def agent(left: int) -> Agent:
        meeting = Meeting(get_rendezvous_handler(rendezvous(place, join, module)))
        spec = WorkerSpec(
            role="worker",
            local_world_size=processes,
            entrypoint=sys.executable,
            args=("-m", module, *arguments),
            rdzv_handler=cast(RendezvousHandler, meeting),
            max_restarts=left,
            monitor_interval=0.1,
            master_addr=place.host,
        )
        return Agent(spec, DefaultLogsSpecs(log_dir=str(logs)), seconds("STOP_TIMEOUT", 300))

    try:
        return attend(agent, place, restarts, join)
    except RendezvousTimeoutError:
        _print_error(f"not all {place.nodes} machines came to {place.host}:{place.port} in {join:.0f} s")
    except RendezvousClosedError:
        _print_error("another machine has ended the run; see its messages")
    except SignalException as stop:
        return signals.STATUS[stop.sigval]
    return PEER_LOST


def attend(make_agent: Callable[[int], Agent], place: Place, restarts: int, join: float) -> int:
    """Run agents until one's processes have ended.

    A new agent is made each time that the rendezvous itself is lost.

    Returns:
        The exit status of the process that failed first, or 0.
    """
    deadline = time.monotonic() + join
    while True:
        agent = None
        try:
            if not place.own and not reachable(place.host, place.port):
                raise RendezvousConnectionError
            agent = make_agent(restarts)
            give_up_after(seconds("PEER_TIMEOUT", 60))
            agent.catch_signals()
            return run(agent, place)
        except RendezvousConnectionError:
            if place.own and agent is None:
                raise UserError(
                    f"the port of {place.host}:{place.port}, where the machines meet, is in use or "
                    "not this machine's; set another RDZV_ENDPOINT"
                ) from None
            if agent is not None and agent.started:
                if agent.stopping:
                    return signals.STATUS[agent.stopping]
                restarts = agent.restarts_left
                deadline = time.monotonic() + join
                _print(f"waiting {join:.0f} s for the machine with NODE_RANK=0")
            if time.monotonic() > deadline:
                _print_error(f"the machine with NODE_RANK=0 cannot be reached at {place.host}:{place.port}")
                return PEER_LOST
            time.sleep(1)


def run(agent: Agent, place: Place) -> int:
    """Run the processes to their end; return the first failure's status."""
    meeting = agent.get_worker_group().spec.rdzv_handler
    try:
        result = agent.run()
    except SignalException:
        raise  # the machine may come back, and the others wait for it
    except BaseException:
        meeting.shutdown()
        raise
    meeting.shutdown()  # tells the others
    if result is None:  # another machine has done so, while we waited for the next meeting
        raise RendezvousClosedError
    if not result.is_failed():
        return 0
    if place.own and place.nodes > 1:
        time.sleep(LINGER)
    _, status = first_cause({rank: failure.exitcode for rank, failure in result.failures.items()})
    if agent.stopping and status in (-agent.stopping, -signal.SIGTERM, -KILL):
        return signals.STATUS[agent.stopping]
    return status if status > 0 else 128 - status


def meeting_place() -> Place:
    """Read from the environment where the machines meet.

    Raises:
        UserError: names the variable that is missing or wrong.
    """
    nodes = _whole("NNODES", 1, 1)
    if nodes == 1:
        return Place("localhost", 0, 1, 0, own=True)
    parts = urlsplit(f"//{os.environ.get('RDZV_ENDPOINT', '')}")
    if not parts.hostname or not parts.port:
        raise UserError("NNODES is set: RDZV_ENDPOINT must be HOST:PORT of the machine with NODE_RANK=0")
    if "NODE_RANK" not in os.environ:
        raise UserError(f"NNODES is set: NODE_RANK must number the machines, 0 to {nodes - 1}")
    rank = _whole("NODE_RANK", 0, 0)
    if rank >= nodes:
        raise UserError(f"NODE_RANK={rank}: expected 0 to {nodes - 1}, since NNODES={nodes}")
    own = socket.gethostname()
    if "GLOO_SOCKET_IFNAME" not in os.environ and _is_loopback(own) and not _is_loopback(parts.hostname):
        _print(
            f"{own} has no address but a loopback one, where gloo would listen: if the others do not reach it, set "
            "GLOO_SOCKET_IFNAME to this machine's network interface (`ip -br address` lists them)"
        )
    return Place(parts.hostname, parts.port, nodes, rank, own=rank == 0)


def _is_loopback(host: str) -> bool:
    """Tell whether a name leads to this machine alone, or nowhere."""
    try:
        return socket.gethostbyname(host).startswith("127.")
    except OSError:
        return True


def rendezvous(place: Place, join: float, stage: str) -> RendezvousParameters:
    """Describe the meeting of the machines, and its timeouts, to torch."""
    silent = seconds("PEER_TIMEOUT", 60)
    interval = max(1, min(5, int(silent / 3)))
    return RendezvousParameters(
        "c10d",
        f"{place.host}:{place.port}",
        f"{os.environ.get('RDZV_ID', 'run')}.{stage}",
        place.nodes,
        place.nodes,
        # the ranks follow the order of these names; where the processes meet is given separately
        local_addr=f"{place.rank:06}" if place.nodes > 1 else None,
        is_host=place.own,
        join_timeout=int(join),
        close_timeout=5,
        read_timeout=max(5, int(silent / 4)),
        keep_alive_interval=interval,
        keep_alive_max_attempt=max(3, int(silent / interval)),
    )


def _whole(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, "") or str(default)
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}={text}: expected a whole number of at least {least}")
    return int(text)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_error(text: str, rank: int | None = None) -> None:
    who = f"rank {rank} on {socket.gethostname()}" if rank is not None else socket.gethostname()
    _print(f"error ({who}): {text}")
