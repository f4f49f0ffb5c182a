"""The folder of predictions.

Masks, what is drawn of them, and the index of what is done.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tool.shared.segmenter import Segmentation, Segmenter
from util import UserError
from util.record.files import open_plain, sha256, write_bytes
from util.record.lock import NO_LOCKS
from util.record.status import is_there
from util.report.outlines import annotations
from util.report.visual import png

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use

KINDS = ("mask", "color", "overlay", "polygons", "rle")
INDEX = "index.jsonl"
STREAM = "-"  # the source of pictures from the standard input, which are others each time
LEFT = re.compile(r"\.(.{1,40})\.(\d+)\.[0-9a-f]{8}\.part")  # how util.record.files names an unfinished file


class Done(NamedTuple):
    """A line of the index.

    source: what was predicted. saved: what was written beside the mask.
    """

    source: str
    saved: frozenset[str]


class Predictions:
    """Predictions in a folder, one PNG of class ids a picture.

    The first line of index.jsonl says what they were made with, each further one a picture or film that is done.
    Several processes add lines to it.

    Args:
        out: the folder.
        segmenter: what predicts.
        kinds: of `KINDS`, what is written beside the masks.

    Raises:
        UserError: the folder holds results of another checkpoint or of other settings.
        OSError: it cannot be written.
    """

    def __init__(self, out: Path, segmenter: Segmenter, kinds: Sequence[str]):
        self.out, self.segmenter, self.kinds = out, segmenter, sorted({*kinds} - {"mask"})
        self.classes = segmenter.classes
        self.index = out / INDEX
        self._made = {
            "checkpoint": Path(segmenter.file).name,
            "sha256": sha256(segmenter.file),
            "classes": list(segmenter.classes),
            "protocol": segmenter.predictor.describe(),
        }
        self._done: dict[str, Done] = {}
        self._read = 0  # bytes of the index that are in `_done`
        self._begun: float | None = None  # when the index was made, on the clock of the file system
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{error.filename}: a file; name a folder for the results with --out") from None
        self._append(None)

    def _append(self, entry: dict[str, Any] | None) -> None:
        """Add a line, whole, unless another process has done so; the first line where there is none."""
        number = open_plain(self.index, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))  # the latter of Windows
        try:
            _lock(number)
            cut = self._update(number)
            entries: list[dict[str, Any]] = []
            if self._begun is None:
                self._begun = os.fstat(number).st_mtime
                entries.append({**self._made, "begun": self._begun})
            if entry is not None:
                name, done = _result_of(entry), _done_of(entry)
                if self._done.get(name) != done or done.source == STREAM:
                    entries.append(entry)
                    self._done[name] = done
            text = "".join(json.dumps(each) + "\n" for each in entries)
            end = os.lseek(number, 0, os.SEEK_END)
            try:
                _write_all(number, ("\n" + text if cut and text else text).encode())
            except OSError:
                os.ftruncate(number, end)  # no half line
                raise
        except OSError as error:
            error.filename = str(self.index)
            raise
        finally:
            os.close(number)  # gives up the lock, too

    def _update(self, number: int) -> bool:
        """Read what was added since; tell whether the last line is cut short, as a kill leaves it."""
        os.lseek(number, self._read, os.SEEK_SET)
        with os.fdopen(os.dup(number), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return True
                self._read += len(line)
                try:
                    entry = json.loads(line)
                except ValueError:  # it was cut short: its picture is predicted again
                    continue
                if "sha256" in entry:
                    self._compare(entry)
                elif name := _result_of(entry):
                    self._done[name] = _done_of(entry)
        return False

    def _compare(self, made: dict[str, Any]) -> None:
        if other := [key for key, value in self._made.items() if made.get(key) != value]:
            raise UserError(
                f"{self.index}: the results there were made with another {' and '.join(other)}; choose another folder "
                "with --out, or remove that one"
            )
        self._begun = made.get("begun", 0.0)

    def has(self, target: Path, source: str | Path, saved: Iterable[str] | None = None) -> bool:
        """Tell whether a picture or film is done.

        Args:
            target: the file of its mask; of a film, that of its overlays.
            saved: what has to be there, too; None for what this call saves beside masks.

        Raises:
            UserError: the file there is that of another picture, or no result at all.
        """
        done = self._done.get(self._name(target))
        if not target.is_file():
            return False
        if done is None:
            if target.stat().st_mtime < (self._begun or 0.0):
                raise UserError(f"{target} is there already, and no result; choose another folder with --out")
            return False  # left by a process that was killed before it could note it
        if done.source != _named(source):
            raise UserError(f"{source}: {target} is the result of {done.source}; choose another folder with --out")
        return {*(self.kinds if saved is None else saved)} <= done.saved

    def knows(self, target: Path) -> bool:
        """Tell whether the index has a line for this file."""
        return self._name(target) in self._done

    def update(self) -> None:
        """Read what other processes have done meanwhile."""
        if self.index.is_file() and self.index.stat().st_size > self._read:
            number = os.open(self.index, os.O_RDONLY)
            try:
                self._update(number)
            finally:
                os.close(number)

    def discard_unfinished(self, targets: Iterable[Path]) -> None:
        """Remove what killed processes have left of these results."""
        folders: dict[Path, set[str]] = {}
        for target in targets:
            name = target.relative_to(self.out)
            for place in (target, *(self.out / kind / name for kind in self.kinds)):
                folders.setdefault(place.parent, set()).add(name.stem[:30])
        for folder, stems in folders.items():
            for entry in os.scandir(folder) if folder.is_dir() else ():
                found = LEFT.match(entry.name)
                if found and Path(found[1]).stem[:30] in stems and not is_there(int(found[2])):
                    os.unlink(entry.path)

    def write(self, target: Path, source: str | Path, result: Segmentation) -> None:
        """Write the results of a picture.

        What is drawn of its mask, the mask to `target`, and its line of the index.
        """
        self.draw(target, source, result)
        write_bytes(target, png(result.mask), parents=True)
        self.note(target, source, result.mask.shape, result.counts())

    def draw(self, target: Path, source: str | Path, result: Segmentation) -> None:
        """Write what is drawn of a mask, beside it."""
        name = target.relative_to(self.out)
        for kind in self.kinds:
            place = self.out / kind / name
            if kind in ("color", "overlay"):
                drawn = result.color() if kind == "color" else result.overlay()
                write_bytes(place.with_suffix(".png"), png(drawn), parents=True)
            else:
                height, width = result.mask.shape
                found = annotations(result.mask, result.classes, kind)
                text = json.dumps({"file_name": str(source), "height": height, "width": width, "annotations": found})
                write_bytes(place.with_suffix(".json"), text.encode(), parents=True)

    def note(self, target: Path, source: str | Path, size: Sequence[int], counts: np.ndarray) -> None:
        """Note a picture that is done in the index.

        counts: pixels of each class.
        """
        whole = max(int(counts.sum()), 1)
        shares = {name: int(n) / whole for name, n in zip(self.classes, counts, strict=True) if n}
        entry = {
            "image": _named(source),
            "mask": self._name(target),
            "size": list(size),
            "shares": shares,
            "save": self.kinds,
        }
        self._append(entry)

    def note_film(self, target: Path, source: str, frames: int, masks: bool) -> None:
        """Note a film that is done."""
        saved = ["mask"] if masks else []
        self._append({"film": _named(source), "result": self._name(target), "frames": frames, "save": saved})

    def _name(self, target: Path) -> str:
        return target.relative_to(self.out).as_posix()


@dataclass(frozen=True)
class Share:
    """The inputs of this process.

    Every `count`-th from `first` on.
    """

    first: int
    count: int

    def of(self, items: dict[str, str]) -> dict[str, str]:
        """Return this process's items, in their order."""
        return dict(islice(items.items(), self.first, None, self.count))


