"""Augments image and label by one affine map, then colours.

Scale, rotation, flip and crop; then blur and colours. A crop may be asked to hold a given point of the image. The
distribution is that of the semseg recipe (Zhao et al., PSPNet, CVPR 2017, section 5.1): random scale, random rotation
about the scaled picture's centre, 5x5 blur, mirror, random crop with centred padding where the scaled picture is
smaller than the crop. There, every step writes a whole scaled picture; here only the crop is computed.

Without a rotation a window of the image is resized, which takes a quarter of the time of a warp and gives the same to
a twentieth of a pixel (`warp.resize`).

Three differences remain. The picture's corners that a rotation carries out of the scaled canvas are kept
where the crop is larger than the canvas. The blur sees two pixels beyond the crop, and the padding. And
labels are read at the pixel nearest by centres, where `cv2.resize` takes the one above and to the left, half
a pixel off.

As with `cv2.resize(INTER_LINEAR)`, shrinking does not low-pass: below a scale of 0.5 pixels are skipped, and
thin structures alias. Shrink the files themselves (by area) if a recipe needs much smaller scales.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from dataset.augment.color import Photometric, between, color_matrix
from dataset.augment.warp import Drawn, resize, scaled_point, warp
from dataset.read import DataError
from dataset.read.labelmap import IGNORE

# Of the user: image uint8 (H, W, C), label uint8 (H, W) and the sample's random numbers -> both, of the same sizes.
Augmentation = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]

BLUR_SIZE = 5
BLUR_MARGIN = BLUR_SIZE // 2
MAX_BANDS = 4  # that OpenCV warps and pads at once


class TrainTransform:
    """Random crop of a random similarity map of a sample.

    Args:
        crop: (height, width) of every result.
        scale: range of the factor.
        rotate: range of the angle in degrees, drawn with probability `rotate_prob`.
        rotate_prob: share of the samples that are rotated.
        blur_prob: share of the samples that are blurred.
        flip_prob: share of the samples that are mirrored.
        jitter: (brightness, contrast, saturation, hue), or one number for all four; a factor is drawn from 1 - v to
            1 + v, the hue turns by up to v of a full circle.
        mean: colour of the padding, one value for each band of the images.
        ignore_label: id of the padding.
        photometric: distort the colours as `Photometric` says, after the jitter.
        vflip_prob: share of the samples that are flipped upside down, as pictures from above may be.
        turn_prob: share of the samples that are turned by one, two or three quarters, each as often.
        cutout_prob: share of the samples of which a square is cut out: filled with the mean colour, and ignored in the
            label. Its centre is anywhere in the crop, as in DeVries and Taylor, "Improved Regularization of
            Convolutional Neural Networks with Cutout", 2017.
        cutout_size: side of that square, as a share of the crop's shorter side.
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
        self.num_classes: int | None = None  # of the data set; set by whoever knows it

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, point: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a crop and return its image and label.

        image uint8 (h, w, C) and label uint8 (h, w) of the size `crop`. point: (row, column) of a pixel that the crop
        must hold; None: any crop.
        """
        image, label = self.apply(image, label, self.draw(rng, label.shape, point))
        for change in self.own:
            image, label = self._changed(change, image, label, rng)
        return image, label

    def _changed(
        self, change: Augmentation, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Apply one of the user's augmentations, whose result is checked."""
        name = f"augment.own: {getattr(change, '__qualname__', repr(change))}"
        wanted = f"uint8 {image.shape} and {label.shape} are needed"
        shapes = image.shape, label.shape
        result = change(image, label, rng)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise DataError(f"{name} gave a {type(result).__name__}; two arrays, {wanted}")
        if not all(isinstance(each, np.ndarray) for each in result):
            kinds = " and ".join(type(each).__name__ for each in result)
            raise DataError(f"{name} gave {kinds}; two arrays, {wanted}")
        image, label = result
        if (image.shape, label.shape) != shapes or image.dtype != np.uint8 or label.dtype != np.uint8:
            raise DataError(f"{name} gave {image.dtype} {image.shape} and {label.dtype} {label.shape}; {wanted}")
        if self.num_classes is not None:
            wrong = label[(label >= self.num_classes) & (label != self.ignore_label)]
            if len(wrong):
                raise DataError(
                    f"{name} gave the label {wrong[0]}; the {self.num_classes} classes are 0 to "
                    f"{self.num_classes - 1}, and {self.ignore_label} is ignored"
                )
        return image, label

    def draw(self, rng: np.random.Generator, size: tuple[int, int], point: tuple[int, int] | None = None) -> Drawn:
        """Draw the choices for an image of `size` (height, width).

        Always eleven numbers in this order, then those of `Photometric`, then six, so that switching one augmentation
        off leaves the others as they were. With a `point` the crop is any of those inside the scaled picture that hold
        it, and one that leaves the scaled picture where the rotation carries the point out of it.
        """
        u = rng.random(11)
        scale = between(self.scale, u[0])
        angle = between(self.rotate, u[2]) if u[1] < self.rotate_prob else 0.0
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
                between((1 - b, 1 + b), u[7]),
                between((1 - c, 1 + c), u[8]),
                between((1 - s, 1 + s), u[9]),
                between((-h, h), u[10]),
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
