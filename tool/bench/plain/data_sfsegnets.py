"""The SFSegNets recipe of samples, step by step, to compare.

What github.com/lxtGH/SFSegNets does (datasets/cityscapes.py, transforms/): decode with PIL, label ids mapped one
after the other, random scale (bicubic), padding, crop, mirror, colour jitter by PIL in random order with hue in HSV,
Gaussian blur of random width in floating point (there by scikit-image, here by OpenCV in float64, which is faster),
to tensor, normalise. Written anew from its description, for measuring alone.
"""

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def load_sample(image_path, label_path, crop, rng, mapping, scale=(0.5, 2.0), jitter=0.25):
    """Return a normalised picture and its label.

    float32 (3, h, w) and int64 (h, w). mapping: id on disk -> training id.
    """
    image = Image.open(image_path).convert("RGB")
    ids = np.array(Image.open(label_path))
    mapped = ids.copy()
    for key, value in mapping.items():
        mapped[ids == key] = value
    label = Image.fromarray(mapped)
    factor = rng.uniform(*scale)
    size = tuple(int(side * factor) for side in image.size)
    image, label = image.resize(size, Image.BICUBIC), label.resize(size, Image.NEAREST)
    border = tuple((want - have) // 2 + 1 if want > have else 0 for want, have in zip(crop[::-1], size, strict=True))
    if any(border):
        image, label = ImageOps.expand(image, border=border * 2, fill=0), ImageOps.expand(label, border * 2, fill=255)
    left = int(rng.integers(image.size[0] - crop[1] + 1))
    top = int(rng.integers(image.size[1] - crop[0] + 1))
    window = (left, top, left + crop[1], top + crop[0])
    image, label = image.crop(window), label.crop(window)
    if rng.random() < 0.5:
        image, label = image.transpose(Image.FLIP_LEFT_RIGHT), label.transpose(Image.FLIP_LEFT_RIGHT)
    image = _blur(_jitter(image, rng, jitter), 0.15 + 1.15 * rng.random())
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return pixels.sub(MEAN).div(STD), torch.from_numpy(np.array(label, dtype=np.int32)).long()


def _jitter(image, rng, amount):
    for step in rng.permutation(4):
        if step == 3:
            image = _turn_hue(image, rng.uniform(-amount, amount))
        else:
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
            image = enhancer(image).enhance(rng.uniform(1 - amount, 1 + amount))
    return image


def _turn_hue(image, turn):
    hue, saturation, value = image.convert("HSV").split()
    turned = np.array(hue, dtype=np.uint8) + np.uint8(int(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def _blur(image, sigma):
    pixels = np.array(image).astype(np.float64) / 255
    radius = int(4 * sigma + 0.5)
    blurred = cv2.GaussianBlur(pixels, (2 * radius + 1, 2 * radius + 1), sigma, borderType=cv2.BORDER_REPLICATE)
    return Image.fromarray((blurred * 255).astype(np.uint8))
