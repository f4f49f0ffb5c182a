"""The classics' PIL recipe of samples, step by step, to compare.

What github.com/Tramac/Fast-SCNN-pytorch (and awesome-semantic-segmentation-pytorch) does (data_loader/cityscapes.py):
decode with PIL, mirror, random scale of the short side, padding, crop, Gaussian blur, label ids mapped by search,
to tensor, normalise. Written anew from its description, for measuring alone.
"""

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from util import UserError

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def load_sample(image_path, label_path, crop, rng, mapping, scale=(0.5, 2.0)):
    """Return a normalised picture and its label.

    float32 (3, h, w) and int64 (h, w). mapping: id on disk -> training id.
    """
    image = Image.open(image_path).convert("RGB")
    label = Image.open(label_path)
    if rng.random() < 0.5:
        image, label = image.transpose(Image.FLIP_LEFT_RIGHT), label.transpose(Image.FLIP_LEFT_RIGHT)
    factor = rng.uniform(*scale)
    size = tuple(int(side * factor) for side in image.size)
    image, label = image.resize(size, Image.BILINEAR), label.resize(size, Image.NEAREST)
    more = tuple(max(want - have, 0) for want, have in zip(crop[::-1], size, strict=True))
    if any(more):
        image = ImageOps.expand(image, border=(0, 0, *more), fill=0)
        label = ImageOps.expand(label, border=(0, 0, *more), fill=0)
    left = int(rng.integers(image.size[0] - crop[1] + 1))
    top = int(rng.integers(image.size[1] - crop[0] + 1))
    window = (left, top, left + crop[1], top + crop[0])
    image, label = image.crop(window), label.crop(window)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(radius=rng.random()))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return pixels.sub(MEAN).div(STD), torch.from_numpy(_map_ids(np.array(label).astype(np.int32), mapping))


def _map_ids(label, mapping):
    keys = np.array(sorted(mapping))
    values = np.array([mapping[key] for key in keys])
    for value in np.unique(label):
        if value not in keys:
            raise UserError(f"label id {value} is not mapped")
    return values[np.digitize(label.ravel(), keys, right=True)].reshape(label.shape).astype(np.int64)
