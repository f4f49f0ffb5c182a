"""Large pictures in tiles: the weights add up to one, and nothing is kept but strips."""

import numpy as np
import pytest
import torch

from tool.shared.tiles import classes_in_tiles, finished, probabilities_in_tiles, spans, weights

pytestmark = pytest.mark.fast
SIZES = [(1, 1), (5, 40), (64, 64), (65, 64), (100, 333)]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 63, 64, 65, 100, 119, 120, 1000])
@pytest.mark.parametrize("side", [2, 8, 64, 129, 200])
def test_weights_of_neighbours_add_up_to_one(length, side):
    parts, overlap = spans(length, side)
    total = torch.zeros(length)
    for part in parts:
        assert 0 < part.stop - part.start <= side
        total[part] += weights(part, length, overlap)
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize("size", SIZES)
def test_a_prediction_pixel_by_pixel_is_that_of_the_whole_picture(size):
    probabilities = torch.rand(4, *size, generator=torch.Generator().manual_seed(0)).softmax(0)

    def predict(rows, columns):
        assert rows.stop - rows.start <= 64 and columns.stop - columns.start <= 64
        return probabilities[:, rows, columns].clone()

    np.testing.assert_allclose(probabilities_in_tiles(predict, size, 64, 4), probabilities.numpy(), rtol=1e-5)
    assert np.array_equal(classes_in_tiles(predict, size, 64), probabilities.argmax(0).numpy())


def test_tiles_are_blended_where_they_overlap():
    """Two tiles of the values 0 and 1: between them the mean rises linearly."""
    values = iter((0.0, 1.0))
    out = probabilities_in_tiles(lambda rows, columns: torch.full((1, 1, 8), next(values)), (1, 15), 8, 1)
    assert out[0, 0].tolist() == [0.0] * 7 + [0.5] + [1.0] * 7


def test_each_pixel_is_finished_once():
    times = np.zeros((100, 333), int)
    for rows, columns, part in finished(lambda r, c: torch.ones(2, r.stop - r.start, c.stop - c.start), (100, 333), 16):
        times[rows, columns] += 1
        torch.testing.assert_close(part, torch.ones_like(part))
    assert (times == 1).all()
