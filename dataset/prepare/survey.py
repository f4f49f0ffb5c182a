"""What masks and pictures hold, over any number of files.

Pixels of each id or colour, mean and deviation.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from dataset.prepare.workers import map_ordered
from dataset.read import DataError
from dataset.read.image import Limits, read_image, read_stored

MAX_VALUES = 4096  # different values in one mask
SHOWN_ERRORS = 5

Key = int | tuple[int, int, int]


@dataclass
class Survey:
    """Sums over the files of one split.

    pixels: of each value on disk. around: pixels of the masks that hold the value. count: pictures. area: their
    pixels. height, width: the smallest. total, squares: sum over the pixels of the pictures, and of their squares, for
    each channel.
    """

    pixels: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    around: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    count: int = 0
    area: int = 0
    height: int = 1 << 31
    width: int = 1 << 31
    total: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    @property
    def mean(self) -> np.ndarray:
        """Mean of the pictures, (C,), 0 to 255."""
        return np.asarray(self.total / self.area)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of the pictures, (C,), 0 to 255."""
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
        return median_frequency(pixels, around)


def median_frequency(pixels: Sequence[int], around: Sequence[int]) -> list[float]:
    """Weigh classes by median frequency (Eigen and Fergus, ICCV 2015, section 6.3.2).

    Args:
        pixels: of each class.
        around: pixels of all labels that hold it.
    """
    frequency = np.array([p / a if a else 0.0 for p, a in zip(pixels, around, strict=True)])
    occurs = frequency > 0
    weights = np.zeros(len(pixels))
    if occurs.any():
        weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
    return weights.tolist()


def survey(
    root: Path,
    pairs: Iterable[tuple[str, str, str]],
    workers: int = 1,
    progress: Callable[[], None] = lambda: None,
    channels: int = 3,
    limits: Limits | None = None,
) -> dict[str, Survey]:
    """Read all pictures and masks once; return sums by split.

    Masks with palettes are counted by their indices, or by their colours if an index has several.

    Args:
        pairs: (picture, mask, split), paths relative to `root`.
        workers: processes.
        progress: called after each pair.
        channels, limits: of the pictures, see `read_image`.

    Raises:
        DataError: naming the first files that cannot be used, and how many there are.
    """
    sums: dict[str, Survey] = defaultdict(Survey)
    errors: list[str] = []
    tasks = ((root / image, root / mask, split) for image, mask, split in pairs)
    by_color: dict[str, tuple[dict[Key, int], dict[Key, int]]] = defaultdict(
        lambda: (defaultdict(int), defaultdict(int))
    )
    palette: dict[Key, Key] = {}  # the colour of each index
    agree = True
    for split, result in map_ordered(partial(_survey_one, channels=channels, limits=limits), tasks, workers):
        progress()
        if isinstance(result, str):
            errors.append(result)
            continue
        values, colors, counts, (height, width), total, squares = result
        each = sums[split]
        for value, color, count in zip(values, colors, counts, strict=True):
            agree = agree and (value == color or palette.setdefault(value, color) == color)
            for (pixels, around), key in (((each.pixels, each.around), value), (by_color[split], color)):
                pixels[key] += count
                around[key] += height * width
        each.count += 1
        each.area += height * width
        each.height, each.width = min(each.height, height), min(each.width, width)
        each.total += total
        each.squares += squares
    if errors:
        more = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
        raise DataError(f"{len(errors)} pairs cannot be used:\n  " + "\n  ".join(errors[:SHOWN_ERRORS]) + more)
    if not agree:
        for split, each in sums.items():
            each.pixels, each.around = by_color[split]
    return dict(sums)


def count_values(label: np.ndarray) -> tuple[list[Key], list[int]]:
    """Count the pixels of each id or colour, as on disk."""
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


def _survey_one(task: tuple[Path, Path, str], channels: int, limits: Limits | None) -> tuple[str, tuple | str]:
    image_path, mask_path, split = task
    try:
        stored = read_stored(mask_path)
        label = stored.meant
        image = read_image(image_path, label.shape[:2], channels, limits)
    except (DataError, OSError) as error:
        return split, str(error)
    if image.shape[:2] != label.shape[:2]:
        sizes = " and ".join(f"{each.shape[1]} x {each.shape[0]}" for each in (image, label))
        return split, f"{image_path} and {mask_path} have different sizes, {sizes}; resize neither by interpolation"
    values, counts = count_values(label)
    if len(values) > MAX_VALUES:
        return split, f"{mask_path}: {len(values)} different values, as in a picture; a mask has one for each class"
    colors: list[Key] = values
    if stored.palette is not None and label is stored.values:
        entries = [tuple(color) for color in stored.palette.tolist()]
        colors = [entries[v] if isinstance(v, int) and v < len(entries) else v for v in values]
    mean, deviation = moments(image)
    area = image.shape[0] * image.shape[1]
    return split, (values, colors, counts, image.shape[:2], mean * area, (mean**2 + deviation**2) * area)


def moments(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each band.

    Both (C,), of an image (H, W, C).
    """
    found = [cv2.meanStdDev(np.ascontiguousarray(image[:, :, i])) for i in range(image.shape[2])]
    mean, deviation = (np.array([each[i].item() for each in found]) for i in (0, 1))
    return mean, deviation


def measure(
    images: Iterable[str],
    workers: int = 1,
    progress: Callable[[], None] = lambda: None,
    channels: int = 3,
    limits: Limits | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of all pixels of images.

    Both (C,), 0 to 255.

    Args:
        images: paths.
        workers: processes.
        progress: called after each image.
        channels, limits: see `read_image`.

    Raises:
        DataError, OSError: names an image that cannot be read.
    """
    area, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for pixels, mean, deviation in map_ordered(
        partial(_measure_one, channels=channels, limits=limits), images, workers
    ):
        progress()
        area += pixels
        total += mean * pixels
        squares += (mean**2 + deviation**2) * pixels
    mean = total / area
    return mean, np.sqrt(np.maximum(squares / area - mean**2, 0))


def _measure_one(path: str, channels: int, limits: Limits | None) -> tuple[int, np.ndarray, np.ndarray]:
    image = read_image(path, None, channels, limits)
    return image.shape[0] * image.shape[1], *moments(image)
