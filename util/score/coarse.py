"""Averages on the network's own coarse grid (test.windows=fast).

Windows are averaged there, and enlarged once. Windows start on multiples of the output stride S and are k * S + 1
pixels long, so that all windows of a scale, and their mirror images, share one grid: bilinear enlargement being linear,
the mean of the enlarged logits is the enlarged mean. Logits are averaged here where the exact way averages
probabilities, and the windows lie up to S pixels elsewhere: the scores are near to the exact ones, not equal. Axes: C
classes, H and W of the picture.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from util import UserError
from util.score.predict import NOT_FINITE, Predictor
from util.score.window import WindowSums, bands, first_argmax, snap, widest

LARGEST_STRIDE = 64  # of a network's coarse grid; every usual stride divides it


class CoarsePredictor(Predictor):
    """Predictor that averages logits on the coarse grid.

    Near to the classes of `Predictor`, and several times as fast outside the network.

    model: has `coarse(batch)` too, its logits before they are enlarged, which lie on every S-th pixel from edge to
        edge (SegModel.coarse), and says so by `gives_coarse`.
    """

    windows = "fast"

    def __init__(self, model: nn.Module, *args, **settings):
        if not getattr(model, "gives_coarse", False):
            raise UserError(f"windows fast needs coarse logits, which {type(model).__name__} does not give; use exact")
        super().__init__(model, *args, **settings)
        self._output_stride: int | None = None  # S, known after the first picture

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Predict the class of each pixel, as `Predictor` does."""
        return torch.cat([first_argmax(logits) for logits in self._logits(image)])

    @torch.no_grad()
    def probabilities(self, image: Tensor) -> Tensor:
        """Return the softmax of the scales' mean logits."""
        return torch.cat([logits.div_(len(self.scales)).softmax(0) for logits in self._logits(image)], 1)

    def _logits(self, image: Tensor) -> Iterator[Tensor]:
        """The sum of the scales' mean logits at full size, in bands of rows (C, n, W) from top to bottom."""
        picture, sizes = self._prepared(image)
        height, width = picture.shape[1:]
        wide, down = [], []
        for size in sizes:
            means, inside, stride = self._grid_mean(picture, size)
            if not torch.isfinite(means.sum()):
                raise UserError(NOT_FINITE)
            before, after, share = _taps(inside[1], stride, means.shape[2], width, self.device)
            wide.append(torch.lerp(means[..., before], means[..., after], share))
            down.append(_taps(inside[0], stride, means.shape[1], height, self.device))
        for rows in bands((self.num_classes, height, width), self.device):
            enlarged = [
                torch.lerp(means.index_select(1, before[rows]), means.index_select(1, after[rows]), share[rows, None])
                for means, (before, after, share) in zip(wide, down, strict=True)
            ]
            yield torch.stack(enlarged).sum(0) if len(enlarged) > 1 else enlarged[0]

    def _grid_mean(self, picture: Tensor, size: tuple[int, int]) -> tuple[Tensor, tuple[slice, slice], int]:
        """Mean logits (C, h, w) of one scale on its grid, the picture's rows and columns in pixels, and S."""
        stride = self._stride(self.window or size)
        window = [snap(side, stride) for side in self.window or size]
        canvas, inside = self._canvas(picture, size, window, stride)
        rows, columns = (_grid_starts(canvas.shape[i + 1], window[i], self.stride_rate, stride) for i in (0, 1))
        corners = [(y, x) for y in rows for x in columns]
        grid, part = ([(side - 1) // stride + 1 for side in sides] for sides in (canvas.shape[1:], window))
        sums = WindowSums(self.num_classes, grid, part, self.device, softmax=False)
        for start in range(0, len(corners), self.window_batch):
            chunk = corners[start : start + self.window_batch]
            logits = self._forward(self._batch(canvas, chunk, window), True, part)
            sums.add([(y // stride, x // stride) for y, x in chunk], logits.unflatten(0, (-1, len(chunk))))
        return sums.mean(), inside, stride

    def _stride(self, window: tuple[int, ...]) -> int:
        """Pixels between two points of the network's coarse grid, found by a first forward pass."""
        if self._output_stride is None:
            sides = [snap(side, LARGEST_STRIDE) for side in window]
            points = self.model.coarse(torch.zeros((1, len(self.mean), *sides), device=self.device)).shape[2:]
            strides = {(side - 1) / max(count - 1, 1) for side, count in zip(sides, points, strict=True) if side > 1}
            if len(strides) != 1 or not (stride := strides.pop()).is_integer():
                raise UserError(
                    f"the coarse logits of {type(self.model).__name__}, {tuple(points)} for windows of {tuple(sides)}, "
                    "do not lie on every n-th pixel from edge to edge; use windows exact"
                )
            self._output_stride = int(stride)
        return self._output_stride


def _grid_starts(length: int, window: int, stride_rate: float, stride: int) -> list[int]:
    """As window_starts, on whole grid points; length and window are k * stride + 1."""
    step = max(int(window * stride_rate) // stride, 1) * stride
    count = -(-(length - window) // step) + 1
    return [min(index * step, length - window) for index in range(count)]


def _taps(inside: slice, pitch: int, points: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two grid points around each of `new` pixels of a side, and the share of the second.

    Half-pixel centres over the picture's pixels `inside` the canvas, the outermost repeated; the `points` of the grid
    lie on every `pitch`-th pixel of the canvas. Made on the device: for a copy the host would wait.
    """
    old = inside.stop - inside.start
    pixel = (torch.arange(new, dtype=widest(device), device=device) + 0.5) * (old / new) - 0.5
    position = (pixel.clamp(0, old - 1) + inside.start) / pitch
    before = position.long().clamp(max=max(points - 2, 0))
    return before, (before + 1).clamp(max=points - 1), (position - before).clamp(0, 1).float()
