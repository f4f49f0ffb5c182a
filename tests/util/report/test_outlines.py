"""Annotations of COCO decode to the mask: by a slow filling of our own, and by pycocotools where it is installed."""

import cv2
import numpy as np
import pytest

from util.report.outlines import annotations, polygons, run_lengths

pytestmark = pytest.mark.fast
RING = np.pad(np.zeros((3, 4), bool), 2, constant_values=True)


def masks():
    rng = np.random.default_rng(0)
    yield from (np.zeros((4, 5), bool), np.ones((1, 1), bool), np.ones((1, 6), bool), np.ones((5, 4), bool), RING)
    yield np.pad(np.pad(RING, 1), 2, constant_values=True)  # an island in a lake
    yield np.indices((6, 7)).sum(0) % 2 == 0  # regions that touch at corners alone
    yield np.eye(5, dtype=bool) | np.eye(5, dtype=bool)[::-1]
    for size in ((9, 7), (12, 20), (31, 33)):
        yield rng.random(size) < 0.5  # regions and holes of every kind
        yield cv2.resize(rng.integers(0, 2, (5, 6), np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0


def filled(polygon, shape):
    """Fill by parity: to the left of the middle of a pixel inside, the outline is crossed an odd number of times."""
    points = np.array(polygon).reshape(-1, 2)
    inside = np.zeros(shape, bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, 0), strict=True):
        for row in range(shape[0]):
            if (y1 <= row + 0.5) != (y2 <= row + 0.5):
                crossing = x1 + (row + 0.5 - y1) / (y2 - y1) * (x2 - x1)
                inside[row] ^= np.arange(shape[1]) + 0.5 > crossing
    return inside


@pytest.mark.parametrize("mask", [*masks()])
def test_outlines_enclose_their_regions(mask):
    found = polygons(mask)
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(found) == count - 1
    parts = [filled(each, mask.shape) for each in found]
    assert np.array_equal(sum(parts, np.zeros(mask.shape, int)), mask)  # each pixel once
    assert all(len({*labels[part].tolist()}) == 1 for part in parts)


def test_the_outline_of_a_square():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:5] = True
    assert polygons(mask) == [[2.0, 1.0, 5.0, 1.0, 5.0, 3.0, 2.0, 3.0]]


@pytest.mark.parametrize("mask", [*masks()])
def test_pycocotools_decodes_the_mask(mask):
    coco = pytest.importorskip("pycocotools.mask")
    runs = coco.frPyObjects(run_lengths(mask), *mask.shape)
    assert np.array_equal(coco.decode(runs), mask)
    if mask.any():
        assert np.array_equal(coco.decode(coco.merge(coco.frPyObjects(polygons(mask), *mask.shape))), mask)


def test_annotations_of_a_mask():
    mask = np.array([[0, 0, 2], [0, 255, 2]], np.uint8)
    found = annotations(mask, ("a", "b", "c"), "polygons")
    assert [(each["category_id"], each["category"], each["area"], each["bbox"]) for each in found] == [
        (0, "a", 3, [0, 0, 2, 2]),
        (2, "c", 2, [2, 0, 1, 2]),
    ]
