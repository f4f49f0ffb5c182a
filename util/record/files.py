"""Replaces files whole, and reads text files."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from util import UserError

TEMPORARY = ".part"  # end of the name of a file that is being written; a killed run may leave one


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary name that takes the place of `path` afterwards.

    Not if something is raised. durable: the new name survives a power cut, too; the content does once the caller has
    synced it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # cannot open a folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_text(path: str | Path, limit: int) -> str:
    """Return the UTF-8 text of an ordinary file.

    It has at most `limit` bytes. A pipe without a writer cannot block it.

    Raises:
        OSError: the file is missing, or the system refuses it.
        UserError: it is no such file.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError:  # a NUL byte, or half a surrogate pair
        raise UserError(f"{str(path)!r}: no possible file name") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a file, but a folder, pipe or device")
    if status.st_size > limit:
        raise UserError(f"{path}: {status.st_size:,} bytes; more than {limit:,} are not read here")
    try:
        with open(path, "rb") as file:
            return file.read(status.st_size).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
