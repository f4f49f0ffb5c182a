"""Samples in tar shards, in the layout of WebDataset.

The files of a sample stand in one tar and share a stem: `0001.jpg` is the image, `0001.seg.png` its label. WebDataset
reads shards as streams. Here an index of each tar (made once, and remembered) says where its files begin, so that any
sample is read at any time, and a training on shards has the order of one on files.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from dataset.read import DataError
from dataset.read.files import replacing, require_file
from dataset.read.listfile import Pair, Samples, read_list
from dataset.read.remote import Member, Part, Url, facts_of, is_url

IMAGES = ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "ppm", "pgm", "gif", "npy")
LABELS = ("seg", "label", "mask")
VERSION = 1  # of an index
READ_AHEAD = 1 << 18  # bytes that are fetched at once while a tar is indexed: the next header is mostly within
AT_ONCE = 8  # shards that are indexed at the same time
_BRACES = re.compile(r"\{([^{}]*)\}")


class Index(NamedTuple):
    """Where the samples of a tar are.

    names: of image and label, or nothing, all in one buffer, each ended by a NUL. starts: int64 (N + 1), of each sample
    there. table: int64 (N, 4), offset and size of image and label, -1 where there is none. version: of the tar.
    """

    names: bytes
    starts: np.ndarray
    table: np.ndarray
    version: str

    def pair(self, row: int) -> tuple[str, str]:
        """Return the names of an image and its label, "" for none."""
        image, label, _ = self.names[self.starts[row] : self.starts[row + 1]].split(b"\0")
        return os.fsdecode(image), os.fsdecode(label)


class Shards(Samples):
    """The samples of tar shards, in their order; see `Index`."""

    def __init__(self, shards: list[str], indices: list[Index]):
        self.shards, self.indices = shards, indices
        self.ends = np.cumsum([len(index.table) for index in indices])
        self.unlabelled = sum(int((index.table[:, 3] < 0).sum()) for index in indices)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def item(self, index: int) -> Pair:
        """Return the paths of one sample."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        shard, known = self.shards[number], self.indices[number]
        row = index - int(self.ends[number]) + len(known.table)
        (image, label), places = known.pair(row), known.table[row].tolist()
        first = Member(shard, image, places[0], places[1], known.version)
        return first, Member(shard, label, places[2], places[3], known.version) if label else None


def read_samples(list_file: Path | Url, root: Path | Url, needs_label: bool) -> Samples:
    """Read a list file, or tar shards in its place.

    These are named as `train.tar` or `train-{000..009}.tar`.

    Raises:
        FileNotFoundError, DataError: names the list and line, or the shard and its file.
    """
    if not str(list_file).endswith(".tar"):
        return read_list(list_file, root, needs_label)
    shards = expand(str(list_file))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        indices = list(pool.map(index_of, shards))
    for shard, index in zip(shards, indices, strict=True):
        if needs_label and (index.table[:, 3] < 0).any():
            lone = np.flatnonzero(index.table[:, 3] < 0).tolist()
            raise DataError(
                f"{shard}: {len(lone)} of {len(index.table)} images have no label (first: {index.pair(lone[0])[0]}); "
                "the label of 0001.jpg is 0001.seg.png, 0001.label.png or 0001.mask.png"
            )
    return Shards(shards, indices)


