"""Writes the packed form of a data set, see `packed.py`.

The data grow in `SPLIT.part` beside a journal of what is in it; both reach the disk before the journal tells of it,
so a writing that was killed goes on behind the last sample of the journal, and ends in the same bytes. The data file
gets its name, which comes from its contents, when it is complete, and the index that makes it valid comes last.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import astuple
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from dataset.read import packed
from dataset.read.identity import describe
from dataset.read.packed import CODECS, PAGE, TILE, Index, Record, index_file, read_index
from dataset.read.source import sample_size

LEVEL = 9  # of LZ4's high compression
SYNC_EVERY = 16  # samples
PROBES = 8  # samples that tell how much room LZ4 will need


def pack(
    dataset,
    folder: str | Path,
    codec: str = "raw",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Write the packed form of all samples of `dataset`, or finish one that was begun; its index.

    workers: processes that read and encode. progress: called with (samples done, samples).

    Raises ValueError for a file of the data set that cannot be read; OSError where the disk has not enough room,
    before anything is written, or where another process is packing this split.
    """
    if codec not in CODECS:
        raise ValueError(f"codec: {codec!r}; {' or '.join(CODECS)}")
    if codec == "lz4" and packed.lz4_block is None:
        raise ValueError("codec: lz4 is not installed: python -m pip install lz4; or pack with --codec raw")
    path = index_file(folder, dataset.split)
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = list(describe(dataset))
    if (done := _finished(path, codec, entries)) is not None:
        return done
    with _locked(path.with_suffix(".journal")) as journal:
        part = path.with_suffix(".part")
        records = _resume(journal, part, codec, entries)
        _check_room(dataset, path.parent, codec, len(records))
        _write(dataset, codec, workers, entries, records, (part, journal), progress)
        index = _publish(path, part, codec, entries, records)
    path.with_suffix(".journal").unlink()
    return index


def _finished(path: Path, codec: str, entries: list[list]) -> Index | None:
    """The index that is there, if it is of just these samples and its data are there."""
    if not path.is_file():
        return None
    index = read_index(path)
    data = path.with_name(index.data)
    same = index.codec == codec and index.entries == entries
    return index if same and data.is_file() and data.stat().st_size == index.size else None


@contextmanager
def _locked(path: Path):
    """The open journal, which no other process has; a killed process's lock is free."""
    with open(path, "a+", encoding="utf-8") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{path}: another process is packing this split; wait for it") from None
        yield journal


def _resume(journal, part: Path, codec: str, entries: list[list]) -> list[Record]:
    """The records that are written already; cuts journal and data behind them."""
    journal.seek(0)
    head = {"format": packed.FORMAT, "codec": codec}
    lines = journal.read().split("\n")[:-1]  # what follows the last line end was cut short
    records: list[Record] = []
    if lines and json.loads(lines[0]) == head:
        for line, entry in zip(lines[1:], entries, strict=False):
            written, record = json.loads(line)
            if written != entry:
                break
            records.append(Record(*record))
    named = part.with_name(_name(part.stem, codec, entries, records))
    if named.is_file() and not part.is_file():
        os.replace(named, part)  # it was killed between the name and the index
    if not part.is_file():
        records = []
    journal.seek(0)
    journal.truncate()
    _append(journal, [json.dumps(head), *map(_line, entries, records)])
    with open(part, "ab") as data:
        data.truncate(records[-1].start + records[-1].length if records else 0)
    return records


