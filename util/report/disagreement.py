"""Pictures of an image on which results disagree."""

from collections.abc import Sequence

import cv2
import numpy as np

from util.report.visual import IGNORE, as_rgb, colorize, data_uri, jpeg, png

WIDTH = 512  # of a picture, pixels
QUALITY = 80
# Where another result than the first differs from it: which of them is right.
FIRST, OTHER, NEITHER = (214, 74, 60), (46, 160, 100), (226, 168, 40)


def disagreement(truth: np.ndarray, predictions: Sequence[np.ndarray]) -> np.ndarray:
    """Tell for each pixel who is right where results differ.

    Args:
        truth: uint8 (H, W), IGNORE for pixels that do not count.
        predictions: uint8 (H, W) of each result; the first is compared with the others.

    Returns:
        uint8 (H, W): 0 all equal, or ignored; 1 the first is right; 2 one of the others is; 3 none.
    """
    first = predictions[0]
    differs = np.any([first != other for other in predictions[1:]], axis=0) & (truth != IGNORE)
    found = np.where(first == truth, 1, np.where(np.any([other == truth for other in predictions[1:]], axis=0), 2, 3))
    return np.where(differs, found, 0).astype(np.uint8)


def pictures(
    image: np.ndarray, truth: np.ndarray, predictions: Sequence[np.ndarray], colors: np.ndarray
) -> dict[str, str]:
    """Draw an image, its truth, each prediction and where they differ, small.

    Args:
        image: uint8 (H, W, C). truth, predictions: as `disagreement`. colors: uint8 (classes, 3).

    Returns:
        data URIs by title; a prediction's is its number, from 1.
    """
    height, width = truth.shape
    size = (min(width, WIDTH), max(round(height * min(width, WIDTH) / width), 1))
    small = cv2.resize(np.ascontiguousarray(as_rgb(image)), size, interpolation=cv2.INTER_AREA)
    labels = [cv2.resize(label, size, interpolation=cv2.INTER_NEAREST) for label in (truth, *predictions)]
    drawn = [png(colorize(label, colors)) for label in labels]
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)[..., None] * 0.5 + 60
    gray[labels[0] == IGNORE] = 0
    found = disagreement(truth, predictions)
    shown = gray * np.ones(3)
    for value, color in enumerate((FIRST, OTHER, NEITHER), start=1):
        share = cv2.resize((found == value).astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
        shown = shown * (1 - share) + np.array(color) * share
    content = {"image": ("image/jpeg", jpeg(small, QUALITY)), "truth": ("image/png", drawn[0])}
    content |= {str(index): ("image/png", data) for index, data in enumerate(drawn[1:], start=1)}
    content["difference"] = ("image/jpeg", jpeg(np.round(shown).astype(np.uint8), QUALITY))
    return {title: data_uri(kind, data) for title, (kind, data) in content.items()}
