"""The last steps: the camera car's bonnet, lens and sensor."""

import cv2
import numpy as np

from dataset.scene.canvas import (
    BUILDING,
    CAR,
    FENCE,
    PERSON,
    SKY,
    SUPERSAMPLING,
    VEGETATION,
    VOID,
    Canvas,
    jitter,
    mix,
    pick,
    sample_tile,
)
from dataset.scene.traffic import PAINTS


def paint_bonnet(canvas: Canvas) -> None:
    """Paint the camera car's own bonnet.

    Along the lower edge; it belongs to no class.
    """
    rng, camera = canvas.rng, canvas.camera
    height, width = camera.height, camera.width
    rise, color = height * rng.uniform(0.06, 0.12), jitter(rng, pick(rng, PAINTS), 0.05)
    x = np.linspace(-0.05, 1.05, 25)
    for lower, share in ((0.0, 0.0), (0.25, 0.12)):
        y = height - rise * (1 - lower) * (1 - np.abs(2 * x - 1) ** 3.5)
        below = [(width * 1.05, height + 2), (-width * 0.05, height + 2)]
        shape = np.concatenate((np.stack((x * width, y), axis=1), below))
        tone = canvas.tone(mix(color, canvas.light.low, 0.3 - share * 2), 0.0, (0, 1, 0))
        canvas.fill([shape], tone, VOID)


# deviation of the surface grain of each class, as a share of its brightness
GRAIN = {SKY: 0.006, BUILDING: 0.035, VEGETATION: 0.08, CAR: 0.012, PERSON: 0.02, FENCE: 0.03}


def develop(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Halve the canvas as lens and sensor would.

    Blur, vignette, colour cast, contrast and noise.
    """
    rng = canvas.rng
    height, width = canvas.camera.height // SUPERSAMPLING, canvas.camera.width // SUPERSAMPLING
    label = np.ascontiguousarray(canvas.label[::SUPERSAMPLING, ::SUPERSAMPLING])
    image: np.ndarray = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)

    grain = np.zeros(256, np.float32)
    grain[list(GRAIN)] = list(GRAIN.values())
    y, x = np.indices((height, width), np.float32) * np.float32(2.3) + np.float32(rng.uniform(0, 256))
    image *= (1 + cv2.GaussianBlur(grain[label], (0, 0), 0.7) * sample_tile(0.7, x, y))[..., None]

    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.65))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    vignette = 1 - np.float32(rng.uniform(0, 0.12)) * (x * x + y * y)
    cast = (rng.normal(1, 0.025, 3) * rng.normal(1, 0.05)).astype(np.float32)
    image = image * (vignette[..., None] * cast)
    contrast, bias = rng.uniform(0.92, 1.12), rng.uniform(-6, 6)
    image = (image - 118) * np.float32(contrast) + np.float32(118 + bias)
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(1.0, 3.0))
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label
