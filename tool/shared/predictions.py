"""The folder of predictions.

Masks, what is drawn of them, and the index of what is done.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tool.shared.geotiff import MAP
from tool.shared.segmenter import Segmentation, Segmenter
from util import UserError
from util.record.files import sha256, write_bytes
from util.report.outlines import annotations
from util.report.visual import png

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use

KINDS = ("mask", "color", "overlay", "polygons", "rle")
INDEX = "index.jsonl"
Item = TypeVar("Item")


class Predictions:
    """Predictions in a folder, one PNG of class ids a picture.

    The first line of index.jsonl says what they were made with, each further one a picture that is done.

    Args:
        out: the folder.
        segmenter: what predicts.
        kinds: of `KINDS`, what is written beside the masks.

    Raises:
        UserError: the folder holds results of another checkpoint or of other settings.
    """

    def __init__(self, out: Path, segmenter: Segmenter, kinds: Sequence[str]):
        self.out, self.kinds = out, [kind for kind in kinds if kind != "mask"]
        self.classes = segmenter.classes
        made = {
            "checkpoint": Path(segmenter.file).name,
            "sha256": sha256(segmenter.file),
            "classes": list(segmenter.classes),
            "protocol": segmenter.predictor.describe(),
            "save": sorted(self.kinds),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        self._done = self._read(made)

    def _read(self, made: dict[str, Any]) -> set[str]:
        file = self.out / INDEX
        if not file.is_file() or not file.stat().st_size:
            self._append(made, only_first=True)
        done, first = set(), None
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a line that a kill cut short: its picture is predicted again
                continue
            if first is None:
                first = entry
            else:
                done.add(entry.get("mask"))
        if first != made:
            other = [key for key, value in made.items() if (first or {}).get(key) != value]
            raise UserError(
                f"{file}: the results there were made with another {' and '.join(other)}; choose another folder with "
                "--out, or remove that one"
            )
        return done

    def _append(self, entry: dict[str, Any], only_first: bool = False) -> None:
        """Add a line, whole; a further process may do so at the same moment."""
        with open(self.out / INDEX, "a+", encoding="utf-8") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            if only_first and file.tell():
                return
            text = json.dumps(entry) + "\n"
            if file.tell() and not _ends_a_line(self.out / INDEX):
                text = "\n" + text
            file.write(text)

    def has(self, target: Path) -> bool:
        """Tell whether a picture is done, by the path of its mask.

        Which may be a map's (`tool.shared.geotiff`).
        """
        masks = (target, target.with_suffix(MAP))
        return any(str(mask.relative_to(self.out)) in self._done and mask.is_file() for mask in masks)

    def write(self, target: Path, source: Path, result: Segmentation) -> None:
        """Write the results of a picture.

        Its mask to `target`, what is drawn of it beside, and its line of the index.
        """
        name = target.relative_to(self.out)
        for kind in self.kinds:
            place = self.out / kind / name
            if kind in ("color", "overlay"):
                write_bytes(place, png(result.color() if kind == "color" else result.overlay()), parents=True)
            else:
                height, width = result.mask.shape
                found = annotations(result.mask, result.classes, kind)
                text = json.dumps({"file_name": str(source), "height": height, "width": width, "annotations": found})
                write_bytes(place.with_suffix(".json"), text.encode(), parents=True)
        write_bytes(target, png(result.mask), parents=True)
        self.note(target, source, result.mask.shape, result.counts())

    def note(self, target: Path, source: Path, size: Sequence[int], counts: np.ndarray) -> None:
        """Note a picture that is done in the index.

        counts: pixels of each class.
        """
        shares = {name: int(n) / int(counts.sum()) for name, n in zip(self.classes, counts, strict=True) if n}
        mask = str(target.relative_to(self.out))
        self._append({"image": str(source), "mask": mask, "size": list(size), "shares": shares})


def share_of_this_process(items: list[Item]) -> list[Item]:
    """Return the items of this process.

    Every n-th, where this is one of n processes of torchrun or of a SLURM array.
    """
    environment = os.environ
    if "SLURM_ARRAY_TASK_ID" in environment:
        first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
        step = int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
        rank, count = (
            (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step,
            int(environment["SLURM_ARRAY_TASK_COUNT"]),
        )
    else:
        rank, count = int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    return items[rank::count]


def _ends_a_line(file: Path) -> bool:
    with open(file, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
