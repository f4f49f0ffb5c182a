"""IoU by the size of objects."""

import cv2
import numpy as np

IGNORE = 255
SIZES = ("small", "medium", "large")
BOUNDS = (32**2, 96**2)  # pixels; where COCO's evaluation parts small, medium and large


def size_of(areas: np.ndarray) -> np.ndarray:
    """Return the index in SIZES of each area in pixels."""
    return np.searchsorted(BOUNDS, areas, side="right")


def size_counts(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count intersection and union by size and class: int64 (2, sizes, C).

    An object is a connected region of one class in the truth (4 neighbours). Its intersection is what is predicted of
    it. The union is its area, and the wrong pixels of the predicted regions that hit it; a predicted region counts for
    the object that it covers most, one that hits none for its own size. So the sums over the sizes are the
    intersection and union of the class.

    truth, prediction: uint8 (H, W) of classes, 255 in the truth for ignored pixels.
    """
    seen = np.where(truth == IGNORE, truth, prediction)
    both = np.where(truth == seen, truth, np.uint8(IGNORE))
    objects, object_areas, object_class, _ = _regions(truth)
    regions, region_areas, region_class, _ = _regions(seen)
    _, areas, _, pixel = _regions(both)  # each piece lies in one object and in one predicted region
    of_object, of_region = objects.ravel()[pixel], regions.ravel()[pixel]
    hits = np.bincount(of_object, weights=areas, minlength=len(object_areas))
    right = np.bincount(of_region, weights=areas, minlength=len(region_areas))
    # The size that a predicted region counts for.
    object_sizes, region_sizes = size_of(object_areas), size_of(region_areas)
    pairs, place = np.unique(np.stack([of_region, of_object]), axis=1, return_inverse=True)
    shared = np.bincount(place.ravel(), weights=areas, minlength=pairs.shape[1])
    order = np.argsort(shared, kind="stable")  # the largest comes last, and stays
    region_sizes[pairs[0, order]] = object_sizes[pairs[1, order]]
    counts = np.zeros((2, len(SIZES), num_classes), np.int64)
    np.add.at(counts[0], (object_sizes, object_class), hits.astype(np.int64))
    np.add.at(counts[1], (object_sizes, object_class), object_areas)
    np.add.at(counts[1], (region_sizes, region_class), region_areas - right.astype(np.int64))
    return counts


def _regions(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Number the connected regions from 0 on; -1 where pixels are ignored.

    One pass for all classes: on a grid of twice the size the points between equal neighbours are set.

    Returns:
        numbers (H, W); and for each region its area, its class, and the place of one of its pixels.
    """
    height, width = labels.shape
    valid = labels != IGNORE
    grid = np.zeros((2 * height - 1, 2 * width - 1), np.uint8)
    grid[::2, ::2] = valid
    grid[::2, 1::2] = (labels[:, 1:] == labels[:, :-1]) & valid[:, 1:]
    grid[1::2, ::2] = (labels[1:] == labels[:-1]) & valid[1:]
    count, numbers = cv2.connectedComponents(grid, connectivity=4)
    numbers = numbers[::2, ::2] - 1
    pixel = np.zeros(count, np.int64)
    pixel[numbers.ravel()] = np.arange(numbers.size)  # ignored pixels, -1, write to the last
    pixel = pixel[:-1]
    areas = np.bincount(numbers.ravel() + 1, minlength=count)[1:]
    return numbers, areas, labels.ravel()[pixel], pixel
