"""Reads files that may be anything, and replaces files in one step."""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from dataset.read import DataError
from dataset.read.remote import BLOCK, Member, Part, is_url, read_part, read_remote, size_of


def require_file(path: str | Path, what: str = "file") -> int:
    """Return the size in bytes of an ordinary file.

    It may be in a shard or behind a URL. It is not opened, which may block at a pipe.

    Raises:
        FileNotFoundError: it is missing.
        OSError, DataError: a name or a kind of file that cannot be read.
    """
    if isinstance(path, Member):
        return path.size
    if is_url(path):
        return size_of(str(path))
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError:  # a NUL byte, or half a surrogate pair
        raise DataError(f"{str(path)!r}: no possible name of a {what}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise DataError(f"{path}: is {kind}, not a {what}")
    return status.st_size


def exists(path: str | Path) -> bool:
    """Tell whether an ordinary file is there; see `require_file`."""
    try:
        return require_file(path) >= 0
    except (FileNotFoundError, DataError):
        return False


def read_bytes(path: str | Path, limit: int, what: str = "file") -> bytes:
    """Read an ordinary file of at most `limit` bytes.

    Raises:
        FileNotFoundError, OSError, DataError: as `require_file`, or the file is larger, of which nothing is read.
    """
    data = read_remote(str(path)) if is_url(path) and not isinstance(path, Member) else None
    size = require_file(path, what) if data is None else len(data)
    if size > limit:
        raise DataError(f"{path}: {size:,} bytes; a {what} of more than {limit:,} is not read")
    if data is not None:
        return data
    if isinstance(path, Member):
        return read_part(path.shard, path.offset, path.offset + size)
    with open(path, "rb") as file:
        return file.read(size)  # asking for `limit` would take that much memory first


def open_file(path: str | Path) -> BinaryIO:
    """Open a file, or a shard's member, or a URL.

    Raises:
        FileNotFoundError, OSError, DataError: as `require_file`.
    """
    if isinstance(path, Member):
        return cast(BinaryIO, io.BufferedReader(Part(path.shard, path.offset, path.size), BLOCK))
    if is_url(path):
        return cast(BinaryIO, io.BufferedReader(Part(str(path), 0, size_of(str(path))), BLOCK))
    return open(path, "rb")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when whole.

    That is once all of it is on the disk. Whoever reads sees the old file or the new one. A process that is killed
    leaves `NAME.PID.tmp` behind.

    Raises:
        OSError: names `path`, not the unfinished file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is not None and error.strerror == os.strerror(error.errno):  # no message of our own
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        unfinished.unlink(missing_ok=True)
