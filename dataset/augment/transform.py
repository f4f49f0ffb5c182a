"""Augments image and label by one affine map, then colours.

Scale, rotation, flip and crop; then blur and colours. A crop may be asked to hold a given point of the image. The
distribution is that of the semseg recipe (Zhao et al., PSPNet, CVPR 2017, section 5.1): random scale, random rotation
about the scaled picture's centre, 5x5 blur, mirror, random crop with centred padding where the scaled picture is
smaller than the crop. There, every step writes a whole scaled picture; here only the crop is computed.

Without a rotation a window of the image is resized, which takes a quarter of the time of a warp and gives the same to
a twentieth of a pixel (`resize`).

Three differences remain. The picture's corners that a rotation carries out of the scaled canvas are kept
where the crop is larger than the canvas. The blur sees two pixels beyond the crop, and the padding. And
labels are read at the pixel nearest by centres, where `cv2.resize` takes the one above and to the left, half
a pixel off.

As with `cv2.resize(INTER_LINEAR)`, shrinking does not low-pass: below a scale of 0.5 pixels are skipped, and
thin structures alias. Shrink the files themselves (by area) if a recipe needs much smaller scales.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from dataset.read import DataError
from dataset.read.labelmap import IGNORE

# Of the user: image uint8 (H, W, C), label uint8 (H, W) and the sample's random numbers -> both, of the same sizes.
Augmentation = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]

BLUR_SIZE = 5
BLUR_MARGIN = BLUR_SIZE // 2
MAX_BANDS = 4  # that OpenCV warps and pads at once
# How far back starts are tried for the window of `resize` (the best of 32 is about 0.015 pixels off), and the most that
# it may be off. Where the scale is all but a simple fraction, a twelfth of the crops, it takes the longer way.
WINDOW_REACHES = (31, 127)
WINDOW_ERROR = 0.05

# Rec. 601 luma, and the NTSC chroma axes I and Q in which a hue turns and grey stays.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_INVERSE = np.linalg.inv(_YIQ)
_LUMA = _YIQ[:1]


@dataclass(frozen=True)
class Photometric:
    """The colour distortion of MMSegmentation (PhotoMetricDistortion), each step with probability 1/2.

    brightness: added to all channels, -32 to 32. contrast, saturation: factors, 0.5 to 1.5; contrast comes
    before saturation and hue or (contrast_last), as often, after them. hue: added to OpenCV's 8 bit hue,
    whole, -18 to 17 of 180. There, saturation and hue have a conversion each, and padding is not distorted.
    """

    brightness: float = 0.0
    contrast: float = 1.0
    contrast_last: bool = False
    saturation: float = 1.0
    hue: int = 0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Photometric":
        u = rng.random(9)
        return cls(
            brightness=_between((-32, 32), u[1]) if u[0] < 0.5 else 0.0,
            contrast=_between((0.5, 1.5), u[3]) if u[2] < 0.5 else 1.0,
            contrast_last=bool(u[4] < 0.5),
            saturation=_between((0.5, 1.5), u[6]) if u[5] < 0.5 else 1.0,
            hue=int(u[8] * 36) - 18 if u[7] < 0.5 else 0,
        )

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Distort `image`, cut to 8 bits after every step.

        uint8 (H, W, 3) RGB.
        """
        levels = np.arange(256, dtype=np.float32)
        table = _to_8bit(levels + np.float32(self.brightness))
        contrast = _to_8bit(levels * np.float32(self.contrast))
        image = cv2.LUT(image, table if self.contrast_last else contrast[table])
        if self.saturation != 1 or self.hue:
            tables = np.dstack(
                [
                    ((levels + self.hue) % 180).astype(np.uint8),
                    _to_8bit(levels * np.float32(self.saturation)),
                    levels.astype(np.uint8),
                ]
            )
            hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return cv2.LUT(image, contrast) if self.contrast_last else image


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


