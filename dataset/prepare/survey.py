"""What masks and pictures hold, over any number of files.

Pixels of each id or colour, mean and deviation.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from dataset.prepare.workers import map_ordered
from dataset.read import DataError
from dataset.read.image import read_image, read_label

MAX_VALUES = 4096  # different values in one mask
SHOWN_ERRORS = 5

Key = int | tuple[int, int, int]


@dataclass
class Survey:
    """Sums over the files of one split.

    pixels: of each value on disk. around: pixels of the masks that hold the value. count: pictures. area: their
    pixels. height, width: the smallest. total, squares: sum over the pixels of the pictures, and of their squares, for
    each channel (RGB).
    """

    pixels: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    around: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    count: int = 0
    area: int = 0
    height: int = 1 << 31
    width: int = 1 << 31
    total: np.ndarray = field(default_factory=lambda: np.zeros(3))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(3))

    @property
    def mean(self) -> np.ndarray:
        """Mean of the pictures, (3,) RGB, 0 to 255."""
        return self.total / self.area

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of the pictures, (3,) RGB, 0 to 255."""
        return np.sqrt(np.maximum(self.squares / self.area - self.mean**2, 0))

    def class_weights(self, values: Sequence[Sequence[Key]]) -> list[float]:
        """Weigh each class by median frequency.

        Classes that do not occur have weight 0. The frequency of a class is its share of the pixels of the masks that
        hold it, and its weight the median of all frequencies over its own (Eigen and Fergus, ICCV 2015, section 6.3.2).

        Args:
            values: the values on disk of each class.
        """
        pixels = [sum(self.pixels.get(value, 0) for value in each) for each in values]
        around = [max((self.around.get(value, 0) for value in each), default=0) for each in values]
        frequency = np.array([p / a if a else 0.0 for p, a in zip(pixels, around, strict=True)])
        occurs = frequency > 0
        weights = np.zeros(len(values))
        weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
        return weights.tolist()


def survey(
    root: Path, pairs: Iterable[tuple[str, str, str]], workers: int = 1, progress: Callable[[], None] = lambda: None
) -> dict[str, Survey]:
    """Read all pictures and masks once; return sums by split.

    Args:
        pairs: (picture, mask, split), paths relative to `root`.
        workers: processes.
        progress: called after each pair.

    Raises:
        DataError: naming the first files that cannot be used, and how many there are.
    """
    sums: dict[str, Survey] = defaultdict(Survey)
    errors: list[str] = []
    tasks = ((root / image, root / mask, split) for image, mask, split in pairs)
    for split, result in map_ordered(_survey_one, tasks, workers):
        progress()
        if isinstance(result, str):
            errors.append(result)
            continue
        values, counts, (height, width), total, squares = result
        each = sums[split]
        for value, count in zip(values, counts, strict=True):
            each.pixels[value] += count
            each.around[value] += height * width
        each.count += 1
        each.area += height * width
        each.height, each.width = min(each.height, height), min(each.width, width)
        each.total += total
        each.squares += squares
    if errors:
        more = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise DataError(f"{len(errors)} pairs cannot be used:\n  " + "\n  ".join(errors[:SHOWN_ERRORS]) + more)
    return dict(sums)


def count_values(label: np.ndarray) -> tuple[list[Key], list[int]]:
    """Count the pixels of each id or colour of a label.

    The label is as it stands on disk.
    """
    if label.ndim == 3:
        label = label[:, :, 0].astype(np.int32) << 16 | label[:, :, 1].astype(np.int32) << 8 | label[:, :, 2]
        colours = True
    else:
        colours = False
    # Neighbours are mostly equal: only the runs of equal pixels are sorted.
    flat = label.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths = np.diff(starts, append=flat.size)
    found, where = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(where, lengths).astype(np.int64).tolist()
    values = found.tolist()
    return [(v >> 16, v >> 8 & 255, v & 255) for v in values] if colours else values, counts


def _survey_one(task: tuple[Path, Path, str]) -> tuple[str, tuple | str]:
    image_path, mask_path, split = task
    try:
        label = read_label(mask_path)
        image = read_image(image_path, label.shape[:2])
    except (DataError, OSError) as error:
        return split, str(error)
    if image.shape[:2] != label.shape[:2]:
        sizes = " and ".join(f"{each.shape[1]} x {each.shape[0]}" for each in (image, label))
        return split, f"{image_path} and {mask_path} have different sizes, {sizes}; resize neither by interpolation"
    values, counts = count_values(label)
    if len(values) > MAX_VALUES:
        return split, f"{mask_path}: {len(values)} different values, as in a picture; a mask has one for each class"
    mean, deviation = cv2.meanStdDev(image)
    area = image.shape[0] * image.shape[1]
    total, squares = mean[:, 0] * area, (mean[:, 0] ** 2 + deviation[:, 0] ** 2) * area
    return split, (values, counts, image.shape[:2], total, squares)
