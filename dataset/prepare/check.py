"""Checks a data set before the first step.

Reads every label once, compares sizes, names every mistake's file. However long the list, what is kept are sums and a
few examples of each mistake; they are written down as the check goes on, so that one that was killed continues.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import pydantic
from pydantic import TypeAdapter, ValidationError

from dataset.base import SegDataset
from dataset.prepare.hints import misnamed, sharing, unknown_hint
from dataset.prepare.workers import map_ordered
from dataset.read import DataError
from dataset.read.files import read_bytes, replacing
from dataset.read.header import Header, read_facts
from dataset.read.identity import fingerprint, map_digest
from dataset.read.image import Limits, apply_rotation, check_bands, read_bands, read_image, read_stored
from dataset.read.labelmap import IGNORE, Key, LabelMap
from dataset.read.listfile import Images, Pair, Samples
from dataset.read.remote import is_url
from dataset.read.source import check_sizes
from dataset.read.threads import map_threads

SHOWN_ERRORS = 5
MAX_UNKNOWN = 256  # colours of one label, above which it is no label
MAX_VALUES = 4096  # unknown values of a map that are told apart
MAX_SIZES = 1000  # different sizes of images that are told apart
MAX_DECODED = 16  # deep pictures that are decoded to see which values they use
MAX_STAMP_BYTES = 1 << 24
THREADS, NETWORK_THREADS = 4, 16
WORTH_PROCESSES = 20_000  # samples
BLOCK = 64  # samples that a process takes at once
SAVE_SECONDS = 20.0  # from one record of a check to the next
SAMPLE_STREAM = 5  # of the samples that are drawn
# Up to this size float32, in which OpenCV counts, holds every whole number.
_EXACT_COUNT = 1 << 24

Index = Annotated[int, pydantic.Field(ge=0)]
Id = Annotated[int, pydantic.Field(ge=0, le=65535)]
SizeText = Annotated[str, pydantic.Field(pattern=r"^\d{1,9}x\d{1,9}$")]  # height and width


@dataclass(frozen=True)
class Report:
    """Findings of the check in one list.

    images: those that were read. pixels: labelled pixels of each class. around: pixels of all labels that hold it.
    ignored: ignored pixels. smallest, largest: (height, width) of the pictures of the fewest and the most pixels.
    warnings: what is allowed but looks wrong. palette: the colours (index, red, green, blue) of the ids that were read
    from palettes. sizes: (height, width, pictures), the most frequent first, at most `MAX_SIZES`. cached: read from the
    stamp.
    """

    name: str
    split: str
    list_file: str
    images: int
    labelled: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    pixels: tuple[int, ...]
    ignored: int
    warnings: tuple[str, ...]
    palette: tuple[tuple[int, int, int, int], ...] = ()
    around: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int, int], ...] = ()
    cached: bool = False


@dataclass(frozen=True)
class _Finding:
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


@dataclass
class _Unknown:
    """A value that a label map lacks.

    count: labels that hold it. files: the first of them. code: the same for values that the same labels hold.
    """

    count: int = 0
    files: list[str] = field(default_factory=list)
    code: int = 0


@dataclass
class _Values:
    """The values on disk that one label map reads.

    first: a sample that it reads. pixels: of each id. unknown: by the value as text, "7" or "1,2,3".
    """

    first: Index
    pixels: dict[Id, int] = field(default_factory=dict)
    unknown: dict[str, _Unknown] = field(default_factory=dict)


@dataclass
class _Tally:
    """Sums over the samples that were read, of a size that does not grow with their number.

    done: samples. bad: those that cannot be used; failed: those of an error, errors: the first. mapped, around: pixels
    of each training id, and of all labels that hold it. values: by the digest of a label map. palette: colour of each
    index, and the label that has it first; conflict: of two. sizes: images of each "HEIGHTxWIDTH". blank: labels in
    which everything is ignored. clear: images with a band of transparency; deep: images of more than 8 bits; chosen:
    every `stride`-th of them.
    """

    done: int = 0
    bad: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    images: int = 0
    labelled: int = 0
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)
    mapped: dict[int, int] = field(default_factory=dict)
    around: dict[int, int] = field(default_factory=dict)
    values: dict[str, _Values] = field(default_factory=dict)
    palette: dict[int, tuple[tuple[int, int, int], str]] = field(default_factory=dict)
    conflict: str = ""
    sizes: dict[SizeText, int] = field(default_factory=dict)
    blank: int = 0
    first_blank: str = ""
    clear: int = 0
    first_clear: str = ""
    deep: int = 0
    chosen: list[Index] = field(default_factory=list)
    stride: Index = 1

    def add(self, dataset: SegDataset, index: int, found: _Finding | Exception) -> None:
        """Add one sample."""
        self.done += 1
        if isinstance(found, Exception):
            self.bad += 1
            self.failed += 1
            if len(self.errors) < SHOWN_ERRORS:
                self.errors.append(str(found))
            return
        image_path, label_path = dataset.samples[index]
        self._add_image(index, image_path, found, dataset.channels)
        if label_path is not None:
            map_ = dataset.map_for(label_path)
            self._add_values(index, label_path, found, self.values.setdefault(map_digest(map_), _Values(index)))
        for entry, color in found.palette.items():
            known, path = self.palette.setdefault(entry, (color, str(label_path)))
            if known != color and not self.conflict:
                self.conflict = palettes_differ(entry, known, path, color, str(label_path))

    def _add_image(self, index: int, path: str, found: _Finding, channels: int) -> None:
        area = found.size[0] * found.size[1]
        if not self.images or area < self.smallest[0] * self.smallest[1]:
            self.smallest = found.size
        if area >= self.largest[0] * self.largest[1]:
            self.largest = found.size
        self.images += 1
        size = f"{found.size[0]}x{found.size[1]}"
        if size in self.sizes or len(self.sizes) < MAX_SIZES:
            self.sizes[size] = self.sizes.get(size, 0) + 1
        if found.header.alpha and found.header.bands > channels:
            self.clear += 1
            self.first_clear = self.first_clear or path
        if found.header.dtype not in ("bool", "uint8"):
            if self.deep % self.stride == 0:
                self.chosen.append(index)
            self.deep += 1
            if len(self.chosen) > 2 * MAX_DECODED:
                self.chosen, self.stride = self.chosen[::2], 2 * self.stride

    def _add_values(self, index: int, path: str, found: _Finding, values: _Values) -> None:
        self.bad += bool(found.unknown)
        for value in found.unknown:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if text in values.unknown or len(values.unknown) < MAX_VALUES:
                unknown = values.unknown.setdefault(text, _Unknown())
                unknown.count += 1
                unknown.code ^= hash((index, 1))
                if len(unknown.files) < SHOWN_ERRORS:
                    unknown.files.append(path)
        if found.raw is not None:
            for value, pixels in zip(*(each.tolist() for each in found.raw), strict=True):
                values.pixels[value] = values.pixels.get(value, 0) + pixels
        if found.mapped is not None:
            self.labelled += 1
            total = int(found.mapped.sum())
            if found.mapped[IGNORE] == total:
                self.blank += 1
                self.first_blank = self.first_blank or path
            for number in np.flatnonzero(found.mapped).tolist():
                self.mapped[number] = self.mapped.get(number, 0) + int(found.mapped[number])
                self.around[number] = self.around.get(number, 0) + total


def check_dataset(
    dataset: SegDataset,
    workers: int | None = None,
    stamp: str | Path | None = None,
    sample: int | None = None,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Report:
    """Check all labels and image headers; report pixels by class.

    Args:
        dataset: its files are read.
        workers: threads, or processes for a long list; None: 4 threads, 16 where files come over a network,
            or a process for each core.
        stamp: a JSON file that remembers the result; as long as the list, the label map, and the size and time of
            the files (see `fingerprint`) are unchanged, the next call returns the remembered report. A check that was
            cut continues from its record, STAMP.part.
        sample: only so many samples are read, drawn at random, always the same.
        progress: called with the samples that are done and their number, at the begin and with every record.

    Raises:
        DataError: names the first offending files and how many there are: a value that is not in the label map, a
            label of another size than its image, a file that cannot be read.
    """
    indices: Sequence[int] = range(len(dataset))
    if sample is not None and sample < len(dataset):
        rng = np.random.default_rng([SAMPLE_STREAM])
        indices = np.sort(rng.choice(len(dataset), sample, replace=False)).tolist()
    count = len(indices)
    key, part = "", None
    if stamp is not None:
        key = f"{fingerprint(dataset)} {count}"
        part = Path(f"{stamp}.part")
        report = _remembered(Path(stamp), key, "report", _REPORT)
        if report is not None and len(report.pixels) == len(report.around) == len(dataset.classes):
            return replace(report, cached=True)
    tally = _begun(part, key, count, len(dataset))
    progress(tally.done, count)

    saved = time.monotonic()
    for index, found in _inspected(dataset, indices[tally.done :], workers):
        if isinstance(found, (DataError, FileNotFoundError)):
            found = dataset.samples.missing(index) or found
        tally.add(dataset, index, found)
        if part is not None and time.monotonic() - saved > SAVE_SECONDS:
            _remember(part, key, "tally", tally)
            progress(tally.done, count)
            saved = time.monotonic()
    if part is not None:
        part.unlink(missing_ok=True)
    if tally.bad:
        raise DataError(_summary(dataset, tally))
    report = _report(dataset, tally)
    if stamp is not None:
        _remember(Path(stamp), key, "report", report)
    return report


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

    def inspect(self) -> list[tuple[int, _Finding | Exception]]:
        """Inspect the samples."""
        return [_tried(self, index) for index in self.samples]


def _inspected(
    dataset: SegDataset, indices: Sequence[int], workers: int | None
) -> Iterator[tuple[int, _Finding | Exception]]:
    """Inspect samples in their order, by threads, or by processes where there are many.

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


