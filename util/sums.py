"""Sums of the probabilities of windows, and of scales, in which each number crosses the main memory few times.

Axes: C classes, h and w of the picture as it is seen at one scale, padded to the window; H and W of the picture.
A scale's windows come row by row of windows. On a CPU the rows that no further window reaches are resized and added
to the picture's scores at once, so that a scale needs memory for one row of windows only.
"""

import math
from collections.abc import Callable
from itertools import groupby

import cv2
import torch
from torch import Tensor

from util.maps import PLANES_AT_ONCE, Interpolation, Memory, resize, row_blocks, softmax_


class Grid:
    """Where the windows of one scale lie.

    rows, columns: first pixels of the windows. size (h, w), window (h, w). inside: rows and columns of the
    picture within its padding.
    """

    def __init__(self, rows, columns, size, window, inside: tuple[slice, slice]):
        self.rows, self.columns, self.size, self.window, self.inside = rows, columns, size, window, inside
        self.corners = [(y, x) for y in rows for x in columns]

    def weights(self, flip: bool, device) -> Tensor:
        """float32 (h, w): one over the number of probabilities that are summed at each pixel."""
        over_rows = _coverage(self.rows, self.window[0], self.size[0])
        over_columns = _coverage(self.columns, self.window[1], self.size[1])
        return (torch.outer(over_rows, over_columns) * (2 if flip else 1)).reciprocal_().to(device)


def _coverage(starts: list[int], window: int, length: int) -> Tensor:
    """float32 (length,): the number of windows over each pixel of a side."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + window] += 1
    return count


class BandSums:
    """Sums of one scale's windows on a CPU, in a ring of rows.

    ring: float32 (R, C, w), R at least the windows' height; row y of the picture stands in row y % R. Where R is
    the picture's height nothing is ever overwritten.
    finish: called with the first of some complete rows and their sums (n, C, w), in order.
    """

    def __init__(self, memory: Memory, ring: Tensor, grid: Grid, finish: Callable[[int, Tensor], None] | None):
        self.memory, self.ring, self.grid, self.finish = memory, ring, grid, finish
        self.done = 0  # rows that were handed to `finish`
        self.touched = 0  # rows that hold sums; those below hold anything
        self.fresh = 0  # from this row on, the current row of windows is the first
        self.reach = 0  # and holds sums up to this column
        self._works: dict[int, Block] = {}

    def add(self, corners: list[tuple[int, int]], logits: Tensor) -> None:
        """Adds the windows with these upper left corners (y, x), in order.

        logits: (k, n, C, h, w), k = 1, or 2 where the second half is that of the mirrored windows.
        """
        numbered = enumerate(corners)
        for y, group in groupby(numbered, key=lambda item: item[1][0]):
            self._complete(y)
            self._add_row(y, [(x, logits[:, index]) for index, (_, x) in group])

    def close(self) -> None:
        """No window comes any more."""
        self._complete(self.touched)

    def _complete(self, end: int) -> None:
        if self.finish is None:
            return
        period = len(self.ring)
        for rows in row_blocks(self.done, end, self.ring[0].numel(), period):
            self.finish(rows.start, self.ring[rows.start % period :][: rows.stop - rows.start])
        self.done = max(end, self.done)

    def _add_row(self, y: int, windows: list[tuple[int, Tensor]]) -> None:
        period, classes, _ = self.ring.shape
        height, width = self.grid.window
        halves = len(windows[0][1])
        if y + height > self.touched:  # the first windows at this y: below `fresh` the ring holds no sums yet
            self.fresh, self.reach, self.touched = max(self.touched, y), 0, y + height
        blocks = row_blocks(y, self.fresh, halves * classes * width, period)
        blocks += row_blocks(max(self.fresh, y), y + height, halves * classes * width, period)
        for rows in blocks:
            work = self._work(halves, rows.stop - rows.start)
            target = self.ring[rows.start % period :][: rows.stop - rows.start].transpose(0, 1)
            reach = self.reach if rows.start >= self.fresh else target.shape[2]
            for x, logits in windows:
                probabilities = work.probabilities(logits[:, :, rows.start - y : rows.stop - y])
                common = min(max(reach - x, 0), width)
                if common:
                    target[:, :, x : x + common].add_(probabilities[:, :, :common])
                if common < width:
                    target[:, :, x + common : x + width].copy_(probabilities[:, :, common:])
                    reach = x + width
        self.reach = max(self.reach, windows[-1][0] + width)

    def _work(self, halves: int, count: int) -> "Block":
        if count not in self._works:
            shape = halves, self.ring.shape[1], count, self.grid.window[1]
            self._works[count] = Block(self.memory(f"block of {count}", math.prod(shape)).view(shape))
        return self._works[count]


class Block:
    """Memory for the probabilities of a block of rows (C, n, w) of one window, or of it and its mirror image.

    numbers: float32 (k, C, n, w), k 1 or 2.
    """

    def __init__(self, numbers: Tensor):
        halves, _, count, width = numbers.shape
        self.numbers, self.sums = numbers, torch.empty(halves, count, width)
        self.mirrored = torch.empty_like(numbers[0]) if halves == 2 else None
        if halves == 2:
            self.turned, self.straight = (x.view(-1, width).numpy() for x in (numbers[1], self.mirrored))
        self.first, self.factors = numbers[0], self.sums.unsqueeze(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the classes, both halves added: (k, C, n, w) -> (C, n, w), overwritten by the next call."""
        softmax_(logits, self.numbers, self.sums)
        if self.mirrored is not None:
            # Tensor.flip moves single numbers on a CPU, OpenCV vectors
            cv2.flip(self.turned, 1, dst=self.straight)
            self.first.add_(self.mirrored)
        return self.first


