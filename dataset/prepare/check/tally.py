"""Sums over inspected samples, and examples of what is wrong."""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pydantic

from dataset.base import SegDataset
from dataset.prepare.check.sample import Finding
from dataset.read.identity import map_digest
from dataset.read.labelmap import IGNORE

SHOWN_ERRORS = 5
MAX_VALUES = 4096  # unknown values of a map that are told apart
MAX_SIZES = 1000  # different sizes of images that are told apart
MAX_DECODED = 16  # deep pictures that are decoded to see which values they use

Index = Annotated[int, pydantic.Field(ge=0)]
Id = Annotated[int, pydantic.Field(ge=0, le=65535)]
SizeText = Annotated[str, pydantic.Field(pattern=r"^\d{1,9}x\d{1,9}$")]  # height and width


@dataclass
class Unknown:
    """A value that a label map lacks.

    count: labels that hold it. files: the first of them. code: the same for values that the same labels hold.
    """

    count: int = 0
    files: list[str] = field(default_factory=list)
    code: int = 0


@dataclass
class Values:
    """The values on disk that one label map reads.

    first: a sample that it reads. pixels: of each id. unknown: by the value as text, "7" or "1,2,3".
    """

    first: Index
    pixels: dict[Id, int] = field(default_factory=dict)
    unknown: dict[str, Unknown] = field(default_factory=dict)


@dataclass
class Tally:
    """Sums over samples, whose size does not grow with their number.

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
    values: dict[str, Values] = field(default_factory=dict)
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

    def add(self, dataset: SegDataset, index: int, found: Finding | Exception) -> None:
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
            self._add_values(index, label_path, found, self.values.setdefault(map_digest(map_), Values(index)))
        for entry, color in found.palette.items():
            known, path = self.palette.setdefault(entry, (color, str(label_path)))
            if known != color and not self.conflict:
                self.conflict = palettes_differ(entry, known, path, color, str(label_path))

    def _add_image(self, index: int, path: str, found: Finding, channels: int) -> None:
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

    def _add_values(self, index: int, path: str, found: Finding, values: Values) -> None:
        self.bad += bool(found.unknown)
        for value in found.unknown:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            if text in values.unknown or len(values.unknown) < MAX_VALUES:
                unknown = values.unknown.setdefault(text, Unknown())
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


def palettes_differ(
    index: int, known: tuple[int, int, int], where: str, color: tuple[int, int, int], other: str
) -> str:
    """Say that two palettes give one index different colours."""
    keys = ", ".join('"{},{},{}": CLASS'.format(*each) for each in (known, color))
    return (
        f"{other}: its palette gives index {index} the colour {color}, that of {where} {known}; so the indices are no "
        f"class ids. Read the labels by their colours: label_map: {{{keys}, ...}}"
    )
