"""Scores along the boundaries of classes: F-score and boundary IoU.

Maps are uint8 (H, W) of classes 0..C-1, or 255 for ignored pixels, which neither have a boundary nor make one: there
nobody knows where a class ends, and the prediction is not looked at.
"""

import math

import cv2
import numpy as np

IGNORE = 255
F_TOLERANCE = 0.0075  # of the image's diagonal (Csurka et al., section 3.3)
BAND_WIDTH = 0.02  # of the image's diagonal (Cheng et al., section 5.2)


def contour(labels: np.ndarray) -> np.ndarray:
    """Find the pixels beside another class (4 neighbours): bool (H, W)."""
    found = np.zeros(labels.shape, bool)
    pairs = ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1]))
    for one, other in pairs:
        differ = (labels[one] != labels[other]) & (labels[one] != IGNORE) & (labels[other] != IGNORE)
        found[one] |= differ
        found[other] |= differ
    return found


def boundary_f(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int, tolerance: float | None = None
) -> np.ndarray:
    """Return the boundary F-score of each class: float (C,).

    It is nan where neither side has a boundary.

    Precision is the share of predicted boundary pixels nearer than `tolerance` pixels to a true one of the same class,
    recall the reverse, F their harmonic mean. Csurka et al., "What is a good evaluation measure for semantic
    segmentation?", BMVC 2013, section 3.3.

    Args:
        tolerance: in pixels; None for F_TOLERANCE of the diagonal.
    """
    if tolerance is None:
        tolerance = F_TOLERANCE * math.hypot(*truth.shape)
    seen = np.where(truth == IGNORE, truth, prediction)
    maps = [np.where(contour(labels), labels, np.uint8(IGNORE)) for labels in (truth, seen)]
    counts = np.stack([np.bincount(labels.ravel(), minlength=IGNORE + 1)[:num_classes] for labels in maps])
    shares = np.zeros((2, num_classes))
    common = np.flatnonzero(counts.min(0))
    for first in range(0, len(common), 32):
        group = common[first : first + 32]
        bit = np.zeros(IGNORE + 1, np.uint32)
        bit[group] = np.uint32(1) << np.arange(len(group), dtype=np.uint32)
        sets = [bit[labels] for labels in maps]
        for side in (0, 1):
            near = (_spread(sets[1 - side], tolerance) & sets[side]) != 0
            hits = np.bincount(maps[side][near], minlength=IGNORE + 1)
            shares[side, group] = hits[group] / counts[side, group]
    scores = 2 * shares.prod(0) / np.maximum(shares.sum(0), 1e-300)
    return np.where(counts.max(0) > 0, scores, np.nan)


def _spread(sets: np.ndarray, radius: float) -> np.ndarray:
    """Unite the sets of all pixels nearer than `radius` pixels.

    sets: uint32 (H, W), a bit a class.

    All classes at once: rows are united to runs that grow by a pixel on both sides, and each run is added to the rows
    for whose distance it is the chord of the disc.
    """
    united, run, half = np.zeros_like(sets), sets.copy(), 0
    for apart in range(math.ceil(radius) - 1, -1, -1):
        wanted = math.ceil(math.sqrt(radius**2 - apart**2)) - 1
        while half < wanted:
            half += 1
            run[:, half:] |= sets[:, :-half]
            run[:, :-half] |= sets[:, half:]
        united[apart:] |= run[: len(run) - apart]
        if apart:
            united[:-apart] |= run[apart:]
    return united


def band(labels: np.ndarray, width: int) -> np.ndarray:
    """Find the pixels near the end of their region: bool (H, W).

    They are at most `width` from it, as on a chessboard; the border of the image ends a region, as in Cheng et al.'s
    code.
    """
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    # One filter serves all classes: a region ends where the window holds more than one class. Ignored pixels are the
    # largest value of the one filter and the smallest of the other, so that neither sees them.
    smallest = cv2.erode(labels, window)
    largest = cv2.dilate(labels + np.uint8(1), window)  # 255 becomes 0
    found = (largest - np.uint8(1) != smallest) & (labels != IGNORE)
    inner = np.zeros(labels.shape, bool)
    inner[width : max(labels.shape[0] - width, 0), width : max(labels.shape[1] - width, 0)] = True
    return found | (~inner & (labels != IGNORE))


def band_counts(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Count intersection and union of boundary bands: int64 (C,) each.

    Their quotient is the boundary IoU: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation
    Evaluation", CVPR 2021, section 5.

    Args:
        width: of the band in pixels; None for BAND_WIDTH of the diagonal.
    """
    if width is None:
        width = max(round(BAND_WIDTH * math.hypot(*truth.shape)), 1)
    seen = np.where(truth == IGNORE, truth, prediction)
    true, predicted = (np.where(band(labels, width), labels, np.uint8(IGNORE)) for labels in (truth, seen))
    both = np.where(true == predicted, true, np.uint8(IGNORE))
    first, second, intersection = (
        np.bincount(labels.ravel(), minlength=IGNORE + 1)[:num_classes] for labels in (true, predicted, both)
    )
    return intersection, first + second - intersection
