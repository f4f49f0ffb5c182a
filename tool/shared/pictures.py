"""Pictures and films that the user names, and their results' names."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from util import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".npy")

Found = tuple[str, str]  # paths of a file, from here and in the folder that was given: there may be millions


def name_results(given: list[str], out: Path) -> dict[Path, Path]:
    """Return the pictures by the file of their result; see `named`.

    Raises:
        FileNotFoundError: a path leads nowhere.
        UserError: a folder holds no picture, or a result would overwrite another or a picture.
    """
    found: list[Found] = []
    for path in map(Path, given):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such picture or folder")
        inside = [str(path)] if path.is_file() else map(str, pictures_in(path, out.resolve()))
        found += [(each, os.path.relpath(each, path) if path.is_dir() else path.name) for each in inside]
    return {Path(target): Path(path) for target, path in named(found, out, ".png").items()}


def named(files: Iterable[Found], out: Path, end: str) -> dict[str, str]:
    """Return files by the file of their result.

    In `out` as in the folder that was given, named by stem and `end`. Files that differ in their suffix alone keep it
    in the name; those of one name from several folders are named from the folder that holds all of them.

    Raises:
        UserError: a result would overwrite another, or one of the files.
    """
    real = cache(os.path.realpath)  # a folder's links are followed once

    def place(path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(real(folder or "."), name)

    found = list({(place(path), inner): (path, inner) for path, inner in files}.values())
    times = Counter(inner for _, inner in found)
    several = [place(path) for path, inner in found if times[inner] > 1]
    if several:
        above = os.path.commonpath([os.path.dirname(path) for path in several])
        found = [(p, os.path.relpath(place(p), above) if times[inner] > 1 else inner) for p, inner in found]
    stems = Counter(os.path.splitext(inner)[0] for _, inner in found)
    targets: dict[str, str] = {}
    for path, inner in found:
        stem = os.path.splitext(inner)[0]
        target = os.path.join(out, f"{stem if stems[stem] == 1 else inner}{end}")
        if targets.get(target, path) != path:
            raise UserError(f"{targets[target]} and {path} have one name; give the folder that holds both")
        targets[target] = path
    sources = {place(path) for path, _ in found}
    if over := next((target for target in targets if place(target) in sources), None):
        raise UserError(f"{over} would be overwritten by a result; choose another folder with --out")
    return targets


def pictures_in(folder: Path, results: Path | None = None) -> list[Path]:
    """List the pictures below a folder, in order, but for hidden ones.

    Args:
        results: a folder whose pictures are left aside.

    Raises:
        UserError: there is none, or the results would lie among them.
        OSError: a folder cannot be read.
    """
    pictures = files_in(folder, SUFFIXES, results)
    if not pictures:
        raise UserError(f"{folder}: no picture in it; pictures end in {', '.join(SUFFIXES)}")
    return [Path(path) for path in pictures]


def _stop(error: OSError) -> None:
    raise error


def files_in(
    folder: Path, suffixes: Sequence[str], results: Path | None = None, failed: Callable[[OSError], None] = _stop
) -> list[str]:
    """List the files below a folder with these suffixes, in order.

    Links to folders are followed, each folder is searched once.

    Args:
        results: a folder that is left aside.
        failed: is called for a folder that cannot be read.

    Raises:
        UserError: the results would lie among the files.
    """
    if results is not None and folder.resolve() == results:
        raise UserError(f"{folder}: pictures and results would be mixed; choose another folder with --out")
    found, ends = [], tuple(suffixes)
    seen = {os.path.realpath(folder)} | ({str(results)} if results is not None else set())
    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        # Hidden files are what systems and tools leave behind, such as ._1.png and .ipynb_checkpoints.
        visible = [os.path.join(place, name) for name in folders if name[0] != "."]
        folders.clear()
        for path in sorted(visible, key=lambda path: (os.path.islink(path), path)):  # a folder itself before its links
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                folders.append(os.path.basename(path))
        found += [os.path.join(place, name) for name in names if name[0] != "." and name.lower().endswith(ends)]
    return sorted(found)


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """Return the picture, its longer side at most `longest` pixels.

    (H, W, C).
    """
    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image
    height, width = (max(round(side * factor), 1) for side in image.shape[:2])
    bands = [cv2.resize(band, (width, height), interpolation=cv2.INTER_AREA) for band in cv2.split(image)]
    return np.dstack(bands)
