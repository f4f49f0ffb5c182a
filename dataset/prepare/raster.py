"""Masks from the outlines and run lengths of annotation files."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dataset.read import DataError
from dataset.read.header import MAX_PIXELS

UPSAMPLING = 5  # the grid, in parts of a pixel, that COCO rounds the corners of an outline to
FAR = 1_000_000  # pixels; no picture reaches so far, and the lines to such a corner would fill the memory
_RUN_CHARACTERS = re.compile(r"[0-o]*")


def is_size(size: Any) -> bool:
    """Tell whether a pair of values is a picture's height and width."""
    whole = len(size) == 2 and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size)
    return whole and size[0] * size[1] <= MAX_PIXELS


def draw_outlines(size: tuple[int, int], outlines: Iterable[tuple[Sequence, int]], background: int) -> np.ndarray:
    """Draw outlines one over the other; ids uint8 (H, W).

    Pixels on an outline belong to it, as the tools of Cityscapes draw.

    Args:
        size: height and width.
        outlines: corners [(x, y), ...] and the id that they enclose, in the order of drawing.
        background: the id where there is no outline.
    """
    label = Image.new("L", size[::-1], background)
    draw = ImageDraw.Draw(label)
    for corners, value in outlines:
        if len(corners) >= 3:
            draw.polygon([tuple(corner) for corner in corners], fill=int(value))
    return np.array(label)


def coco_mask(segmentation: dict | list, size: tuple[int, int]) -> np.ndarray:
    """Decode one segmentation of the COCO format; bool (H, W).

    Args:
        segmentation: a list of outlines [x0, y0, x1, y1, ...], whose union counts; or run lengths, a dict of
            `size` and `counts`, a list of numbers or the compressed text.
        size: height and width.

    Raises:
        DataError: for what is none of these.
    """
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", ())) != list(size):
            raise DataError(f"run lengths for the size {segmentation.get('size')}, but the picture has {list(size)}")
        counts = segmentation.get("counts")
        return run_length_mask(compressed_counts(counts) if isinstance(counts, (str, bytes)) else counts or [], size)
    mask = np.zeros(size, bool)
    for outline in segmentation:
        try:
            corners = np.asarray(outline, float).reshape(-1, 2)
        except (ValueError, TypeError):
            raise DataError("an outline that is no list of numbers x0, y0, x1, y1, ...") from None
        if not (np.abs(corners) < FAR).all():
            raise DataError(f"an outline with a corner that lies {FAR} pixels away, or nowhere")
        mask |= _outline_mask(corners, size)
    return mask


def run_length_mask(counts: Sequence[int] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Decode column-wise runs, first outside, to a mask bool (H, W)."""
    height, width = size
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iu" or runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise DataError(f"run lengths that do not add up to the {height} x {width} pixels of the picture")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def compressed_counts(text: str | bytes) -> list[int]:
    """Decode COCO's compressed text of run lengths.

    A character holds five bits, from the lowest up, and in its sixth whether more follow; from the fourth
    number on it is the difference to the number two before.
    """
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    if not _RUN_CHARACTERS.fullmatch(text):
        raise DataError("compressed run lengths with characters that the format does not have")
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _outline_mask(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill one outline with the very pixels that COCO's own tools give; bool (H, W).

    The corners are rounded to a grid of a fifth of a pixel and joined by straight lines of grid points, one a
    step along the longer side. Wherever such a line steps over the middle of a column, the column changes
    between inside and outside there; counting the changes down the columns fills the outline.
    """
    height, width = size
    grid = (UPSAMPLING * corners + 0.5).astype(np.int64)
    first, last = grid, np.roll(grid, -1, axis=0)
    steps = np.abs(last - first).max(axis=1)
    keep = steps > 0
    first, last, steps = first[keep], last[keep], steps[keep]
    if not len(steps):
        return np.zeros(size, bool)

    # The grid points of all sides, one after the other. A side is walked from its lower end, as COCO does,
    # because the rounding halfway between two points depends on the direction.
    side = np.repeat(np.arange(len(steps)), steps + 1)
    step = np.arange(len(side)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    span = last - first
    flat = np.abs(span[:, 0]) >= np.abs(span[:, 1])  # longer in x
    long, short = np.where(flat, 0, 1), np.where(flat, 1, 0)
    rows = np.arange(len(steps))
    back = span[rows, long] < 0
    low, high = np.where(back[:, None], last, first), np.where(back[:, None], first, last)
    slope = (high[rows, short] - low[rows, short]) / steps
    step = np.where(back[side], steps[side] - step, step)
    along = low[rows, long][side] + step
    across = (low[rows, short][side] + slope[side] * step + 0.5).astype(np.int64)
    x = np.where(flat[side], along, across)
    y = np.where(flat[side], across, along)

    # Where x changes between two neighbouring points, over the middle of a pixel's column inside the picture.
    column = (np.where(x[1:] < x[:-1], x[1:], x[1:] - 1) + 0.5) / UPSAMPLING - 0.5
    crossing = (x[1:] != x[:-1]) & (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    row = (np.minimum(y[1:], y[:-1])[crossing] + 0.5) / UPSAMPLING - 0.5
    row = np.ceil(np.clip(row, 0, height)).astype(np.int64)
    changes = np.sort(column[crossing].astype(np.int64) * height + row)
    return run_length_mask(np.diff(changes, prepend=0, append=height * width), size)
