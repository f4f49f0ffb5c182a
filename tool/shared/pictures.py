"""Pictures that the user names, and their results' names."""

import os
from collections import Counter
from pathlib import Path, PurePath

import cv2
import numpy as np

from util import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".npy")


def name_results(given: list[str], out: Path) -> dict[Path, Path]:
    """Return the pictures by the file of their result.

    In `out` as in the folder that was given, named .png. Pictures that differ in their suffix alone keep it in the
    name; those of one name from several folders are named from the folder that holds all of them.

    Raises:
        FileNotFoundError: a path leads nowhere.
        UserError: a folder holds no picture, or a result would overwrite another or a picture.
    """
    found = list(dict.fromkeys(find_pictures(given, out.resolve())))
    times = Counter(inner for _, inner in found)
    several = [path.resolve() for path, inner in found if times[inner] > 1]
    if several:
        above = os.path.commonpath([path.parent for path in several])
        found = [(p, p.resolve().relative_to(above) if times[inner] > 1 else inner) for p, inner in found]
    stems = Counter(inner.with_suffix("") for _, inner in found)
    targets = {}
    for path, inner in found:
        stem = inner.with_suffix("")
        target = out / f"{stem if stems[stem] == 1 else inner}.png"
        if targets.get(target, path) != path:
            raise UserError(f"{targets[target]} and {path} have one name; give the folder that holds both")
        targets[target] = path
    sources = {path.resolve() for path, _ in found}
    if over := [target for target in targets if target.resolve() in sources]:
        raise UserError(f"{over[0]} would be overwritten by a result; choose another folder with --out")
    return targets


def find_pictures(given: list[str], out: Path) -> list[tuple[Path, PurePath]]:
    """Find the pictures, each with its path in the folder.

    Earlier results in `out` are left aside.
    """
    found = []
    for path in map(Path, given):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such picture or folder")
        if path.is_file():
            found.append((path, PurePath(path.name)))
            continue
        if path.resolve() == out:
            raise UserError(f"{path}: pictures and results would be mixed; choose another folder with --out")
        found += [(p, p.relative_to(path)) for p in pictures_in(path, out if path.resolve() in out.parents else None)]
    return found


def pictures_in(folder: Path, results: Path | None = None) -> list[Path]:
    """List the pictures below a folder, in order, but for hidden ones.

    Args:
        results: a folder whose pictures are left aside.

    Raises:
        UserError: there is none.
    """
    inside = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    # Hidden files are what systems and tools leave behind, such as ._1.png and .ipynb_checkpoints.
    pictures = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    if results is not None:
        pictures = [p for p in pictures if results not in p.resolve().parents]
    if not pictures:
        raise UserError(f"{folder}: no picture in it; pictures end in {', '.join(SUFFIXES)}")
    return pictures


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
