"""Where the files of a published data set lie.

A data set declares it, so that its list files can be written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.read import DataError

Rule = Callable[[str], str]


@dataclass(frozen=True)
class Drawn:
    """Labels that are made of other files, by `convert.py`.

    source: (root, picture) -> path of the file that says what its label is, relative to the root. decode: what
    `tasks` gives, by default that file's path, -> ids uint8 or uint16 (H, W); a function of a module, since other
    processes import it. tasks: (root, pictures) -> (picture, argument of `decode`) one after the other; it may
    leave pictures out. version: to be raised when `decode` changes, so that older labels are made again.
    """

    source: Callable[[Path, str], str]
    decode: Callable[[Any], np.ndarray]
    tasks: Callable[[Path, list[str]], Iterator[tuple[str, Any]]] | None = None
    version: int = 1

    def jobs(self, root: Path, images: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield (picture, argument of `decode`)."""
        if self.tasks is not None:
            return self.tasks(root, images)
        return ((image, root / self.source(root, image)) for image in images)


@dataclass(frozen=True)
class Listed:
    """Pictures that a list file of the data set names.

    `list_file` holds a name a line, `pattern` has {} for it.
    """

    list_file: str
    pattern: str

    def __call__(self, root: Path) -> list[str]:
        path = root / self.list_file
        if not path.is_file():
            return []
        try:
            names = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise DataError(f"{path}: not UTF-8 text; a line is the name of a picture, fetch it again") from None
        return [self.pattern.format(name) for name in names]

    def __str__(self) -> str:
        return f"{self.pattern.format('*')} (named by {self.list_file})"


@dataclass(frozen=True)
class EveryFifth:
    """Every fifth picture in the order of names, or the others.

    For a set without an official val split.
    """

    pattern: str
    held_out: bool

    def __call__(self, root: Path) -> list[str]:
        images = _matching(root, (self.pattern,))
        return [image for i, image in enumerate(images) if (i % 5 == 4) == self.held_out]

    def __str__(self) -> str:
        return self.pattern


@dataclass(frozen=True)
class Files:
    """The files of one split.

    images: glob patterns below the root, or a function root -> picture paths. labels: rules picture path
    (relative, POSIX) -> label path, or labels that are `Drawn`, in the order of preference; the first that finds
    a label for every picture is taken. Empty: no labels. count: how many pictures the complete data set has.
    required: whether training needs the split.
    """

    images: tuple[str, ...] | Callable[[Path], list[str]]
    labels: tuple[Rule | Drawn, ...]
    count: int
    required: bool = True


@dataclass(frozen=True)
class Archive:
    """A file of the data set's own site that anybody may fetch.

    checksum: "md5:..." or "sha1:...", where one is published. folder: the folder in the archive that is unpacked,
    without its own name. into: where it goes, below the root.
    """

    url: str
    checksum: str | None = None
    folder: str = ""
    into: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Layout:
    """Where a data set is had, under which terms, and its splits.

    downloads: what `--download` fetches. manual: what has to be fetched by hand, after a login or a form, and
    where it goes.
    """

    source: str
    licence: str
    splits: dict[str, Files]
    downloads: tuple[Archive, ...] = ()
    manual: str = ""


@dataclass(frozen=True)
class Found:
    """The pictures of a split and where their labels are.

    labels: paths, or how they are `Drawn`, or None where there are none. left_out: pictures that have no label, where
    these may be left out.
    """

    images: list[str]
    labels: list[str] | Drawn | None
    left_out: int = 0


class MissingFiles(DataError):
    """Files of the official layout that are not there.

    The message says what was expected and found.
    """


def collect(root: Path, split: str, files: Files, partial: bool = False) -> Found:
    """Find the pictures of one split and their labels.

    Both are sorted POSIX paths relative to `root`. No pictures where a split that is not required is absent. Hidden
    files are no pictures.

    Args:
        partial: leave out pictures without a label, and listed pictures that are not there.

    Raises:
        MissingFiles: a required split, or a label, is not there.
    """
    images = _images(root, split, files, partial)
    if not images:
        if not files.required:
            return Found([], None)
        raise MissingFiles(f"{split}: no picture matches {either(files.images)} below {root}")
    if not files.labels:
        return Found(images, None)
    missing: list[tuple[str, list[str]]] = []  # the first label that each rule misses, and the pictures without
    for label in files.labels:
        paths = [label.source(root, image) if isinstance(label, Drawn) else label(image) for image in images]
        there = {path: (root / path).is_file() for path in set(paths)}  # many pictures may share one file
        absent = [(path, image) for path, image in zip(paths, images, strict=True) if not there[path]]
        if not absent:
            return Found(images, label if isinstance(label, Drawn) else paths)
        missing.append((absent[0][0], [image for _, image in absent]))
    best = min(range(len(missing)), key=lambda i: len(missing[i][1]))
    lone = set(missing[best][1])
    if partial and len(lone) < len(images):
        label, images = files.labels[best], [image for image in images if image not in lone]
        return Found(images, label if isinstance(label, Drawn) else [label(image) for image in images], len(lone))
    others = "".join(f" (nor {first})" for i, (first, _) in enumerate(missing) if i != best)
    raise MissingFiles(
        f"{split}: {len(lone)} of {len(images)} pictures have no label; the first missing one is "
        f"{missing[best][0]}{others}; --partial leaves such pictures out"
    )


def _images(root: Path, split: str, files: Files, partial: bool) -> list[str]:
    if not callable(files.images):
        return _matching(root, files.images)
    listed = sorted(set(files.images(root)))
    present = [image for image in listed if (root / image).is_file()]
    if len(present) < len(listed) and (present or files.required) and not partial:
        first = next(image for image in listed if not (root / image).is_file())
        raise MissingFiles(
            f"{split}: {len(listed) - len(present)} of the {len(listed)} listed pictures are not there; the first "
            f"missing one is {first}; --partial leaves such pictures out"
        )
    return present


def _matching(root: Path, patterns: tuple[str, ...]) -> list[str]:
    """Sorted paths below `root` that match; hidden files and folders, as some systems leave behind, do not."""
    found = {path.relative_to(root) for pattern in patterns for path in root.glob(pattern)}
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def either(images: tuple[str, ...] | Callable[[Path], list[str]]) -> str:
    """Say which pictures are looked for, for messages."""
    if callable(images):
        return str(images)
    shown = " or ".join(images[:2])
    return shown if len(images) <= 2 else f"{shown} (and {len(images) - 2} more folders)"


def renamed(old: str, new: str, suffix: str | None = None) -> Rule:
    """Make the rule from a picture's path to its label's.

    `new` takes the place of the first `old`, `suffix` that of the ending.
    """

    def rule(image: str) -> str:
        path = image.replace(old, new, 1)
        return path if suffix is None else path.rpartition(".")[0] + suffix

    return rule
