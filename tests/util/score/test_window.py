"""Sums of windows and their parts against OpenCV, PyTorch and slow versions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.slow_predict import slow_resize
from util.score import window
from util.score.window import WindowSums, first_argmax, resize

pytestmark = pytest.mark.fast
CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(10, 15), (33, 47), (60, 31)], ids=str)
def test_resize_is_that_of_opencv_and_torch(size):
    planes = torch.from_numpy(np.random.default_rng(0).random((3, 30, 41), dtype=np.float32))
    expected = slow_resize(planes.double().numpy(), *size)
    assert np.abs(resize(planes, size).numpy() - expected).max() < 1e-5
    assert np.abs(F.interpolate(planes[None], size, mode="bilinear")[0].numpy() - expected).max() < 1e-5
    assert resize(planes, (30, 41)) is planes


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 19, 150])
def test_probabilities_are_averaged_over_each_pixels_windows(classes, dtype, layout, monkeypatch):
    monkeypatch.setattr(window, "CACHED_NUMBERS", classes * 11 * 2)  # two rows of a window
    logits = torch.randn(4, classes, 7, 11, generator=torch.Generator().manual_seed(0)) * 40
    logits[:, classes // 2, 3] = -torch.inf if classes > 1 else 0  # a class that is ruled out
    logits = logits.to(dtype).contiguous(memory_format=layout)
    corners = [(0, 0), (2, 5)]
    sums = WindowSums(classes, (9, 16), (7, 11), CPU)
    for index in (0, 1):  # in two batches of one window and its mirror image
        sums.add(corners[index : index + 1], logits[index::2].unflatten(0, (2, 1)))
    total, count = torch.zeros(classes, 9, 16, dtype=torch.float64), torch.zeros(9, 16)
    for (y, x), plain, mirrored in zip(corners, logits[:2].double(), logits[2:].double(), strict=True):
        total[:, y : y + 7, x : x + 11] += plain.softmax(0) + mirrored.softmax(0).flip(-1)
        count[y : y + 7, x : x + 11] += 2
    found = sums.mean()
    assert (found - total / count)[:, count > 0].abs().max() < 1e-6


@pytest.mark.parametrize(
    ("coarse", "full"), [((1, 1), (1, 5)), ((3, 9), (17, 33)), ((1, 2), (4, 9)), ((13, 7), (90, 50))]
)
def test_coarse_logits_are_enlarged_as_torch_does_it(coarse, full, monkeypatch):
    monkeypatch.setattr(window, "CACHED_NUMBERS", 5 * full[1] * 3)
    logits = torch.randn(2, 5, *coarse, generator=torch.Generator().manual_seed(0)) * 10
    sums = WindowSums(5, full, full, CPU)
    sums.add([(0, 0)], logits[:, None])
    expected = F.interpolate(logits, full, mode="bilinear", align_corners=True).softmax(1)
    assert (sums.mean() - (expected[0] + expected[1].flip(-1)) / 2).abs().max() < 1e-5


@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_all_classes_of_its_pixel(wrong, place):
    logits = torch.zeros(1, 1, 19, 4, 30)
    logits[..., place, 3, 20] = wrong
    sums = WindowSums(19, (4, 30), (4, 30), CPU)
    sums.add([(0, 0)], logits)
    lost = sums.mean().isnan()
    assert lost[:, 3, 20].all() and lost.sum() == 19


@pytest.mark.parametrize("shape", [(1, 4, 5), (19, 8, 300), (256, 3, 129)], ids=str)
def test_first_of_equal_classes_wins(shape, monkeypatch):
    monkeypatch.setattr(window, "CACHED_NUMBERS", 300)
    given = torch.from_numpy(np.random.default_rng(0).integers(0, 4, shape).astype(np.float32))
    for scores in (given, given.transpose(1, 2).contiguous().transpose(1, 2)):
        assert np.array_equal(first_argmax(scores).numpy(), given.numpy().argmax(0))


def test_the_best_may_be_best_by_one_step_of_float32():
    given = torch.full((3, 2, 140), -torch.inf)
    given[1], given[2] = -1.0, float(np.nextafter(np.float32(-1.0), np.float32(0.0)))
    assert (first_argmax(given) == 2).all()
