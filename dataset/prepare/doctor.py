"""Examines a data set for everything that its files can tell.

Where the check before the first step stops at what cannot be read, this decodes images too, looks for the same image
under two names, and lists what looks wrong. Some 300 bytes an image are kept; while names and lists are compared, their
paths too.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.check import Report, compare_splits
from dataset.prepare.check.report import binary_message, class_warnings, looks_binary, looks_mapped
from dataset.prepare.check.tally import palettes_differ
from dataset.prepare.hints import misnamed, sharing, unknown_hint
from dataset.prepare.look import THUMB, Failed, Seen, look
from dataset.prepare.records import appending, forget_others, recall, remember, scan
from dataset.prepare.survey import MAX_VALUES, median_frequency
from dataset.prepare.workers import map_ordered
from dataset.read import DataError
from dataset.read.identity import describe
from dataset.read.image import Stored
from dataset.read.labelmap import IGNORE, Key, LabelMap

VERSION = 3  # of what is remembered of a sample: raise it when `look` learns something
MAX_LISTED = 200  # offending files that a finding keeps
EXAMPLES = 3  # images kept for each class
WORTH_A_PROCESS = 32  # images; the start of a process takes seconds
# Root mean square of the difference of two such, in levels of 255. On IDD Lite an image saved as JPEG of quality 30
# differs by 1, one of half the size by 3, and the closest two of different drives by 14.
ALIKE = 4.0
FLAT = 8.0  # their deviation, below which all look alike
MAX_COMPARED = 10**9  # pairs of images
USED_LEVELS = 64  # of 256, of deep images


@dataclass(frozen=True)
class Finding:
    """A kind of mistake.

    error: the files cannot be used, or the score would be none; else it only looks wrong. where: the split. text: what
    it is and what to do. files: the first `MAX_LISTED` that it concerns, each with its own message or a path. count:
    of all.
    """

    error: bool
    where: str
    text: str
    files: tuple[str, ...] = ()
    count: int = 1


@dataclass
class Examined:
    """What the files of one list hold.

    report: as of `check_dataset`, of the samples that can be used. sizes: (height, width, images), the most frequent
    first. mean, deviation: of the images, 0 to 255. examples: of each class the images that show most of it. findings:
    mistakes. digests: uint64 (N,) of the decoded images, 0 where there is none. thumbs: uint8 (N, `THUMB`²), small grey
    versions. cached: nothing was read.
    """

    report: Report
    sizes: list[tuple[int, int, int]]
    mean: list[float]
    deviation: list[float]
    examples: list[list[int]]
    findings: list[Finding]
    digests: np.ndarray
    thumbs: np.ndarray
    cached: bool = False

    @property
    def class_weights(self) -> list[float]:
        """Weigh each class by median frequency; 0 where it does not occur."""
        return median_frequency(self.report.pixels, self.report.around)


KINDS = {
    "image": "images cannot be read",
    "label": "labels cannot be read",
    "size": "labels differ in size from their image",
    "values": "labels hold values that the label map does not know",
}


def examine(
    dataset: SegDataset, workers: int = 1, cache: Path | None = None, progress: Callable[[], None] = lambda: None
) -> Examined:
    """Read all images and labels of a list once.

    Args:
        dataset: its files are read.
        workers: processes.
        cache: a file that remembers what each image and label holds as long as their size and time are unchanged, so
            that a call that is cut goes on with the next one.
        progress: called after each sample.

    Raises:
        OSError: a file of the list has gone, or `cache` cannot be written.
    """
    with TemporaryDirectory() as folder:
        file = cache or Path(folder) / "records"
        keys = np.fromiter((_key(sample) for sample in describe(dataset)), np.uint64)
        known, failed = np.isin(keys, scan(file)[0]), {}
        todo = np.flatnonzero(~known).tolist()
        for _ in range(len(dataset) - len(todo)):
            progress()

        # What is new, written down as it comes. What cannot be read is tried again the next time.
        workers = min(workers, max(1, len(todo) // WORTH_A_PROCESS))
        look_at = partial(look, channels=dataset.channels, limits=dataset.limits)
        with appending(file) as out:
            samples = (dataset.samples[index] for index in todo)
            for index, seen in zip(todo, map_ordered(look_at, samples, workers), strict=True):
                if isinstance(seen, Failed):
                    failed[index] = seen
                else:
                    remember(out, int(keys[index]), seen.as_json())
                progress()

        # All, in the order of the list
        ledger = _Ledger(dataset)
        usable = np.setdiff1d(np.arange(len(dataset)), list(failed))
        values = recall(file, keys[usable])
        for index in range(len(dataset)):
            ledger.add(index, failed[index] if index in failed else Seen.from_json(next(values)))
        examined = ledger.close()
        forget_others(file, keys[usable])
    examined.cached = bool(known.all())
    return examined


def _key(sample: list) -> int:
    """Digest what a sample's values depend on.

    That is all that `describe` tells but the label map, which is applied anew.
    """
    known = json.dumps([VERSION, sample[:6], sample[7:]]).encode()
    return int.from_bytes(blake2b(known, digest_size=8).digest(), "little")


@dataclass
class _Values:
    """The values on disk that one label map reads.

    pixels: of each id, (65536,). unknown: of each value that the map lacks, the first files and how many.
    """

    map_: LabelMap
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(65536, np.int64))
    unknown: dict[Key, tuple[list[str], int]] = field(default_factory=dict)


class _Ledger:
    """Adds up the samples of a list, in its order."""

    def __init__(self, dataset: SegDataset):
        self.dataset = dataset
        self.used = self.labelled = self.area = 0
        self.mapped = np.zeros(256, np.int64)
        self.around = np.zeros(256, np.int64)
        self.total: np.ndarray = np.zeros(dataset.channels)
        self.squares: np.ndarray = np.zeros(dataset.channels)
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.examples: list[list[tuple[float, int]]] = [[] for _ in dataset.classes]
        self.values: dict[int, _Values] = {}
        self.files: dict[str, list[str]] = {}  # kind of mistake -> the first files
        self.counts: Counter[str] = Counter()
        self.palette: dict[int, tuple[tuple[int, int, int], str]] = {}
        self.conflict = ""  # of two palettes
        self.deep_range = (IGNORE, 0)
        self.digests = np.zeros(len(dataset), np.uint64)
        self.thumbs = np.zeros((len(dataset), THUMB * THUMB), np.uint8)

    def note(self, kind: str, text: str) -> None:
        """Note a file of one kind of mistake."""
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_LISTED:
            self.files.setdefault(kind, []).append(text)

    def add(self, index: int, seen: Seen | Failed) -> None:
        """Add one sample."""
        if isinstance(seen, Failed):
            self.note(seen.kind, str(self.dataset.samples.missing(index) or seen.text))
            return
        image_path, label_path = self.dataset.samples[index]
        self.digests[index], self.thumbs[index] = seen.digest, seen.thumb
        for kind, wrong in (("flat", seen.low == seen.high), ("clear", seen.clear), ("deep", seen.deep)):
            if wrong:
                self.note(kind, image_path)
        if seen.deep:
            self.deep_range = min(self.deep_range[0], seen.low), max(self.deep_range[1], seen.high)
        if label_path is not None and seen.label is not None:
            if not self._add_label(index, label_path, seen.label, seen.counts):
                return
            self.labelled += 1
        pixels = seen.size[0] * seen.size[1]
        self.used += 1
        self.area += pixels
        self.total += seen.mean * pixels
        self.squares += (seen.mean**2 + seen.deviation**2) * pixels
        self.sizes[seen.size] += 1

    def _add_label(self, index: int, path: str, label: Stored, counts: np.ndarray) -> bool:
        """Add a label's pixels; False where it cannot be used."""
        map_ = self.dataset.map_for(path)
        values = self.values.setdefault(id(map_), _Values(map_))
        try:
            raw = map_.raw_values(label, path)
            unknown = map_.unknown_values(raw, path)
        except DataError as error:
            self.note("label", str(error))
            return False
        if raw.ndim == 2:
            np.add.at(values.pixels, raw.ravel(), counts)
        for value in list(unknown)[:MAX_VALUES]:
            files, count = values.unknown.setdefault(value, ([], 0))
            values.unknown[value] = (files if count >= MAX_LISTED else [*files, path], count + 1)
        if unknown:
            self.counts["values"] += 1
            return False
        if label.palette is not None and raw is label.values:
            for value in raw.ravel().tolist():
                if value < len(label.palette):
                    self._add_colour(value, tuple(label.palette[value].tolist()), path)
        mapped = np.bincount(map_.apply(raw, path).ravel(), counts, 256).astype(np.int64)
        self.mapped += mapped
        self.around[mapped > 0] += mapped.sum()
        if mapped[IGNORE] == mapped.sum():
            self.note("ignored", path)
        for each, pixels in zip(self.examples, mapped[: len(self.examples)].tolist(), strict=True):
            if pixels:
                each.append((pixels / int(mapped.sum()), index))
                each.sort(key=lambda example: (-example[0], example[1]))
                del each[EXAMPLES:]
        return True

    def _add_colour(self, index: int, color: tuple[int, int, int], path: str) -> None:
        known, first = self.palette.setdefault(index, (color, path))
        if known != color and not self.conflict:
            self.conflict = palettes_differ(index, known, first, color, path)

    def close(self) -> Examined:
        """Return the sums and what they tell."""
        dataset = self.dataset
        order = sorted(self.sizes, key=lambda size: size[0] * size[1]) or [(0, 0)]
        report = Report(
            name=dataset.name,
            split=dataset.split,
            list_file=str(dataset.list_file),
            images=len(dataset),
            labelled=self.labelled,
            smallest=order[0],
            largest=order[-1],
            pixels=tuple(self.mapped[: len(dataset.classes)].tolist()),
            ignored=int(self.mapped[IGNORE]),
            warnings=(),
            around=tuple(self.around[: len(dataset.classes)].tolist()),
            palette=tuple((index, *color) for index, (color, _) in sorted(self.palette.items())),
        )
        area = max(self.area, 1)
        mean = self.total / area
        return Examined(
            report,
            [(*size, count) for size, count in self.sizes.most_common()],
            mean.tolist(),
            np.sqrt(np.maximum(self.squares / area - mean**2, 0)).tolist(),
            [[index for _, index in each] for each in self.examples],
            [*self._errors(), *self._warnings(report), *self._pair_findings(), *_repeated(dataset, self)],
            self.digests,
            self.thumbs,
        )

    def _errors(self) -> Iterable[Finding]:
        dataset, split = self.dataset, self.dataset.split
        for kind in ("image", "label", "size"):
            if self.counts[kind]:
                text = f"{self.counts[kind]} of {len(dataset)} {KINDS[kind]}"
                yield Finding(True, split, text, tuple(self.files[kind]), self.counts[kind])
        for values in self.values.values():
            if values.unknown:
                yield self._unknown(values)
            if looks_binary(values.map_, values.pixels, len(dataset.classes)):
                yield Finding(True, split, binary_message(dataset))
        if self.conflict:
            yield Finding(True, split, self.conflict)

    def _unknown(self, values: _Values) -> Finding:
        """Say which values the map lacks, and what they look like."""
        map_, classes = values.map_, len(self.dataset.classes)
        unknown = sorted(values.unknown, key=lambda value: (-values.unknown[value][1], str(value)))
        text = f"{self.counts['values']} of {len(self.dataset)} {KINDS['values']} of {map_.owner} ({map_})"
        text += unknown_hint(map_, unknown, values.pixels, classes)
        text += f"; to ignore them, paste into the section data: {map_.to_paste(unknown[:64])}"
        files = tuple(
            f"value {value} in {count} files: {', '.join(paths[:5])}{', ...' if count > 5 else ''}"
            for value, (paths, count) in ((value, values.unknown[value]) for value in unknown[:MAX_LISTED])
        )
        return Finding(True, self.dataset.split, text, files, self.counts["values"])

    def _warnings(self, report: Report) -> Iterable[Finding]:
        dataset, split = self.dataset, self.dataset.split
        if self.labelled:
            yield from (Finding(False, split, text) for text in class_warnings(dataset, report))
        for values in self.values.values():
            if looks_mapped(values.map_, values.pixels, len(dataset.classes)):
                yield Finding(
                    False,
                    split,
                    f"the labels look as if they held training ids already, and label_map ({values.map_}) would map "
                    "them a second time; if so, give the identity as label_map",
                )
        texts = {
            "flat": "images of one colour alone",
            "ignored": "labels in which every pixel is ignored, so that nothing is learnt from them",
            "clear": "images have a band of transparency, which is not read; save RGB, or data.channels: 4 reads it",
        }
        for kind, text in texts.items():
            if self.counts[kind]:
                found = f"{self.counts[kind]} {text}"
                yield Finding(False, split, found, tuple(self.files[kind]), self.counts[kind])
        used = self.deep_range[1] - self.deep_range[0] + 1
        if self.counts["deep"] and used <= USED_LEVELS:
            yield Finding(
                False,
                split,
                f"the {self.counts['deep']} deep images use {used} of the 256 levels that are read; give data.range: "
                "[LOW, HIGH], the values that become 0 and 255, or [2%, 98%]",
                tuple(self.files["deep"]),
                self.counts["deep"],
            )

    def _pair_findings(self) -> Iterable[Finding]:
        """Find labels that stand beside another image than their own."""
        samples, split = self.dataset.samples, self.dataset.split
        wrong = misnamed(self.dataset)
        if len(wrong):
            text = f"{len(wrong)} labels bear the name of another image of the list; correct the lines"
            files = tuple(f"{label} stands beside {image}" for image, label in (samples[i] for i in wrong[:MAX_LISTED]))
            yield Finding(True, split, text, files, len(wrong))
        several = sharing(self.dataset)
        if len(several):
            text = f"{len(several)} images share their label file with another one; see whether that is meant"
            files = tuple(f"{label} (of {image})" for image, label in (samples[i] for i in several[:MAX_LISTED]))
            yield Finding(False, split, text, files, len(several))