def _tried(dataset: SegDataset | _Block, index: int) -> tuple[int, _Finding | Exception]:
    """Inspect a sample; an error is a value, so that one bad file does not hide the next."""
    try:
        return index, _inspect(dataset, index)
    except (ValueError, OSError) as error:
        return index, error


def compare_splits(train: SegDataset, train_report: Report, val: SegDataset, val_report: Report) -> list[str]:
    """List warnings about two lists that are used together.

    Classes that only the second holds, images that both hold.

    Raises:
        DataError: the palettes of their labels give one index different colours.
    """
    known = {index: (r, g, b) for index, r, g, b in train_report.palette}
    for index, r, g, b in val_report.palette:
        if (first := known.get(index, (r, g, b))) != (r, g, b):
            where, other = f"the labels of {train.list_file}", str(val.list_file)
            raise DataError(palettes_differ(index, first, where, (r, g, b), other))
    warnings = []
    counts = zip(train.classes, train_report.pixels, val_report.pixels, strict=True)
    absent = [name for name, seen, wanted in counts if wanted and not seen]
    if absent:
        warnings.append(
            f"classes of {val.list_file} that never occur in {train.list_file}, so no network "
            f"can learn them: {_names(absent[:10], len(absent))}"
        )
    shared = shared_images(train.samples, val.samples)
    if len(shared):
        warnings.append(
            f"{len(shared)} pictures are in {train.list_file} and in {val.list_file} (first: "
            f"{val.samples[shared[0]][0]}); a score on pictures of the training is no score"
        )
    return warnings


