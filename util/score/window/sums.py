"""Sums of the probabilities of windows, and of scales, in which each number crosses the main memory few times.

Axes: C classes, h and w of the picture as it is seen at one scale, padded to the window; H and W of the picture.
A scale's windows come row by row of windows. On a CPU the rows that no further window reaches are averaged, resized
and added to the picture's scores at once, so that a scale needs memory for one row of windows only; where the network
gives logits on a coarser grid, they are enlarged in blocks of rows that stay in a core's cache.
"""

from collections.abc import Callable
from itertools import groupby

import torch
from torch import Tensor

from util.score.window.kernel import add_probabilities
from util.score.window.maps import PLANES_AT_ONCE, Memory, aligned_corners, half_pixels, resize, row_blocks

BAND = 32  # rows for which a window's logits are widened together
Finish = Callable[[int, Tensor], None]  # takes the first of some complete rows, and their means (n, C, w)
Use = Callable[[slice, Tensor], None]  # takes rows of the picture and their scores (C, n, W), to be used at once


class Grid:
    """Where the windows of one scale lie.

    rows, columns: first pixels of the windows. size (h, w), window (h, w). inside: rows and columns of the
    picture within its padding.
    """

    def __init__(self, rows, columns, size, window, inside: tuple[slice, slice]):
        self.rows, self.columns, self.size, self.window, self.inside = rows, columns, size, window, inside
        self.corners = [(y, x) for y in rows for x in columns]

    def weights(self, maps: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """float32 (h,) and (w,), whose products are one over `maps` times the number of windows over each pixel."""
        over_rows = _coverage(self.rows, self.window[0], self.size[0], device)
        over_columns = _coverage(self.columns, self.window[1], self.size[1], device)
        return (over_rows * maps).reciprocal_(), over_columns.reciprocal_()


def _coverage(starts: list[int], window: int, length: int, device: torch.device | str) -> Tensor:
    """float32 (length,): the number of windows over each pixel of a side."""
    count = torch.zeros(length, device=device)
    for start in starts:
        count[start : start + window] += 1
    return count


class RowSums:
    """Sums of one scale's windows on a CPU, in blocks of rows; `finish` gets the rows from top to bottom.

    A mirrored window is one more window at the same place; `maps` windows are averaged where the windows of the grid do
    not overlap.
    """

    def __init__(self, memory: Memory, classes: int, grid: Grid, maps: int, finish: Finish):
        self.memory, self.classes, self.grid, self.finish = memory, classes, grid, finish
        self.row_weights, self.column_weights = grid.weights(maps)
        self.done = 0  # rows that were handed to `finish`

    def _blocks(self, first: int, last: int, period: int | None = None) -> list[slice]:
        return row_blocks(first, last, self.classes * self.grid.window[1], period)

    def _add(self, target: Tensor, rows: slice, x: int, logits: Tensor, mirrored: bool = False) -> None:
        """Adds these rows of the window whose first column is x, logits (n, C, w), to target (n, C, width)."""
        columns = slice(x, x + self.grid.window[1])
        weights = self.row_weights[rows], self.column_weights[columns]
        add_probabilities(target[..., columns], weights, logits, mirrored)


class FullSums(RowSums):
    """Sums from logits of the windows' size, in a ring of rows.

    Row y of the picture stands in row y % R of the ring, float32 (R, C, w).
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.ring = self.memory("ring", self.grid.window[0], self.classes, self.grid.size[1])
        self.touched = 0  # rows that hold sums; those below hold anything

    def add(self, corners: list[tuple[int, int]], logits: Tensor) -> None:
        """Adds the windows with these upper left corners (y, x), in order.

        logits: (k, n, C, h, w), k = 1, or 2 where the second half is that of the mirrored windows.
        """
        numbered = enumerate(corners)
        for y, group in groupby(numbered, key=lambda item: item[1][0]):
            self._complete(y)
            halves = [(x, half, logits[half, index]) for index, (_, x) in group for half in range(len(logits))]
            self._add_row(y, [(x, window.transpose(0, 1), half == 1) for x, half, window in halves])

    def close(self) -> None:
        """No window comes any more."""
        self._complete(self.touched)

    def _complete(self, end: int) -> None:
        for rows in self._blocks(self.done, end, len(self.ring)):
            self.finish(rows.start, self._ring(rows))
        self.done = max(end, self.done)

    def _add_row(self, y: int, windows: list[tuple[int, Tensor, bool]]) -> None:
        """windows: first column, logits (h, C, w), whether mirrored."""
        bottom = y + self.grid.window[0]
        for rows in self._blocks(y, bottom, len(self.ring)):
            target = self._ring(rows)
            if rows.stop > self.touched:
                target[max(self.touched - rows.start, 0) :].zero_()
            for x, logits, mirrored in windows:
                self._add(target, rows, x, logits[rows.start - y : rows.stop - y], mirrored)
        self.touched = max(self.touched, bottom)

    def _ring(self, rows: slice) -> Tensor:
        return self.ring[rows.start % len(self.ring) :][: rows.stop - rows.start]


class CoarseSums(RowSums):
    """Sums from logits on a coarser grid, whose corners are those of the window."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.waiting: list[tuple[int, int, Tensor]] = []  # windows that reach below: y, x, logits (h, C, w)

    def add(self, corners: list[tuple[int, int]], logits: Tensor) -> None:
        """As FullSums.add, with logits (k, n, C, h, w) on the coarse grid."""
        height, width = self.grid.window
        self.down, self.across = aligned_corners(logits.shape[3], height), aligned_corners(logits.shape[4], width)
        for index, (y, x) in enumerate(corners):
            self._complete(y)
            for half in range(len(logits)):
                window = logits[half, index].float().transpose(0, 1)
                self.waiting.append((y, x, (window.flip(-1) if half else window).contiguous()))

    def close(self) -> None:
        """As FullSums.close."""
        self._complete(self.grid.size[0])

    def _complete(self, end: int) -> None:
        while self.done < end:
            bottoms = [y + self.grid.window[0] for y, _, _ in self.waiting]
            last = min(end, self.done + BAND, *bottoms)
            self._complete_band(self.done, last)
            self.waiting = [window for window, bottom in zip(self.waiting, bottoms, strict=True) if bottom > last]
            self.done = last

    def _complete_band(self, first: int, last: int) -> None:
        """The rows first..last - 1, which all windows that wait go over."""
        wide, width = [], self.grid.window[1]
        for index, (y, _, logits) in enumerate(self.waiting):
            points, _ = self.down.shares(first - y, last - y)
            lines = self.memory(f"wide {index}", (points.stop - points.start) * self.classes, width)
            self.across.widen(logits[points].flatten(0, 1), lines)
            wide.append((points.start, lines.view(-1, self.classes * width)))
        for rows in self._blocks(first, last):
            count = rows.stop - rows.start
            target = self.memory("means", count, self.classes, self.grid.size[1]).zero_()
            block = self.memory("block", count, self.classes, width)
            for (y, x, _), (start, lines) in zip(self.waiting, wide, strict=True):
                points, shares = self.down.shares(rows.start - y, rows.stop - y)
                torch.mm(shares, lines[points.start - start : points.stop - start], out=block.flatten(1))
                self._add(target, rows, x, block)
            self.finish(rows.start, target)


class HostSums:
    """Sums of one scale's windows on a CPU, whichever logits the network gives."""

    def __init__(self, *arguments):
        self.arguments, self.sums = arguments, None

    def add(self, corners: list[tuple[int, int]], logits: Tensor) -> None:
        """As FullSums.add, or CoarseSums.add where the logits are not of the windows' size."""
        if self.sums is None:
            full = tuple(logits.shape[3:]) == tuple(self.arguments[2].window)
            self.sums = (FullSums if full else CoarseSums)(*self.arguments)
        self.sums.add(corners, logits)

    def close(self) -> None:
        """As FullSums.close."""
        self.sums.close()


class HostScores:
    """Scores of one picture on a CPU: the mean over the scales of the windows' mean probabilities.

    size (H, W). scales: their number. use: called with blocks of rows, from top to bottom.
    """

    def __init__(self, memory: Memory, classes: int, size: tuple[int, int], flip: bool, scales: int, use: Use):
        self.memory, self.classes, self.size, self.use = memory, classes, size, use
        self.scales, self.maps = scales, scales * (2 if flip else 1)
        self.total: Tensor | None = None

    def scale(self, grid: Grid) -> HostSums:
        """The sums to which the windows of a further scale are to be added."""
        finish = self._cut(grid, self._user(grid) if self.scales == 1 and self._as_is(grid) else self._adder(grid))
        return HostSums(self.memory, self.classes, grid, self.maps, finish)

    def close(self) -> None:
        """No scale comes any more."""
        if self.total is not None:
            for rows in row_blocks(0, self.size[0], self.classes * self.size[1]):
                self.use(rows, self.total[rows].transpose(0, 1))

    def _cut(self, grid: Grid, finish: Finish) -> Finish:
        """Leaves the padding out."""
        rows, columns = grid.inside

        def inside(first: int, means: Tensor) -> None:
            begin, end = max(first, rows.start), min(first + len(means), rows.stop)
            if begin < end:
                finish(begin - rows.start, means[begin - first : end - first, :, columns])

        return inside

    def _as_is(self, grid: Grid) -> bool:
        return tuple(side.stop - side.start for side in grid.inside) == tuple(self.size)

    def _user(self, grid: Grid) -> Finish:
        return lambda first, means: self.use(slice(first, first + len(means)), means.transpose(0, 1))

    def _adder(self, grid: Grid) -> Finish:
        height, width = self.size
        old_height, old_width = (side.stop - side.start for side in grid.inside)
        single = self.classes > 4  # as cv2.resize of all classes at once, in the evaluations that we repeat
        down = half_pixels(old_height, height, single=single) if old_height != height else None
        across = half_pixels(old_width, width, single=single)
        if self.total is None:
            self.total = self.memory("total", height, self.classes, width).zero_()
        flat = self.total.view(height, -1)

        def add(first: int, means: Tensor) -> None:
            """Adds complete rows, resized, to the picture's scores."""
            count = len(means)
            if old_width != width:
                lines, resized = means.flatten(0, 1), self.memory("resized", count * self.classes, width)
                if across.rounded:
                    across.widen(lines, resized)
                else:
                    resize(lines[None], tuple(resized.shape), out=resized[None])
                means = resized
            means = means.reshape(count, -1)
            if down is None:
                flat[first : first + count] += means
            else:
                rows, shares = down.part(first, first + count)
                flat[rows].addmm_(shares, means)

        return add


class DeviceSums:
    """Sums of one scale's windows on an accelerator, as a whole map (C, h, w)."""

    def __init__(self, sums: Tensor, grid: Grid, close: Callable[[], None]):
        self.sums, self.grid, self.close = sums.zero_(), grid, close

    def add(self, corners: list[tuple[int, int]], logits: Tensor) -> None:
        """As FullSums.add."""
        height, width = self.grid.window
        probabilities = logits.softmax(2, dtype=torch.float32)
        plain = probabilities[0]
        if len(probabilities) == 2:
            plain = plain + probabilities[1].flip(-1)
        for (y, x), window in zip(corners, plain, strict=True):
            self.sums[:, y : y + height, x : x + width] += window


class DeviceScores:
    """The same as HostScores on an accelerator: few large operations, one block, and nothing waits for them."""

    def __init__(self, memory: Memory, classes: int, size: tuple[int, int], flip: bool, scales: int, use: Use):
        self.memory, self.classes, self.size, self.use = memory, classes, size, use
        self.maps = scales * (2 if flip else 1)
        self.total = memory("total", classes, *size).zero_()

    def scale(self, grid: Grid) -> DeviceSums:
        """As HostScores.scale."""
        sums = self.memory("sums", self.classes, *grid.size)

        def close() -> None:
            weights = torch.outer(*grid.weights(self.maps, sums.device))  # made there: for a copy the host would wait
            means = sums.mul_(weights)[:, grid.inside[0], grid.inside[1]]
            for first in range(0, len(means), PLANES_AT_ONCE):
                planes = slice(first, first + PLANES_AT_ONCE)
                self.total[planes] += resize(means[planes], self.size)

        return DeviceSums(sums, grid, close)

    def close(self) -> None:
        """As HostScores.close."""
        self.use(slice(0, self.size[0]), self.total)