def _write(
    dataset,
    codec: str,
    workers: int,
    entries: list[list],
    records: list[Record],
    files,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Append the samples that are missing to the data and to `records`."""
    part, journal = files
    first = noted = len(records)
    try:
        with open(part, "ab") as data:
            for parts, facts in _encoded(dataset, codec, range(first, len(entries)), workers):
                start = _end(records)
                data.write(b"\0" * (start - data.tell()))
                checksum = 0
                for piece in parts:
                    data.write(piece)
                    checksum = zlib.crc32(piece, checksum)
                records.append(Record(start, sum(map(len, parts)), *facts, checksum))
                if len(records) - noted >= SYNC_EVERY or len(records) == len(entries):
                    data.flush()
                    os.fsync(data.fileno())
                    _append(journal, map(_line, entries[noted:], records[noted:]))
                    noted = len(records)
                if progress is not None:
                    progress(len(records), len(entries))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"{part}: no space left on the disk after {noted} of {len(entries)} samples; "
            "make room and give the same command again, it goes on there",
        ) from None


def _end(records: list[Record]) -> int:
    """Where the next record starts."""
    end = records[-1].start + records[-1].length if records else 0
    return -(-end // PAGE) * PAGE


def _line(entry: list, record: Record) -> str:
    return json.dumps([entry, astuple(record)])


def _append(journal, lines) -> None:
    journal.write("".join(line + "\n" for line in lines))
    journal.flush()
    os.fsync(journal.fileno())


def _publish(path: Path, part: Path, codec: str, entries: list[list], records: list[Record]) -> Index:
    """Give the complete data their name, write the index, and remove the data of the index before."""
    before = None
    if path.is_file():
        before = path.with_name(read_index(path).data)
    data = path.with_name(_name(path.stem, codec, entries, records))
    index = Index(codec, data.name, part.stat().st_size, entries, records)
    os.replace(part, data)
    index.save(path)
    if before is not None and before != data:
        before.unlink(missing_ok=True)
    return index


def _name(split: str, codec: str, entries: list[list], records: list[Record]) -> str:
    content = json.dumps([codec, entries, [astuple(record) for record in records]])
    return f"{split}-{hashlib.sha256(content.encode()).hexdigest()[:12]}.pack"


def _encoded(dataset, codec: str, indices, workers: int) -> Iterator[tuple[list[bytes], tuple[int, int, bool]]]:
    """The pieces of each record, and (height, width, labelled), in order, by processes that work ahead."""
    if workers < 2:
        yield from (encode(dataset, codec, index) for index in indices)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(dataset, codec)) as pool:
        left = iter(indices)
        waiting = deque(pool.submit(_encode_in_worker, index) for index in islice(left, 2 * workers))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(_encode_in_worker, index) for index in islice(left, 1))
                yield result
        except BrokenProcessPool:
            raise OSError(
                "packing: a worker was killed, perhaps for want of memory; give the same command again, it "
                "goes on behind what is written, and --workers 1 takes the least"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple = ()


def _start_worker(dataset, codec: str) -> None:
    global _worker
    _worker = (dataset, codec)
    cv2.setNumThreads(0)


def _encode_in_worker(index: int):
    return encode(*_worker, index)


def encode(dataset, codec: str, index: int) -> tuple[list[bytes], tuple[int, int, bool]]:
    """The pieces of a sample's record, and (height, width, labelled)."""
    image, label = dataset.source.open(index)
    arrays = [np.ascontiguousarray(array) for array in (image, label) if array is not None]
    facts = (*arrays[0].shape[:2], label is not None)
    if codec == "raw":
        return [array.tobytes() for array in arrays], facts
    tiles = [
        packed.lz4_block.compress(tile.tobytes(), mode="high_compression", compression=LEVEL, store_size=False)
        for array in arrays
        for tile in cut(array)
    ]
    table = np.array([(len(tile), zlib.crc32(tile)) for tile in tiles], "<u4")
    return [table.tobytes(), *tiles], facts


def cut(array: np.ndarray) -> Iterator[np.ndarray]:
    """The tiles of a picture or label, row by row."""
    height, width = TILE
    for top in range(0, array.shape[0], height):
        for left in range(0, array.shape[1], width):
            yield array[top : top + height, left : left + width]


def _check_room(dataset, folder: Path, codec: str, done: int) -> None:
    """Raise OSError unless the disk has room for the samples from number `done` on."""
    left = range(done, len(dataset))
    needed = 0
    for index in left:
        image, label = dataset.samples[index]
        height, width = sample_size(image, label)
        needed += -(-height * width * (3 if label is None else 4) // PAGE) * PAGE
    about = ""
    if codec == "lz4" and left:
        probes = [left[len(left) * number // PROBES] for number in range(min(PROBES, len(left)))]
        pieces = [encode(dataset, codec, index) for index in probes]
        ratio = sum(len(piece) for parts, _ in pieces for piece in parts) / sum(
            height * width * (4 if labelled else 3) for _, (height, width, labelled) in pieces
        )
        needed, about = int(needed * ratio * 1.1), "about "
    free = shutil.disk_usage(folder).free
    if needed > free:
        hint = ", or choose --codec lz4, which takes about two thirds" if codec == "raw" else ""
        raise OSError(
            errno.ENOSPC,
            f"{folder}: packing needs {about}{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            f"free; make room, or give another folder with --out DIR{hint}",
        )
