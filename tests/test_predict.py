"""util/predict.py against a slow prediction written out pixel by pixel in float64."""

import itertools
import math
from functools import cache
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.base import SegModel
from util import coarse, maps, predict, scores
from util.maps import aligned_corners, half_pixels, resize
from util.predict import PROTOCOLS, Predictor, protocol_settings

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSES = 5


class SmallNet(nn.Module):
    """Two convolutions, so that a window's edge and the padding matter."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, classes, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, x):
        return {"out": self.last(self.first(x).relu())}


class PerPixel(nn.Module):
    """Knows nothing of a pixel's neighbours: class c is as likely as the pixel is near to colours[c]."""

    def __init__(self, colors):
        super().__init__()
        normalised = (torch.as_tensor(colors).float() - torch.tensor(MEAN)) / torch.tensor(STD)
        self.register_buffer("colors", normalised[:, :, None, None])

    def forward(self, x):
        return {"out": -((x[:, None] - self.colors) ** 2).sum(2)}


class Constant(nn.Module):
    def __init__(self, value, classes=CLASSES):
        super().__init__()
        self.value, self.classes = value, classes

    def forward(self, x):
        return {"out": x.new_full((len(x), self.classes, *x.shape[2:]), self.value)}


def random_picture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return torch.from_numpy(smooth).permute(2, 0, 1).contiguous()


def slow_resize(planes, height, width):
    """(n, h, w) float64 -> (n, height, width): bilinear, half-pixel centres, edges repeated."""
    old_h, old_w = planes.shape[1:]
    result = np.empty((len(planes), height, width))
    for y in range(height):
        source_y = min(max((y + 0.5) * old_h / height - 0.5, 0), old_h - 1)
        y0 = int(source_y)
        y1, down = min(y0 + 1, old_h - 1), source_y - y0
        for x in range(width):
            source_x = min(max((x + 0.5) * old_w / width - 0.5, 0), old_w - 1)
            x0 = int(source_x)
            x1, right = min(x0 + 1, old_w - 1), source_x - x0
            upper = planes[:, y0, x0] * (1 - right) + planes[:, y0, x1] * right
            lower = planes[:, y1, x0] * (1 - right) + planes[:, y1, x1] * right
            result[:, y, x] = upper * (1 - down) + lower * down
    return result


def slow_softmax(net, normalised):
    """(3, h, w) -> (C, h, w) float64."""
    with torch.no_grad():
        logits = net(torch.from_numpy(normalised.copy()).float()[None])["out"][0].double().numpy()
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


