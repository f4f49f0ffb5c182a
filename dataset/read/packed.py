"""Packed data: the pixels and training ids of a data set in one file, exactly as its files give them, which is mapped
into memory. Only the pages that a crop shows are read, and nothing is decoded, or little.

A folder holds, for each split, the index `SPLIT.json` and the data file that it names. A record of the data file
starts on a page and is one sample:

- codec "raw": picture uint8 (H,W,3), then the label uint8 (H,W) where there is one;
- codec "lz4": a table uint32 (tiles, 2) of length and CRC-32 of every tile, then the tiles: LZ4 blocks of `TILE`
  pixels, row by row, first the picture's and then the label's.

The index has a CRC-32 of every record. Reading verifies the tiles that it unpacks; raw records are verified by
`verify` alone, since a checksum needs all of a picture where a crop needs a part of it. `pack.py` writes both files.
"""

import json
import math
import mmap
import os
import threading
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from dataset.read.files import read_bytes
from dataset.read.identity import describe
from dataset.read.image import MAX_PIXELS

try:
    from lz4 import block as lz4_block  # optional: the codec "lz4"
except ImportError:
    lz4_block = None

FORMAT = 1
TILE = (128, 256)  # height, width
CODECS = ("raw", "lz4")
PAGE = 4096  # bytes
MAX_INDEX = 1 << 30  # bytes: two to four million samples


@dataclass(frozen=True)
class Record:
    """Where a sample stands in the data file, and what it is; checksum: CRC-32 of its `length` bytes."""

    start: int
    length: int
    height: int
    width: int
    labelled: bool
    checksum: int


