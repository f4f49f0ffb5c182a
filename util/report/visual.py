"""Pictures for people: colours, triptychs, the confusion matrix.

Pictures are uint8 (H, W, 3) in RGB order throughout; cv2.imwrite wants them as BGR.
"""

import base64
from collections.abc import Sequence

import cv2
import numpy as np

from util import UserError

IGNORE = 255
FONT = cv2.FONT_HERSHEY_SIMPLEX
Color = tuple[int, int, int]
INK, SOFT_INK, PAPER, NOTHING = (35, 35, 40), (110, 110, 118), (255, 255, 255), (225, 225, 228)


def colorize(label: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Colour a label, black where it is 255.

    uint8 (H, W) and colors uint8 (C, 3) -> uint8 (H, W, 3). UserError if the label holds a value that is neither a
    colour's index nor 255.
    """
    if label.dtype != np.uint8 or label.ndim != 2:
        raise UserError(f"a label must be uint8 (H, W), not {label.dtype} {label.shape}")
    known = np.zeros(IGNORE + 1, np.uint8)
    known[: len(colors)] = known[IGNORE] = 1
    if not cv2.LUT(label, known).all():
        unknown = np.flatnonzero(np.bincount(label.ravel(), minlength=IGNORE + 1) * (known == 0)).tolist()
        raise UserError(f"label values {unknown} have no colour: expected 0..{len(colors) - 1}, or {IGNORE}")
    table = np.zeros((1, IGNORE + 1, 3), np.uint8)
    table[0, : len(colors)] = colors
    table[0, IGNORE] = 0
    return cv2.LUT(cv2.merge((label, label, label)), table)


def png(picture: np.ndarray) -> bytes:
    """Encode a picture (H, W, 3), RGB, or one band (H, W)."""
    done, data = cv2.imencode(".png", picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def jpeg(picture: np.ndarray, quality: int) -> bytes:
    """Encode a picture (H, W, 3), RGB."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def data_uri(mime: str, data: bytes) -> str:
    """Return content as an address that holds it."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Give an image uint8 (H, W, C) three bands to show.

    The first three are shown, of fewer the first as grey.
    """
    return image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)


