"""Starts the processes of a run through torchrun's agent, on one machine or several, and starts them again.

What a new start can mend (a process killed by the system, a host that is gone) is tried MAX_RESTARTS times, from the
last checkpoint; a user's mistake, a loss that is not finite, or a stop that was asked for is not.
"""

import logging
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from torch.distributed.elastic.agent.server import WorkerSpec
from torch.distributed.elastic.agent.server.api import WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from util.dist import signals
from util.dist.group import PEER_LOST, seconds
from util.dist.peers import give_up_after, reachable

RESTARTS = 3
LINGER = 10.0  # seconds that the host of the rendezvous stays, so that the others learn how it ended
NO_RESTART = (2, signals.PREEMPTED, signals.INTERRUPTED)
PASSED_ON = {**signals.STATUS, signal.SIGHUP: signals.PREEMPTED}


class Meeting:
    """A rendezvous that may be out of reach while the processes run: they find out themselves who is missing."""

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
    """torchrun's agent, but it restarts only what a restart can mend, and lets its processes answer a signal.

    The methods it overrides are those that PyTorch names for extending an agent. How many restarts are left has no
    public name: PyTorch's own agent, too, sets `_remaining_restarts` to 0 where a restart would be of no use.
    """

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, patience: float):
        super().__init__(spec, logs)
        assert self._remaining_restarts == spec.max_restarts, "PyTorch counts its restarts under another name"
        self.stopping: int | None = None
        self.started = False
        self._patience = patience
        self._deadline = float("inf")

    def catch_signals(self) -> None:
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._pass_on)

    def restarts_left(self) -> int:
        return self._remaining_restarts

    def _start_workers(self, worker_group):
        ids = super()._start_workers(worker_group)
        self.catch_signals()  # torch has just set its own, which end the processes before they can have saved
        self.started = True
        return ids

    def _restart_workers(self, worker_group):
        if worker_group.state == WorkerState.HEALTHY:
            print("another machine starts its processes again, and so do we", file=sys.stderr, flush=True)
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group):
        if time.monotonic() > self._deadline:
            _tell(f"not ended {self._patience:.0f} s after {signal.Signals(self.stopping).name}: killed")
            self._shutdown(signal.SIGKILL)
        result = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            self._decide({rank: failure.exitcode for rank, failure in result.failures.items()})
        return result

    def _decide(self, statuses: dict[int, int]) -> None:
        """Whether the processes are started again after these exit statuses by rank; tells what only we know."""
        rank, status = first_cause(statuses)
        if status < 0 and not self.stopping:
            name = signal.Signals(-status).name
            hint = " (the system may have run out of memory)" if -status == signal.SIGKILL else ""
            _tell(f"killed by {name}{hint}", rank)
        if self.stopping or status in NO_RESTART:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            print(
                f"all processes start again from the last checkpoint ({self._remaining_restarts} restarts left)",
                file=sys.stderr,
                flush=True,
            )

    def _pass_on(self, number: int, frame) -> None:
        if self.get_worker_group().state != WorkerState.HEALTHY:  # nothing runs: waiting for the other machines
            raise SignalException(f"got {signal.Signals(number).name}", signal.Signals(number))
        if self.stopping is None:
            self.stopping, self._deadline = number, time.monotonic() + self._patience
        self._send(signal.SIGTERM if number == signal.SIGHUP else number)

    def _send(self, number: int) -> None:
        for worker in self.get_worker_group().workers:
            try:
                os.kill(worker.id, number)
            except ProcessLookupError:
                continue


def first_cause(statuses: dict[int, int]) -> tuple[int, int]:
    """Rank and exit status of the process that failed by itself, not by the end of another one."""
    followed = (PEER_LOST, -signal.SIGTERM, signals.PREEMPTED)
    order = sorted(statuses.items(), key=lambda item: (followed.index(item[1]) + 1 if item[1] in followed else 0, item))
    return order[0] if order else (0, 1)


