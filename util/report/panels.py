"""Draws the inside of a network: flow, gates, features.

Pictures are uint8 (H, W, 3) in RGB order throughout.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from util import UserError
from util.report.visual import SOFT_INK, as_rgb, triptych, write

SHEET = 1600  # width of a sheet at which letters have their natural size, pixels

# The colour wheel of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (IJCV 2011): red
# to the right, then yellow, green, cyan, blue and magenta clockwise, in arcs that are longer where the eye
# tells more shades apart.
WHEEL_ARCS = np.cumsum((0, 15, 6, 4, 11, 13, 6)) / 55
WHEEL_COLORS = np.array(
    [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0)], np.float32
)
SMALLEST_PANEL, LARGEST_PANEL = 800, 1600  # width of photo and prediction on a sheet of --flow, pixels


def flow_colors(flow: np.ndarray, longest: float) -> np.ndarray:
    """Colour vectors: the hue is the direction, saturation the length.

    White where there is none. flow: float (2, H, W), x to the right before y downwards. Vectors of length `longest` or
    more have full colour. UserError if a vector is not finite.
    """
    if not np.isfinite(flow).all():
        raise UserError("the flow field is not finite")
    length = np.minimum(np.hypot(flow[0], flow[1]) / max(longest, 1e-12), 1)[..., None]
    turn = np.arctan2(flow[1], flow[0]) / (2 * np.pi) % 1
    hue = np.stack([np.interp(turn, WHEEL_ARCS, channel) for channel in WHEEL_COLORS.T], -1)
    return np.round(255 - length * (255 - hue)).astype(np.uint8)


def wheel(size: int) -> np.ndarray:
    """Draw the legend of `flow_colors`: each direction has its colour."""
    axis = np.linspace(-1, 1, size, dtype=np.float32) * size / (size - 2)
    x, y = np.meshgrid(axis, axis)
    disc = flow_colors(np.stack([x, y]), 1.0).astype(np.float32)
    inside = np.clip((1 - np.hypot(x, y)) * size / 2 + 0.5, 0, 1)[..., None]  # a soft edge
    return np.round(disc * inside + 255 * (1 - inside)).astype(np.uint8)


def heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colour numbers (H, W) from dark blue, `low`, to yellow, `high`."""
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colors = cv2.applyColorMap(np.round(255 * share).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    return cv2.cvtColor(colors, cv2.COLOR_BGR2RGB)


def feature_colors(features: np.ndarray) -> np.ndarray:
    """Show features (C, h, w) as three numbers a pixel.

    float32 (3, h, w). There are at least 3 channels; the numbers lie within 0..1. The numbers are the first three
    principal components, largest variance first, each stretched so that 98 % of the pixels fill 0..1; pixels of like
    features get like colours.
    """
    channels = features.reshape(len(features), -1).astype(np.float64)
    channels -= channels.mean(1, keepdims=True)
    _, axes = np.linalg.eigh(channels @ channels.T)
    axes = axes[:, :-4:-1]
    axes *= np.sign(axes[np.abs(axes).argmax(0), range(3)])  # an axis has no direction of its own: choose one
    components = axes.T @ channels
    low, high = np.percentile(components, (1, 99), axis=1)[..., None]
    stretched = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return stretched.reshape(3, *features.shape[1:]).astype(np.float32)


def enlarge(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize float planes (n, h, w) bilinearly to (n, *size)."""
    planes = planes.astype(np.float32)
    return np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in planes])


def titled_row(panels: Sequence[tuple[str, np.ndarray]], width: int) -> np.ndarray:
    """Put panels of one size side by side under titles.

    uint8 (?, width, 3). The panels are those that `panel_size` gives for their number.
    """
    zoom = width / SHEET
    line, gap = round(30 * zoom), _gap(width)
    height, panel = panels[0][1].shape[:2]
    row = np.full((line + height, width, 3), 255, np.uint8)
    for index, (title, picture) in enumerate(panels):
        left = index * (panel + gap)
        row[line:, left : left + panel] = picture
        write(row, title, (left + round(2 * zoom), line - round(9 * zoom)), 0.55 * zoom)
    return row


def panel_size(aspect: float, number: int, width: int) -> tuple[int, int]:
    """Return height and width of one of `number` panels in a row.

    aspect: height over width.
    """
    panel = (width - (number - 1) * _gap(width)) // number
    return max(round(panel * aspect), 1), panel


def legend(symbol: np.ndarray, lines: Sequence[str], width: int) -> np.ndarray:
    """Draw a symbol with lines of text beside it: (?, width, 3)."""
    zoom = width / SHEET
    margin, line = round(14 * zoom), round(24 * zoom)
    height = max(symbol.shape[0], line * len(lines)) + 2 * margin
    strip = np.full((height, width, 3), 255, np.uint8)
    top = (height - symbol.shape[0]) // 2
    strip[top : top + symbol.shape[0], margin : margin + symbol.shape[1]] = symbol
    left, first = symbol.shape[1] + 2 * margin, (height - line * len(lines)) // 2
    for index, text in enumerate(lines):
        write(strip, text, (left, first + line * index + round(17 * zoom)), 0.5 * zoom, SOFT_INK)
    return strip


def scale_bar(width: int, height: int) -> np.ndarray:
    """Draw the legend of `heat`: lowest on the left."""
    bar = heat(np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1)), 0, 1)
    cv2.rectangle(bar, (0, 0), (width - 1, height - 1), SOFT_INK, 1)
    return bar


def _gap(width: int) -> int:
    return max(width // 200, 2)


def sheet(image: np.ndarray, prediction: np.ndarray, colors: np.ndarray, names: list[str], maps: dict) -> np.ndarray:
    """Draw photo | prediction, and below the inside of the network."""
    panel = int(np.clip(image.shape[1], SMALLEST_PANEL, LARGEST_PANEL))
    size = panel, max(round(panel * image.shape[0] / image.shape[1]), 1)
    smooth = cv2.INTER_AREA if panel < image.shape[1] else cv2.INTER_CUBIC
    photo = cv2.resize(as_rgb(image), size, interpolation=smooth)
    classes = cv2.resize(prediction, size, interpolation=cv2.INTER_NEAREST)
    top = triptych(photo, None, classes, colors, names)
    below = gate_rows if "gate" in maps else flow_rows
    return np.vstack([top, *below(maps, image.shape[:2], top.shape[1])])


def flow_rows(maps: dict, picture: tuple[int, int], width: int) -> list[np.ndarray]:
    """Put flow fields side by side, a legend below; `picture`: its size."""
    ((kind, fields),) = maps.items()
    fields = [in_pixels(flow, picture) for flow in fields]
    names = {
        "flow": [f"flow at stride {stride_of(flow, picture)}" for flow in fields],
        "dual flow": ["flow of the coarse map", "flow of the fine map"],
    }
    size = panel_size(picture[0] / picture[1], len(fields), width)
    panels = []
    for name, flow in zip(names[kind], fields, strict=True):
        longest = float(np.percentile(np.hypot(*flow), 99))
        title = f"{name}, full colour: {longest:.1f} pixels"
        panels.append((title, flow_colors(enlarge(flow, size), longest)))
    lines = (
        "Semantic flow: where, seen from each pixel, the map is read that is aligned there.",
        "Hue is the direction, saturation the length; white: read in place.",
        "Full colour is the length, in pixels of the picture, that 99 % of a field's vectors stay below.",
    )
    return [titled_row(panels, width), legend(wheel(round(width * 0.07)), lines, width)]


def stride_of(maps: np.ndarray, picture: tuple[int, int]) -> int:
    """Return the stride of a map (C, h, w) in image pixels.

    A power of two: sizes are rounded up.
    """
    return 2 ** round(np.log2(max(picture) / max(maps.shape[1:])))


def in_pixels(flow: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """Convert a field (2, h, w) to pixels of the picture.

    A one is half a cell of the field (see `model.layer.flow.warp`).
    """
    height, width = flow.shape[1:]
    return flow * np.array([picture[1] / (2 * width), picture[0] / (2 * height)], np.float32)[:, None, None]


def gate_rows(maps: dict, picture: tuple[int, int], width: int) -> list[np.ndarray]:
    """Put sketch and gates side by side, a legend below."""
    size = panel_size(picture[0] / picture[1], 1 + len(maps["gate"]), width)
    components = enlarge(feature_colors(maps["sketch"][0]), size)
    panels = [("sketch", np.round(255 * components).astype(np.uint8).transpose(1, 2, 0))]
    for gate in maps["gate"]:
        mean = gate.mean(0)
        low, high = np.percentile(mean, (1, 99))
        title = f"gate at stride {stride_of(gate, picture)}: {low:.2f} to {high:.2f}"
        panels.append((title, heat(enlarge(mean[None], size)[0], low, high)))
    lines = (
        "Sketch: output of ASPP, three principal components as red, green, blue; like colours, like context.",
        "Gate: mean over the channels, dark is low, bright is high; 0 keeps detail out, 1 lets it in.",
    )
    bar = scale_bar(round(width * 0.12), round(width * 0.014))
    return [titled_row(panels, width), legend(bar, lines, width)]
