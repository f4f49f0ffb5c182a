"""The training augmentation on tensors, on any device: what `TrainTransform.apply` does, from the same `Drawn`.

One `grid_sample` a picture straight into its place in the batch, so pictures of different sizes may be mixed; then
blur and colours. Values stay float32 until the end, where the host path rounds to 8 bit after every step: the
results differ by less than one grey level on average, and more than 99 % of the label pixels are equal.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.augment.transform import BLUR_MARGIN, Drawn, Photometric, TrainTransform, color_matrix, source_matrix

# The 5x5 Gaussian of `cv2.GaussianBlur` is the outer product of this with itself.
BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
LUMA = (0.299, 0.587, 0.114)  # Rec. 601
NO_JITTER = (1.0, 1.0, 1.0, 0.0)


class DeviceTransform:
    """Draws what `transform` would do to a sample and leaves it to be done for a whole batch: see `apply`.

    A data set with it delivers decoded pictures of any size, and `Drawn`.
    """

    def __init__(self, transform: TrainTransform):
        self.inner = transform

    def __call__(self, image, label, rng, point: tuple[int, int] | None = None):
        """Picture and label as they are, and what was drawn for them."""
        return image, label, self.inner.draw(rng, label.shape, point)

    def apply(self, images: Sequence[Tensor], labels: Sequence[Tensor], drawn: Sequence[Drawn]):
        """The augmented batch, see `augment`."""
        return augment(images, labels, drawn, self.inner)


def augment(
    images: Sequence[Tensor], labels: Sequence[Tensor], drawn: Sequence[Drawn], transform: TrainTransform
) -> tuple[Tensor, Tensor]:
    """The batch of crops that `drawn` describes.

    Args:
        images: uint8 (3, h, w) each, of any size; labels: uint8 (h, w) each.
        transform: gives the crop, the colour of the padding and the ignored label.

    Returns:
        Image float32 (N, 3, H, W) of whole numbers 0 to 255, channels last, and label uint8 (N, H, W).
    """
    device, (height, width) = images[0].device, transform.crop
    out = torch.empty((len(images), 3, height, width), device=device, memory_format=torch.channels_last)
    target = torch.empty((len(images), height, width), dtype=torch.uint8, device=device)
    mean = _padding(transform.mean, device)
    for place, (image, label, each) in enumerate(zip(images, labels, drawn, strict=True)):
        margin = BLUR_MARGIN if each.blur else 0
        picture = _sampled(image.float() - mean, _grid(each, image, transform.crop, margin), each.angle == 0) + mean
        out[place] = _colours(_blurred(picture) if each.blur else picture, each)
        grid, ignored = _grid(each, image, transform.crop, 0), float(transform.ignore_label)
        truth = _warp(label[None].float() - ignored, grid, "nearest", "zeros") + ignored
        target[place] = truth[0].round_().to(torch.uint8)
    return out, target


@cache
def _padding(mean: tuple[float, float, float], device: torch.device) -> Tensor:
    """The colour (3, 1, 1) that the host pads with; made once, since such a copy makes the host wait."""
    return torch.tensor(mean).round().to(device)[:, None, None]


def _grid(drawn: Drawn, source: Tensor, crop: tuple[int, int], margin: int) -> Tensor:
    """Where (1, H, W, 2) each pixel of the crop lies in the source, -1 and 1 being its outer edges."""
    a, b = source_matrix(drawn, margin).tolist()
    columns = torch.arange(crop[1] + 2 * margin, device=source.device, dtype=torch.float32)
    rows = torch.arange(crop[0] + 2 * margin, device=source.device, dtype=torch.float32)[:, None]
    x, y = (m[0] * columns + m[1] * rows + m[2] for m in (a, b))
    height, width = source.shape[-2:]
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)[None]


def _sampled(source: Tensor, grid: Tensor, upright: bool) -> Tensor:
    """`source` (3,h,w), its distance to the border's colour, at `grid`; zero outside of it.

    As on the host, a turned picture fades into the border within a pixel, and an upright one ends at it.
    """
    if not upright:
        return _warp(source, grid, "bilinear", "zeros")
    return _warp(source, grid, "bilinear", "border") * (grid.abs() <= 1).all(-1)


def _warp(source: Tensor, grid: Tensor, mode: str, outside: str) -> Tensor:
    return F.grid_sample(source[None], grid, mode, outside, align_corners=False)[0]


def _blurred(picture: Tensor) -> Tensor:
    """(3, H + 4, W + 4) -> (3, H, W)."""
    for axis in (1, 2):
        length = picture.shape[axis] - 2 * BLUR_MARGIN
        picture = sum(weight * picture.narrow(axis, shift, length) for shift, weight in enumerate(BLUR))
    return picture


def _colours(picture: Tensor, drawn: Drawn) -> Tensor:
    """Jitter and colour distortion of (3, H, W); whole numbers from 0 to 255."""
    if drawn.jitter != NO_JITTER:
        linear = color_matrix(drawn.jitter, np.zeros((1, 1, 3), np.uint8))[:, :3].tolist()
        brightness, contrast = drawn.jitter[:2]
        # The one number that depends on the picture, its mean grey, stays on the device.
        offset = (1 - contrast) * brightness * _weighted(LUMA, picture.mean((1, 2)))
        picture = torch.stack([_weighted(row, picture) + offset for row in linear])
    picture = picture.clamp(0, 255).round()
    return picture if drawn.photometric is None else _distorted(picture, drawn.photometric)


def _weighted(weights: Sequence[float], channels: Tensor) -> Tensor:
    return sum(weight * channel for weight, channel in zip(weights, channels, strict=True))


def _distorted(picture: Tensor, photometric: Photometric) -> Tensor:
    """`Photometric.apply`, with the same cuts to whole numbers after each step."""
    picture = _cut(picture + photometric.brightness)
    if not photometric.contrast_last:
        picture = _cut(picture * photometric.contrast)
    if photometric.saturation != 1 or photometric.hue:
        hue, saturation, value = _to_hsv(picture)
        hue = (hue + photometric.hue).remainder(180)
        picture = _to_rgb(hue, _cut(saturation * photometric.saturation), value)
    return _cut(picture * photometric.contrast) if photometric.contrast_last else picture


def _cut(values: Tensor) -> Tensor:
    return values.clamp(0, 255).floor()


def _to_hsv(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue 0 to 179, saturation and value 0 to 255, whole, as OpenCV's 8 bit HSV."""
    value, low = picture.amax(0), picture.amin(0)
    spread = value - low
    red, green, blue = picture
    step = torch.where(spread > 0, spread, 1)
    sector = torch.where(
        value == red,
        (green - blue) / step,
        torch.where(value == green, 2 + (blue - red) / step, 4 + (red - green) / step),
    )
    hue = (30 * torch.where(spread > 0, sector, 0)).round().remainder(180)
    return hue, (255 * spread / torch.where(value > 0, value, 1)).round(), value


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse of `_to_hsv`, rounded: channel n is V - V S max(0, min(k, 4 - k, 1)), k = (n + H/30) mod 6."""
    shades = []
    for n in (5, 3, 1):
        k = (n + hue / 30).remainder(6)
        shades.append(value - value * (saturation / 255) * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(shades).round()
