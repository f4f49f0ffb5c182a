"""Replaces files whole, opens them where others write too, reads text."""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from util import UserError

TEMPORARY = ".part"  # end of the name of a file that is being written; a killed run may leave one


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary name that takes the place of `path` afterwards.

    Not if something is raised. The name cannot be foreseen, and a rename takes the place of a link, not of what it
    points to: nothing is written through a symbolic link that lies there.

    Args:
        durable: the new name survives a power cut, too; the content does once the caller has synced it.

    Raises:
        OSError: names `path`, not the temporary file.
    """
    # Not longer than the name may be: at most 255 bytes, with 4 a letter.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        yield temporary
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.strerror == os.strerror(error.errno):  # no message of our own
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes, parents: bool = False) -> None:
    """Write a file whole, in the place of what is there.

    parents: make its folder, too.
    """
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, in the place of what is there."""
    write_bytes(path, text.encode("utf-8"))


def write_named(path: str | Path, data: bytes) -> None:
    """Write a file that a person has named.

    As `write_bytes`, but into what is a device, pipe or link: /dev/stdout is written to, not replaced.
    """
    path = Path(path)
    if path.is_symlink() or path.exists() and not (path.is_file() or path.is_dir()):
        path.write_bytes(data)
    else:
        write_bytes(path, data)


def refuse_links(folder: Path, inside: Path) -> None:
    """Refuse a folder with a symbolic link above or below it.

    Args:
        inside: the folder that the user has named, which may be a link, or be reached through one.

    Raises:
        UserError: names the link.
    """
    parts = [part for part in (folder, *folder.parents) if inside in part.parents]
    links = [part for part in parts if part.is_symlink()]
    for place, folders, _ in [] if links else os.walk(folder):
        links += [path for path in (Path(place, name) for name in folders) if path.is_symlink()]
    if links:
        raise UserError(
            f"{links[0]}: a symbolic link, through which nothing is written; move it away, or name the folder that it "
            "points to with --exp"
        )


def open_plain(path: str | Path, flags: int) -> int:
    """Open or make an ordinary file; return its descriptor.

    Args:
        flags: of `os.open`, as O_RDWR.

    Raises:
        UserError: a symbolic link, a folder, a pipe or a device has this name.
        OSError: the system refuses it.
    """
    strange = UserError(f"{path}: not a file, but a link, folder, pipe or device; move it away")
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe without a reader blocks nobody
    try:
        number = os.open(path, flags | os.O_CREAT | careful, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO):
            raise strange from None
        raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise strange
    return number


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
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise UserError(f"{str(path)[:200]}: {os.strerror(error.errno).lower()}") from None
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
