"""Losses of regions and whole images.

They count how a class's area is covered. Every function takes logits of any float type, computes in float32, leaves
ignored pixels out, and is zero, with a zero gradient, where no pixel counts. They are no means over pixels: each is
computed on what one process sees in one forward pass, so it does depend on how a batch is shared out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from util import UserError
from util.loss.pixel import one_hot


def dice(
    logits: Tensor,
    label: Tensor,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    smooth: float = 1.0,
    squared: bool = False,
    per_picture: bool = False,
) -> Tensor:
    """Return the soft Dice loss, the mean over the classes that occur.

    That of a class: 1 - (2 sum(pg) + smooth) / (sum(p) + sum(g) + smooth). p is the probability of a class and g
    whether the label says so, summed over the valid pixels of one call (one process, one forward pass), or of each
    picture. A class that their labels do not hold has no term. Milletari et al., "V-Net", 3DV 2016 (squared); Sudre et
    al., DLMIA 2017.

    Args:
        logits: (N, C, H, W).
        label: (N, H, W).
        class_weights: (C,) weight of each class in the mean.
        smooth: added to numerator and denominator.
        squared: p^2 in place of p in the denominator, as Milletari et al. have it.
        per_picture: one value for each picture, averaged over the pictures that have a valid pixel.

    Raises:
        UserError: `smooth` is negative.
    """
    if smooth < 0:
        raise UserError(f"smooth {smooth} is negative")
    truth = one_hot(label, logits.shape[1], ignore_label)
    probability = logits.float().softmax(1) * (label != ignore_label)[:, None]
    axes = (2, 3) if per_picture else (0, 2, 3)
    overlap = torch.where(truth, probability, 0).sum(axes)
    size = (probability.square() if squared else probability).sum(axes)
    count = truth.sum(axes)
    terms = 1 - (2 * overlap + smooth) / torch.where(count > 0, size + count + smooth, 1)
    weight = (count > 0) * (1.0 if class_weights is None else class_weights)
    return _mean(_mean(terms, weight), (count > 0).any(-1))


def lovasz_softmax(
    logits: Tensor,
    label: Tensor,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    per_picture: bool = False,
) -> Tensor:
    """Return the Lovasz-softmax loss, a surrogate of 1 - IoU.

    It is averaged over the classes that occur. Berman et al., CVPR 2018. The IoU is that of the valid pixels of one
    call (one process, one forward pass), or of each picture. A class that their labels do not hold has no term.

    Args:
        logits: (N, C, H, W).
        label: (N, H, W).
        class_weights: (C,) weight of each class in the mean.
        per_picture: one value for each picture, averaged over the pictures that have a valid pixel.
    """
    valid = label != ignore_label
    if per_picture and len(label) > 1:
        pairs = zip(logits.split(1), label.split(1), strict=True)
        values = torch.stack([lovasz_softmax(*pair, ignore_label, class_weights) for pair in pairs])
        return _mean(values, valid.flatten(1).any(1))
    classes = logits.shape[1]
    counts = torch.bincount(torch.where(valid, label.long(), classes).flatten(), minlength=classes + 1)
    # The one loss that waits for the device: to sort the absent ones of 150 classes, too, takes far longer.
    present = [index for index, count in enumerate(counts[:classes].tolist()) if count]
    if not present:
        return logits.float().sum() * 0
    probability = logits.float().softmax(1)
    terms = [_jaccard(probability[:, c].flatten(), (label == c).flatten(), valid.flatten()) for c in present]
    weight = torch.ones_like(terms[0]) if class_weights is None else class_weights[present]
    return _mean(torch.stack(terms), weight.expand(len(terms)))


def _jaccard(probability: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return the Lovasz extension of one class's Jaccard loss.

    At the pixels' errors (Berman et al., algorithm 1). probability (P,) of the class; truth, valid: bool (P,). At least
    one pixel must be of the class.
    """
    errors, order = torch.where(valid, (truth.float() - probability).abs(), -1).sort(descending=True)
    truth = truth[order]
    total = truth.sum()
    union = total + (~truth).cumsum(0)
    missed = total - truth.cumsum(0)
    # By how much 1 - IoU grows when this pixel, too, is wrong, without subtracting two numbers near 1.
    growth = torch.where(truth, 1 / union, missed / (union * (union - 1)))
    return (errors.clamp(min=0) * growth).sum()


def presence(logits: Tensor, label: Tensor, ignore_label: int = 255) -> Tensor:
    """Return the binary cross entropy of each image's classes.

    Averaged over images and classes. The semantic encoding loss of EncNet (Zhang et al., "Context encoding for semantic
    segmentation", CVPR 2018). A picture without a valid pixel adds nothing.

    Args:
        logits: (N, C), one yes or no for each class. label: (N, H, W).
    """
    found = one_hot(label, logits.shape[1], ignore_label).flatten(2).any(2)
    loss = F.binary_cross_entropy_with_logits(logits.float(), found.float(), reduction="none")
    return torch.where(found.any(1, keepdim=True), loss, 0).sum() / logits.numel()


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean along the last axis; zero where nothing has a weight."""
    total = weight.sum(-1)
    return (values * weight).sum(-1) / torch.where(total > 0, total, 1)
