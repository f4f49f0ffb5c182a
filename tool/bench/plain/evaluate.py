"""Evaluation as older repositories do it, slowly.

semseg's windows, SFSegNets' sliding, their metrics. Procedures after hszhao/semseg (tool/test.py, util/util.py) and
lxtGH/SFSegNets (eval.py, utils/misc.py), written anew; where those need a GPU, this runs anywhere. A network here maps
a batch (N, 3, h, w) to logits (N, C, h', w').
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

MOST_CHANNELS = 100  # that one cv2.resize is given: OpenCV 5 refuses more than 128
IGNORE = 255
Network = Callable[[torch.Tensor], torch.Tensor]


def windowed(
    network: Network, image: np.ndarray, classes: int, crop: int, scales: Sequence[float], mean, std, rate: float
) -> np.ndarray:
    """Evaluate as semseg does, with mirrored windows.

    uint8 (H, W, 3) -> probabilities, float64 (H, W, C).
    """
    image = image.astype(np.float32)
    height, width = image.shape[:2]
    total = np.zeros((height, width, classes))
    for scale in scales:
        size = round(scale * width), round(scale * height)
        scaled = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        total += _one_scale(network, scaled, classes, crop, (width, height), mean, std, rate)
    total /= len(scales)
    return total


def _one_scale(network, image, classes, crop, size, mean, std, rate) -> np.ndarray:
    height, width = image.shape[:2]
    missing = [max(crop - side, 0) for side in (height, width)]
    top, left = missing[0] // 2, missing[1] // 2
    if any(missing):
        borders = top, missing[0] - top, left, missing[1] - left
        image = cv2.copyMakeBorder(image, *borders, cv2.BORDER_CONSTANT, value=mean)
    full_h, full_w = image.shape[:2]
    step = math.ceil(crop * rate)
    scores = np.zeros((full_h, full_w, classes))
    count = np.zeros((full_h, full_w))
    for row in range(math.ceil((full_h - crop) / step) + 1):
        for column in range(math.ceil((full_w - crop) / step) + 1):
            bottom, right = min(row * step + crop, full_h), min(column * step + crop, full_w)
            place = slice(bottom - crop, bottom), slice(right - crop, right)
            count[place] += 1
            scores[place] += _one_window(network, image[place].copy(), mean, std)
    scores /= count[:, :, None]
    scores = scores[top : top + height, left : left + width]
    groups = (
        [np.ascontiguousarray(scores[..., c : c + MOST_CHANNELS]) for c in range(0, classes, MOST_CHANNELS)]
        if classes > MOST_CHANNELS
        else [scores]
    )
    resized = [cv2.resize(group, size, interpolation=cv2.INTER_LINEAR) for group in groups]
    return resized[0] if len(resized) == 1 else np.concatenate(resized, 2)


def _one_window(network, crop: np.ndarray, mean, std) -> np.ndarray:
    """Mean probabilities of a window and its mirror image, (h, w, C)."""
    window = torch.from_numpy(crop.transpose(2, 0, 1)).float()
    for channel, m, s in zip(window, mean, std, strict=True):
        channel.sub_(m).div_(s)
    batch = torch.stack([window, window.flip(2)])
    with torch.no_grad():
        logits = network(batch)
    if logits.shape[2:] != batch.shape[2:]:
        logits = F.interpolate(logits, batch.shape[2:], mode="bilinear", align_corners=True)
    both = F.softmax(logits, 1)
    return ((both[0] + both[1].flip(2)) / 2).numpy().transpose(1, 2, 0)


def sliding(
    network: Network, image: np.ndarray, classes: int, crop: int, scales: Sequence[float], mean, std
) -> np.ndarray:
    """Evaluate as SFSegNets does, with mirrored pictures.

    uint8 (H, W, 3) -> mean logits, float64 (C, H, W). Above scale 1 its windows grow with the scale; a third of a
    window overlaps.
    """
    picture = Image.fromarray(image)
    size = picture.size
    mean, std = (torch.tensor(values)[:, None, None] / 255 for values in (mean, std))
    means = []
    for scale in scales:
        scaled = picture.resize((int(size[0] * scale), int(size[1] * scale)), Image.BILINEAR)
        both = [scaled, scaled.transpose(Image.FLIP_LEFT_RIGHT)]
        inputs = [(torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 255 - mean) / std for one in both]
        tile = int(crop * max(scale, 1))
        windows, places = None, []
        for one in inputs:
            places.append(_tiles(*one.shape[1:], tile))
            for place in places[-1]:
                window = one[(slice(None), *place)][None]
                windows = window if windows is None else torch.cat((windows, window))
        with torch.no_grad():
            scores = torch.cat([network(window[None]) for window in windows]).numpy()
        flips, number = [], len(places[0])
        for flip, some in enumerate(places):
            part = scores[flip * number : flip * number + number]
            flips.append(_joined(part, some, classes, inputs[flip].shape[1:], size, flip))
        means.append(np.mean(flips, axis=0))
    return np.mean(means, axis=0)


def _tiles(height: int, width: int, tile: int) -> list[tuple[slice, slice]]:
    step = math.ceil(tile * 2 / 3)
    places = []
    for column in range(max(math.ceil((width - tile) / step) + 1, 1)):
        for row in range(max(math.ceil((height - tile) / step) + 1, 1)):
            bottom, right = min(row * step + tile, height), min(column * step + tile, width)
            places.append((slice(max(bottom - tile, 0), bottom), slice(max(right - tile, 0), right)))
    return places


def _joined(scores, places, classes: int, shape, size, flip: int) -> list[np.ndarray]:
    """The windows' mean, resized class by class."""
    total, count = np.zeros((classes, *shape)), np.zeros((classes, *shape))
    for window, place in zip(scores, places, strict=True):
        count[(slice(None), *place)] += 1
        total[(slice(None), *place)] += window
    total = total / count
    planes = [np.fliplr(plane) if flip else plane for plane in total]
    return [cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in planes]


def areas(prediction: np.ndarray, label: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count as semseg does: intersection, union, labelled pixels.

    Of each class, by three histograms.
    """
    prediction, label = prediction.reshape(-1).copy(), label.reshape(-1)
    prediction[np.where(label == IGNORE)[0]] = IGNORE
    hits = prediction[np.where(prediction == label)[0]]
    hit, predicted, labelled = (np.histogram(x, bins=np.arange(classes + 1))[0] for x in (hits, prediction, label))
    return hit, predicted + labelled - hit, labelled


def histogram(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Count as SFSegNets does: a masked confusion matrix.

    By a count of int64 pairs; rows are the truth.
    """
    valid = (label >= 0) & (label < classes)
    pairs = classes * label[valid].astype(int) + prediction[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
