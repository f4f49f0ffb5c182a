"""Inspects samples: headers, sizes, the values of their labels."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from dataset.base import SegDataset
from dataset.prepare.workers import map_ordered
from dataset.read import DataError
from dataset.read.header import Header, read_facts
from dataset.read.image import Limits, apply_rotation, check_bands, read_stored
from dataset.read.labelmap import Key, LabelMap
from dataset.read.listfile import Pair
from dataset.read.remote import is_url
from dataset.read.source import check_sizes
from dataset.read.threads import map_threads

MAX_UNKNOWN = 256  # colours of one label, above which it is no label
THREADS, NETWORK_THREADS = 4, 16
WORTH_PROCESSES = 20_000  # samples
BLOCK = 64  # samples that a process takes at once
# Up to this size float32, in which OpenCV counts, holds every whole number.
_EXACT_COUNT = 1 << 24


@dataclass(frozen=True)
class Finding:
    """One sample.

    size: of the picture. header: of its file. raw: the values of its label on disk and their pixels (None: no label, or
    one of colours). mapped: pixels of each training id (None: no label). unknown: pixels of the values that the map
    does not know. palette: the colours of the ids that were taken from a palette.
    """

    size: tuple[int, int]
    header: Header
    raw: tuple[np.ndarray, np.ndarray] | None = None
    mapped: np.ndarray | None = None
    unknown: dict[Key, int] = field(default_factory=dict)
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Block:
    """Samples that a worker process inspects, with what `_inspect` asks of a data set.

    samples: by their index. maps: the label maps, and maps_of: which one reads a label.
    """

    samples: dict[int, Pair]
    maps: list[LabelMap]
    maps_of: dict[str, int]
    channels: int
    limits: Limits | None

    def map_for(self, label_path: str) -> LabelMap:
        return self.maps[self.maps_of[label_path]]

    def inspect(self) -> list[tuple[int, Finding | Exception]]:
        """Inspect the samples."""
        return [_tried(self, index) for index in self.samples]


def inspected(
    dataset: SegDataset, indices: Sequence[int], workers: int | None
) -> Iterator[tuple[int, Finding | Exception]]:
    """Inspect samples in order, by threads; many of them by processes.

    Decoders of small files leave the interpreter little time for other threads, but processes take seconds to start.
    """
    remote = is_url(dataset.samples[0][0])
    processes = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0])
    if remote or len(indices) < WORTH_PROCESSES or processes == 1:
        threads = workers or (NETWORK_THREADS if remote else THREADS)
        yield from map_threads(lambda index: _tried(dataset, index), indices, threads)
        return
    blocks = (_block(dataset, indices[start : start + BLOCK]) for start in range(0, len(indices), BLOCK))
    for found in map_ordered(_Block.inspect, blocks, processes):
        yield from found


def _block(dataset: SegDataset, indices: Sequence[int]) -> _Block:
    maps: dict[int, LabelMap] = {}
    maps_of: dict[str, int] = {}
    samples = {index: dataset.samples[index] for index in indices}
    for _, label in samples.values():
        if label is not None:
            map_ = dataset.map_for(label)
            maps.setdefault(id(map_), map_)
            maps_of[label] = list(maps).index(id(map_))
    return _Block(samples, list(maps.values()), maps_of, dataset.channels, dataset.limits)


def _tried(dataset: SegDataset | _Block, index: int) -> tuple[int, Finding | Exception]:
    """Inspect a sample, and return what is found or the error.

    So one bad file does not hide the next.
    """
    try:
        return index, _inspect(dataset, index)
    except (ValueError, OSError) as error:
        return index, error


def _inspect(dataset: SegDataset | _Block, index: int) -> Finding:
    image_path, label_path = dataset.samples[index]
    header = read_facts(image_path)
    check_bands(image_path, header, dataset.channels, dataset.limits)
    size = header.size
    if label_path is None:
        return Finding(header.upright, header)
    stored = read_stored(label_path)
    map_ = dataset.map_for(label_path)
    raw = map_.raw_values(stored, label_path)
    if apply_rotation(size, header.orientation, raw.shape[:2]):
        size = header.upright
    check_sizes(image_path, size, label_path, raw.shape[:2])
    if raw.ndim == 3:
        unknown = map_.unknown_values(raw, label_path)
        if len(unknown) > MAX_UNKNOWN:
            hint = "a picture, or a label whose edges were smoothed or compressed with loss"
            raise DataError(f"{label_path}: {len(unknown):,} colours are not in the label map of {map_.owner}: {hint}")
        return Finding(size, header, None, None if unknown else _histogram(map_.apply(raw, label_path)), unknown)
    counts = _histogram(raw)
    unknown = {}
    if (counts[map_.unknown[: len(counts)] > 0] > 0).any() or not map_.has_ids:
        unknown = map_.unknown_values(raw, label_path)
    mapped = np.bincount(map_.table[: len(counts)], weights=counts, minlength=256).astype(np.int64)
    values = np.flatnonzero(counts)
    palette = {}
    if stored.palette is not None and raw is stored.values:
        palette = {int(i): tuple(stored.palette[i].tolist()) for i in values if i < len(stored.palette)}
    return Finding(size, header, (values, counts[values]), mapped, unknown, palette)


def _histogram(label: np.ndarray) -> np.ndarray:
    """Count the pixels of each value, int64 (256,) or, for 16 bit labels, (65536,)."""
    if label.dtype == np.uint8 and label.size <= _EXACT_COUNT:
        # OpenCV lets the other threads run meanwhile, NumPy's bincount does not.
        return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(label.ravel(), minlength=256 if label.dtype == np.uint8 else 65536)
