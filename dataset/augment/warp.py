"""The crop of an image or a label under one affine map.

No more of it is read than the crop shows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from dataset.augment.color import Photometric

# How far back starts are tried for the window of `resize` (the best of 32 is about 0.015 pixels off), and the most that
# it may be off. Where the scale is all but a simple fraction, a twelfth of the crops, it takes the longer way.
WINDOW_REACHES = (31, 127)
WINDOW_ERROR = 0.05


@dataclass(frozen=True)
class Drawn:
    """The random choices for one sample.

    angle: degrees, counter-clockwise. size: (height, width) of the scaled image. top, left: the crop's corner in it,
    negative where the crop is padded. jitter: factors of brightness, contrast and saturation, and a hue turn as a
    fraction of a full circle. photometric: None where it is off. turn: quarter turns of the crop, counter-clockwise,
    and vertical: whether it is flipped upside down after them. hole: rows and columns of the finished crop that are cut
    out, (top, bottom, left, right), or None.
    """

    scale: float
    angle: float
    flip: bool
    blur: bool
    size: tuple[int, int]
    top: int
    left: int
    jitter: tuple[float, float, float, float]
    photometric: Photometric | None = None
    turn: int = 0
    vertical: bool = False
    hole: tuple[int, int, int, int] | None = None


def warp(
    source: np.ndarray, drawn: Drawn, interpolation: int, border: int | Sequence[float], margin: int, out: np.ndarray
) -> None:
    """Write the crop of `source` that `drawn` describes to `out`.

    With `margin` pixels more on all sides.
    """
    height, width = out.shape[:2]
    matrix = source_matrix(drawn, margin)

    # Only the part of the source that the crop shows: nothing else is ever sampled, so the result is the same up to
    # rounding, and OpenCV refuses pictures of more than 32,766 pixels a side.
    corners = matrix @ np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]])
    low = np.maximum(np.floor(corners.min(axis=1)).astype(int) - 2, 0)
    high = np.minimum(np.ceil(corners.max(axis=1)).astype(int) + 3, [source.shape[1], source.shape[0]])
    if (low >= high).any():
        low, high = np.zeros(2, int), np.ones(2, int)
    matrix[:, 2] -= low
    done = cv2.warpAffine(
        source[low[1] : high[1], low[0] : high[0]],
        matrix,
        (width, height),
        dst=out,
        flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=border,
    )
    assert np.may_share_memory(done, out)


def resize(source: np.ndarray, drawn: Drawn, border: Sequence[float], margin: int, out: np.ndarray) -> bool:
    """Resize a window as `warp` would; False where that differs.

    As a bilinear `warp` without rotation. A resize takes a quarter of the time of a warp, but `cv2.resize` knows no
    offset. So the window of the source that is resized begins a few pixels further out, where a pixel of the scaled
    picture begins too, all but `WINDOW_ERROR` of a pixel (see `_Axis.place`), and the crop is cut out of the result.
    """
    height, width = out.shape[:2]
    left = drawn.size[1] - (drawn.left - margin) - width if drawn.flip else drawn.left - margin
    rows = _Axis.place(drawn.top - margin, height, drawn.size[0], source.shape[0], drawn.scale)
    columns = _Axis.place(left, width, drawn.size[1], source.shape[1], drawn.scale)
    if rows is None or columns is None:
        return False
    scaled = source[rows.source, columns.source]
    shape = tuple(max(1, round(side * drawn.scale)) for side in scaled.shape[:2])
    if rows.result.stop > shape[0] or columns.result.stop > shape[1]:
        return False
    if drawn.scale != 1:
        if scaled.shape[:2] == shape:
            return False  # `cv2.resize` would copy it, up to half a pixel off at the far edge
        scaled = cv2.resize(scaled, None, fx=drawn.scale, fy=drawn.scale, interpolation=cv2.INTER_LINEAR)

    scaled = scaled[rows.result, columns.result]
    if drawn.flip:
        columns = replace(columns, crop=slice(width - columns.crop.stop, width - columns.crop.start))
        scaled = cv2.flip(scaled, 1)
    cv2.copyMakeBorder(
        scaled,
        rows.crop.start,
        height - rows.crop.stop,
        columns.crop.start,
        width - columns.crop.stop,
        cv2.BORDER_CONSTANT,
        dst=out,
        value=border,
    )
    return True


@dataclass(frozen=True)
class _Axis:
    """One axis of `resize`.

    source: the part that is resized. result: where the wanted pixels stand in it then. crop: where they go.
    """

    source: slice
    result: slice
    crop: slice

    @classmethod
    def place(cls, start: int, length: int, scaled: int, side: int, scale: float) -> "_Axis | None":
        """Place the window of one axis.

        For `length` pixels from `start` on, of an axis of `side` pixels, `scaled` ones once scaled. A pixel of the
        result begins where one of the source does if its place divided by the scale is a whole number. The starts
        before the crop are tried for the one that is nearest to that, first 32 and then 128 of them. None where there
        is none, or no pixel of the crop is in the image.
        """
        first, end = max(start, 0), min(start + length, scaled)
        if first >= end:
            return None
        latest = max(0, math.floor((first + 0.5) / scale - 0.5) - 1)
        for reach in WINDOW_REACHES:
            candidates = np.arange(max(0, latest - reach), latest + 1)
            offsets = candidates * scale
            errors = np.abs(offsets - np.rint(offsets))
            best = int(errors.argmin())
            if errors[best] <= WINDOW_ERROR:
                break
        else:
            return None
        low, offset = int(candidates[best]), round(float(offsets[best]))
        high = min(side, math.ceil((end - 0.5) / scale - 0.5) + 2)
        return cls(slice(low, high), slice(first - offset, end - offset), slice(first - start, end - start))


def source_matrix(drawn: Drawn, margin: int = 0) -> np.ndarray:
    """Return the 2x3 map from crop to source (x, y).

    Between pixel centres. From the crop to the scaled picture (shift, mirror, rotation back), then `x -> (x + 0.5) /
    scale - 0.5`, which is the convention of `cv2.resize`. `margin` widens the crop on all sides.
    """
    height, width = drawn.size
    shift = np.array([[1.0, 0, drawn.left - margin], [0, 1, drawn.top - margin], [0, 0, 1]])
    mirror = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]]) if drawn.flip else np.eye(3)
    centre = ((width - 1) / 2, (height - 1) / 2)
    turn = np.vstack([cv2.getRotationMatrix2D(centre, -drawn.angle, 1.0), [0, 0, 1]])
    half = 0.5 / drawn.scale - 0.5
    shrink = np.array([[1 / drawn.scale, 0, half], [0, 1 / drawn.scale, half], [0, 0, 1]])
    return (shrink @ turn @ mirror @ shift)[:2]


def scaled_point(drawn: Drawn, point: tuple[int, int]) -> tuple[int, int]:
    """Return where a source pixel lies once scaled and turned.

    point: (row, column) of the source; mirrored too.
    """
    to_source = source_matrix(replace(drawn, top=0, left=0))
    column, row = np.linalg.solve(to_source[:, :2], np.array(point[::-1]) - to_source[:, 2])
    return round(float(row)), round(float(column))