@dataclass(frozen=True)
class Index:
    """What `SPLIT.json` holds. entries: what each record was made from, see `describe`. size: of the data file."""

    codec: str
    data: str
    size: int
    entries: list[list]
    records: list[Record]

    def save(self, path: Path) -> None:
        """Write it in one piece: whoever reads sees the old index or the new one."""
        partial = path.with_name(path.name + ".tmp")
        with open(partial, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **asdict(self)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


_INDEX = TypeAdapter(Index)


def index_file(folder: str | Path, split: str) -> Path:
    return Path(folder).expanduser() / f"{split}.json"


def read_index(path: Path) -> Index:
    """Raises FileNotFoundError, or ValueError for a file that is damaged or of another version."""
    damaged = ValueError(f"{path}: no index of packed data, or a damaged one; {_anew(path)}")
    try:
        text = read_bytes(path, MAX_INDEX, "index")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no packed data of the split {path.stem} there; pack it (python -m "
            f"tool.pack, see docs/datasets.md), or set loader.packed to null"
        ) from None
    try:
        content = json.loads(text)
        version = content.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    if version != FORMAT:
        raise ValueError(f"{path}: written by another version of this program; {_anew(path)}")
    try:
        index = _INDEX.validate_python(content)
    except ValidationError:
        raise damaged from None
    if (
        index.codec not in CODECS
        or Path(index.data).name != index.data
        or not all(_is_sound(record, index) for record in index.records)
    ):
        raise damaged
    return index


def _is_sound(record: Record, index: Index) -> bool:
    """Whether a record can be one of its data file, where each starts on a page."""
    pixels = record.height * record.width
    if min(record.start, record.length) < 0 or min(record.height, record.width) < 1 or pixels > MAX_PIXELS:
        return False
    whole = index.codec != "raw" or record.length == pixels * (4 if record.labelled else 3)
    return whole and record.start % PAGE == 0 and record.start + record.length <= index.size


class Packed:
    """Serves the samples of a data set from the packed data in `folder`.

    The list may name any of the packed samples, in any order. Raises FileNotFoundError where the split is not
    packed; ValueError, naming the file, where the packed data are damaged or do not fit the data set: a picture
    that is not packed, a file or label map that changed since.
    """

    def __init__(self, folder: str | Path, dataset):
        self.path = index_file(folder, dataset.split)
        self.index = read_index(self.path)
        self.names = [image for image, _ in dataset.samples]
        self.records = list(self._matching(dataset))
        if self.index.codec == "lz4" and lz4_block is None:
            raise ValueError(
                f"{self.path}: packed with LZ4, which is not installed: python -m pip install lz4, or "
                "pack with --codec raw"
            )
        self._open()

    def _open(self) -> None:
        data = self.path.with_name(self.index.data)
        try:
            with open(data, "rb") as file:
                self._check_size(os.fstat(file.fileno()).st_size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ValueError(f"{data}: missing, although {self.path.name} names it; {_anew(self.path)}") from None
        self._last = threading.local()

    def _check_size(self, size: int) -> None:
        if size != self.index.size:
            raise ValueError(
                f"{self.path.with_name(self.index.data)}: {size} bytes, where {self.path.name} tells of "
                f"{self.index.size}; {_anew(self.path)}"
            )

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_map", "_last")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def _matching(self, dataset) -> Iterator[Record]:
        """The record of each sample of the data set, if it was made from just these files."""
        packed = {entry[0]: place for place, entry in enumerate(self.index.entries)}
        for (image, _), wanted in zip(dataset.samples, describe(dataset), strict=True):
            place = packed.get(wanted[0])
            if place is None:
                raise ValueError(
                    f"{self.path}: {image} of {dataset.list_file} is not among the packed pictures; {_anew(self.path)}"
                )
            entry = self.index.entries[place]
            if entry != wanted:
                changed = (
                    image
                    if entry[:3] != wanted[:3]
                    else f"the label of {image}"
                    if entry[3:6] != wanted[3:6]
                    else f"the label map of {dataset.name}"
                )
                raise ValueError(f"{self.path}: {changed} has changed since the data were packed; {_anew(self.path)}")
            yield self.index.records[place]

    def open(self, index: int):
        """Picture and label: views of the mapped file, or `Tiles`. Raises ValueError for a file that was cut since."""
        record = self.records[index]
        self._check_size(self._map.size())  # of the file as it is now: the system ends who reads a page behind its end
        self._forget_last(record)
        if self.index.codec == "lz4":
            return self._open_tiles(index, record)
        height, width = record.height, record.width
        image = np.frombuffer(self._map, np.uint8, height * width * 3, record.start).reshape(height, width, 3)
        if not record.labelled:
            return image, None
        label = np.frombuffer(self._map, np.uint8, height * width, record.start + image.size)
        return image, label.reshape(height, width)

    def _forget_last(self, record: Record) -> None:
        """Give back the pages of this thread's last sample (they stay in the system's cache): without it a process
        seems to fill the memory with all that it ever read."""
        last = getattr(self._last, "record", None)
        if last is not None:
            self._map.madvise(mmap.MADV_DONTNEED, last.start, last.length)
        self._last.record = record

    def _open_tiles(self, index: int, record: Record):
        where = f"{self.path.with_name(self.index.data)}: sample {self.names[index]} is damaged"
        count = math.prod(tile_counts((record.height, record.width)))
        kinds = 2 if record.labelled else 1
        table = np.frombuffer(self._map, "<u4", 2 * count * kinds, record.start).reshape(-1, 2)
        starts = record.start + table.nbytes + np.cumsum([0, *table[:, 0]], dtype=np.int64)
        if int(starts[-1]) != record.start + record.length:
            raise ValueError(f"{where} (its table of tiles); {_anew(self.path)}")
        data = memoryview(self._map)
        parts = [
            Tiles(
                data,
                starts[first : first + count + 1].tolist(),
                table[first : first + count, 1].tolist(),
                (record.height, record.width, *more),
                f"{where}; {_anew(self.path)}",
            )
            for first, more in ((0, (3,)), (count, ()))[:kinds]
        ]
        return parts[0], parts[1] if record.labelled else None


def tile_counts(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many tiles a picture has below and beside one another."""
    return -(-shape[0] // TILE[0]), -(-shape[1] // TILE[1])


class Tiles:
    """An array uint8 of `shape` whose tiles are unpacked when they are asked for: `tiles[rows, columns]`.

    Raises ValueError for a tile whose checksum is wrong.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, data: memoryview, starts: list[int], checksums: list[int], shape: tuple[int, ...], damage: str):
        self.data, self.starts, self.checksums, self.shape, self.damage = data, starts, checksums, shape, damage

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        top, bottom, _ = window[0].indices(self.shape[0])
        left, right, _ = window[1].indices(self.shape[1])
        out = np.empty((bottom - top, right - left, *self.shape[2:]), np.uint8)
        for row in range(top // TILE[0], -(-bottom // TILE[0])):
            y = row * TILE[0]
            first, last = max(top, y), min(bottom, y + TILE[0])
            for column in range(left // TILE[1], -(-right // TILE[1])):
                x = column * TILE[1]
                begin, end = max(left, x), min(right, x + TILE[1])
                out[first - top : last - top, begin - left : end - left] = self._tile(row, column)[
                    first - y : last - y, begin - x : end - x
                ]
        return out

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:, :] if dtype is None else self[:, :].astype(dtype)

    def _tile(self, row: int, column: int) -> np.ndarray:
        number = row * tile_counts(self.shape)[1] + column
        packed = self.data[self.starts[number] : self.starts[number + 1]]
        if zlib.crc32(packed) != self.checksums[number]:
            raise ValueError(self.damage)
        shape = (
            min(TILE[0], self.shape[0] - row * TILE[0]),
            min(TILE[1], self.shape[1] - column * TILE[1]),
            *self.shape[2:],
        )
        unpacked = lz4_block.decompress(packed, uncompressed_size=math.prod(shape))
        return np.frombuffer(unpacked, np.uint8).reshape(shape)


def verify(folder: str | Path, split: str) -> int:
    """Read all packed data of a split against the checksums; the number of samples.

    Raises FileNotFoundError or ValueError naming the data file and the damaged samples.
    """
    path = index_file(folder, split)
    index = read_index(path)
    data = path.with_name(index.data)
    damaged = []
    try:
        with open(data, "rb") as file:
            for entry, record in zip(index.entries, index.records, strict=True):
                file.seek(record.start)
                if zlib.crc32(file.read(record.length)) != record.checksum:
                    damaged.append(entry[0])
    except FileNotFoundError:
        raise ValueError(f"{data}: missing, although {path.name} names it; {_anew(path)}") from None
    if damaged:
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise ValueError(
            f"{data}: {len(damaged)} of {len(index.records)} samples are damaged: "
            f"{', '.join(damaged[:5])}{more}; {_anew(path)}"
        )
    return len(index.records)


def _anew(path: Path) -> str:
    return f"remove {path} and pack again (python -m tool.pack), or set loader.packed to null"