def expand(pattern: str) -> list[str]:
    """Write out the braces of a pattern: {000..009}, or {a,b}.

    Raises:
        DataError: a range that is none.
    """
    parts = _BRACES.split(pattern)
    choices: list[list[str]] = []
    for number, part in enumerate(parts):
        if number % 2 == 0:
            choices.append([part])
        elif ".." in part:
            first, _, last = part.partition("..")
            if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
                raise DataError(f"{pattern}: {{{part}}} is no range; write {{000..009}}")
            choices.append([str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(","))
    return ["".join(each) for each in product(*choices)]


def index_of(shard: str) -> Index:
    """Return the index of a tar, remembered or new.

    Raises:
        FileNotFoundError, DataError: names the shard, and the file in it.
    """
    version = _version(shard)
    file = _folder() / f"{hashlib.sha256(f'{VERSION} {shard} {version}'.encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            return Index(stored["names"].tobytes(), stored["starts"], stored["table"], version)
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        pass  # none there, or cut short; it is written anew
    index = _indexed(shard, version)
    try:
        with replacing(file) as out:
            np.savez(out, names=np.frombuffer(index.names, np.uint8), starts=index.starts, table=index.table)
    except OSError:
        pass  # no folder to write to: the next process reads the tar again
    return index


def _folder() -> Path:
    """Give the folder of the remembered indices."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "segmentation", "shards")


def _version(shard: str) -> str:
    """Give what changes with a file: its size, and its time or tag."""
    if not is_url(shard):
        require_file(shard, "shard")
        status = os.stat(shard)
        known: list = [status.st_size, status.st_mtime_ns]
    else:
        told = {name.lower(): str(value) for name, value in facts_of(shard).items()}
        known = [told.get(name) for name in ("size", "etag", "mtime", "lastmodified", "updated", "created")]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def _indexed(shard: str, version: str) -> Index:
    """Find the samples of a tar by reading its headers."""
    found: dict[str, list] = {}  # stem -> image, its offset and size, label, its offset and size
    others: list[str] = []
    size = require_file(shard, "shard")
    file = cast(BinaryIO, io.BufferedReader(Part(shard, 0, size), READ_AHEAD))
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep some 2 KB of each
                if member.size < 0 or "\0" in member.name:  # a negative size leads back to headers that were read
                    raise DataError(f"{shard}: {member.name!r} is damaged; fetch it again")
                if not member.isreg() or member.name.rpartition("/")[2].startswith("."):
                    continue  # folders, and hidden files: macOS leaves a `._NAME` beside each
                if member.issparse() or member.offset_data + member.size > size:
                    raise DataError(f"{shard}: cut short within {member.name}; fetch it again")
                if not _add(found, shard, member):
                    others.append(member.name)
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
            if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
                how = "damaged" if len(end) == tarfile.BLOCKSIZE else "cut short"
                raise DataError(f"{shard}: {how} at byte {tar.offset:,}; fetch it again")
    except DataError:
        raise
    except (tarfile.TarError, ValueError, ArithmeticError, MemoryError) as error:
        raise DataError(f"{shard}: no tar that can be read ({error}); a shard is not compressed") from None
    for stem, entry in found.items():
        if entry[0] is None:
            raise DataError(f"{shard}: the label {entry[3]} has no image; it would be called {stem}.jpg or {stem}.png")
    if not found:
        seen = f" (it holds {others[0]})" if others else ""
        raise DataError(f"{shard}: no image{seen}; a sample is STEM.jpg and STEM.seg.png, its STEM without dots")
    rows = list(found.values())
    names = [os.fsencode(f"{row[0]}\0{row[3] or ''}\0") for row in rows]
    table = np.array([[*row[1:3], *row[4:]] for row in rows], np.int64)
    return Index(b"".join(names), np.cumsum([0, *map(len, names)]), table, version)


def _add(found: dict[str, list], shard: str, member: tarfile.TarInfo) -> bool:
    """Add a file of a tar to its sample; False where it is neither image nor label."""
    folder, slash, base = member.name.rpartition("/")
    stem, _, suffix = base.partition(".")
    kind, _, ending = suffix.lower().rpartition(".")
    if ending not in IMAGES or kind not in ("", *LABELS):
        return False
    stem, place = folder + slash + stem, 3 if kind else 0
    entry = found.setdefault(stem, [None, -1, -1, None, -1, -1])
    if entry[place] is not None:
        what = "labels" if kind else "images"
        raise DataError(f"{shard}: two {what} of one stem, {entry[place]} and {member.name}; a label is {stem}.seg.png")
    entry[place : place + 3] = member.name, member.offset_data, member.size
    return True
