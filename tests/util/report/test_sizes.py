"""IoU by size against values computed by hand."""

import cv2
import numpy as np
import pytest

from util.report.sizes import size_counts, size_of

pytestmark = pytest.mark.fast


def test_sizes_are_those_of_coco():
    assert size_of(np.array([1, 1023, 1024, 9215, 9216])).tolist() == [0, 0, 1, 1, 2]


def test_a_small_and_a_large_object_by_hand():
    truth = np.zeros((200, 300), np.uint8)
    truth[10:20, 10:20] = 1  # 100 pixels: small
    truth[50:150, 100:200] = 1  # 10,000 pixels: large
    prediction = np.zeros_like(truth)
    prediction[10:20, 10:15] = 1  # half of the small one
    prediction[50:150, 90:190] = 1  # 9,000 of the large one, and 1,000 wrong ones
    prediction[180:190, 280:290] = 1  # a region of 100 pixels that hits nothing: small
    counts = size_counts(truth, prediction, 3)
    assert counts[:, :, 1].tolist() == [[50, 0, 9000], [100 + 100, 0, 10_000 + 1000]]
    assert not counts[:, :, 2].any()
    # The background is one large object; wrong on 50 + 1,000 pixels, and missed on 1,000 + 100.
    assert counts[:, :, 0].tolist() == [[0, 0, 60_000 - 10_100 - 1100], [0, 0, 60_000 - 10_100 + 1050]]


def test_a_predicted_region_over_two_objects_counts_for_the_one_it_covers_most():
    truth = np.zeros((40, 120), np.uint8)
    truth[:, :40] = truth[:4, 100:104] = 1  # 1,600 pixels: medium; 16 pixels: small
    prediction = np.ones_like(truth)
    counts = size_counts(truth, prediction, 2)
    assert counts[0, :, 1].tolist() == [16, 1600, 0]
    assert counts[1, :, 1].tolist() == [16, 1600 + 40 * 120 - 1616, 0]


def test_the_sizes_add_up_to_the_class():
    rng = np.random.default_rng(1)
    truth = np.kron(rng.integers(0, 3, (20, 20)), np.ones((9, 9))).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.8, truth, rng.integers(0, 3, truth.shape)).astype(np.uint8)
    truth[:5] = 255
    counts = size_counts(truth, prediction, 3).sum(1)
    valid = truth != 255
    for index in range(3):
        here, there = (truth == index) & valid, (prediction == index) & valid
        assert counts[:, index].tolist() == [(here & there).sum(), (here | there).sum()]


def test_counts_equal_those_of_each_object_by_itself():
    rng = np.random.default_rng(3)
    truth, prediction = (np.kron(rng.integers(0, 3, (9, 12)), np.ones((16, 16))).astype(np.uint8) for _ in range(2))
    prediction = np.roll(np.where(rng.random((9, 12)).repeat(16, 0).repeat(16, 1) < 0.7, truth, prediction), 3, 1)
    truth[:20] = 255
    seen = np.where(truth == 255, 255, prediction)
    expected = np.zeros((2, 3, 3), np.int64)
    for index in range(3):
        objects, regions = (
            [numbers == number for number in range(1, count)]
            for count, numbers in (
                cv2.connectedComponents((labels == index).astype(np.uint8), connectivity=4) for labels in (truth, seen)
            )
        )
        for mask in objects:
            size = size_of(mask.sum())
            expected[:, size, index] += (mask & (seen == index)).sum(), mask.sum()
        for mask in regions:
            covered = [(mask & other).sum() for other in objects]
            size = size_of(objects[int(np.argmax(covered))].sum() if max(covered, default=0) else mask.sum())
            expected[1, size, index] += (mask & (truth != index)).sum()
    assert np.array_equal(size_counts(truth, prediction, 3), expected) and expected[1, :2].sum(1).all()


def test_maps_without_anything_right_or_labelled():
    truth, wrong = np.zeros((1, 1), np.uint8), np.ones((1, 1), np.uint8)
    assert size_counts(truth, wrong, 2).sum(1).tolist() == [[0, 0], [1, 1]]
    assert not size_counts(np.full((3, 3), 255, np.uint8), np.zeros((3, 3), np.uint8), 2).any()
