"""Room on a disk, asked for before it is filled."""

import errno
import shutil
from pathlib import Path


def check_room(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of a folder has room for `needed` bytes.

    Args:
        folder: is there.
        what: needs them, for the error.

    Raises:
        OSError: it has not; says both numbers.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f"{folder}: {what} needs {needed:,} bytes, and {free:,} are free; make room, or give another folder"
        raise OSError(errno.ENOSPC, text)
