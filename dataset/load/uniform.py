"""Class-uniform sampling: every class has as many crops.

A share of each epoch is drawn so, the rest as always. As in Zhu et al., "Improving semantic segmentation via video
propagation and label relaxation", CVPR 2019, and the recipes of SFSegNets: every label is cut into tiles; in every tile
each class has one point, near the centre of its pixels; the uniform share of an epoch takes the classes in turn, a
point of each, and crops the image so that the point is inside. The rest of the epoch are random crops of random images.
So a rare class is seen as often as a frequent one, which the published numbers of these recipes need.

Four differences from the published code. The point is the pixel of the class that is nearest to the centre
of mass, not the centre itself, which may lie on another class. The tiles cover the whole picture, also one
smaller than a tile. An epoch always has as many samples as the data set. A class that no label holds leaves
its share to the others. Coarsely labelled pictures for chosen classes, and an epoch after which the sampling
stops, are left out.
"""

import hashlib
import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset.base import SegDataset
from dataset.read import DataError
from dataset.read.files import replacing
from dataset.read.identity import fingerprint
from dataset.read.labelmap import IGNORE
from dataset.read.source import read_mapped
from dataset.read.threads import map_threads

# A part of the key: raise it when the points are found in another way, so that old files no longer count.
VERSION = 1
# The largest table that is believed: 67 million points.
MAX_TABLE_BYTES = 1 << 30

# What reading a damaged .npz may raise.
_DAMAGED: tuple[type[Exception], ...]
_DAMAGED = (ValueError, OSError, LookupError, EOFError, TypeError, RuntimeError, MemoryError, struct.error)
_DAMAGED += (zipfile.BadZipFile, zlib.error, lzma.LZMAError)

# See `base.AUGMENTATION_STREAM`: the random streams must not share a seed.
UNIFORM_STREAM = 3


@dataclass(frozen=True)
class Points:
    """Where the classes are.

    table: int32 (P, 4), a row for each class in a tile: class, sample, row, column; by class, then by sample.
    classes: their names.
    """

    table: np.ndarray
    classes: tuple[str, ...]

    @property
    def absent(self) -> list[str]:
        """Give the classes that no label holds."""
        seen = set(np.unique(self.table[:, 0]).tolist())
        return [name for index, name in enumerate(self.classes) if index not in seen]


class Order(NamedTuple):
    """The samples of an epoch.

    indices: int32 (N,). points: int32 (N, 2), the pixel (row, column) that each crop must hold, -1 for any crop.
    """

    indices: np.ndarray
    points: np.ndarray


class ClassUniform:
    """Draws the samples of each epoch from (seed, epoch) alone.

    So they are the same in every process.

    Args:
        points: of the data set.
        length: samples of the data set, and of an epoch.
        share: part of the epoch, 0 to 1, that is class-uniform.

    Raises:
        DataError: the share is none, or no class has a point.
    """

    def __init__(self, points: Points, length: int, share: float):
        if not 0 <= share <= 1:
            raise DataError(f"share: {share} is no share from 0 to 1")
        if not len(points.table):
            raise DataError("class-uniform sampling: no label holds a pixel of any class")
        self.length = length
        self.count = round(share * length)
        starts = np.flatnonzero(np.diff(points.table[:, 0], prepend=-1))
        self.of_class = np.split(points.table[:, 1:], starts[1:])

    def build_epoch(self, seed: int, epoch: int) -> Order:
        """Draw the samples of epoch `epoch`.

        Every class has the same number of samples, or one more where they do not divide; its points are
        taken without repetition, and again from the first when all had their turn. So are the pictures of
        the random crops.
        """
        rng = np.random.default_rng([UNIFORM_STREAM, seed, epoch])
        order = np.full((self.length, 3), -1, np.int32)
        each, more = divmod(self.count, len(self.of_class))
        lucky = set(rng.permutation(len(self.of_class))[:more].tolist())
        start = 0
        for number, points in enumerate(self.of_class):
            end = start + each + (number in lucky)
            order[start:end] = points[_deal(rng, len(points), end - start)]
            start = end
        order[start:, 0] = _deal(rng, self.length, self.length - start)
        rng.shuffle(order)
        return Order(order[:, 0], order[:, 1:])