def triptych(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    colors: np.ndarray,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Put photo, truth and prediction side by side.

    Without a truth only photo and prediction. image: uint8 (H, W, C), of which three bands are shown; truth and
    prediction: uint8 (H, W); colors: uint8 (C, 3). names: of the C classes, for a legend below of those that occur;
    None for no legend. UserError if a map is not of the picture's size or holds a value without a colour.
    """
    labels = [prediction] if truth is None else [truth, prediction]
    for label in labels:
        if label.shape != image.shape[:2]:
            raise UserError(f"picture of {_size(image)}, but a label map of {_size(label)} (height x width)")
    panels = [as_rgb(image)] + [colorize(label, colors) for label in labels]
    gap = np.full((image.shape[0], max(image.shape[1] // 160, 2), 3), 255, np.uint8)
    row = np.hstack([part for panel in panels for part in (panel, gap)][:-1])
    if names is None:
        return row
    present = np.zeros(IGNORE + 1, bool)
    for label in labels:
        present |= np.bincount(label.ravel(), minlength=IGNORE + 1) > 0
    entries = [(str(names[index]), colors[index]) for index in np.flatnonzero(present[: len(colors)]).tolist()]
    if truth is not None and present[IGNORE]:
        entries.append(("ignored", (0, 0, 0)))
    return np.vstack([row, _legend(entries, row.shape[1])])


def confusion_picture(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draw a confusion matrix, integers (C, C), rows = truth.

    Each row is drawn as shares of its pixels. Up to 40 classes the shares stand in the cells as percentages; a row
    without a pixel is grey.
    """
    classes = len(names)
    cell = int(np.clip(1300 // classes, 14, 64))
    font = 0.5 if cell >= 24 else 0.36
    truth = matrix.sum(1, keepdims=True)
    shares = matrix / np.maximum(truth, 1)
    colors = _ramp(shares)
    colors[truth[:, 0] == 0] = NOTHING
    grid = cv2.resize(colors, None, fx=cell, fy=cell, interpolation=cv2.INTER_NEAREST)
    if cell >= 24:
        grid[::cell] = grid[:, ::cell] = (232, 232, 236)
    cv2.rectangle(grid, (0, 0), (grid.shape[1] - 1, grid.shape[0] - 1), SOFT_INK, 1)
    if classes <= 40:
        _print_shares(grid, shares, truth[:, 0] > 0, cell)
    rows = _name_strip(names, cell, font)
    columns = cv2.rotate(_name_strip(names, cell, font, left_aligned=True), cv2.ROTATE_90_COUNTERCLOCKWISE)
    corner = np.full((columns.shape[0], rows.shape[1], 3), PAPER, np.uint8)
    body = np.vstack([np.hstack([corner, columns]), np.hstack([rows, grid])])
    margin, title = 24, 34
    right = max(margin, 480 - margin - body.shape[1])  # the caption needs as much
    canvas = cv2.copyMakeBorder(body, margin + title, margin, margin, right, cv2.BORDER_CONSTANT, value=PAPER)
    write(canvas, "row: truth, column: prediction, % of the truth's pixels", (margin, margin + 12), 0.5, SOFT_INK)
    return canvas


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"


def write(canvas: np.ndarray, text: str, origin: tuple[int, int], scale: float, color: Color = INK) -> None:
    """Write text whose baseline's left end is at origin (x, y)."""
    cv2.putText(canvas, text, origin, FONT, scale, color, max(round(scale * 2), 1), cv2.LINE_AA)


def _text_size(text: str, scale: float) -> tuple[int, int]:
    (width, height), _ = cv2.getTextSize(text, FONT, scale, 1)
    return width, height


def _legend(entries: list[tuple[str, Sequence[int]]], width: int) -> np.ndarray:
    """Draw a strip of the given width: a swatch and a name for each entry."""
    zoom = float(np.clip(width / 1600, 1, 4))  # readable when a wide picture is shown in a window
    swatch, line, margin, gap = (round(pixels * zoom) for pixels in (14, 26, 10, 18))
    font, indent = 0.45 * zoom, swatch + gap // 3
    places, x, y = [], margin, 0
    for name, color in entries:
        needed = indent + _text_size(name, font)[0]
        if x > margin and x + needed > width - margin:
            x, y = margin, y + line
        places.append((name, color, x, y))
        x += needed + gap
    strip = np.full((y + line + margin, width, 3), 255, np.uint8)
    for name, color, left, top in places:
        middle = top + (line + margin) // 2
        box = (left, middle - swatch // 2), (left + swatch, middle + swatch // 2)
        cv2.rectangle(strip, *box, tuple(int(value) for value in color), cv2.FILLED)
        cv2.rectangle(strip, *box, SOFT_INK, 1)
        write(strip, name, (left + indent, middle + round(5 * zoom)), font)
    return strip


def _ramp(values: np.ndarray) -> np.ndarray:
    """Colour shares 0..1 from white over blue to dark blue, uint8 (..., 3)."""
    stops = (0.0, 0.02, 0.35, 0.75, 1.0)
    channels = ((255, 238, 128, 38, 10), (255, 244, 177, 96, 40), (255, 251, 220, 168, 100))
    return np.stack([np.interp(values, stops, channel) for channel in channels], -1).round().astype(np.uint8)


def _print_shares(grid: np.ndarray, shares: np.ndarray, defined: np.ndarray, cell: int) -> None:
    """Write the percentages of half a percent and more into their cells."""
    scale = 0.42 if cell >= 40 else 0.36
    for row, column in zip(*np.nonzero((shares >= 0.005) & defined[:, None]), strict=True):
        share = shares[row, column]
        text = f"{100 * share:.0f}"
        width, height = _text_size(text, scale)
        origin = column * cell + (cell - width) // 2, row * cell + (cell + height) // 2
        write(grid, text, origin, scale, PAPER if share > 0.45 else INK)


def _name_strip(names: Sequence[str], cell: int, font: float, left_aligned: bool = False) -> np.ndarray:
    """Write the class names below one another, one in each cell's height.

    Right-aligned, or `left_aligned`.
    """
    widths = [_text_size(name, font)[0] for name in names]
    strip = np.full((len(names) * cell, max(widths) + 12, 3), 255, np.uint8)
    height = _text_size("x", font)[1]
    for index, (name, width) in enumerate(zip(names, widths, strict=True)):
        x = 6 if left_aligned else strip.shape[1] - 6 - width
        write(strip, name, (x, index * cell + (cell + height) // 2), font)
    return strip
