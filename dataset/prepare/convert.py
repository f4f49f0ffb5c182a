"""Converts labels in other forms to pictures of ids, once.

Outlines, run lengths and codes in colours. The pictures go to a folder of their own, each under a temporary name first:
a conversion that is stopped goes on with the same command, and the originals are only read.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dataset.prepare.layout import Drawn, Found
from dataset.prepare.room import check_room
from dataset.prepare.workers import map_ordered

STAMP = "conversion.txt"
WORTH_A_PROCESS = 32  # labels; the start of a process takes seconds
MEASURED = 32  # labels by whose size the room that all need is told
BLOCK = 4096  # bytes that a file takes on most disks, and multiples of it


def convert(
    root: Path,
    found: Found,
    folder: Path,
    workers: int = 1,
    again: bool = False,
    progress: Callable[[], None] = lambda: None,
) -> list[tuple[str, Path]]:
    """Make the labels of `found` in `folder`, and return (picture, label file).

    A label that is there, and no older than its source, is kept, unless the way of conversion has changed.

    Args:
        root: the folder that the pictures' paths are relative to.
        folder: for the labels, named as the pictures are.
        workers: processes.
        again: make all of them again.
        progress: called after each label.

    Raises:
        DataError: naming the source that cannot be converted.
        OSError: `folder` cannot be written, or its disk has no room for all labels, by the size of the first of them.
    """
    drawn = found.labels
    assert isinstance(drawn, Drawn), "labels that are files need no conversion"
    since = _begin(folder / STAMP, drawn, again)
    pairs: list[tuple[str, Path]] = []

    def todo() -> Iterator[tuple[Any, Path]]:
        for image, task in drawn.jobs(root, found.images):
            target = (folder / image).with_suffix(".png")
            pairs.append((image, target))
            since_source = max(since, (root / drawn.source(root, image)).stat().st_mtime)
            if not target.is_file() or target.stat().st_mtime < since_source:
                yield task, target
            else:
                progress()

    workers = min(workers, max(1, len(found.images) // WORTH_A_PROCESS))
    missing = sum(not (folder / image).with_suffix(".png").is_file() for image in found.images)
    total = 0
    for made, size in enumerate(map_ordered(partial(_convert_one, drawn.decode), todo(), workers), 1):
        progress()
        total += size
        if made == MEASURED:
            check_room(folder, (missing - made) * total // made, f"the rest of {missing} labels")
    return pairs


def write_label(path: Path, label: np.ndarray) -> int:
    """Write a label as a PNG; return the bytes it takes.

    label: ids, uint8 or uint16 (H, W).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        size = temporary.write_bytes(cv2.imencode(".png", label)[1].tobytes())
        os.replace(temporary, path)
        return -(-size // BLOCK) * BLOCK
    finally:
        temporary.unlink(missing_ok=True)


def _convert_one(decode: Callable[[Any], np.ndarray], job: tuple[Any, Path]) -> int:
    task, target = job
    return write_label(target, decode(task))


def _begin(stamp: Path, drawn: Drawn, again: bool) -> float:
    """Note in `stamp` which conversion makes the labels of a folder; the time before which they are out of date."""
    text = f"{drawn.decode.__module__}.{drawn.decode.__qualname__} version {drawn.version}\n"
    if again or not stamp.is_file() or stamp.read_text(encoding="utf-8") != text:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(text, encoding="utf-8")
    return stamp.stat().st_mtime
