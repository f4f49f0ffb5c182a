"""How a published data set lies on disk, declared by the data set, so that its list files can be written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Files:
    """The files of one split.

    images: glob patterns below the root. labels: rules picture path (relative, POSIX) -> label path, in the
    order of preference; the first that finds a label for every picture is taken. Empty: no labels.
    count: how many pictures the complete data set has. required: whether training needs the split.
    """

    images: tuple[str, ...]
    labels: tuple[Callable[[str], str], ...]
    count: int
    required: bool = True


@dataclass(frozen=True)
class Layout:
    """Where a data set is had, under which terms, and its splits."""

    source: str
    licence: str
    splits: dict[str, Files]


class MissingFiles(ValueError):
    """Files of the official layout that are not there; the message says what was expected and found."""


def collect(root: Path, split: str, files: Files) -> list[tuple[str, str | None]]:
    """The (picture, label) pairs of one split, sorted, as POSIX paths relative to `root`.

    An empty list where a split that is not required is absent. Raises MissingFiles otherwise.
    """
    found = (path for pattern in files.images for path in root.glob(pattern))
    images = sorted(path.relative_to(root).as_posix() for path in found)
    if not images:
        if not files.required:
            return []
        raise MissingFiles(f"{split}: no picture matches {_either(files.images)} below {root}")
    if not files.labels:
        return [(image, None) for image in images]
    missing: dict[str, list[str]] = {}
    for rule in files.labels:
        labels = [rule(image) for image in images]
        absent = [label for label in labels if not (root / label).is_file()]
        if not absent:
            return list(zip(images, labels, strict=True))
        missing[absent[0]] = absent
    first = next(iter(missing))
    others = "".join(f" (nor {label})" for label in list(missing)[1:])
    raise MissingFiles(
        f"{split}: {len(missing[first])} of {len(images)} pictures have no label; the first "
        f"missing one is {first}{others}"
    )


def _either(patterns: tuple[str, ...]) -> str:
    shown = " or ".join(patterns[:2])
    return shown if len(patterns) <= 2 else f"{shown} (and {len(patterns) - 2} more folders)"
