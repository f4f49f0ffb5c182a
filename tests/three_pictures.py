"""A data set of three pictures, as the fixture `tree` makes it, and what tests do with it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset import build_dataset
from dataset.read import DataError


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def save_palette(path, indices, colors, **options):
    """An image with a palette: `indices` (H, W) into `colors` (n, 3)."""
    image = Image.fromarray(np.asarray(indices, np.uint8))
    image.putpalette(np.asarray(colors, np.uint8).ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def picture(rng, height=12, width=16):
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def make_three_pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for name in "abc":
        save(folder / "image" / f"{name}.png", picture(rng))
        save(folder / "label" / f"{name}.png", rng.integers(0, 3, (12, 16)).astype(np.uint8))
        lines.append(f"image/{name}.png label/{name}.png\n")
    (folder / "train.txt").write_text("".join(lines))
    return folder


def build(root, **options):
    return build_dataset("custom", root, **{"classes": ["x", "y", "z"], **options})


def fails(message, function, *arguments, error=DataError, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    assert type(caught.value) is error
    for part in [message] if isinstance(message, str) else message:
        assert part in str(caught.value)
