"""Sums of probabilities and the best class, in C++ and by PyTorch's operations, against float64 and NumPy."""

import math

import numpy as np
import pytest
import torch

from tests.conftest import both_ways, in_layouts_and_threads
from util.score.window import kernel as scores
from util.score.window.kernel import add_probabilities, first_argmax

ROWS, WIDTH = 7, 300  # more columns than are computed together, and some of the last ones are missing

way = both_ways(scores)


def random_logits(*shape, spread=3.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * spread


def expected_sums(sums, weights, logits, mirrored):
    """In float64."""
    logits = logits.double().flip(-1) if mirrored else logits.double()
    return sums.double() + logits.softmax(1) * torch.outer(*weights).double().unsqueeze(1)


def ones(rows, width):
    return torch.ones(rows), torch.ones(width)


@pytest.mark.parametrize("offset", [-300.0, -90.0, -60.0, 0.0, 60.0, 90.0, 300.0])
@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_softmax_of_extreme_logits(way, offset, spread):
    logits = random_logits(ROWS, 19, 31, spread=spread) + offset
    logits[2, 3] = -math.inf  # a class that is ruled out
    for kind in (torch.float32, torch.bfloat16):
        given, found = logits.to(kind), torch.zeros(ROWS, 19, 31)
        add_probabilities(found, ones(ROWS, 31), given, False)
        assert (found - given.double().softmax(1)).abs().max() < 1e-6


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 19, 150, 256])
def test_weighted_sums_of_part_of_a_picture(way, classes, mirrored):
    logits, weights = random_logits(ROWS, classes, WIDTH), (torch.rand(ROWS), torch.rand(WIDTH))
    picture = random_logits(ROWS + 2, classes, WIDTH + 40)
    part, before = picture[1:-1, :, 17 : 17 + WIDTH], picture.clone()
    expected = expected_sums(part, weights, logits, mirrored)
    add_probabilities(part, weights, logits, mirrored)
    assert (part - expected).abs().max() < 2e-6
    picture[1:-1, :, 17 : 17 + WIDTH] = before[1:-1, :, 17 : 17 + WIDTH]
    assert torch.equal(picture, before)


def test_any_memory_layout_and_number_of_threads(way):
    def probabilities(maps):
        found = [torch.zeros(ROWS, 19, WIDTH) for _ in maps]
        for window, sums in zip(maps, found, strict=True):
            add_probabilities(sums, ones(ROWS, WIDTH), window.transpose(0, 1), True)
        return torch.stack(found)

    logits = random_logits(2, 19, ROWS, WIDTH)
    for found in in_layouts_and_threads(probabilities, logits):
        assert (found.transpose(1, 2) - logits.double().softmax(1).flip(-1)).abs().max() < 1e-6


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 5])
def test_what_is_not_finite_shows_in_all_classes_of_its_pixel(way, wrong, place):
    logits = random_logits(ROWS, 19, WIDTH)
    logits[3, :, 200] = wrong if wrong == -math.inf else 0.0  # one class that is ruled out is no mistake
    logits[3, place, 200] = wrong
    sums = torch.zeros(ROWS, 19, WIDTH)
    add_probabilities(sums, ones(ROWS, WIDTH), logits, False)
    lost = sums.isnan()
    assert lost[3, :, 200].all() and lost.sum() == 19


@pytest.mark.parametrize("shape", [(1, 4, 5), (19, 8, 300), (256, 3, 129)], ids=str)
def test_first_of_equal_classes_wins(way, shape):
    given = torch.from_numpy(np.random.default_rng(0).integers(0, 4, shape).astype(np.float32))
    assert np.array_equal(first_argmax(given).numpy(), given.numpy().argmax(0))
    inside = torch.full((shape[1] + 2, shape[2] + 3), 77, dtype=torch.uint8)
    for found in in_layouts_and_threads(lambda x: first_argmax(x[0], out=inside[1:-1, 2:-1]).clone(), given[None]):
        assert np.array_equal(found.numpy(), given.numpy().argmax(0))
    assert (inside == 77).sum() == inside.numel() - given[0].numel()


def test_the_best_may_be_best_by_one_step_of_float32(way):
    given = torch.full((3, 2, 140), -math.inf)
    given[1], given[2] = -1.0, float(np.nextafter(np.float32(-1.0), np.float32(0.0)))
    assert (first_argmax(given) == 2).all()


def test_without_a_compiler_the_log_says_what_follows(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(scores, "compiled", scores.compiled.__wrapped__)
    monkeypatch.setattr(scores.log, "propagate", True)
    with caplog.at_level("INFO", logger=scores.log.name):
        assert scores.kernel.__wrapped__() is None
    assert "no-such-compiler" in caplog.text and "by PyTorch" in caplog.text
