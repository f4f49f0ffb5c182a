"""Downloads archives of data sets and unpacks them.

With a checksum, in several sittings if need be, and without harm to what is there.
"""

import errno
import gzip
import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from dataset.prepare.layout import Archive
from dataset.prepare.lock import lock
from dataset.prepare.room import check_room
from dataset.read import DataError

DOWNLOADS = "downloads"  # folder below the root
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
TRIES = 8  # times in a row that a connection may end without a byte more
MAX_RATIO = 20  # bytes unpacked for a byte of an archive; pictures hardly shrink, outlines in JSON about ten times
MAX_SMALL = 1 << 30  # bytes that any archive may unpack to


def fetch(archive: Archive, root: Path, quiet: bool | None = None) -> Path:
    """Download an archive and return its path.

    It goes to ROOT/downloads unless it is there. A download that breaks off is resumed where it stopped, at once or
    with the next call.

    Args:
        quiet: no progress bar; None: none unless a person is looking.

    Raises:
        OSError: the server cannot be reached or refuses, or the disk is full.
        DataError: the file has not the published checksum; it has been removed.
    """
    folder = root / DOWNLOADS
    path = folder / archive.name
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{archive.name}.lock", archive.name):
        if path.is_file():
            return path
        partial = folder / f"{archive.name}.part"
        failures, started = 0, _size(partial)
        while failures < TRIES:
            before = _size(partial)
            try:
                _download(archive.url, partial, quiet)
                break
            except (OSError, http.client.HTTPException) as error:
                reason = _reason(error)
                offline = isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError)
                if _is_final(error) or (offline and _size(partial) == started):
                    raise OSError(f"{archive.url}: {reason}") from None
                failures = 0 if _size(partial) > before else failures + 1
                time.sleep(min(30, 0.1 * 2**failures))
        else:
            raise OSError(f"{archive.url}: {reason}; the same command goes on from {_size(partial):,} bytes")
        _check(partial, archive)
        os.replace(partial, path)
    return path


def is_unpacked(archive: Archive, root: Path) -> bool:
    """Say whether an archive has been unpacked as a whole."""
    return (root / DOWNLOADS / f".{archive.name}.unpacked").is_file()


def unpack(path: Path, archive: Archive, root: Path, quiet: bool | None = None) -> int:
    """Unpack an archive below `root`; return the number of files.

    Only what is in `archive.folder` is unpacked. Files that are there with the right size are kept. Only ordinary files
    inside the root are written: links and devices are left out, and so are hidden files.

    Raises:
        DataError: no archive, damaged, a path that leads outside the root, or far larger than it can be.
        OSError: the disk is full.
    """
    target = root / archive.into
    limit = max(MAX_SMALL, MAX_RATIO * path.stat().st_size)
    met = written = unpacked = 0
    root.mkdir(parents=True, exist_ok=True)
    bar = tqdm(desc=f"unpack {path.name}", unit=" files", disable=quiet)
    try:
        check_room(root, min(limit, _bytes_missing(path, archive, target)), f"unpacking {path.name}")
        for name, size, source in _members(path):
            place = _place(name, archive.folder, path)
            if place is None:
                continue
            unpacked += size
            if unpacked > limit:
                raise DataError(f"{path}: unpacks to more than {limit:,} bytes, which no data set does; fetch it again")
            file = target / place
            if _size(file) != size:
                _write(file, source, size)
                written += 1
            met += 1
            bar.update()
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{path}: damaged ({error}); remove it and run the same command again") from None
    finally:
        bar.close()
    if not met:
        raise DataError(f"{path}: holds no file below {archive.folder or '.'}; it is not the archive that was meant")
    path.with_name(f".{path.name}.unpacked").write_text(f"{unpacked} bytes\n")
    return written


