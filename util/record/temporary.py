"""Temporary folders that are gone once their process is, however it ended."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from util.record.files import open_plain

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use

OWNER = "owner"  # locked as long as the process lives
SIGN = b"temporary folder of a run; its owner holds a lock on this file\n"


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Yield a folder that is deleted afterwards.

    A process that is killed leaves its folder; the next one that asks for a folder of this name deletes it.

    Args:
        name: what the folder is for, as "launch".

    Raises:
        OSError: no temporary folder can be written.
    """
    prefix = f"segmentation_{os.getuid() if hasattr(os, 'getuid') else ''}_{name}_"
    with tempfile.TemporaryDirectory(prefix=prefix) as text:
        folder = Path(text)
        number = open_plain(folder / OWNER, os.O_RDWR)
        try:
            if fcntl is not None:
                fcntl.flock(number, fcntl.LOCK_EX)
                os.write(number, SIGN)  # only now: what is not signed may be about to be locked
                _sweep(folder.parent, prefix)
            yield folder
        finally:
            os.close(number)


def _sweep(place: Path, prefix: str) -> None:
    """Delete the folders of killed processes, known by their owner, their sign, and a lock that nobody holds."""
    for folder in place.glob(f"{prefix}*"):
        try:
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            number = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # no such folder of ours, or another process deletes it just now
            continue
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.read(number, len(SIGN)) == SIGN:
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # its process lives
        finally:
            os.close(number)
