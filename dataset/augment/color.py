"""Colours of a crop: jitter of torchvision, distortion of MMSegmentation."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

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
            brightness=between((-32, 32), u[1]) if u[0] < 0.5 else 0.0,
            contrast=between((0.5, 1.5), u[3]) if u[2] < 0.5 else 1.0,
            contrast_last=bool(u[4] < 0.5),
            saturation=between((0.5, 1.5), u[6]) if u[5] < 0.5 else 1.0,
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


def between(limits: tuple[float, float], u: float) -> float:
    """Return the value at the share `u` of a range."""
    return limits[0] + (limits[1] - limits[0]) * float(u)


def _to_8bit(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)
