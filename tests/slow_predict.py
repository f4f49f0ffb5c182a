"""A prediction written out pixel by pixel in float64, the truth for util/score/predict.py."""

import math

import cv2
import numpy as np
import torch
from torch import nn

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