def shared_images(first: Samples, second: Samples) -> list[int]:
    """List the images of the second list that the first holds too.

    By the file that a path leads to, through links of folders and of files, as long as a file's name stays the same.
    """
    lists = (first, second)
    names = [
        np.fromiter((hash(os.path.basename(path)) for path in Images(each)), np.int64, len(each)) for each in lists
    ]
    same = [np.flatnonzero(np.isin(own, other)).tolist() for own, other in (names, names[::-1])]
    files = [
        np.array([hash(os.path.realpath(each[index][0])) for index in indices], np.int64)
        for each, indices in zip(lists, same, strict=True)
    ]
    return [index for index, held in zip(same[1], np.isin(files[1], files[0]).tolist(), strict=True) if held]


def _inspect(dataset: SegDataset | _Block, index: int) -> _Finding:
    image_path, label_path = dataset.samples[index]
    header = read_facts(image_path)
    check_bands(image_path, header, dataset.channels, dataset.limits)
    size = header.size
    if label_path is None:
        return _Finding(header.upright, header)
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
        return _Finding(size, header, None, None if unknown else _histogram(map_.apply(raw, label_path)), unknown)
    counts = _histogram(raw)
    unknown = {}
    if (counts[map_.unknown[: len(counts)] > 0] > 0).any() or not map_.has_ids:
        unknown = map_.unknown_values(raw, label_path)
    mapped = np.bincount(map_.table[: len(counts)], weights=counts, minlength=256).astype(np.int64)
    values = np.flatnonzero(counts)
    palette = {}
    if stored.palette is not None and raw is stored.values:
        palette = {int(i): tuple(stored.palette[i].tolist()) for i in values if i < len(stored.palette)}
    return _Finding(size, header, (values, counts[values]), mapped, unknown, palette)


