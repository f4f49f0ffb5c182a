"""Values remembered in a file as they come.

Work that is cut goes on where it stopped. A line is a key of 64 bits, the CRC-32 of what follows, and a value as JSON.
A line that is not whole, as a killed process leaves its last one, is passed over.
"""

import json
import os
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dataset.read.files import replacing

_VALUE = 26  # where it begins in a line, behind key and sum


def scan(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys of a file, sorted, and where their lines begin.

    uint64 and int64 (N,); none where there is no file.
    """
    keys, places, place = array("Q"), array("q"), 0
    if file.is_file():
        with open(file, "rb") as lines:
            for line in lines:
                if (key := _key_of(line)) is not None:
                    keys.append(key)
                    places.append(place)
                place += len(line)
    known = np.array(keys, np.uint64)
    order = np.argsort(known, kind="stable")
    return known[order], np.array(places, np.int64)[order]


def _key_of(line: bytes) -> int | None:
    try:
        key, checksum = int(line[:16], 16), int(line[17:25], 16)
    except ValueError:
        return None
    return key if line.endswith(b"\n") and zlib.crc32(line[_VALUE:-1]) == checksum else None


@contextmanager
def appending(file: Path) -> Iterator[BinaryIO]:
    """Open a file for `remember`, behind its last line.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+b", buffering=0) as out:  # each line is the system's at once, which outlives this process
        if out.seek(0, os.SEEK_END):
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")
        yield out


def remember(out: BinaryIO, key: int, value: Any) -> None:
    """Write a value under its key."""
    text = json.dumps(value, separators=(",", ":")).encode()
    out.write(b"%016x %08x %s\n" % (key, zlib.crc32(text), text))


def recall(file: Path, keys: np.ndarray) -> Iterator[Any]:
    """Yield the values of keys, uint64 (N,), all of which are there."""
    known, places = scan(file)
    with open(file, "rb") as lines:
        for place in places[np.searchsorted(known, keys)].tolist():
            lines.seek(place)
            yield json.loads(lines.readline()[_VALUE:])


def forget_others(file: Path, keys: np.ndarray) -> None:
    """Leave only the lines of `keys`, where most are others."""
    known, _ = scan(file)
    if len(known) > 2 * len(keys):
        values = recall(file, keys)
        with replacing(file) as out:
            for key, value in zip(keys.tolist(), values, strict=True):
                remember(out, key, value)