def slow_windows(net, picture, window, rate, flip):
    """One scale: pad, slide, average by the number of windows over each pixel, crop."""
    height, width = picture.shape[1:]
    window_h, window_w = window or (height, width)
    full_h, full_w = max(height, window_h), max(width, window_w)
    top, left = int((full_h - height) / 2), int((full_w - width) / 2)
    canvas = np.broadcast_to(np.array(MEAN)[:, None, None], (3, full_h, full_w)).copy()
    canvas[:, top : top + height, left : left + width] = picture
    canvas = (canvas - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    total, count = np.zeros((CLASSES, full_h, full_w)), np.zeros((full_h, full_w))
    for y in slow_starts(full_h, window_h, rate):
        for x in slow_starts(full_w, window_w, rate):
            crop = canvas[:, y : y + window_h, x : x + window_w]
            found = slow_softmax(net, crop)
            if flip:
                found = (found + slow_softmax(net, crop[:, :, ::-1])[:, :, ::-1]) / 2
            for dy in range(window_h):
                for dx in range(window_w):
                    total[:, y + dy, x + dx] += found[:, dy, dx]
                    count[y + dy, x + dx] += 1
    return (total / count)[:, top : top + height, left : left + width]


def slow_starts(length, window, rate):
    """Steps of the stride until the far edge is reached; the last window is pushed back to end there."""
    starts, stride = [0], math.ceil(window * rate)
    while starts[-1] + window < length:
        starts.append(min(starts[-1] + stride, length - window))
    return starts


def slow_probabilities(net, image, scales=(1.0,), flip=False, window=None, stride_rate=2 / 3, base_size=None):
    height, width = image.shape[1:]
    picture = image.numpy().astype(np.float64)
    total = np.zeros((CLASSES, height, width))
    for scale in scales:
        size = round(scale * height), round(scale * width)
        if base_size is not None:
            longer = round(scale * base_size)
            shorter = round(longer / float(max(height, width)) * min(height, width))
            size = (longer, shorter) if height > width else (shorter, longer)
        found = slow_windows(net, slow_resize(picture, *size), window, stride_rate, flip)
        total += slow_resize(found, height, width)
    return total / len(scales)


CASES = {
    "whole": {},
    "whole, flip": {"flip": True},
    "whole, scales": {"scales": (0.5, 1.0, 1.75), "flip": True},
    "windows": {"window": (16, 16)},
    "windows, flip": {"window": (16, 16), "flip": True},
    "long windows": {"window": (13, 32), "stride_rate": 1 / 2, "flip": True},
    "window larger than the picture": {"window": (48, 49), "flip": True},
    "base size": {"window": (17, 17), "base_size": 50, "flip": True},
    "smaller base size": {"window": (17, 17), "base_size": 25},
    "windows, scales": {"window": (24, 24), "base_size": 40, "scales": (0.5, 1.0, 1.5), "flip": True},
    "touching windows": {"window": (10, 10), "stride_rate": 1.0},
}


@cache
def slow_case(name, size):
    return slow_probabilities(SmallNet(), random_picture(*size), **CASES[name])


@pytest.mark.parametrize("cached", [None, 250, 2000])
@pytest.mark.parametrize("size", [(30, 41), (41, 30), (16, 16), (9, 60)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_probabilities_equal_the_slow_prediction(name, size, cached, monkeypatch):
    if cached:  # floats in a block: of one row, and of a few
        monkeypatch.setattr(maps, "CACHED_NUMBERS", cached)
    net, image = SmallNet(), random_picture(*size)
    expected = slow_case(name, size)
    predictor = Predictor(net, CLASSES, MEAN, STD, window_batch=3, **CASES[name])
    probabilities = predictor.probabilities(image)
    assert probabilities.dtype == torch.float32
    assert np.abs(probabilities.numpy() - expected).max() < 2e-5
    prediction = predictor(image)
    assert prediction.dtype == torch.uint8
    ordered = np.sort(expected, 0)
    decided = ordered[-1] - ordered[-2] > 1e-4
    assert decided.mean() > 0.99
    assert np.array_equal(prediction.numpy()[decided], expected.argmax(0)[decided])


@pytest.mark.parametrize("name", CASES)
def test_code_for_accelerators_gives_the_same(name, monkeypatch):
    net, image = SmallNet(), random_picture(37, 52)
    predictor = Predictor(net, CLASSES, MEAN, STD, **CASES[name])
    prediction, probabilities = predictor(image), predictor.probabilities(image)
    for module in (maps, predict, scores):
        monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
    assert torch.allclose(predictor.probabilities(image), probabilities, atol=2e-5)
    assert (predictor(image) == prediction).float().mean() > 0.999


@pytest.mark.parametrize("name", CASES)
def test_the_same_without_a_compiler(name, monkeypatch):
    net, image = SmallNet(), random_picture(37, 52)
    predictor = Predictor(net, CLASSES, MEAN, STD, **CASES[name])
    expected = predictor.probabilities(image)
    monkeypatch.setattr(scores, "kernel", lambda: None)
    assert torch.allclose(predictor.probabilities(image), expected, atol=2e-6)
    assert torch.equal(predictor(image), expected.argmax(0).byte())


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_gpu_equals_cpu(name):
    net, image = SmallNet(), random_picture(37, 52)
    expected = Predictor(net, CLASSES, MEAN, STD, **CASES[name]).probabilities(image)
    found = Predictor(net, CLASSES, MEAN, STD, device="cuda", **CASES[name]).probabilities(image)
    assert torch.allclose(found.cpu(), expected, atol=2e-3)  # convolutions may run in TF32


def test_window_of_the_picture_size_is_the_whole_picture():
    net, image = SmallNet(), random_picture(30, 41)
    whole = Predictor(net, CLASSES, MEAN, STD, flip=True)
    window = Predictor(net, CLASSES, MEAN, STD, flip=True, window=(30, 41))
    assert torch.equal(whole.probabilities(image), window.probabilities(image))


@pytest.mark.parametrize("settings", [{}, {"window": (16, 24)}, {"window": (64, 64)}, {"window": (16, 16)}])
@pytest.mark.parametrize("flip", [False, True])
def test_network_without_neighbourhood_is_exact_however_it_is_cut(settings, flip):
    rng = np.random.default_rng(1)
    colors = rng.permutation(np.stack(np.meshgrid(*[[30, 220]] * 3), -1).reshape(8, 3)).astype(np.uint8)
    label = rng.integers(0, 8, (37, 52), dtype=np.uint8)
    image = torch.from_numpy(colors[label]).permute(2, 0, 1)
    predictor = Predictor(PerPixel(colors), 8, MEAN, STD, flip=flip, **settings)
    assert np.array_equal(predictor(image).numpy(), label)


def test_mirrored_picture_gives_mirrored_probabilities():
    net, image = SmallNet(), random_picture(30, 41)
    predictor = Predictor(net, CLASSES, MEAN, STD, flip=True, scales=(0.7, 1.0))
    mirrored = predictor.probabilities(image.flip(2)).flip(2)
    assert torch.allclose(mirrored, predictor.probabilities(image), atol=1e-5)
    plain = Predictor(net, CLASSES, MEAN, STD)
    mirrored = plain.probabilities(image.flip(2)).flip(2)
    assert not torch.allclose(mirrored, plain.probabilities(image), atol=1e-3)


def test_windows_end_at_the_edge_and_leave_no_gap():
    for window in (5, 7, 16):
        for rate in (1 / 2, 2 / 3, 1.0):
            for length in range(window, 60):
                starts = predict._window_starts(length, window, rate)
                assert starts == slow_starts(length, window, rate)
                assert (starts[0], starts[-1]) == (0, length - window)
                assert all(0 < after - before <= window for before, after in pairwise(starts))


def test_windows_of_a_batch_do_not_depend_on_its_size():
    net, image = SmallNet(), random_picture(50, 70)
    settings = {"window": (16, 16), "flip": True}
    one = Predictor(net, CLASSES, MEAN, STD, window_batch=1, **settings).probabilities(image)
    many = Predictor(net, CLASSES, MEAN, STD, window_batch=100, **settings).probabilities(image)
    assert torch.allclose(one, many, atol=1e-6)


def test_probabilities_sum_to_one_everywhere():
    predictor = Predictor(SmallNet(), CLASSES, MEAN, STD, flip=True, window=(16, 16), scales=(0.5, 1.0, 1.5))
    total = predictor.probabilities(random_picture(30, 41)).sum(0)
    assert torch.allclose(total, torch.ones(30, 41), atol=1e-5)


def test_channels_last_and_bfloat16_stay_near():
    net, image = SmallNet(), random_picture(30, 41)
    expected = Predictor(net, CLASSES, MEAN, STD).probabilities(image)
    channels_last = Predictor(net, CLASSES, MEAN, STD, channels_last=True).probabilities(image)
    assert torch.allclose(channels_last, expected, atol=1e-5)
    half = Predictor(net, CLASSES, MEAN, STD, amp=torch.bfloat16).probabilities(image)
    assert half.dtype == torch.float32
    assert torch.allclose(half, expected, atol=0.05)


def test_pictures_do_not_leak_into_one_another():
    net = SmallNet()
    large, small = random_picture(50, 70, seed=1), random_picture(20, 30, seed=2)
    settings = {"window": (16, 16), "flip": True, "scales": (0.5, 1.0)}
    predictor = Predictor(net, CLASSES, MEAN, STD, **settings)
    first = predictor.probabilities(large)
    kept = first.clone()
    second = predictor.probabilities(small)
    assert torch.equal(first, kept)
    assert torch.equal(second, Predictor(net, CLASSES, MEAN, STD, **settings).probabilities(small))


def test_results_are_ordinary_tensors_and_the_model_is_left_in_eval_mode():
    net = SmallNet().train()
    predictor = Predictor(net, CLASSES, MEAN, STD)
    predictor(random_picture(8, 8)).fill_(1)
    predictor.probabilities(random_picture(8, 8)).fill_(1)
    assert not net.training
    assert not net.first.training


def test_first_of_equal_classes_wins():
    image = random_picture(20, 30)
    assert not Predictor(Constant(0.0), CLASSES, MEAN, STD, flip=True, window=(8, 8))(image).any()


def test_many_classes_and_several_scales():
    # OpenCV 5 resizes no picture of more than 128 channels
    net, image = SmallNet(200), random_picture(20, 30)
    predictor = Predictor(net, 200, MEAN, STD, scales=(0.5, 1.0))
    assert np.array_equal(predictor(image).numpy(), predictor.probabilities(image).numpy().argmax(0))


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_network_that_is_not_finite_is_reported(value):
    with pytest.raises(ValueError, match="not finite"):
        Predictor(Constant(value), CLASSES, MEAN, STD)(random_picture(8, 8))


def test_wrong_pictures_and_wrong_networks_are_reported():
    predictor = Predictor(SmallNet(), CLASSES, MEAN, STD)
    with pytest.raises(ValueError, match="float32"):
        predictor(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"\(8, 8, 3\)"):
        predictor(torch.zeros(8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"is \(1, 5, 8, 8\), expected \(1, 6, 8, 8\)"):
        Predictor(SmallNet(), 6, MEAN, STD)(random_picture(8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
        ({"window": (16,)}, "window"),
        ({"window": (0, 16)}, "window"),
        ({"stride_rate": 0.0}, "stride_rate"),
        ({"stride_rate": 1.5}, "stride_rate"),
        ({"base_size": 0}, "base_size"),
        ({"window_batch": 0}, "window_batch"),
        ({"amp": torch.float64}, "amp"),
    ],
)
def test_wrong_settings_are_reported(settings, message):
    with pytest.raises(ValueError, match=message):
        Predictor(SmallNet(), CLASSES, MEAN, STD, **settings)


def test_description_is_plain():
    settings = {"scales": (0.5, 1.0), "flip": True, "window": (16, 17), "base_size": 64}
    predictor = Predictor(SmallNet(), CLASSES, MEAN, STD, amp=torch.bfloat16, **settings)
    assert predictor.describe() == {
        "windows": "exact",
        "scales": [0.5, 1.0],
        "flip": True,
        "window": [16, 17],
        "stride_rate": 2 / 3,
        "base_size": 64,
        "amp": "bfloat16",
    }
    whole = Predictor(SmallNet(), CLASSES, MEAN, STD).describe()
    assert (whole["window"], whole["stride_rate"], whole["amp"]) == (None, None, None)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_builds_a_predictor(name):
    Predictor(SmallNet(), CLASSES, MEAN, STD, **protocol_settings(name, crop=(16, 16)))


def test_protocols_take_what_the_experiment_changes():
    semseg = protocol_settings("semseg", (713, 713), base_size=2048, scales=(0.5, 1.0), flip=None)
    assert semseg == {
        "scales": (0.5, 1.0),
        "flip": True,
        "window": (713, 713),
        "stride_rate": 2 / 3,
        "base_size": 2048,
    }
    assert protocol_settings("sketchfill", (713, 713))["stride_rate"] == 1 / 2
    assert protocol_settings("sketchfill", (713, 713), window="none")["window"] is None
    assert protocol_settings("whole", (713, 713)) == PROTOCOLS["whole"]
    assert protocol_settings("whole", (713, 713), window=(64, 65))["window"] == (64, 65)
    with pytest.raises(ValueError, match="unknown protocol 'slide'; there are whole, semseg, sketchfill"):
        protocol_settings("slide", (713, 713))
    with pytest.raises(ValueError, match="no stride;"):
        protocol_settings("whole", (713, 713), stride=2)


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


class Enlarged(nn.Module):
    """A network's full-size logits, and no coarse ones."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"out": self.net(x)["out"] * 1}


@pytest.mark.parametrize("cached", [1 << 17, 250])
@pytest.mark.parametrize("size", [(30, 41), (70, 33)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_coarse_logits_are_enlarged_as_the_network_does(name, size, cached, monkeypatch):
    monkeypatch.setattr(maps, "CACHED_NUMBERS", cached)
    net, image = CoarseNet().eval(), random_picture(*size)
    expected = slow_probabilities(net, image, **CASES[name])
    predictor = Predictor(net, CLASSES, MEAN, STD, window_batch=3, **CASES[name])
    asked = []
    monkeypatch.setattr(net, "forward", lambda x: asked.append(x))
    assert np.abs(predictor.probabilities(image).numpy() - expected).max() < 1e-5
    ordered = np.sort(expected, 0)
    decided = ordered[-1] - ordered[-2] > 1e-4
    assert np.array_equal(predictor(image).numpy()[decided], expected.argmax(0)[decided])
    assert not asked


@pytest.mark.parametrize("factor", [1.0, 300.0])
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_coarse_and_full_size_logits_give_the_same(amp, factor):
    net, image = CoarseNet(), random_picture(60, 83)
    net.last.weight.data *= factor  # so that exponentials overflow
    settings = {"window": (33, 47), "flip": True, "scales": (0.7, 1.0, 1.3), "amp": amp}
    found = Predictor(net, CLASSES, MEAN, STD, **settings)
    expected = Predictor(Enlarged(net), CLASSES, MEAN, STD, **settings)
    assert torch.allclose(found.probabilities(image), expected.probabilities(image), atol=1e-5 * factor)
    assert (found(image) == expected(image)).float().mean() > 0.999


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
    monkeypatch.setattr(maps, "CACHED_NUMBERS", cached)
    net, image = CoarseNet().eval(), random_picture(*((21, 34) if cached == 250 else (30, 18)))
    expected = slow_fast(net, image, **CASES[name])
    predictor = Predictor(net, CLASSES, MEAN, STD, window_batch=3, windows="fast", **CASES[name])
    assert np.abs(predictor.probabilities(image).numpy() - expected).max() < 2e-5
    ordered = np.sort(expected, 0)
    decided = ordered[-1] - ordered[-2] > 1e-4
    assert np.array_equal(predictor(image).numpy()[decided], expected.argmax(0)[decided])
    for module in (maps, predict, coarse):
        monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
    assert np.abs(predictor.probabilities(image).numpy() - expected).max() < 2e-5


@pytest.mark.parametrize("size", [(33, 41), (13, 61)], ids=str)
def test_fast_equals_exact_for_one_window_on_the_grid(size):
    net, image = CoarseNet(), random_picture(*size)
    exact = Predictor(net, CLASSES, MEAN, STD)
    fast = Predictor(net, CLASSES, MEAN, STD, windows="fast")
    assert torch.allclose(fast.probabilities(image), exact.probabilities(image), atol=1e-5)
    assert fast.describe()["windows"] == "fast"


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_fast_windows_on_a_gpu_equal_those_on_the_cpu(name):
    net, image = CoarseNet(), random_picture(37, 52)
    expected = Predictor(net, CLASSES, MEAN, STD, windows="fast", **CASES[name]).probabilities(image)
    found = Predictor(net, CLASSES, MEAN, STD, device="cuda", windows="fast", **CASES[name]).probabilities(image)
    assert torch.allclose(found.cpu(), expected, atol=2e-3)  # convolutions may run in TF32


def test_fast_windows_refuse_what_they_cannot_do():
    image = random_picture(33, 41)
    for net in (SmallNet(), OwnEnlarging()):
        with pytest.raises(ValueError, match=f"which {type(net).__name__} does not give"):
            Predictor(net, CLASSES, MEAN, STD, windows="fast")
    with pytest.raises(ValueError, match="OwnEnlarging enlarges its logits in a way of its own"):
        OwnEnlarging().coarse(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="exact or fast"):
        Predictor(SmallNet(), CLASSES, MEAN, STD, windows="slow")
    net = CoarseNet()
    net.last.padding = (0, 0)  # its grid does not reach the picture's edge
    with pytest.raises(ValueError, match="use windows exact"):
        Predictor(net, CLASSES, MEAN, STD, windows="fast", window=(17, 17))(image)
    net = CoarseNet()
    net.last.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        Predictor(net, CLASSES, MEAN, STD, windows="fast")(image)