def _deal(rng: np.random.Generator, length: int, count: int) -> np.ndarray:
    """`count` of 0..length-1 in random order, none twice before all were there once."""
    rounds, rest = divmod(count, length)
    parts = [rng.permutation(length) for _ in range(rounds)]
    return np.concatenate([*parts, rng.choice(length, rest, replace=False)]).astype(np.int64)


def find_points(dataset: SegDataset, tile: int, workers: int = 4, file: str | Path | None = None) -> Points:
    """Find one point for each class in each tile of each label.

    Args:
        dataset: its labels are read, all of them.
        tile: side of a tile in pixels; a label is cut into equal parts of about this size.
        workers: threads.
        file: remembers the result (.npz); as long as the list, the label map, the tile, and the size and time of
            every file are unchanged, the next call reads nothing else.

    Raises:
        DataError, OSError: names a label that cannot be read.
    """
    if tile < 1:
        raise DataError(f"tile: {tile} is no size in pixels")
    key = hashlib.sha256(repr((VERSION, tile, fingerprint(dataset))).encode()).hexdigest() if file else ""
    table = _read(file, key, len(dataset))
    if table is None:
        rows = bytearray()  # one array a sample would take several times the memory
        for found in map_threads(lambda index: _points_of(dataset, index, tile), range(len(dataset)), workers):
            rows += found.tobytes()
        table = np.frombuffer(rows, np.int32).reshape(-1, 4)
        table = table[np.argsort(table[:, 0], kind="stable")]
        if file is not None:
            _write(Path(file), key, table)
    return Points(table, tuple(dataset.classes))


def _points_of(dataset: SegDataset, index: int, tile: int) -> np.ndarray:
    path = dataset.samples[index][1]
    if path is None:
        return np.zeros((0, 4), np.int32)
    with dataset.samples.naming(index):
        label = read_mapped(path, dataset.map_for(path))
    rows, columns = (_cuts(side, tile) for side in label.shape)
    found = [
        (number, index, top + row, left + column)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
        for number, row, column in points_of_tile(label[top:bottom, left:right])
    ]
    return np.array(found, np.int32).reshape(-1, 4)


def _cuts(side: int, tile: int) -> list[int]:
    parts = max(1, round(side / tile))
    return [side * part // parts for part in range(parts + 1)]


def points_of_tile(label: np.ndarray) -> list[tuple[int, int, int]]:
    """List (class, row, column) of each class in a tile.

    The point is the class's pixel nearest to its centre of mass. label: uint8 (H, W).
    """
    label = np.ascontiguousarray(label)
    points = []
    for number in np.flatnonzero(cv2.calcHist([label], [0], None, [256], [0, 256])):
        if number == IGNORE:
            continue
        mask = (label == number).view(np.uint8)
        moments = cv2.moments(mask, binaryImage=True)
        column, row = (round(moments[name] / moments["m00"]) for name in ("m10", "m01"))
        if not mask[row, column]:
            places = cv2.findNonZero(mask).reshape(-1, 2)
            column, row = places[np.square(places - [column, row]).sum(axis=1).argmin()]
        points.append((int(number), int(row), int(column)))
    return points


def _read(file: str | Path | None, key: str, samples: int) -> np.ndarray | None:
    """Read the remembered table, or None.

    There is none for this key and this number of samples.
    """
    if file is None or not Path(file).is_file():
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_TABLE_BYTES:
                return None
        with np.load(file, allow_pickle=False) as content:
            if str(content["key"]) != key:
                return None
            table = content["table"]
    except _DAMAGED:
        return None  # it is written anew
    sound = table.dtype == np.int32 and table.ndim == 2 and table.shape[1] == 4 and len(table)
    return table if sound and table.min() >= 0 and table[:, 1].max() < samples else None


def _write(file: Path, key: str, table: np.ndarray) -> None:
    with replacing(file) as stream:
        np.savez_compressed(stream, key=np.array(key), table=table)
