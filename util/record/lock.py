"""One training at a time in a run's folder.

Rank 0 holds a lock on run.lock. The lock is the kernel's, not the file, which stays: a process that is killed gives it
up at once. It is a record lock of POSIX, which file servers know, and which processes that this one forks, as a
loader's, do not hold with it.
"""

import errno
import os
import socket
import time
from pathlib import Path

from util import UserError
from util.record.log import log

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use

NAME = "run.lock"
LARGEST = 4096
# Seconds that a holder may need to be gone. One that was killed frees its memory first; of a machine that is lost, the
# file server keeps the locks for a lease, 90 s with NFS 4.
HERE, ELSEWHERE = 10.0, 120.0
TAKEN = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """The lock of this process.

    A record lock ends as soon as its process closes any descriptor of the file.
    """

    def __init__(self) -> None:
        self._held: int | None = None

    def take(self, folder: Path) -> str | None:
        """Take `folder` for this process; return why it is unguarded.

        The process gives it up when it ends or takes another one.

        Returns:
            The reason why the folder cannot be guarded, where its file system has no locks; else None.

        Raises:
            UserError: another process has it; names it, and says what to do.
            OSError: the folder cannot be written.
        """
        if self._held is not None:
            os.close(self._held)
            self._held = None
        folder.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return f"{os.name} has no record locks"
        self._held = number = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _wait(number, folder)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return error.strerror
        os.ftruncate(number, 0)
        os.pwrite(number, f"process {os.getpid()}{_here()} {time.strftime('%F %T %Z')}\n".encode(), 0)
        return None


take = FolderLock().take


def _here() -> str:
    return f" on {socket.gethostname()}, since"


def _wait(number: int, folder: Path) -> None:
    """Wait until the lock is ours, as long as a holder that is ending may need."""
    began, logged = time.monotonic(), False
    while not _locked(number):
        holder = os.pread(number, LARGEST, 0).decode(errors="replace").strip() or "an unknown process"
        patience = HERE if _here() in holder else ELSEWHERE
        if time.monotonic() - began >= patience:
            raise UserError(
                f"{folder}: another training is under way in this folder: {holder}. Wait for its end, or stop it there "
                "(kill PID: it saves and ends), then the same command continues it; or give this one a folder of its "
                "own with --exp OTHER_FOLDER"
            )
        if not logged:
            log.info("%s is in use: %s; waiting up to %.0f s for its end", folder, holder, patience)
            logged = True
        time.sleep(0.1)


def _locked(number: int) -> bool:
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    return True