def _unknown_values(dataset: SegDataset, tally: _Tally) -> list[str]:
    """Tell where each unknown value stands, and which map would ignore it."""
    lines = []
    for map_, each in _maps(dataset, tally):
        values: dict[Key, _Unknown] = {}
        for text, found in each.unknown.items():
            red, *others = map(int, text.split(","))
            values[(red, others[0], others[1]) if others else red] = found
        by_files: dict[tuple[int, int], list[Key]] = {}
        for value in sorted(values, key=str):
            by_files.setdefault((values[value].count, values[value].code), []).append(value)
        for group in list(by_files.values())[:SHOWN_ERRORS]:
            found = values[group[0]]
            same = f"; the same in {_names(found.files[1:], found.count - 1)}" if found.count > 1 else ""
            lines.append(map_.message(found.files[0], group) + same)
        rest = [str(value) for group in list(by_files.values())[SHOWN_ERRORS:] for value in group]
        if rest:
            lines.append(f"and the values {_names(rest[:10], len(rest))}")
        if values:
            counts = np.zeros(65536, np.int64)
            counts[list(each.pixels)] = list(each.pixels.values())
            hint = unknown_hint(map_, list(values), counts, len(dataset.classes))
            lines += [hint.removeprefix("; ")] if hint else []
            lines.append(
                f"to ignore these values, paste into the section data: {map_.to_paste(sorted(values, key=str)[:64])}"
            )
    return lines


def _maps(dataset: SegDataset, tally: _Tally) -> Iterator[tuple[LabelMap, _Values]]:
    """Give the label maps that were used, and what they have read."""
    for each in tally.values.values():
        yield dataset.map_for(str(dataset.samples[each.first][1])), each


def _histogram(label: np.ndarray) -> np.ndarray:
    """Count the pixels of each value, int64 (256,) or, for 16 bit labels, (65536,)."""
    if label.dtype == np.uint8 and label.size <= _EXACT_COUNT:
        # OpenCV lets the other threads run meanwhile, NumPy's bincount does not.
        return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(label.ravel(), minlength=256 if label.dtype == np.uint8 else 65536)


