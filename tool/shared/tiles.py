"""Large pictures in tiles whose probabilities are blended where they overlap.

Along each side the tiles overlap by about an eighth of their length. There the weight of a tile rises from its border
linearly, so that the weights of all tiles add up to one at every pixel, and no seam is seen. Tiles begin at multiples
of 32 pixels, the coarsest stride of networks, so that a network sees each pixel at the same place of its grid.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from util.score.window import first_argmax

OVERLAP = 8  # a tile overlaps its neighbour by this part of its side
GRID = 32

# Gives the probabilities (C, h, w) of rows and columns of the picture.
Predict = Callable[[slice, slice], Tensor]


def spans(length: int, side: int) -> tuple[list[slice], int]:
    """Cut `length` into parts of at most `side`, the last one shorter.

    Parts have one pixel more than a multiple of `GRID`: at that length aligned corners keep the network's grid.

    Returns:
        The parts, and the pixels that neighbours share.
    """
    grid = GRID if side >= 4 * GRID else 1
    overlap = max(side // OVERLAP // grid, 1) * grid + (grid > 1)
    step = (side - overlap) // grid * grid
    left = length - overlap  # what the steps have to cover
    count = max(-(-left // step), 1)
    step = max(-(-left // (count * grid)), 1) * grid
    count = max(-(-left // step), 1)
    return [slice(i * step, min(i * step + step + overlap, length)) for i in range(count)], overlap


def weights(part: slice, length: int, overlap: int) -> Tensor:
    """Weigh the pixels of a part along one side.

    float32, rising from each border that has a neighbour.
    """
    out = torch.ones(part.stop - part.start)
    ramp = (torch.arange(overlap) + 0.5) / overlap
    if part.start > 0:
        out[:overlap] = ramp
    if part.stop < length:
        out[-overlap:] = 1 - ramp
    return out


def finished(predict: Predict, size: tuple[int, int], side: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield rows, columns and probabilities (C, h, w) of finished parts.

    They cover it without overlap. Beside a tile's own, only the strips that wait for a neighbour are kept: one of its
    height, and one of the picture's width.

    Args:
        size: height and width of the picture.
        side: of the tiles.
    """
    height, width = size
    (all_rows, over_rows), (all_columns, over_columns) = spans(height, side), spans(width, side)
    above: Tensor | None = None  # (C, overlap, width): the strip that the row of tiles before has left
    for rows in all_rows:
        more_rows, left, below = rows.stop < height, None, None
        for columns in all_columns:
            more_columns = columns.stop < width
            weight = weights(rows, height, over_rows)[:, None] * weights(columns, width, over_columns)
            part = predict(rows, columns) * weight
            if left is not None:
                part[:, :, :over_columns] += left
            inner = part.shape[2] - over_columns * more_columns
            left = part[:, :, inner:].clone() if more_columns else None
            part, ready = part[:, :, :inner], slice(columns.start, columns.start + inner)
            if above is not None:
                part[:, :over_rows] += above[:, :, ready]
            done = part.shape[1] - over_rows * more_rows
            if more_rows:
                if below is None:
                    below = torch.empty(len(part), over_rows, width)
                below[:, :, ready] = part[:, done:]
            yield slice(rows.start, rows.start + done), ready, part[:, :done]
        above = below


def id_type(classes: int) -> type[np.uint8] | type[np.uint16]:
    """Return the smallest type of class ids."""
    return np.uint8 if classes <= 256 else np.uint16


def classes_in_tiles(
    predict: Predict, size: tuple[int, int], side: int, kind: type[np.uint8] | type[np.uint16] = np.uint8
) -> np.ndarray:
    """Return the class of each pixel, of this kind (H, W)."""
    out = np.empty(size, kind)
    for rows, columns, part in finished(predict, size, side):
        out[rows, columns] = first_argmax(part).numpy()
    return out


def probabilities_in_tiles(predict: Predict, size: tuple[int, int], side: int, classes: int) -> np.ndarray:
    """Return the probability of each class, float32 (classes, H, W)."""
    out = np.empty((classes, *size), np.float32)
    for rows, columns, part in finished(predict, size, side):
        out[:, rows, columns] = part.numpy()
    return out
