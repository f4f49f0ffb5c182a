"""Locks on open files, which end with the process that holds them."""

import os
import socket
import time
from typing import IO

from dataset.read import DataError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use


TOLD = 5.0  # seconds of waiting after which it is told for whom
PATIENCE = 600.0  # seconds without a sign of life after which a holder is no longer waited for


def hold(file: IO[str]) -> None:
    """Lock an open file for this process, and name it there.

    The holder has to call `show_life` now and then.

    Raises:
        DataError: its holder gives no sign of life for `PATIENCE` seconds, or the system has no such locks.
    """
    began = changed = time.monotonic()
    seen, told = -1, False
    while True:
        try:
            lock(file.fileno(), wait=False)
        except BlockingIOError:
            now, newest = time.monotonic(), os.fstat(file.fileno()).st_mtime_ns
            seen, changed = (seen, changed) if newest == seen else (newest, now)
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return
        file.seek(0)
        holder = file.read(1000) or "another process"
        if now - changed > PATIENCE:
            raise DataError(
                f"{file.name}: {holder} holds it and has done nothing for {PATIENCE:g} s; end it, and the same command "
                "goes on"
            )
        if now - began > TOLD and not told:
            print(f"{file.name}: waiting for {holder}, which is at the same work", flush=True)
            told = True
        time.sleep(0.1)


def show_life(file: IO[str]) -> None:
    """Tell those who wait for a file that its holder goes on."""
    os.utime(file.fileno())


def lock(file: int, shared: bool = False, wait: bool = True) -> None:
    """Lock the file behind a descriptor for this process and its children.

    Args:
        shared: other shared locks may stand beside it.
        wait: until those who hold the file are done.

    Raises:
        BlockingIOError: the file is held, and we do not wait.
        DataError: the system has no such locks.
    """
    if fcntl is None:
        raise DataError(
            f"this system ({os.name}) has no file locks, which packing and downloading need: leave loader.packed "
            "and loader.cache at none, and fetch data sets by hand"
        )
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
