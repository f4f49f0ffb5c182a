"""The semseg recipe of samples, step by step, to compare.

What github.com/hszhao/semseg does (util/transform.py, config/cityscapes): decode, float32, random scale, rotation,
blur, mirror, and only then the crop; to tensor, normalise. Written anew from its description, for measuring alone.
"""

import cv2
import numpy as np
import torch

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
IGNORE = 255


def load_sample(image_path, label_path, crop, rng, scale=(0.5, 2.0), rotate=(-10.0, 10.0)):
    """Return a normalised picture and its label.

    float32 (3, h, w) and int64 (h, w), ids as on disk.
    """
    image = np.float32(cv2.cvtColor(cv2.imread(image_path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
    label = cv2.imread(label_path, cv2.IMREAD_GRAYSCALE)
    factor = rng.uniform(*scale)
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    if rng.random() < 0.5:
        height, width = label.shape
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(*rotate), 1)
        image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=MEAN.tolist())
        label = cv2.warpAffine(label, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=IGNORE)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    if rng.random() < 0.5:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    image, label = _crop(image, label, crop, rng)
    tensor = torch.from_numpy(image.transpose(2, 0, 1)).float()
    for channel, mean, std in zip(tensor, MEAN.tolist(), STD.tolist(), strict=True):
        channel.sub_(mean).div_(std)
    return tensor, torch.from_numpy(label).long()


def _crop(image, label, crop, rng):
    below, right = (max(want - have, 0) for want, have in zip(crop, label.shape, strict=True))
    sides = (below // 2, below - below // 2, right // 2, right - right // 2)
    if below or right:
        image = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=MEAN.tolist())
        label = cv2.copyMakeBorder(label, *sides, cv2.BORDER_CONSTANT, value=IGNORE)
    top = rng.integers(label.shape[0] - crop[0] + 1)
    left = rng.integers(label.shape[1] - crop[1] + 1)
    window = np.s_[top : top + crop[0], left : left + crop[1]]
    return image[window], label[window]
