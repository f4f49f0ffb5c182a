"""Boundary scores against values computed by hand and slow obvious versions."""

import math

import numpy as np
import pytest

from util.report.boundary import band, band_counts, boundary_f, contour

pytestmark = pytest.mark.fast


def square(top: int, left: int, size: int = 4) -> np.ndarray:
    """An 8 x 8 map of class 0 with a square of class 1."""
    labels = np.zeros((8, 8), np.uint8)
    labels[top : top + size, left : left + size] = 1
    return labels


def test_the_contour_of_a_square_is_its_rim_and_the_ring_around_it():
    found = contour(square(2, 2))
    assert found.sum() == 12 + 16  # rim of 4 x 4; four sides of four pixels around it, no corners
    assert not found[3:5, 3:5].any() and not found[1, 1] and found[1, 2] and found[2, 2]


def test_ignored_pixels_make_no_contour():
    labels = square(2, 2)
    labels[1:7, 1] = labels[1:7, 6] = labels[1, 1:7] = labels[6, 1:7] = 255
    assert not contour(labels).any()


def test_f_of_a_shifted_square_by_hand():
    """A square shifted by one to the right; within less than 1 pixel only equal pixels count.

    Rims of 12 pixels: true columns 2..5, predicted 3..6. They share the rows 2 and 5 in the columns 3..5: 6 pixels. Of
    the sides, column 2 (rows 3, 4) and 5 (rows 3, 4) against 3 and 6 none. So precision, recall and F are 6 / 12.
    """
    scores = boundary_f(square(2, 2), square(2, 3), 3, tolerance=1.0)
    assert scores[1] == pytest.approx(0.5) and math.isnan(scores[2])
    # Class 0: rings of 16, rows 1 and 6 share the columns 3..5, the sides (columns 1, 6 against 2, 7) share none.
    assert scores[0] == pytest.approx(6 / 16)
    # Nearer than 1.5 pixels everything lies: each column is one away.
    assert boundary_f(square(2, 2), square(2, 3), 2, tolerance=1.5) == pytest.approx([1, 1])


def test_f_of_a_class_on_one_side_only_is_zero():
    scores = boundary_f(square(2, 2), np.zeros((8, 8), np.uint8), 2)
    assert scores.tolist() == [0, 0]


def test_the_default_tolerance_is_a_share_of_the_diagonal():
    truth, near = np.zeros((300, 400), np.uint8), np.zeros((300, 400), np.uint8)
    truth[:, 200:], near[:, 203:] = 1, 1  # 3 < 0.0075 * 500 = 3.75
    assert boundary_f(truth, near, 2) == pytest.approx([1, 1])
    near[:, :204] = 0
    assert boundary_f(truth, near, 2) == pytest.approx([0, 0])  # 4 away


@pytest.mark.parametrize("classes", [3, 40])  # more than 32 are done in groups
def test_f_equals_all_pairs_of_points(classes):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, classes, (2, 5, 6))
    truth, prediction = (np.kron(labels, np.ones((5, 5), np.uint8)).astype(np.uint8) for labels in coarse)
    prediction = np.roll(np.where(rng.random(truth.shape) < 0.6, truth, prediction), 2, 1)
    truth[5:9, 3:20] = 255
    seen = np.where(truth == 255, truth, prediction)
    expected = []
    for index in range(classes):
        points = [np.argwhere(contour(labels) & (labels == index)) for labels in (truth, seen)]
        if not all(map(len, points)):
            expected.append(0.0 if any(map(len, points)) else math.nan)
            continue
        apart = np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(-1))
        precision, recall = (apart.min(0) < 2.5).mean(), (apart.min(1) < 2.5).mean()
        expected.append(2 * precision * recall / (precision + recall))
    assert boundary_f(truth, prediction, classes, tolerance=2.5) == pytest.approx(expected, nan_ok=True)


def slow_band(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask without what is left of it after `width` erosions by 3 x 3, padded with zeros: Cheng et al.'s code."""
    inner = np.pad(mask, 1)
    for _ in range(width):
        parts = [np.roll(inner, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        inner = np.logical_and.reduce(parts)
        inner[[0, -1]] = inner[:, [0, -1]] = False
    return mask & ~inner[1:-1, 1:-1]


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_bands_equal_repeated_erosion(width):
    rng = np.random.default_rng(width)
    labels = np.kron(rng.integers(0, 4, (4, 3)), np.ones((7, 9), np.uint8)).astype(np.uint8)
    expected = np.logical_or.reduce([slow_band(labels == index, width) for index in range(4)])
    assert np.array_equal(band(labels, width), expected)


def test_boundary_iou_by_hand():
    """Width 1: the bands of two 4 x 4 squares one apart are their rims, 12 pixels each, of which 6 are shared."""
    intersection, union = band_counts(square(2, 2), square(2, 3), 2, width=1)
    assert (intersection[1], union[1]) == (6, 18)


def test_ignored_pixels_do_not_count():
    truth = square(2, 2)
    truth[:, 4:] = 255
    wrong = square(2, 2)
    wrong[:, 4:] = 1
    assert band_counts(truth, wrong, 2, width=1)[0].tolist() == band_counts(truth, wrong, 2, width=1)[1].tolist()
    assert boundary_f(truth, wrong, 2) == pytest.approx([1, 1])
