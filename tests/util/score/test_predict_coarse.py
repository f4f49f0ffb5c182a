"""Logits averaged on the network's own coarse grid (windows fast), against a slow version in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.base import SegModel
from tests.slow_predict import CASES, CLASSES, MEAN, STD, SmallNet, random_picture, slow_probabilities, slow_resize
from util.score import window
from util.score.coarse import CoarsePredictor
from util.score.predict import Predictor

pytestmark = pytest.mark.fast


class CoarseNet(SegModel):
    """Two convolutions with stride 2 each, so that the coarse grid has stride 4."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.last = nn.Conv2d(8, classes, 3, stride=2, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5

    def forward_features(self, x):
        return [self.first(x).relu()]

    def decode(self, features):
        return {"out": self.last(features[0])}


@pytest.mark.parametrize("name", CASES)
def test_coarse_logits_are_enlarged_as_the_network_does(name, monkeypatch):
    net, image = CoarseNet().eval(), random_picture(30, 41)
    expected = slow_probabilities(net, image, **CASES[name])
    monkeypatch.setattr(net, "forward", None)
    found = Predictor(net, CLASSES, MEAN, STD, window_batch=3, **CASES[name]).probabilities(image)
    assert np.abs(found.numpy() - expected).max() < 1e-5


class OwnEnlarging(CoarseNet):
    def forward(self, x):
        return {"out": F.interpolate(self.coarse(x), x.shape[2:])}


def slow_fast(net, image, scales=(1.0,), flip=False, window=None, stride_rate=2 / 3, base_size=None, stride=4):
    """Mean coarse logits of each scale, read off bilinearly at every pixel; float64 probabilities (C, H, W)."""
    height, width = image.shape[1:]
    total = np.zeros((CLASSES, height, width))
    for scale in scales:
        factor = scale if base_size is None else scale * base_size / max(height, width)
        h, w = round(factor * height), round(factor * width)
        sides = [stride * math.ceil((side - 1) / stride) + 1 for side in window or (h, w)]
        full = [max(have, least) for have, least in zip((h, w), sides, strict=True)]
        top, left = (full[0] - h) // 2, (full[1] - w) // 2
        full = [stride * math.ceil((side - 1) / stride) + 1 for side in full]
        canvas = np.zeros((3, *full))
        small = slow_resize(image.numpy().astype(np.float64), h, w)
        mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
        canvas[:, top : top + h, left : left + w] = (small - mean) / std
        grid = np.zeros((CLASSES, *((side - 1) // stride + 1 for side in full)))
        count = np.zeros(grid.shape[1:])
        steps = [max(int(side * stride_rate) // stride, 1) * stride for side in sides]
        starts = [
            sorted({min(i * step, length - side) for i in range(length)})
            for step, side, length in zip(steps, sides, full, strict=True)
        ]
        for y, x in itertools.product(*starts):
            crop = torch.from_numpy(canvas[:, y : y + sides[0], x : x + sides[1]].copy()).float()[None]
            with torch.no_grad():
                found = [net.coarse(crop)[0].numpy()]
                found += [net.coarse(crop.flip(3))[0].numpy()[:, :, ::-1]] if flip else []
            for one in found:
                place = slice(y // stride, y // stride + one.shape[1]), slice(x // stride, x // stride + one.shape[2])
                grid[(slice(None), *place)] += one
                count[place] += 1
        grid /= count
        for y in range(height):
            gy = (min(max((y + 0.5) * h / height - 0.5, 0), h - 1) + top) / stride
            for x in range(width):
                gx = (min(max((x + 0.5) * w / width - 0.5, 0), w - 1) + left) / stride
                y0, x0 = int(gy), int(gx)
                y1, x1 = min(y0 + 1, grid.shape[1] - 1), min(x0 + 1, grid.shape[2] - 1)
                upper = grid[:, y0, x0] * (1 - gx + x0) + grid[:, y0, x1] * (gx - x0)
                lower = grid[:, y1, x0] * (1 - gx + x0) + grid[:, y1, x1] * (gx - x0)
                total[:, y, x] += upper * (1 - gy + y0) + lower * (gy - y0)
    powers = np.exp(total / len(scales))
    return powers / powers.sum(0)


@pytest.mark.parametrize("cached", [1 << 17, 250])
@pytest.mark.parametrize("name", CASES)
def test_fast_windows_equal_the_slow_ones(name, cached, monkeypatch):
    monkeypatch.setattr(window, "CACHED_NUMBERS", cached)
    net, image = CoarseNet().eval(), random_picture(*((21, 34) if cached == 250 else (30, 18)))
    expected = slow_fast(net, image, **CASES[name])
    predictor = CoarsePredictor(net, CLASSES, MEAN, STD, window_batch=3, **CASES[name])
    assert np.abs(predictor.probabilities(image).numpy() - expected).max() < 2e-5
    ordered = np.sort(expected, 0)
    decided = ordered[-1] - ordered[-2] > 1e-4
    assert np.array_equal(predictor(image).numpy()[decided], expected.argmax(0)[decided])


@pytest.mark.parametrize("size", [(33, 41), (13, 61)], ids=str)
def test_fast_equals_exact_for_one_window_on_the_grid(size):
    net, image = CoarseNet(), random_picture(*size)
    exact = Predictor(net, CLASSES, MEAN, STD)
    fast = CoarsePredictor(net, CLASSES, MEAN, STD)
    assert torch.allclose(fast.probabilities(image), exact.probabilities(image), atol=1e-5)
    assert fast.describe()["windows"] == "fast"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_fast_windows_on_a_gpu_equal_those_on_the_cpu(name):
    net, image = CoarseNet(), random_picture(37, 52)
    expected = CoarsePredictor(net, CLASSES, MEAN, STD, **CASES[name]).probabilities(image)
    found = CoarsePredictor(net, CLASSES, MEAN, STD, device="cuda", **CASES[name]).probabilities(image)
    assert torch.allclose(found.cpu(), expected, atol=2e-3)  # convolutions may run in TF32


def test_fast_windows_refuse_what_they_cannot_do():
    image = random_picture(33, 41)
    for net in (SmallNet(), OwnEnlarging()):
        with pytest.raises(ValueError, match=f"which {type(net).__name__} does not give"):
            CoarsePredictor(net, CLASSES, MEAN, STD)
    with pytest.raises(ValueError, match="OwnEnlarging enlarges its logits in a way of its own"):
        OwnEnlarging().coarse(torch.zeros(1, 3, 8, 8))
    net = CoarseNet()
    net.last.padding = (0, 0)  # its grid does not reach the picture's edge
    with pytest.raises(ValueError, match="use windows exact"):
        CoarsePredictor(net, CLASSES, MEAN, STD, window=(17, 17))(image)
    net = CoarseNet()
    net.last.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        CoarsePredictor(net, CLASSES, MEAN, STD)(image)