def _report(dataset: SegDataset, tally: _Tally) -> Report:
    """Give the sums of a list without errors.

    Raises:
        DataError: palettes that differ, or masks of 0 and 255 where nobody has said what 255 is.
    """
    if tally.conflict:
        raise DataError(tally.conflict)
    numbers = range(len(dataset.classes))
    report = Report(
        name=dataset.name,
        split=dataset.split,
        list_file=str(dataset.list_file),
        images=tally.images,
        labelled=tally.labelled,
        smallest=tally.smallest,
        largest=tally.largest,
        pixels=tuple(tally.mapped.get(number, 0) for number in numbers),
        ignored=tally.mapped.get(IGNORE, 0),
        warnings=(),
        around=tuple(tally.around.get(number, 0) for number in numbers),
        palette=tuple((index, *color) for index, (color, _) in sorted(tally.palette.items())),
        sizes=tuple(sorted((_size(text, count) for text, count in tally.sizes.items()), key=lambda size: -size[2])),
    )
    warnings = _band_warnings(dataset, tally)
    if tally.images < len(dataset):
        warnings.append(
            f"{tally.images} of {len(dataset)} samples of {dataset.list_file} were read, drawn at random; the others "
            "are read for the first time when it is their turn (data.check: full reads all)"
        )
    else:
        warnings += _pair_warnings(dataset)
    if not tally.labelled:
        return replace(report, warnings=tuple(warnings))
    warnings += class_warnings(dataset, report)
    if tally.blank:
        warnings.append(
            f"{tally.blank} labels in which every pixel is ignored, so that nothing is learnt from them (first: "
            f"{tally.first_blank})"
        )
    for map_, each in _maps(dataset, tally):
        counts = np.zeros(65536, np.int64)
        counts[list(each.pixels)] = list(each.pixels.values())
        if looks_binary(map_, counts, len(dataset.classes)):
            raise DataError(binary_message(dataset))
        if looks_mapped(map_, counts, len(dataset.classes)):
            warnings.append(
                f"the labels of {dataset.list_file} look as if they held training ids already, "
                f"and label_map ({map_}) would map them a second time; if so, give the identity "
                "as label_map"
            )
    return replace(report, warnings=tuple(warnings))


def _size(text: str, count: int) -> tuple[int, int, int]:
    height, width = map(int, text.split("x"))
    return height, width, count


def _pair_warnings(dataset: SegDataset) -> list[str]:
    """Warn of labels that stand beside another image than their own, and beside several, by their names."""
    warnings = []
    wrong, several = misnamed(dataset), sharing(dataset)
    if len(wrong):
        image, label = dataset.samples[int(wrong[0])]
        warnings.append(
            f"{len(wrong)} labels bear the name of another image of {dataset.list_file} (first: {label} stands beside "
            f"{image}); see whether the lines are right"
        )
    if len(several):
        image, label = dataset.samples[int(several[0])]
        warnings.append(
            f"{len(several)} images of {dataset.list_file} share their label file with another one (first: {label} of "
            f"{image}); see whether that is meant"
        )
    return warnings


def _band_warnings(dataset: SegDataset, tally: _Tally) -> list[str]:
    """Warn of transparency that is not read, and of lost depth.

    Depth is lost where little of it is left in 8 bits.
    """
    warnings = []
    if tally.clear:
        warnings.append(
            f"{tally.clear} pictures have a band of transparency, which is not read (first: "
            f"{tally.first_clear}); data.channels: 4 reads it, save RGB if it means nothing"
        )
    if not tally.chosen:
        return warnings
    paths = [dataset.samples[index][0] for index in tally.chosen]
    images = [read_image(path, None, dataset.channels, dataset.limits) for path in paths]
    used = max(int(image.max()) for image in images) - min(int(image.min()) for image in images)
    if used < 64:
        raw = [read_bands(path, dataset.channels, dataset.limits)[0] for path in paths]
        low, high = min(np.nanmin(each) for each in raw), max(np.nanmax(each) for each in raw)
        warnings.append(
            f"the {tally.deep} deep pictures of {dataset.list_file} use {used + 1} of the 256 levels that are read, "
            f"less than a quarter; their values go from {low:g} to {high:g}: give data.range: [{low:g}, {high:g}]"
        )
    return warnings


def class_warnings(dataset: SegDataset, report: Report) -> list[str]:
    """List warnings about classes and ignored pixels."""
    warnings = []
    absent = [name for name, count in zip(dataset.classes, report.pixels, strict=True) if not count]
    if absent:
        warnings.append(f"classes that never occur in {report.list_file}: {_names(absent[:10], len(absent))}")
    total = sum(report.pixels) + report.ignored
    if report.ignored > 0.9 * total:
        warnings.append(
            f"{report.ignored / total:.1%} of the pixels of {report.list_file} are ignored; see "
            "whether label_map fits the labels"
        )
    return warnings