def _repeated(dataset: SegDataset, ledger: _Ledger) -> Iterable[Finding]:
    """Find images whose pixels stand in the list twice."""
    order = np.argsort(ledger.digests, kind="stable")
    ordered = ledger.digests[order]
    same = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] > 0))
    if len(same):
        paths = [(dataset.samples[order[i]][0], dataset.samples[order[i + 1]][0]) for i in same[:MAX_LISTED]]
        text = f"{len(same)} images have the pixels of another one of the list; each counts as often as it stands there"
        yield Finding(False, dataset.split, text, tuple(f"{a} and {b}" for a, b in paths), len(same))


def compare(train: SegDataset, first: Examined, other: SegDataset, second: Examined) -> list[Finding]:
    """List what two lists that are used together have wrong.

    Classes of the second that the first lacks, palettes that differ, images that both hold: by path, by pixels, or
    saved anew (`ALIKE`).
    """
    where = f"{train.split} and {other.split}"
    findings = []
    try:
        warnings = compare_splits(train, first.report, other, second.report)
    except DataError as error:
        findings.append(Finding(True, where, str(error)))
        warnings = []
    known = {os.path.realpath(image) for image, _ in train.samples}
    by_path = [os.path.realpath(image) in known for image, _ in other.samples]
    for text in warnings:
        leak = "a score on pictures of the training" in text
        findings.append(Finding(leak, where, text, count=sum(by_path) if leak else 1))
    exact = np.isin(second.digests, first.digests) & (second.digests > 0) & ~np.array(by_path)
    if exact.any():
        findings.append(_copies(train, first, other, second, np.flatnonzero(exact), where))
    if len(train) * len(other) <= MAX_COMPARED:
        alike = [(i, j) for i, j in _alike(first, second) if not exact[j] and not by_path[j]]
        if alike:
            text = (
                f"{len({j for _, j in alike})} images of {other.list_file} look like ones of {train.list_file}, saved "
                "anew or a moment apart; a score on images of the training is no score"
            )
            files = [f"{other.samples[j][0]} and {train.samples[i][0]}" for i, j in alike[:MAX_LISTED]]
            findings.append(Finding(False, where, text, tuple(files), len(alike)))
    else:
        text = f"{len(train)} times {len(other)} images: only equal pixels were looked for, not images saved anew"
        findings.append(Finding(False, where, text))
    return findings


