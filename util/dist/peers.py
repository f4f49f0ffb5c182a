"""Watches whether the other processes of a run are alive.

One that falls silent is named. A collective operation waits for its slowest process and cannot say which that is: where
a cable is cut it waits for its whole timeout, and then names a socket. Here a thread of each process writes a beat into
the group's store and reads those of all others, whatever the main thread is doing. So a process that has died, or a
host that cannot be reached, is told apart from one that is only slow.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence

from torch.distributed import TCPStore

ANSWER = 5.0  # seconds that one exchange with the store may take
DONE = "done"


def give_up_after(limit: float) -> None:
    """Have the system break silent connections (Linux).

    Silent: nothing came for `limit` seconds. By itself it goes on sending for a quarter of an hour, and an operation of
    the store or of gloo waits as long.
    """
    folder = "/proc/self/fd"
    for number in os.listdir(folder) if os.path.isdir(folder) else []:
        try:
            with socket.socket(fileno=os.dup(int(number))) as twin:  # the same connection, under another number
                if twin.type != socket.SOCK_STREAM or twin.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                twin.getpeername()
                twin.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                    twin.setsockopt(socket.IPPROTO_TCP, option, max(1, int(limit / 4)))
                twin.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * limit))
        except OSError:
            continue  # no socket, or one without another end


def reachable(host: str, port: int) -> bool:
    """Tell whether somebody listens there.

    PyTorch's store prints pages when nobody does.
    """
    try:
        socket.create_connection((host, port), timeout=ANSWER).close()
    except OSError:
        return False
    return True


class Lost(RuntimeError):
    """Another process cannot be waited for; says which, where and why."""


class Peers:
    """The beats of all processes of a group.

    Args:
        rank, world_size: of this process.
        connect: gives a new connection to the group's store, which rank 0 hosts.
        lost: called from the thread, with the reason, when a process has been silent for `patience` seconds.
    """

    def __init__(
        self, rank: int, world_size: int, connect: Callable[[], TCPStore], patience: float, lost: Callable[[str], None]
    ):
        self.rank, self.world_size, self.patience = rank, world_size, patience
        self.at = "start"  # what this process is doing, for the others to tell
        self.interval = max(1.0, world_size / 32)
        self._connect, self._lost = connect, lost
        self._beats: dict[int, dict] = {rank: {} for rank in range(world_size)}
        self._silent = dict.fromkeys(range(world_size), 0.0)  # seconds since the last new beat
        self._count = 0
        self._end: str | None = None
        # Two connections, of the threads and of the main thread: a store serves one call at a time.
        self._store: TCPStore | None = None
        self._calls: TCPStore | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._exchange()
        # Two threads, since an exchange may hang as long as the system goes on sending.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._judge)]
        for thread in self._threads:
            thread.start()

    def name(self, rank: int) -> str:
        """Name a process, such as: rank 3 on host-b."""
        host = self._beats[rank].get("host")
        return f"rank {rank} on {host}" if host else f"rank {rank}"

    def explain(self) -> str | None:
        """Name the process that failed or fell silent.

        After a collective operation failed here. Waits some beats for it.
        """
        end = time.monotonic() + 5 * self.interval
        while time.monotonic() < end:
            for rank, beat in self._beats.items():
                if rank != self.rank and beat.get("end") not in (None, DONE):
                    return f"{self.name(rank)} failed: {beat['end']}"
            silent = [rank for rank, span in self._silent.items() if span > 2.5 * self.interval and rank != self.rank]
            if silent:
                return self._gone(silent)
            time.sleep(0.1)
        return None

    def announce(self, key: str) -> None:
        """Tell the others that this process has come to `key`."""
        self._store_of_calls().set(f"at/{key}", "1")

    def wait(self, keys: Sequence[str], limit: float) -> None:
        """Wait until every one of `keys` is announced.

        However long, while the processes are alive.

        Raises:
            Lost: `limit` seconds have passed; says what each process was doing.
        """
        end, pause = time.monotonic() + limit, 0.001
        while not self._store_of_calls().check([f"at/{key}" for key in keys]):
            if time.monotonic() > end:
                doing = "; ".join(f"{self.name(rank)} is at {beat.get('at')}" for rank, beat in self._beats.items())
                raise Lost(f"waited {limit:.0f} s in vain for all processes: {doing}")
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def close(self, end: str = DONE) -> None:
        """Say goodbye with a reason; rank 0 waits for the others."""
        with self._lock:
            self._end = end
        self._closing.set()
        for thread in self._threads:
            thread.join(2 * ANSWER)
        if self._store is None or self._threads[0].is_alive():
            return
        self._exchange()
        while (
            end == DONE
            and self.rank == 0
            and any(
                beat.get("end") is None and self._silent[rank] < 5 * self.interval
                for rank, beat in self._beats.items()
                if rank
            )
        ):
            time.sleep(0.05)
            self._pass(0.05)
            self._exchange()

    def _beat(self) -> None:
        while not self._closing.wait(self.interval):
            self._exchange()

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._closing.wait(self.interval):
            now = time.monotonic()
            # A host that stood still for a while must not think that all others were silent meanwhile.
            self._pass(min(now - before, 2 * self.interval))
            before = now
            missing = [rank for rank, span in self._silent.items() if span > self.patience and rank != self.rank]
            if missing and not self._closing.is_set():
                self._lost(self._gone(missing))

    def _pass(self, span: float) -> None:
        """Count `span` seconds as gone by."""
        with self._lock:
            for rank, beat in self._beats.items():
                self._silent[rank] += 0.0 if beat.get("end") == DONE else span

    def _exchange(self) -> None:
        """Write the own beat and read those of all."""
        keys = [f"beat/{rank}" for rank in range(self.world_size)]
        with self._lock:
            self._count += 1
            own = {
                "beat": self._count,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "at": self.at,
                "end": self._end,
            }
        try:
            self._store = self._store or self._connect()
            self._store.set(keys[self.rank], json.dumps(own))
            came = [json.loads(value) for value in self._store.multi_get(keys)]
        except RuntimeError:
            self._store = None  # rank 0, which hosts it, has died or cannot be reached: nobody's beat came
            return
        with self._lock:
            for rank, beat in enumerate(came):
                if beat["beat"] != self._beats[rank].get("beat"):
                    self._silent[rank] = 0.0
                self._beats[rank] = beat

    def _gone(self, ranks: list[int]) -> str:
        if 0 in ranks:  # no beat can come past rank 0
            ranks = [0]
        names = ", ".join(f"{self.name(rank)} (at {self._beats[rank].get('at', 'start')})" for rank in ranks)
        return f"{names} has not answered for {max(self._silent[r] for r in ranks):.0f} s: ended, cut off or stopped"

    def _store_of_calls(self) -> TCPStore:
        self._calls = self._calls or self._connect()
        return self._calls