class HostScores:
    """Scores of one picture on a CPU: the mean over the scales of the windows' mean probabilities.

    size (H, W). single: the only scale is the picture as it is.
    """

    def __init__(self, memory: Memory, classes: int, size: tuple[int, int], flip: bool, single: bool):
        self.memory, self.classes, self.size, self.flip, self.single = memory, classes, size, flip, single
        self.scales = 0
        if not single:
            self.total = memory("total", size[0], classes, size[1]).zero_()

    def scale(self, grid: Grid) -> BandSums:
        """The sums to which the windows of a further scale are to be added."""
        self.scales += 1
        if self.single:
            ring = self.memory("ring", grid.size[0], self.classes, grid.size[1])
            self.total, self.grid = ring[grid.inside[0], :, grid.inside[1]], grid
            return BandSums(self.memory, ring, grid, None)
        ring = self.memory("ring", min(grid.window[0], grid.size[0]), self.classes, grid.size[1])
        return BandSums(self.memory, ring, grid, self._adder(grid))

    def values(self, divide: bool) -> Tensor:
        """(C, H, W) without copying; unless divided, a pixel's values are a multiple of the probabilities."""
        if divide and self.single:
            weights = self.grid.weights(self.flip, "cpu")[self.grid.inside]
            self.total.mul_(weights.unsqueeze(1))
        elif divide:
            self.total /= self.scales
        return self.total.transpose(0, 1)

    def _adder(self, grid: Grid) -> Callable[[int, Tensor], None]:
        weights = grid.weights(self.flip, "cpu")
        top, bottom = grid.inside[0].start, grid.inside[0].stop
        height, width = self.size
        old_width = grid.inside[1].stop - grid.inside[1].start
        single = self.classes > 4  # as cv2.resize of all classes at once, in the evaluations that we repeat
        down = Interpolation(bottom - top, height, single=single) if bottom - top != height else None
        across = Interpolation(old_width, width, single=single)
        flat = self.total.view(height, -1)

        def add(first: int, sums: Tensor) -> None:
            """Adds complete rows, resized, to the picture's scores."""
            begin, end = max(first, top), min(first + len(sums), bottom)
            if begin >= end:
                return
            inside = sums[begin - first : end - first, :, grid.inside[1]]
            mean = self.memory("mean", end - begin, self.classes, old_width)
            torch.mul(inside, weights[begin:end, grid.inside[1]].unsqueeze(1), out=mean)
            if old_width != width:
                lines, wide = mean.view(-1, old_width), self.memory("wide", (end - begin) * self.classes, width)
                if across.rounded:
                    across.widen(lines, wide)
                else:
                    resize(lines[None], tuple(wide.shape), out=wide[None])
                mean = wide
            mean = mean.view(end - begin, -1)
            if down is None:
                flat[begin - top : end - top] += mean
            else:
                rows, shares = down.part(begin - top, end - top)
                flat[rows].addmm_(shares, mean)

        return add


class DeviceSums:
    """Sums of one scale's windows on an accelerator, as a whole map (C, h, w)."""

    def __init__(self, sums: Tensor, grid: Grid, finish: Callable[[], None]):
        self.sums, self.grid, self.close = sums.zero_(), grid, finish

    def add(self, corners: list[tuple[int, int]], logits: Tensor) -> None:
        """As BandSums.add."""
        height, width = self.grid.window
        probabilities = logits.softmax(2, dtype=torch.float32)
        plain = probabilities[0]
        if len(probabilities) == 2:
            plain = plain + probabilities[1].flip(-1)
        for (y, x), window in zip(corners, plain, strict=True):
            self.sums[:, y : y + height, x : x + width] += window


class DeviceScores:
    """The same as HostScores on an accelerator: few large operations, and nothing waits for them."""

    def __init__(self, memory: Memory, classes: int, size: tuple[int, int], flip: bool, single: bool):
        self.memory, self.classes, self.size, self.flip = memory, classes, size, flip
        self.scales = 0
        self.total = memory("total", classes, *size).zero_()

    def scale(self, grid: Grid) -> DeviceSums:
        """As HostScores.scale."""
        self.scales += 1
        sums = self.memory("sums", self.classes, *grid.size)

        def finish() -> None:
            mean = sums.mul_(grid.weights(self.flip, sums.device))[:, grid.inside[0], grid.inside[1]]
            for first in range(0, len(mean), PLANES_AT_ONCE):
                planes = slice(first, first + PLANES_AT_ONCE)
                self.total[planes] += resize(mean[planes], self.size)

        return DeviceSums(sums, grid, finish)

    def values(self, divide: bool) -> Tensor:
        """As HostScores.values."""
        return self.total.div_(self.scales) if divide else self.total