class TrainTransform:
    """Random crop of a random similarity map of a sample.

    Args:
        crop: (height, width) of every result.
        scale: range of the factor.
        rotate: range of the angle in degrees, drawn with probability `rotate_prob`.
        rotate_prob, blur_prob, flip_prob: shares of the samples.
        jitter: (brightness, contrast, saturation, hue), or one number for all four; a factor is drawn from 1 - v to
            1 + v, the hue turns by up to v of a full circle.
        mean: colour of the padding, one value for each band of the images.
        ignore_label: id of the padding.
        photometric: distort the colours as `Photometric` says, after the jitter.
        vflip_prob, turn_prob: shares of the samples that are flipped upside down, and that are turned by one, two or
            three quarters, each as often: for pictures from above, which have no upside.
        cutout_prob, cutout_size: share of the samples of which a square is cut out, and its side as a share of the
            crop's shorter side: filled with the mean colour, and ignored in the label. Its centre is anywhere in the
            crop, as in DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
            2017.
        own: functions of the user that get the finished crop, one after the other.

    Raises:
        DataError: names the argument whose value is out of range.
    """

    def __init__(
        self,
        crop: Sequence[int],
        scale: Sequence[float] = (0.5, 2.0),
        rotate: Sequence[float] = (-10.0, 10.0),
        rotate_prob: float = 0.5,
        blur_prob: float = 0.5,
        flip_prob: float = 0.5,
        jitter: float | Sequence[float] = 0.0,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        ignore_label: int = IGNORE,
        photometric: bool = False,
        vflip_prob: float = 0.0,
        turn_prob: float = 0.0,
        cutout_prob: float = 0.0,
        cutout_size: float = 0.25,
        own: Sequence[Augmentation] = (),
    ):
        self.crop = _check_crop(crop)
        self.scale = _check_range("scale", scale)
        if self.scale[0] <= 0:
            raise DataError(f"scale: {tuple(scale)} must be positive")
        self.rotate = _check_range("rotate", rotate)
        self.rotate_prob = _check_probability("rotate_prob", rotate_prob)
        self.blur_prob = _check_probability("blur_prob", blur_prob)
        self.flip_prob = _check_probability("flip_prob", flip_prob)
        self.jitter = _check_jitter(jitter)
        self.mean = tuple(float(value) for value in mean)
        self.ignore_label = ignore_label
        self.photometric = photometric
        self.vflip_prob = _check_probability("vflip_prob", vflip_prob)
        self.turn_prob = _check_probability("turn_prob", turn_prob)
        self.cutout_prob = _check_probability("cutout_prob", cutout_prob)
        self.cutout_side = round(_check_probability("cutout_size", cutout_size) * min(self.crop))
        self.own = tuple(own)

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, point: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a crop and return its image and label.

        image uint8 (h, w, C) and label uint8 (h, w) of the size `crop`. point: (row, column) of a pixel that the crop
        must hold; None: any crop.
        """
        image, label = self.apply(image, label, self.draw(rng, label.shape, point))
        for change in self.own:
            wanted = image.shape, label.shape
            image, label = change(image, label, rng)
            if (image.shape, label.shape) != wanted or image.dtype != np.uint8 or label.dtype != np.uint8:
                name = getattr(change, "__qualname__", repr(change))
                raise DataError(
                    f"augment.own: {name} gave {image.dtype} {image.shape} and {label.dtype} {label.shape}; uint8 "
                    f"{wanted[0]} and {wanted[1]} are needed"
                )
        return image, label

    def draw(self, rng: np.random.Generator, size: tuple[int, int], point: tuple[int, int] | None = None) -> Drawn:
        """Draw the choices for an image of `size` (height, width).

        Always eleven numbers in this order, then those of `Photometric`, then six, so that switching one augmentation
        off leaves the others as they were. With a `point` the crop is any of those inside the scaled picture that hold
        it, and one that leaves the scaled picture where the rotation carries the point out of it.
        """
        u = rng.random(11)
        scale = _between(self.scale, u[0])
        angle = _between(self.rotate, u[2]) if u[1] < self.rotate_prob else 0.0
        scaled = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        b, c, s, h = self.jitter
        photometric = Photometric.draw(rng) if self.photometric else None
        more = rng.random(6)
        turn = 1 + int(more[1] * 3) if more[0] < self.turn_prob else 0
        crop = self.crop[::-1] if turn % 2 else self.crop
        drawn = Drawn(
            scale=scale,
            angle=angle,
            blur=bool(u[3] < self.blur_prob),
            flip=bool(u[4] < self.flip_prob),
            size=scaled,
            top=_offset(scaled[0], crop[0], u[5]),
            left=_offset(scaled[1], crop[1], u[6]),
            jitter=(
                _between((1 - b, 1 + b), u[7]),
                _between((1 - c, 1 + c), u[8]),
                _between((1 - s, 1 + s), u[9]),
                _between((-h, h), u[10]),
            ),
            photometric=photometric,
            turn=turn,
            vertical=bool(more[2] < self.vflip_prob),
            hole=self._hole(more[4:]) if more[3] < self.cutout_prob else None,
        )
        if point is None:
            return drawn
        row, column = scaled_point(drawn, point)
        return replace(
            drawn,
            top=_offset_around(row, scaled[0], crop[0], u[5]),
            left=_offset_around(column, scaled[1], crop[1], u[6]),
        )

    def _hole(self, place: np.ndarray) -> tuple[int, int, int, int]:
        """Place the square that is cut out by its centre.

        What lies outside of the crop is left out.
        """
        sides = []
        for length, u in zip(self.crop, place, strict=True):
            start = int(u * length) - self.cutout_side // 2
            sides += [max(0, start), min(length, start + self.cutout_side)]
        return sides[0], sides[1], sides[2], sides[3]

    def apply(self, image: np.ndarray, label: np.ndarray, drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
        """Return the crop of image and label that `drawn` describes.

        No more of them is read than it shows.
        """
        target = self.crop[::-1] if drawn.turn % 2 else self.crop
        label_out = np.empty(target, np.uint8)
        warp(label, drawn, cv2.INTER_NEAREST, self.ignore_label, 0, label_out)
        margin = BLUR_MARGIN if drawn.blur else 0
        size = target[0] + 2 * margin, target[1] + 2 * margin
        groups = []
        for start in range(0, image.shape[2], MAX_BANDS):
            bands, border = image[:, :, start : start + MAX_BANDS], self.mean[start : start + MAX_BANDS]
            crop: np.ndarray = np.empty((*size, bands.shape[2]), np.uint8)
            if drawn.angle or not resize(bands, drawn, border, margin, crop):
                warp(bands, drawn, cv2.INTER_LINEAR, border, margin, crop)
            if drawn.blur:
                blurred = cv2.GaussianBlur(crop, (BLUR_SIZE, BLUR_SIZE), 0).reshape(crop.shape)
                crop = blurred[margin:-margin, margin:-margin]
            groups.append(crop)
        crop = groups[0] if len(groups) == 1 else np.concatenate(groups, axis=2)
        if any(self.jitter):
            crop = cv2.transform(crop, color_matrix(drawn.jitter, crop))
        if drawn.photometric is not None:
            crop = drawn.photometric.apply(crop)
        if drawn.turn or drawn.vertical:
            step = -1 if drawn.vertical else 1
            crop, label_out = np.rot90(crop, drawn.turn)[::step], np.rot90(label_out, drawn.turn)[::step]
        crop, label_out = np.ascontiguousarray(crop), np.ascontiguousarray(label_out)
        if drawn.hole is not None:
            top, bottom, left, right = drawn.hole
            crop[top:bottom, left:right] = np.rint(self.mean)
            label_out[top:bottom, left:right] = self.ignore_label
        return crop, label_out


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


def color_matrix(jitter: tuple[float, float, float, float], image: np.ndarray) -> np.ndarray:
    """Return the colour jitter as one 3x4 matrix.

    Brightness, contrast, saturation and hue, in this order, on (R, G, B, 1). Contrast scales about the mean grey of
    `image`, saturation about each pixel's grey, hue turns the I-Q plane. The steps are those of torchvision's
    ColorJitter, but values are clipped once at the end, and hue turns in YIQ.
    """
    brightness, contrast, saturation, hue = jitter
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = _YIQ_INVERSE @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    saturate = saturation * np.eye(3) + (1 - saturation) * np.repeat(_LUMA, 3, axis=0)
    linear = turn @ saturate * (contrast * brightness)
    grey = float((_LUMA @ np.array(cv2.mean(image)[:3])).item())
    offset = (1 - contrast) * brightness * grey
    return np.hstack([linear, np.full((3, 1), offset)])


def _between(limits: tuple[float, float], u: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(u)


def _offset(scaled: int, crop: int, u: float) -> int:
    """Give the start of the crop.

    Any of the scaled - crop + 1 places, or centred padding where it does not fit.
    """
    if scaled <= crop:
        return -((crop - scaled) // 2)
    return int(u * (scaled - crop + 1))


def _offset_around(point: int, scaled: int, crop: int, u: float) -> int:
    """Give the start of a crop that holds `point`.

    Any of the places of `_offset` that do, or the nearest.
    """
    first, last = point - crop + 1, point
    start = _offset(scaled, crop, u)
    if scaled > crop:
        low, high = max(first, 0), min(last, scaled - crop)
        start = low + int(u * (high - low + 1))
    return min(max(start, first), last)


def _to_8bit(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def _check_crop(crop: Sequence[int]) -> tuple[int, int]:
    if isinstance(crop, int) or len(crop) != 2 or any(int(side) != side or side < 1 for side in crop):
        raise DataError(f"crop: {crop!r} must be (height, width) in whole pixels")
    return int(crop[0]), int(crop[1])


def _check_range(name: str, limits: Sequence[float]) -> tuple[float, float]:
    if len(limits) != 2 or not limits[0] <= limits[1]:
        raise DataError(f"{name}: {tuple(limits)} must be (smallest, largest)")
    return float(limits[0]), float(limits[1])


def _check_probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise DataError(f"{name}: {value} is no probability from 0 to 1")
    return float(value)


def _check_jitter(jitter: float | Sequence[float]) -> tuple[float, float, float, float]:
    values = (jitter,) * 4 if isinstance(jitter, (int, float)) else tuple(jitter)
    if len(values) != 4 or not all(0 <= value <= 1 for value in values) or values[3] > 0.5:
        raise DataError(
            f"jitter: {jitter} must be (brightness, contrast, saturation, hue), each from 0 to "
            "1 and the hue at most 0.5, or one number for all four"
        )
    b, c, s, h = (float(value) for value in values)
    return b, c, s, h