def share_of_this_process() -> Share:
    """Return the share of this process.

    It may be one of torchrun, of a SLURM array, or of both.

    Raises:
        UserError: the array has gaps, so that nobody would take some of the inputs.
    """
    first, count = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        task, tasks = _number("SLURM_ARRAY_TASK_ID", 0), _number("SLURM_ARRAY_TASK_COUNT", 1)
        least, step = _number("SLURM_ARRAY_TASK_MIN", 0), max(_number("SLURM_ARRAY_TASK_STEP", 1), 1)
        most = _number("SLURM_ARRAY_TASK_MAX", least + step * (tasks - 1))
        if (most - least) // step + 1 != tasks or not least <= task <= most or (task - least) % step:
            raise UserError(
                f"an array of {tasks} tasks, numbered {least} to {most}: with gaps some inputs would be nobody's; "
                f"start it anew with --array=0-{tasks - 1}, what is done is not done again"
            )
        first, count = (task - least) // step * count + first, tasks * count
    return Share(first, count)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UserError(f"{name}={text}: expected a number")
    return int(text)


def _result_of(entry: dict[str, Any]) -> str:
    return entry.get("mask") or entry.get("result") or ""


def _named(source: str | Path) -> str:
    """Name a source so that it is the same from every folder."""
    return str(source) if source == STREAM or str(source).isdecimal() else os.path.abspath(source)


def _done_of(entry: dict[str, Any]) -> Done:
    return Done(entry.get("image") or entry.get("film") or "", frozenset(entry.get("save", ())))


def _lock(number: int) -> None:
    """Lock a file until it is closed.

    Where the file system has no locks, whole lines are still added in one piece.
    """
    try:
        if fcntl is not None:
            fcntl.flock(number, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _write_all(number: int, data: bytes) -> None:
    while data:
        data = data[os.write(number, data) :]
