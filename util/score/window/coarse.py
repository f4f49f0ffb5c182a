"""Scores on the network's own coarse grid: windows and scales are averaged there, and enlarged once.

Windows start on multiples of the output stride S and are k * S + 1 pixels long, so that all windows of a scale, and
their mirror images, share one grid: bilinear enlargement being linear, the mean of the enlarged logits is the
enlarged mean. Logits are averaged here where the exact way averages probabilities, and the windows lie up to S pixels
elsewhere: the scores are near to the exact ones, not equal.
Axes: C classes, h and w of the grid; H and W of the picture.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from util.score.window.maps import Interpolation, Memory, half_pixels, mirror, on_cpu, row_blocks


def snap(length: int, stride: int) -> int:
    """The smallest k * stride + 1 that is not below `length`."""
    return -(-(length - 1) // stride) * stride + 1


def window_starts(length: int, window: int, stride_rate: float, stride: int) -> list[int]:
    """As predict's window starts on whole grid points; length and window are k * stride + 1."""
    step = max(int(window * stride_rate) // stride, 1) * stride
    count = -(-(length - window) // step) + 1
    return [min(index * step, length - window) for index in range(count)]


class GridSums:
    """Mean logits of one scale's windows.

    name: of its memory. size (h, w): of the padded picture in pixels. inside: rows and columns of the picture in it.
    stride: pixels between two points of the grid.
    """

    def __init__(self, memory: Memory, name: str, classes: int, size, inside: tuple[slice, slice], stride: int):
        self.stride, self.inside = stride, inside
        shape = tuple((side - 1) // stride + 1 for side in size)
        self.sums = memory(name, shape[0], classes, shape[1]).zero_()  # rows first: a row is one vector to enlarge
        self.count = memory(name + " count", *shape).zero_()

    def add(self, corners: Sequence[tuple[int, int]], logits: Tensor) -> None:
        """logits: (k, n, C, h, w) of the windows at these corners (y, x), k = 2 with the mirrored windows."""
        logits = logits.float()
        for index, (y, x) in enumerate(corners):
            window = logits[0, index]
            if len(logits) == 2:
                window = window + mirror(logits[1, index])
            rows = slice(y // self.stride, y // self.stride + window.shape[1])
            columns = slice(x // self.stride, x // self.stride + window.shape[2])
            self.sums[rows, :, columns] += window.transpose(0, 1)
            self.count[rows, columns] += len(logits)

    def mean(self) -> Tensor:
        """(h, C, w)."""
        return self.sums.div_(self.count.unsqueeze(1))

    def positions(self, axis: int, length: int) -> Interpolation:
        """Where the `length` pixels of a side of the picture lie on the grid."""
        inside = self.inside[axis]
        old, points = inside.stop - inside.start, self.sums.shape[2 * axis]
        return half_pixels(old, length, start=inside.start, pitch=self.stride, points=points)


def enlarged(memory: Memory, scales: Sequence[GridSums], size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """The sum of the scales' mean logits at the size (H, W), in blocks: rows, and float32 (C, n, W) to be used at once.

    On an accelerator there is one block.
    """
    height, width = size
    means = [sums.mean() for sums in scales]
    down = [sums.positions(0, height) for sums in scales]
    across = [sums.positions(1, width) for sums in scales]
    if not on_cpu(means[0]):
        total = 0
        for mean, rows, columns in zip(means, down, across, strict=True):
            total = total + rows.take(columns.take(mean, 2), 0)
        yield slice(0, height), total.transpose(0, 1)
        return
    wide = [_widened(memory, i, mean, columns) for i, (mean, columns) in enumerate(zip(means, across, strict=True))]
    classes = means[0].shape[1]
    for rows in row_blocks(0, height, classes * width):
        block = memory("enlarged", rows.stop - rows.start, classes * width)
        for index, (source, positions) in enumerate(zip(wide, down, strict=True)):
            points, shares = positions.shares(rows.start, rows.stop)
            torch.addmm(block, shares, source[points], beta=float(index > 0), out=block)
        yield rows, block.view(-1, classes, width).transpose(0, 1)


def _widened(memory: Memory, index: int, mean: Tensor, columns: Interpolation) -> Tensor:
    """(h, C, w) -> (h, C * W)."""
    height, classes, points = mean.shape
    wide = memory(f"wide {index}", height * classes, len(columns))
    return columns.widen(mean.view(-1, points), wide).view(height, -1)