def launch(processes: int, module: str, arguments: list[str], restarts: int) -> int:
    """Runs `python -m module arguments` in `processes` processes on each of NNODES machines; the exit status.

    Several machines, NODE_RANK each, meet at RDZV_ENDPOINT (host:port of the one with NODE_RANK 0). A machine that
    is missing, at the start or after a fault, is waited for JOIN_TIMEOUT seconds.

    Raises:
        ValueError: the environment does not say where to meet, or the port there is in use.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # we tell it ourselves, in one line
    os.environ["LAUNCHER_PID"] = str(os.getpid())
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # a shared one is not renewed when a machine comes back
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    place = meeting_place()
    join = seconds("JOIN_TIMEOUT", 600)
    with tempfile.TemporaryDirectory(prefix="run_") as logs:

        def agent(left: int) -> Agent:
            spec = WorkerSpec(
                role="worker",
                local_world_size=processes,
                entrypoint=sys.executable,
                args=("-m", module, *arguments),
                rdzv_handler=Meeting(get_rendezvous_handler(rendezvous(place, join, module))),
                max_restarts=left,
                monitor_interval=0.1,
                master_addr=place["host"],
            )
            return Agent(spec, DefaultLogsSpecs(log_dir=logs), seconds("STOP_TIMEOUT", 300))

        try:
            return attend(agent, place, restarts, join)
        except RendezvousTimeoutError:
            _tell(f"not all {place['nodes']} machines came to {place['host']}:{place['port']} in {join:.0f} s")
        except RendezvousClosedError:
            _tell("another machine has ended the run; see its messages")
        except SignalException as stop:
            return PASSED_ON[stop.sigval]
    return PEER_LOST


def attend(make_agent: Callable[[int], Agent], place: dict, restarts: int, join: float) -> int:
    """Runs agents until one's processes have ended; a new one each time that the rendezvous itself is lost.

    The exit status is that of the process that failed first, or 0.
    """
    deadline = time.monotonic() + join
    while True:
        agent = None
        try:
            if not place["own"] and not reachable(place["host"], place["port"]):
                raise RendezvousConnectionError
            agent = make_agent(restarts)
            give_up_after(seconds("PEER_TIMEOUT", 60))
            agent.catch_signals()
            return run(agent, place)
        except RendezvousConnectionError:
            if place["own"] and agent is None:
                raise ValueError(
                    f"the port of {place['host']}:{place['port']}, where the machines meet, is in use or "
                    "not this machine's; set another RDZV_ENDPOINT"
                ) from None
            if agent is not None and agent.started:
                if agent.stopping:
                    return PASSED_ON[agent.stopping]
                restarts = agent.restarts_left()
                deadline = time.monotonic() + join
                print(f"waiting {join:.0f} s for the machine with NODE_RANK=0", file=sys.stderr, flush=True)
            if time.monotonic() > deadline:
                _tell(f"the machine with NODE_RANK=0 cannot be reached at {place['host']}:{place['port']}")
                return PEER_LOST
            time.sleep(1)


def run(agent: Agent, place: dict) -> int:
    """Runs the agent's processes to their end; the exit status of the one that failed first, 0 if none did."""
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
    if place["own"] and place["nodes"] > 1:
        time.sleep(LINGER)
    _, status = first_cause({rank: failure.exitcode for rank, failure in result.failures.items()})
    if agent.stopping and status in (-agent.stopping, -signal.SIGTERM, -signal.SIGKILL):
        return PASSED_ON[agent.stopping]
    return status if status > 0 else 128 - status


def meeting_place() -> dict:
    """Where the machines meet: host, port, nodes, rank of this machine, and whether the place is its own."""
    nodes = _whole("NNODES", 1, 1)
    if nodes == 1:
        return {"host": "localhost", "port": 0, "nodes": 1, "rank": 0, "own": True}
    endpoint = os.environ.get("RDZV_ENDPOINT", "")
    parts = urlsplit(f"//{endpoint}")
    if not parts.hostname or not parts.port:
        raise ValueError("NNODES is set: RDZV_ENDPOINT must be HOST:PORT of the machine with NODE_RANK=0")
    if "NODE_RANK" not in os.environ:
        raise ValueError(f"NNODES is set: NODE_RANK must number the machines, 0 to {nodes - 1}")
    rank = _whole("NODE_RANK", 0, 0)
    if rank >= nodes:
        raise ValueError(f"NODE_RANK={rank}: expected 0 to {nodes - 1}, since NNODES={nodes}")
    name = interface_towards(parts.hostname, parts.port)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return {"host": parts.hostname, "port": parts.port, "nodes": nodes, "rank": rank, "own": rank == 0}


def rendezvous(place: dict, join: float, stage: str) -> RendezvousParameters:
    silent = seconds("PEER_TIMEOUT", 60)
    interval = max(1, min(5, int(silent / 3)))
    return RendezvousParameters(
        "c10d",
        f"{place['host']}:{place['port']}",
        f"{os.environ.get('RDZV_ID', 'run')}.{stage}",
        place["nodes"],
        place["nodes"],
        # the ranks follow the order of these names; where the processes meet is given separately
        local_addr=f"{place['rank']:06}" if place["nodes"] > 1 else None,
        is_host=place["own"],
        join_timeout=int(join),
        close_timeout=5,
        read_timeout=max(5, int(silent / 4)),
        keep_alive_interval=interval,
        keep_alive_max_attempt=max(3, int(silent / interval)),
    )


def interface_towards(host: str, port: int) -> str | None:
    """The network interface by which this machine reaches `host`; None if that cannot be told (Linux, IPv4).

    gloo looks at what the machine's own name resolves to, which on many systems is a loopback address.
    """
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # sends nothing
            own = probe.getsockname()[0]
            target = socket.gethostbyname(host)
            for _, name in socket.if_nameindex():
                try:
                    packed = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                except OSError:
                    continue  # it has no address
                if socket.inet_ntoa(packed[20:24]) in (own, target) and not own.startswith("127.0.1."):
                    return name
    except OSError:
        return None
    return None


def _whole(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, "") or str(default)
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}={text}: expected a whole number of at least {least}")
    return int(text)


def _tell(text: str, rank: int | None = None) -> None:
    who = f"rank {rank} on {socket.gethostname()}" if rank is not None else socket.gethostname()
    print(f"error ({who}): {text}", file=sys.stderr, flush=True)
