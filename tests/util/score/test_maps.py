"""Enlarging of maps against OpenCV, PyTorch and a slow version."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.slow_predict import slow_resize
from util.score.window.maps import aligned_corners, half_pixels, resize


@pytest.mark.parametrize("size", [(10, 15), (33, 47), (60, 31)], ids=str)
def test_resize_is_that_of_opencv_and_torch(size):
    planes = torch.from_numpy(np.random.default_rng(0).random((3, 30, 41), dtype=np.float32))
    expected = slow_resize(planes.double().numpy(), *size)
    assert np.abs(resize(planes, size).numpy() - expected).max() < 1e-5
    assert np.abs(F.interpolate(planes[None], size, mode="bilinear")[0].numpy() - expected).max() < 1e-5
    assert resize(planes, (30, 41)) is planes


@pytest.mark.parametrize("channels", [3, 19])
@pytest.mark.parametrize(("old", "new"), [(5, 5), (1, 4), (7, 1), (10, 23), (384, 512), (512, 683), (683, 511)])
def test_interpolation_in_parts_is_that_of_opencv(old, new, channels):
    values = np.random.default_rng(0).random((old, channels), dtype=np.float32)
    expected = cv2.resize(values[:, None].repeat(2, 1), (2, new), interpolation=cv2.INTER_LINEAR)[:, 0]
    interpolation = half_pixels(old, new, single=channels > 4)
    for step in (1, 2, old):
        found = torch.zeros(new, channels)
        for first in range(0, old, step):
            rows, shares = interpolation.part(first, min(first + step, old))
            found[rows] += shares @ torch.from_numpy(values[first : first + step])
        assert np.abs(found.numpy() - expected).max() < 1e-6
    wide = interpolation.widen(torch.from_numpy(values).T.contiguous(), torch.empty(channels, new))
    assert np.abs(wide.numpy().T - expected).max() < 1e-6


@pytest.mark.parametrize(("points", "new"), [(1, 1), (1, 5), (4, 4), (5, 17), (2, 9), (90, 713), (104, 832), (7, 3)])
def test_aligned_corners_are_those_of_torch(points, new):
    values = torch.from_numpy(np.random.default_rng(0).random((3, points), dtype=np.float32)) * 30
    expected = F.interpolate(values[None, :, None], (1, new), mode="bilinear", align_corners=True)[0, :, 0]
    assert (aligned_corners(points, new).widen(values, torch.empty(3, new)) - expected).abs().max() < 1e-5
