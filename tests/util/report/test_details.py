"""What is measured beside the predictions, of one process and of several."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.conftest import CLASSES, COLORS
from util.report.details import EXTREMES, Details
from util.score.metric import ConfusionMatrix

pytestmark = pytest.mark.fast
COLOR_ARRAY = np.array(COLORS, np.uint8)


def samples(count: int) -> list[tuple[dict, np.ndarray]]:
    """Images of which the i-th has i wrong columns of 30."""
    out = []
    for index in range(count):
        truth = np.zeros((20, 30), np.uint8)
        truth[10:] = 1
        truth[:, 0] = 255
        prediction = truth.copy()
        prediction[:, : index + 1] = 2
        image = torch.full((3, 20, 30), 10 * index, dtype=torch.uint8)
        out.append(({"name": f"n{index}", "image": image, "label": torch.from_numpy(truth)}, prediction))
    return out


def measured(count: int = 15, threads: int = 1, order=None):
    names = [f"n{index}" for index in range(count)]
    details, found = Details(names, COLOR_ARRAY), samples(count)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda index: details(*found[index]), order or range(count)))
    return details.gather()


def test_the_counts_are_those_of_the_confusion_matrix():
    confusion = ConfusionMatrix(len(CLASSES))
    for sample, prediction in samples(15):
        confusion.update(torch.from_numpy(prediction), sample["label"])
    total = np.zeros(9, np.int64)
    for score in measured().scores:
        total[score.cells] += score.counts
    assert np.array_equal(total.reshape(3, 3), confusion.matrix.numpy())
    hit, truth, predicted = (
        np.asarray(x) for x in (total.reshape(3, 3).diagonal(), *(total.reshape(3, 3).sum(a) for a in (1, 0)))
    )
    sizes = measured().sizes.sum(1)
    assert np.array_equal(sizes[0], hit) and np.array_equal(sizes[1], truth + predicted - hit)


def test_best_middle_and_worst_are_shown():
    names = [shown.name for shown in measured().shown]
    assert names == ["n0", "n1", "n2", "n6", "n7", "n8", "n12", "n13", "n14"]


def test_the_order_of_threads_does_not_matter():
    one, other = measured(), measured(threads=4, order=[*range(14, -1, -1)])
    assert [score.name for score in one.scores] == [score.name for score in other.scores]
    assert [(s.name, s.pictures) for s in one.shown] == [(s.name, s.pictures) for s in other.shown]
    assert np.allclose(one.boundary_f, other.boundary_f, equal_nan=True) and np.array_equal(one.band, other.band)


def test_few_images_are_shown_once():
    assert [shown.name for shown in measured(2).shown] == ["n0", "n1"]
    assert len(measured(EXTREMES * 2).shown) == EXTREMES * 2


def test_an_image_without_a_labelled_pixel_is_no_candidate():
    details = Details(["a"], COLOR_ARRAY)
    empty = torch.full((4, 4), 255, dtype=torch.uint8)
    details({"name": "a", "image": torch.zeros(3, 4, 4, dtype=torch.uint8), "label": empty}, np.zeros((4, 4), np.uint8))
    found = details.gather()
    assert found.shown == () and len(found.scores) == 1 and np.isnan(found.image_f)
