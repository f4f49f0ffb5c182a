"""One training at a time in a run's folder.

And one evaluation in that of a result, one sweep in that of its runs. Rank 0 holds a lock on run.lock, test.lock, or
sweep.lock.

The lock is the kernel's, not the file, which stays: a process that is killed gives it up at once. It is a record lock
of POSIX, which file servers know, and which processes that this one forks, as a loader's, do not hold with it. A lock
on a file that somebody has removed keeps nobody out, so its number is compared with the folder's after locking, and
again before each save.
"""

import errno
import os
import socket
import time
from pathlib import Path

from util import UserError
from util.record import status
from util.record.files import open_plain
from util.record.log import log

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use

NAMES = {"training": "run.lock", "evaluation": "test.lock", "sweep": "sweep.lock"}
LARGEST = 4096
# Seconds that a holder may need to be gone. One that was killed frees its memory first; of a machine that is lost, the
# file server keeps the locks for a lease, 90 s with NFS 4.
HERE, ELSEWHERE = 10.0, 120.0
TAKEN = (errno.EAGAIN, errno.EACCES)
TRIES = 10  # to lock a file that is replaced meanwhile
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """The lock of this process.

    A record lock ends as soon as its process closes any descriptor of the file.
    """

    def __init__(self) -> None:
        self._held: int | None = None
        self._guarded: Path | None = None

    def take(self, folder: Path, what: str = "training") -> str | None:
        """Take `folder` for this process; return why it is unguarded.

        The process gives it up when it ends or takes another one.

        Args:
            what: a key of `NAMES`.

        Returns:
            The reason why the folder cannot be guarded, where its file system has no locks; else None.

        Raises:
            UserError: another process has it; names it, and says what to do.
            OSError: the folder cannot be written.
        """
        self._give_up()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{error.filename}: not a folder; name another one for the run with --exp") from None
        if fcntl is None:
            return f"{os.name} has no record locks"
        file = folder / NAMES[what]
        for _ in range(TRIES):
            self._held = number = open_plain(file, os.O_RDWR)
            try:
                _wait(number, folder, what)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                return error.strerror
            if _is(file, number):
                os.ftruncate(number, 0)
                os.pwrite(number, f"process {os.getpid()}{_here()} {time.strftime('%F %T %Z')}\n".encode(), 0)
                self._guarded = file
                return None
            self._give_up()
        return "an open file has another number there than its name"

    def check(self) -> None:
        """Refuse to go on without the folder's lock.

        Raises:
            UserError: run.lock was removed or replaced, so that another training can be in the folder.
        """
        if self._guarded is not None and self._held is not None and not _is(self._guarded, self._held):
            status.leave()
            raise UserError(
                f"{self._guarded} was removed or replaced under this training, so that another one may be in "
                "the folder: this one ends, and saves nothing more there. Start the same command again once no other "
                "training runs in it"
            )

    def _give_up(self) -> None:
        if self._held is not None:
            os.close(self._held)
        self._held = self._guarded = None


_of_this_process = FolderLock()
take, check = _of_this_process.take, _of_this_process.check


def _here() -> str:
    return f" on {socket.gethostname()}, since"


def _is(file: Path, number: int) -> bool:
    """Tell whether the open file `number` still has this name."""
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(number))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _wait(number: int, folder: Path, what: str) -> None:
    """Wait until the lock is ours, as long as a holder that is ending may need."""
    began, logged = time.monotonic(), False
    while not _locked(number):
        holder = os.pread(number, LARGEST, 0).decode(errors="replace").strip() or "an unknown process"
        patience = HERE if _here() in holder else ELSEWHERE
        if time.monotonic() - began >= patience:
            stop = " (kill PID: it saves and ends), then the same command continues it" if what != "evaluation" else ""
            raise UserError(
                f"{folder}: another {what} is under way in this folder: {holder}. Wait for its end, or stop it "
                f"there{stop}; or give this one a folder of its own with --exp OTHER_FOLDER"
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
