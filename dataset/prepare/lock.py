"""Locks on open files, which end with the process that holds them."""

import os

from dataset.read import DataError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use


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
