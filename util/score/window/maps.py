"""Arithmetic on maps of class scores: memory, resizing, mirroring, interpolation.

Axes: C classes, H and W the picture's height and width. On a CPU everything is done in blocks of rows that stay in
a core's cache, because each pass over a whole map costs more than the arithmetic in it; an accelerator gets few
large operations. All maps are float32.
"""

import math
from functools import lru_cache

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CACHED_NUMBERS = 1 << 17  # floats of a block of rows: several such blocks fit in a CPU core's cache (512 KiB)
COLUMNS = 64  # of widened rows that are made by one product of matrices
PLANES_AT_ONCE = 16  # class maps that an accelerator resizes together


class Memory:
    """Buffers by name, kept from picture to picture: on a CPU fresh pages would cost as much as the arithmetic."""

    def __init__(self, device: torch.device):
        self.device = device
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised float32 tensor; the next call with that name overwrites it."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers.pop(name, None)  # before the larger one is there, or both would count
            self._buffers[name] = self._new(size)
        return self._buffers[name][:size].view(shape)

    def _new(self, size: int) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(np.empty(size, np.float32))  # in huge pages, for which PyTorch does not ask
        return torch.empty(size, device=self.device)


def on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def resize(planes: Tensor, size: tuple[int, int], out: Tensor | None = None) -> Tensor:
    """Bilinear, half-pixel centres, no low-pass filter, as cv2.resize: float32 (n, h, w) -> (n, *size)."""
    if tuple(planes.shape[1:]) == tuple(size):
        return planes if out is None else out.copy_(planes)
    if not on_cpu(planes):
        resized = F.interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
        return resized if out is None else out.copy_(resized)
    # plane by plane: OpenCV 5 refuses more than 128 channels; F.interpolate takes six times as long on a CPU
    resized = torch.empty((len(planes), *size)) if out is None else out
    for source, target in zip(planes, resized, strict=True):
        cv2.resize(source.numpy(), size[::-1], dst=target.numpy(), interpolation=cv2.INTER_LINEAR)
    return resized


def mirror(planes: Tensor, out: Tensor | None = None) -> Tensor:
    """(..., h, w) turned left to right."""
    if not on_cpu(planes):
        return planes.flip(-1) if out is None else out.copy_(planes.flip(-1))
    # Tensor.flip moves single numbers on a CPU, OpenCV vectors
    out = torch.empty(planes.shape) if out is None else out
    if planes.is_contiguous() and out.is_contiguous():
        planes, out_planes = planes.view(1, -1, planes.shape[-1]), out.view(1, -1, out.shape[-1])
    else:
        out_planes = out
    for source, target in zip(planes, out_planes, strict=True):
        cv2.flip(source.numpy(), 1, dst=target.numpy())
    return out


def row_blocks(first: int, last: int, numbers: int, period: int | None = None) -> list[slice]:
    """Slices over the rows first..last - 1, of `numbers` floats each: blocks that fit in the cache.

    period: no block goes over a multiple of it.
    """
    step = max(CACHED_NUMBERS // numbers, 1)
    blocks = []
    while first < last:
        edge = last if period is None else min(last, (first // period + 1) * period)
        blocks.append(slice(first, min(first + step, edge)))
        first = blocks[-1].stop
    return blocks


class Interpolation:
    """Linear interpolation along one axis from points to pixels, part by part.

    position: of each pixel in numbers of points, ascending, float32 or float64 (pixels,).
    """

    def __init__(self, position: np.ndarray, points: int, rounded: bool = False):
        self.points, self.rounded = points, rounded
        self.before = np.minimum(position.astype(np.int64), max(points - 2, 0))
        self.after = np.minimum(self.before + 1, points - 1)
        self.share = (position - self.before).clip(0, 1).astype(np.float32)
        self._widening: list[tuple[slice, slice, Tensor]] | None = None
        self._known: dict[tuple, tuple] = {}

    def __len__(self) -> int:
        return len(self.share)

    def part(self, first: int, last: int) -> tuple[slice, Tensor]:
        """The pixels that points first..last - 1 contribute to, and the matrix (pixels, points) of their shares."""
        if ("part", first, last) not in self._known:
            pixels = slice(int(np.searchsorted(self.after, first)), int(np.searchsorted(self.before, last)))
            self._known["part", first, last] = pixels, self._matrix(pixels, first, last)
        return self._known["part", first, last]

    def shares(self, first: int, last: int) -> tuple[slice, Tensor]:
        """The points that pixels first..last - 1 need, and the matrix (pixels, points) of their shares."""
        if (first, last) not in self._known:
            points = slice(int(self.before[first]), int(self.after[last - 1]) + 1)
            self._known[first, last] = points, self._matrix(slice(first, last), points.start, points.stop)
        return self._known[first, last]

    def widen(self, rows: Tensor, out: Tensor) -> Tensor:
        """All pixels of each of the rows (n, points) -> `out` (n, pixels), on a CPU."""
        if self._widening is None:
            edges = [(first, min(first + COLUMNS, len(self))) for first in range(0, len(self), COLUMNS)]
            self._widening = [(slice(*edge), *self.shares(*edge)) for edge in edges]
        for pixels, points, shares in self._widening:
            torch.mm(rows[:, points], shares.T, out=out[:, pixels])
        return out

    def take(self, values: Tensor, axis: int) -> Tensor:
        """All pixels of a tensor whose `axis` is the grid's."""
        place = "take", values.device
        if place not in self._known:  # once: for a copy the host waits
            tables = self.before, self.after, self.share
            self._known[place] = tuple(torch.from_numpy(table).to(values.device) for table in tables)
        before, after, share = self._known[place]
        shape = [1] * values.ndim
        shape[axis] = len(share)
        return values.index_select(axis, before).lerp_(values.index_select(axis, after), share.view(shape))

    def _matrix(self, pixels: slice, first: int, last: int) -> Tensor:
        before, after, share = self.before[pixels], self.after[pixels], self.share[pixels]
        matrix = np.zeros((len(share), last - first), np.float32)
        for point, part in ((before, 1 - share), (after, share)):
            inside = np.flatnonzero((point >= first) & (point < last))
            matrix[inside, point[inside] - first] += part[inside]
        return torch.from_numpy(matrix)


@lru_cache(maxsize=64)
def half_pixels(
    length: int, new: int, start: int = 0, pitch: int = 1, points: int | None = None, single: bool = False
) -> Interpolation:
    """From the points of a grid to `new` pixels that lie as in `resize`.

    Half-pixel centres over `length` old pixels, the outermost repeated. Old pixel 0 stands `start` pixels behind the
    first point of the grid, whose `points` are `pitch` pixels apart; the default grid is the old pixels themselves.
    single: round positions to float32 before the fraction is taken, 3e-5 of a pixel at 500. OpenCV does so with a
    picture of more than four channels, and there alone. `rounded` of the result says whether that changed any.
    """
    points = length if points is None else points
    exact = (np.arange(new) + 0.5) * (length / new) - 0.5
    pixel = exact.astype(np.float32).astype(np.float64) if single else exact
    position = np.clip((np.clip(pixel, 0, length - 1) + start) / pitch, 0, points - 1)
    return Interpolation(position, points, rounded=bool((pixel != exact).any()))


@lru_cache(maxsize=64)
def aligned_corners(points: int, new: int) -> Interpolation:
    """From `points` to `new` pixels, first on first and last on last, rounded to float32 as by F.interpolate."""
    pitch = np.float32(points - 1) / np.float32(max(new - 1, 1))
    return Interpolation(np.minimum(np.arange(new, dtype=np.float32) * pitch, points - 1), points)
