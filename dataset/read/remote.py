"""Reads files behind URLs, and files inside others.

URLs are read by fsspec. A process makes its connections when it first reads, so that workers share none with the
process that they come from.
"""

import asyncio
import importlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TypeVar
from urllib.parse import unquote

from dataset.read import DataError

BLOCK = 1 << 16  # bytes that are fetched at once where a header is read
WAITS = (0.5, 2.0, 8.0)  # seconds before a read that failed is tried again

T = TypeVar("T")


class Url(str):
    """Folder behind a URL; `/` joins names to it."""

    def __truediv__(self, name: str | PurePosixPath) -> "Url":
        return Url(f"{self}/{PurePosixPath(name)}")


class Member(str):
    """The path SHARD/NAME of a file inside another one.

    shard: that file. offset, size: the bytes it takes there. version: changes with the shard.
    """

    shard: str
    offset: int
    size: int
    version: str

    def __new__(cls, shard: str, name: str, offset: int, size: int, version: str = "") -> "Member":
        member = super().__new__(cls, f"{shard}/{name}")
        member.shard, member.offset, member.size, member.version = shard, offset, size, version
        return member

    def __reduce__(self) -> tuple:
        return Member, (self.shard, self[len(self.shard) + 1 :], self.offset, self.size, self.version)


def is_url(path: str | Path) -> bool:
    """Tell whether a path is behind a URL."""
    return isinstance(path, str) and "://" in path


def place(text: str | Path) -> Path | Url:
    """Return a path or URL; file:// is a path."""
    if not is_url(text):
        return Path(text).expanduser()
    scheme, _, rest = str(text).partition("://")
    return Path(unquote(rest)) if scheme == "file" else Url(str(text).rstrip("/"))


def size_of(url: str) -> int:
    """Return the bytes of a remote file.

    Raises:
        FileNotFoundError: there is none.
        DataError: the server does not tell.
        OSError: it is not reached.
    """
    size = facts_of(url).get("size")
    if not isinstance(size, int):
        raise DataError(f"{url}: the server does not say how long it is; serve it as a file")
    return size


def facts_of(url: str) -> dict:
    """Return what the server tells of a file; see `size_of`."""
    return _tried(url, lambda files, name: files.info(name))


def read_remote(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """Read a remote file, or the bytes from `start` to `stop`.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is not reached, or gives other bytes than were asked for.
    """
    data = _tried(url, lambda files, name: files.cat_file(name, start=start, end=stop))
    if start is not None and stop is not None and len(data) != stop - start:
        raise OSError(
            f"{url}: {len(data):,} bytes came where {stop - start:,} were asked for: it is cut short, or the server "
            "gives no parts of files (HTTP range requests)"
        )
    return data


def read_part(path: str, start: int, stop: int) -> bytes:
    """Read bytes of a file here or behind a URL."""
    if is_url(path):
        return read_remote(path, start, stop)
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    if len(data) != stop - start:
        raise DataError(f"{path}: ends before byte {stop:,}; it is cut short, fetch it again")
    return data


class Part(io.RawIOBase):
    """Bytes of a file, read as they are asked for.

    Args:
        path: a file, here or behind a URL.
        offset, size: of the bytes.
    """

    def __init__(self, path: str, offset: int, size: int):
        self.path, self.offset, self.size = path, offset, size
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        self.place = max(0, place + (0, self.place, self.size)[whence])
        return self.place

    def readinto(self, buffer) -> int:
        stop = min(self.size, self.place + len(buffer))
        data = read_part(self.path, self.offset + self.place, self.offset + stop) if stop > self.place else b""
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def _tried(url: str, read: Callable[..., T]) -> T:
    """Give `read(file system, name)`, tried again where the network fails."""
    fsspec = _fsspec(url)
    try:
        files, name = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url}: {error} (with python -m pip install)") from None
    except ValueError as error:
        raise DataError(f"{url}: {error}; known are http, https, s3, gs, az and what else fsspec reads") from None
    failures: tuple[type[Exception], ...] = (OSError, asyncio.TimeoutError, fsspec.exceptions.FSTimeoutError)
    if "aiohttp" in sys.modules:
        failures += (sys.modules["aiohttp"].ClientError,)
    for wait in (*WAITS, None):
        try:
            return read(files, name)
        except failures as error:
            # fsspec's HTTP says of any failure that there is no such file, and has the failure as the cause.
            hidden = isinstance(error, FileNotFoundError) and isinstance(error.__cause__, failures)
            cause = error.__cause__ if hidden else error
            status = getattr(cause, "status", None)
            if status == 404 or isinstance(cause, FileNotFoundError):
                raise FileNotFoundError(f"{url}: no such file") from None
            refused = isinstance(cause, PermissionError) or (status is not None and status < 500)
            if refused or wait is None:
                raise OSError(f"{url}: {type(cause).__name__} {cause}".replace("\n", " ")) from None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _fsspec(url: str) -> ModuleType:
    try:
        importlib.import_module("fsspec.core")
        return importlib.import_module("fsspec")
    except ImportError:
        raise DataError(f"{url}: a URL needs fsspec: python -m pip install -e '.[remote]'") from None