def looks_binary(map_: LabelMap, counts: np.ndarray, classes: int) -> bool:
    """Tell whether masks of two classes hold only 0 and 255.

    And nobody has said what 255 is. counts: pooled raw values (65536,).
    """
    said = map_.names_ignored or map_.table[IGNORE] != IGNORE
    return classes == 2 and not said and np.flatnonzero(counts).tolist() == [0, IGNORE]


def binary_message(dataset: SegDataset) -> str:
    """Say what masks of 0 and 255 need."""
    return (
        f"{dataset.list_file}: the labels hold only 0 and 255, and 255 is ignored unless it is mapped, so "
        f"nothing of {dataset.classes[1]!r} would be learnt. Paste into the section data: "
        "label_map: {0: 0, 255: 1}, or, if 255 is to be ignored, label_map: {0: 0, 1: 1, 255: 255}"
    )


def palettes_differ(
    index: int, known: tuple[int, int, int], where: str, color: tuple[int, int, int], other: str
) -> str:
    """Say that two palettes give one index different colours."""
    keys = ", ".join('"{},{},{}": CLASS'.format(*each) for each in (known, color))
    return (
        f"{other}: its palette gives index {index} the colour {color}, that of {where} {known}; so the indices are no "
        f"class ids. Read the labels by their colours: label_map: {{{keys}, ...}}"
    )


def looks_mapped(map_: LabelMap, counts: np.ndarray, classes: int) -> bool:
    """Tell whether values look mapped although `map_` expects others.

    counts: pooled raw values (65536,). They do when nothing but 0..classes-1 and 255 occurs while the map knows higher
    ids, the map would change some of them, and it would ignore half of the pixels or 255 (which the files of such a
    data set do not hold) occurs.
    """
    seen = np.flatnonzero(counts)
    inside = seen[seen < classes]
    if len(inside) == 0 or len(inside) + (counts[IGNORE] > 0) < len(seen):
        return False
    higher = [key for key in map_.ids if classes <= key != IGNORE]
    changed = bool((map_.table[inside] != inside).any())
    ignored = counts[inside][map_.table[inside] == IGNORE].sum()
    return bool(higher) and changed and bool(counts[IGNORE] > 0 or ignored > counts[inside].sum() / 2)


def _summary(dataset: SegDataset, tally: _Tally) -> str:
    lines = [*_unknown_values(dataset, tally), *tally.errors]
    if tally.failed > len(tally.errors):
        lines.append(f"and {tally.failed - len(tally.errors)} more")
    which = "samples" if tally.done == len(dataset) else "samples that were read"
    shown = "".join(f"\n  {line}" for line in lines)
    return f"{dataset.list_file}: {tally.bad} of {tally.done} {which} cannot be used:{shown}"


def _names(names: list[str], count: int) -> str:
    """Write the first of `count` names."""
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


def _begun(part: Path | None, key: str, count: int, samples: int) -> _Tally:
    """Give the record of a check that was cut, if it can be one of `count` samples of a list."""
    tally = (_remembered(part, key, "tally", _TALLY) if part is not None else None) or _Tally()
    places = [*tally.chosen, *(each.first for each in tally.values.values())]
    fits = 0 <= tally.done <= count and tally.stride > 0 and max(places, default=0) < samples
    return tally if fits else _Tally()


def _remembered(file: Path, expected: str, name: str, kind: TypeAdapter) -> Any:
    """Read what was remembered for a fingerprint; None where there is nothing."""
    if not file.is_file():
        return None
    try:
        content = json.loads(read_bytes(file, MAX_STAMP_BYTES, "stamp"))
    except (ValueError, RecursionError):
        return None  # cut short by a crash, or no stamp; it is written anew
    if not isinstance(content, dict) or content.get("fingerprint") != expected:
        return None
    try:
        return kind.validate_python(content.get(name))
    except ValidationError:
        return None


def _remember(file: Path, key: str, name: str, value: Report | _Tally) -> None:
    with replacing(file) as out:
        out.write(json.dumps({"fingerprint": key, name: asdict(value)}, indent=1).encode())


_REPORT = TypeAdapter(Report)
_TALLY = TypeAdapter(_Tally)
