"""Signals that end a run at the next step boundary.

The run is saved; each signal has its exit status.

status 75 (EX_TEMPFAIL)  SIGTERM or SIGUSR1, as schedulers send before they take a machine back, or SIGHUP (a closed
                         terminal): saved, the same command continues
status 130               SIGINT (Ctrl-C): saved as well; a second one ends the process at once, unsaved

Environment: STOP_TIMEOUT (300), seconds after a signal at which a process that has not come so far ends unsaved.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from util import dist

PREEMPTED = 75
INTERRUPTED = 130
STATUS: dict[int, int] = {signal.SIGTERM: PREEMPTED, signal.SIGINT: INTERRUPTED}
HANGUP = getattr(signal, "SIGHUP", None)
STATUS |= {number: PREEMPTED for number in (HANGUP, getattr(signal, "SIGUSR1", None)) if number}  # not on Windows
# One Ctrl-C may arrive twice, from the terminal and from the launcher that passes it on.
SAME_KEYSTROKE = 1.0


class Stopped(BaseException):
    """The process was asked to end where there is nothing to save.

    Not an Exception, as KeyboardInterrupt.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = STATUS[number]


def cause(error: BaseException | None) -> Stopped | None:
    """Return the `Stopped` behind an error or before it, or None."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


class Stop:
    """Catches the signals while it is entered: `with Stop() as stop`.

    A signal raises `Stopped` at once, until `hold()` is called: from then on it is only noted, for `poll()`. Either
    needs the main thread, which may be inside a library that waits for a disk; a thread that Python tells of the
    signal itself ends the process then.
    """

    def __init__(self):
        self.noted: int | None = None
        self._at = 0.0
        self._held = False
        self._before: dict = {}
        self._agreement = dist.Agreement()
        self._patience = dist.seconds("STOP_TIMEOUT", 300)
        self._left = threading.Event()
        self._told_before = -1

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._receive) for number in caught()}
        watched, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._told_before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(watched, [*self._before]), name="stop", daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._left.set()
        self._agreement.settle()
        signal.set_wakeup_fd(self._told_before)
        self._told.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Note signals instead of raising: there is a state to save."""
        self._held = True

    def poll(self) -> int:
        """Return the exit status that the processes agree on, or 0.

        It is called at a step boundary. Called by all processes at every one. With several processes a signal is
        answered one step later, by all at the same step.
        """
        return self._agreement.poll(STATUS[self.noted] if self.noted else 0)

    def agree(self) -> int:
        """Return the same at once, waiting for the other processes."""
        return dist.largest(STATUS[self.noted] if self.noted else 0)

    def _receive(self, number: int, frame) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.noted == number and now - self._at > SAME_KEYSTROKE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self.noted is None:
            self.noted, self._at = number, now
            if not self._held:
                raise Stopped(number)

    def _watch(self, watched: socket.socket, numbers: list[int]) -> None:
        """End the process where a wait, for a disk or a loader worker say, does not come back after a signal."""
        with watched:
            while (told := watched.recv(1)) and told[0] not in numbers:
                pass
        if told and not self._left.wait(self._patience):
            name = signal.Signals(told[0]).name
            print(f"error: not ended {self._patience:g} s after {name}: unsaved", file=sys.stderr, flush=True)
            os._exit(STATUS[told[0]])


if hasattr(os, "register_at_fork"):
    # A loader worker that gets a signal would tell the thread of its parent.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def caught() -> list[int]:
    """List the signals that stop a run; not SIGHUP under nohup."""
    return [n for n in STATUS if n != HANGUP or signal.getsignal(n) is not signal.SIG_IGN]


def ignore() -> None:
    """Ignore further signals: the process is exiting, and keeps its exit status."""
    for number in STATUS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def passed_on(child: int) -> Iterator[list[int]]:
    """Pass signals on to a child process while waiting for it.

    Yields the signals that came.

    child: its process id.
    """
    came: list[int] = []

    def forward(number, frame):
        came.append(number)
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return  # it has just ended

    before = {number: signal.signal(number, forward) for number in caught()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