def _copies(
    train: SegDataset, first: Examined, other: SegDataset, second: Examined, copies: np.ndarray, where: str
) -> Finding:
    """Name the images of one list whose pixels another list holds."""
    owner = {int(digest): i for i, digest in enumerate(first.digests)}
    files = [
        f"{other.samples[j][0]} and {train.samples[owner[int(second.digests[j])]][0]}" for j in copies[:MAX_LISTED]
    ]
    text = (
        f"{len(copies)} images of {other.list_file} have the pixels of images of {train.list_file} under another name; "
        "a score on images of the training is no score"
    )
    return Finding(True, where, text, tuple(files), len(copies))


def _alike(first: Examined, second: Examined) -> list[tuple[int, int]]:
    """Find pairs of images whose small versions differ by less than `ALIKE`."""
    pairs = []
    others = second.thumbs.astype(np.float32)
    own = (others**2).sum(axis=1)
    textured = (second.digests > 0) & (others.std(axis=1) > FLAT)
    for start in range(0, len(first.thumbs), 256):
        block = first.thumbs[start : start + 256].astype(np.float32)
        squares = (block**2).sum(axis=1)[:, None] + own - 2 * block @ others.T
        close = (squares <= THUMB * THUMB * ALIKE**2) & textured & (first.digests[start : start + 256, None] > 0)
        pairs += [(start + int(i), int(j)) for i, j in np.argwhere(close)]
    return pairs
