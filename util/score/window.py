"""Arithmetic of sliding windows, the same on every device.

Axes: C classes, h and w of the picture as it is seen at one scale, padded to the window. All maps are float32.
On a CPU maps are gone through in bands of rows that stay in a core's cache: each pass over a whole map costs more than
the arithmetic in it. An accelerator gets one band, that is few large operations.
"""

import math
from collections.abc import Iterator, Sequence

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

CACHED_NUMBERS = 1 << 18  # floats of a band (1 MiB)


class WindowSums:
    """The mean over one scale's windows, added up window by window.

    num_classes: C. size, window (h, w): of the padded picture, and of a window. softmax: make logits probabilities;
    else they are averaged as they are.
    """

    def __init__(
        self, num_classes: int, size: Sequence[int], window: Sequence[int], device: torch.device, softmax: bool = True
    ):
        self.window, self.softmax = window, softmax
        self.sums = torch.zeros((num_classes, *size), device=device)
        self.count = torch.zeros(tuple(size), device=device)

    def add(self, corners: Sequence[tuple[int, int]], logits: Tensor) -> None:
        """Add windows with these upper left corners (y, x).

        logits: (k, n, C, h, w) of n windows, or coarser ones, which are enlarged as SegModel does it, with aligned
            corners; k = 2 where the second half is that of the mirrored windows.
        """
        height, width = self.window
        for (y, x), maps in zip(corners, logits.unbind(1), strict=True):
            sums = self.sums[:, y : y + height, x : x + width]
            if maps.shape[3] != width:
                maps = F.interpolate(maps.float(), (maps.shape[2], width), mode="bilinear", align_corners=True)
            for rows in bands(sums.shape, sums.device):
                for part, mirrored in zip(enlarged_rows(maps, height, rows), (False, True), strict=False):
                    scores = part.softmax(0, dtype=torch.float32) if self.softmax else part
                    sums[:, rows] += scores.flip(-1) if mirrored else scores
            self.count[y : y + height, x : x + width] += len(maps)

    def mean(self) -> Tensor:
        """Return the mean of the windows over each pixel, (C, h, w).

        Once, after the last window.
        """
        return self.sums.div_(self.count)


def enlarged_rows(maps: Tensor, height: int, rows: slice) -> Tensor:
    """Return some rows of maps enlarged to `height` rows.

    maps: (k, C, h, w); linear, first on first and last on last.
    """
    last = maps.shape[2] - 1
    if last == height - 1:
        return maps[:, :, rows]
    position = torch.arange(rows.start, rows.stop, dtype=widest(maps.device), device=maps.device)
    position = position * (last / (height - 1))
    before = position.long().clamp(max=max(last - 1, 0))
    share = (position - before).to(maps.dtype)[:, None]
    return maps.index_select(2, before).lerp_(maps.index_select(2, (before + 1).clamp(max=last)), share)


def widest(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def window_starts(length: int, window: int, stride_rate: float) -> list[int]:
    """Return the first pixels of the windows along one side.

    The last window is flush with the far edge.
    """
    stride = math.ceil(window * stride_rate)
    count = math.ceil((length - window) / stride) + 1
    return [min(index * stride, length - window) for index in range(count)]


def snap(length: int, stride: int) -> int:
    """Return the smallest k * stride + 1 not below `length`."""
    return -(-(length - 1) // stride) * stride + 1


def resize(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (n, h, w) to (n, *size), as cv2.resize.

    Bilinear, half-pixel centres, no low-pass filter.
    """
    if tuple(planes.shape[1:]) == tuple(size):
        return planes
    if planes.device.type != "cpu":
        return F.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
    # Plane by plane: OpenCV 5 refuses more than 128 channels. F.interpolate takes four times as long on a CPU.
    resized = torch.empty((len(planes), *size))
    for source, target in zip(planes, resized, strict=True):
        cv2.resize(source.numpy(), size[::-1], dst=target.numpy(), interpolation=cv2.INTER_LINEAR)
    return resized


def first_argmax(scores: Tensor) -> Tensor:
    """Return the class of the largest score, first of equal ones.

    (C, H, W) -> uint8 (H, W), of more than 256 classes uint16.
    """
    kind = torch.uint8 if len(scores) <= 256 else torch.uint16
    if scores.device.type != "cpu":
        return scores.argmax(0).to(kind)
    found = torch.zeros(scores.shape[1:], dtype=torch.uint8 if len(scores) <= 256 else torch.int32)
    for rows in bands(
        (1, *found.shape), found.device
    ):  # Tensor.argmax over the first axis takes five times as long on a CPU
        best = scores[0, rows].clone()
        for index, plane in enumerate(scores[1:, rows], start=1):
            found[rows].masked_fill_(plane > best, index)
            torch.maximum(best, plane, out=best)
    return found.to(kind)


def bands(shape: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Slice the rows of maps into bands for a CPU's cache.

    shape: (n, h, w) of the maps.
    """
    number, height, width = shape
    step = max(CACHED_NUMBERS // (number * width), 1) if device.type == "cpu" else height
    for first in range(0, height, step):
        yield slice(first, min(first + step, height))