def _download(url: str, partial: Path, quiet: bool | None) -> None:
    """Write what is missing of `url` behind what `partial` holds."""
    begin = _size(partial)
    request = urllib.request.Request(url, headers={"User-Agent": "segmentation-framework"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        # Asked for what lies behind the end: it was complete, or the file on the server has become shorter.
        if error.code == 416 and begin:
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(begin):
                return
            partial.unlink()
        raise
    with answer:
        resumed = answer.status == 206
        length = answer.headers.get("Content-Length")
        total = None if length is None else int(length) + (begin if resumed else 0)
        if length is not None:
            kept = begin if not resumed else 0  # what is overwritten makes room
            check_room(partial.parent, int(length) - kept, partial.name.removesuffix(".part"))
        with open(partial, "ab" if resumed else "wb") as file:
            bar = tqdm(
                desc=partial.name.removesuffix(".part"),
                initial=begin if resumed else 0,
                total=total,
                unit="B",
                unit_scale=True,
                disable=quiet,
            )
            with bar:
                while block := answer.read(CHUNK):
                    file.write(block)
                    bar.update(len(block))
    if total is not None and _size(partial) != total:
        raise ConnectionError(f"the connection ended at {_size(partial):,} of {total:,} bytes")


def _check(partial: Path, archive: Archive) -> None:
    if archive.checksum is None:
        return
    kind, _, wanted = archive.checksum.partition(":")
    digest = hashlib.new(kind)
    with open(partial, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    if digest.hexdigest() != wanted:
        partial.unlink()
        raise DataError(
            f"{archive.url}: the file has the {kind.upper()} {digest.hexdigest()}, but {wanted} is published; it has "
            "been removed, run the same command again"
        )


def _members(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield name, size and contents of the ordinary files of an archive, in its order."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                kind = stat.S_IFMT(item.external_attr >> 16)
                if item.flag_bits & 1:
                    raise DataError(f"{path}: {item.filename} is locked with a password")
                if not item.is_dir() and kind in (0, stat.S_IFREG):
                    with archive.open(item) as source:
                        yield item.filename, item.file_size, source
    elif tarfile.is_tarfile(path):
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    yield member.name, member.size, file
    else:
        raise DataError(f"{path}: neither a ZIP nor a TAR file; remove it and run the same command again")


def _bytes_missing(path: Path, archive: Archive, target: Path) -> int:
    """Count the bytes of the files to unpack that are not there with their size.

    A compressed TAR tells its contents only when it is read as a whole: for it, its own size, unless its first file
    is there.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as contents:
            sizes = [(item.filename, item.file_size) for item in contents.infolist() if not item.is_dir()]
    else:
        try:
            with tarfile.open(path, "r:") as contents:
                sizes = [(item.name, item.size) for item in contents if item.isreg()]
        except tarfile.ReadError:
            first = next(_members(path), None)
            place = None if first is None else _place(first[0], archive.folder, path)
            began = first is not None and place is not None and _size(target / place) == first[1]
            return 0 if began else path.stat().st_size
    places = [(_place(name, archive.folder, path), size) for name, size in sizes]
    return sum(size for place, size in places if place is not None and _size(target / place) != size)


def _place(name: str, folder: str, archive: Path) -> PurePosixPath | None:
    """The path below the target for a member, or None where it is not wanted."""
    place = PurePosixPath(name.replace("\\", "/"))
    if not place.parts:
        return None
    if place.is_absolute() or ".." in place.parts or ":" in place.parts[0]:
        raise DataError(
            f"{archive}: its file {name!r} leads outside of the folder that it is unpacked in; do not use it"
        )
    if any(part.startswith(".") or part == "__MACOSX" for part in place.parts):
        return None
    return place.relative_to(folder) if place.is_relative_to(folder) else None


def _write(file: Path, source: IO[bytes], size: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with open(partial, "wb") as out:
            shutil.copyfileobj(source, out, CHUNK)
        if partial.stat().st_size != size:
            raise EOFError(f"{file.name} is cut short")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help: the server says no, or the disk is full."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 416, 429)
    return isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return str(error.strerror)
    if isinstance(error, urllib.error.URLError):
        return f"cannot be reached ({error.reason})"
    return str(error) or type(error).__name__


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    with open(path, "w") as file:
        try:
            lock(file.fileno(), wait=False)
        except BlockingIOError:
            raise OSError(f"{name} is being downloaded by another process") from None
        yield
