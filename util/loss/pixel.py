"""Losses of pixels: cross entropy, boundaries, hard pixels.

Every function takes logits (N, C, H, W) of any float type, computes in float32, leaves ignored pixels out,
and is zero, with a zero gradient, where no pixel counts.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from util import UserError


def cross_entropy(
    logits: Tensor,
    label: Tensor,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    normaliser: Tensor | None = None,
) -> Tensor:
    """Pixel-wise cross entropy, averaged over the pixels that count.

    Args:
        logits: (N, C, H, W), any float type; computed in float32.
        label: (N, H, W) class indices, or `ignore_label`.
        class_weights: (C,) weight of each class; the mean is then the weighted mean.
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al., CVPR 2016,
            section 7).
        normaliser: divides the sum instead of `valid_weight` of this label (for a batch in several parts).

    Returns:
        Scalar; zero, with a zero gradient, if no pixel counts.
    """
    if normaliser is None:
        normaliser = valid_weight(label, ignore_label, class_weights)
    total = _pixelwise(logits, label.long(), ignore_label, class_weights, label_smoothing).sum()
    return total / torch.where(normaliser > 0, normaliser, 1)


def cascade(logits: Tensor, label: Tensor, ignore_label: int = 255) -> Tensor:
    """Return the cross entropy of coarse logits at their own size.

    The mean over the pixels that count. The label guidance of ICNet (Zhao et al., ECCV 2018, section 3.3): the label is
    brought to the size of the logits by nearest neighbours.

    Args:
        logits: (N, C, h, w), any float type.
        label: (N, H, W).
    """
    rows, columns = (
        torch.arange(small, device=label.device) * large // small
        for small, large in zip(logits.shape[-2:], label.shape[-2:], strict=True)
    )
    return cross_entropy(logits, label[:, rows][:, :, columns], ignore_label)


def relaxed_cross_entropy(
    logits: Tensor,
    label: Tensor,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    border: int = 1,
    normaliser: Tensor | None = None,
) -> Tensor:
    """Cross entropy with boundary label relaxation.

    Near a boundary, any of the classes that meet is right. A pixel's loss is -log of the summed probability of all
    classes within `border` pixels of it (Zhu et al., "Improving semantic segmentation via video propagation and label
    relaxation", CVPR 2019), averaged over the pixels that count. Inside a region, and with border 0, this is the cross
    entropy.

    An ignored pixel stays ignored, and makes no boundary. The published code trains it as the classes within
    reach, weights the classes by their share of each picture, and can narrow the border in late epochs; these
    are left out.

    Args:
        logits: (N, C, H, W).
        label: (N, H, W).
        normaliser: as in `cross_entropy`.
        class_weights: (C,) weight of a pixel by the class of its own label; the mean is the weighted mean.
        border: how far the window reaches; 1 looks at 3x3 pixels.

    Raises:
        UserError: `border` is negative.
    """
    if border < 0:
        raise UserError(f"border {border} is negative")
    if normaliser is None:
        normaliser = valid_weight(label, ignore_label, class_weights)
    valid = label != ignore_label
    # An ignored pixel gets every class, so the probability 1: its gradient is zero, not undefined.
    accepted = nearby_classes(label, logits.shape[1], border, ignore_label) | ~valid[:, None]
    union = logits.float().log_softmax(1).masked_fill(~accepted, -torch.inf).logsumexp(1)
    weight = valid if class_weights is None else class_weights[torch.where(valid, label, 0).long()] * valid
    return -(union * weight).sum() / torch.where(normaliser > 0, normaliser, 1)


def ohem_cross_entropy(
    logits: Tensor,
    label: Tensor,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    threshold: float = 0.7,
    min_kept: int = 10_000,
    per_picture: bool = False,
    average: Literal["kept", "all"] = "kept",
) -> Tensor:
    """Return the cross entropy of the hard pixels alone.

    Online hard example mining (Shrivastava et al., CVPR 2016). A pixel is kept if its true class has a probability of
    at most `threshold`; where these are fewer than the minimum, the least probable ones up to the minimum (equal ones
    together), all if no more are valid.

    The minimum counts the pixels of one call: of all pictures that one process sees in one forward pass. With
    more processes or parts, a smaller share of the batch fills it, and the loss is another one.

    SFSegNets keeps 10,000 a process (100,000 with deep supervision) and averages over the kept pixels: the
    defaults. The OHEM sampler of MMSegmentation keeps `min_kept` times the number of pictures (per_picture)
    and divides by all pixels, dropped and ignored ones too (average="all"): the fewer are hard, the smaller
    the gradient.

    Args:
        logits: (N, C, H, W).
        label: (N, H, W).
        class_weights: as in `cross_entropy`; which pixels are hard does not depend on them.
        label_smoothing: likewise.
        threshold: probability from 0 to 1.
        min_kept: pixels of one call, or (per_picture) this times the number of its pictures.
        average: "kept": mean over the kept pixels, weighted by class; "all": sum / number of all pixels.

    Raises:
        UserError: `threshold`, `min_kept` or `average` is out of range.
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold} is no probability from 0 to 1")
    if min_kept < 0:
        raise UserError(f"min_kept {min_kept} is negative")
    if average not in ("kept", "all"):
        raise UserError(f"average {average!r} must be 'kept' or 'all'")
    label = label.long()
    loss = _pixelwise(logits, label, ignore_label, class_weights, label_smoothing)
    with torch.no_grad():
        altered = class_weights is not None or label_smoothing > 0
        plain = _pixelwise(logits, label, ignore_label) if altered else loss
        least = min_kept * (len(label) if per_picture else 1)
        kept = _hard(plain, label != ignore_label, threshold, least)
    total = torch.where(kept, loss, 0).sum()
    if average == "all":
        return total / label.numel()
    count = valid_weight(torch.where(kept, label, ignore_label), ignore_label, class_weights)
    return total / torch.where(count > 0, count, 1)


def _pixelwise(logits, label, ignore_label, class_weights=None, label_smoothing=0.0) -> Tensor:
    """Return the cross entropy (N, H, W), 0 where ignored; the label is int64."""
    if label_smoothing:
        return F.cross_entropy(
            logits.float(),
            label,
            class_weights,
            ignore_index=ignore_label,
            reduction="none",
            label_smoothing=label_smoothing,
        )
    valid = label != ignore_label
    target = torch.where(valid, label, 0)
    loss = _NegativeLogLikelihood.apply(logits, target)
    return torch.where(valid, loss if class_weights is None else loss * class_weights[target], 0)


class _NegativeLogLikelihood(torch.autograd.Function):
    """-log softmax(logits)[target], (N, H, W) float32, of logits (N, C, H, W) and target (N, H, W) without ignored
    ones.

    The gradient is made in the memory of the log-probabilities, once: `F.cross_entropy` allocates three times as
    much, which at full size is the largest part of a step's memory.
    """

    @staticmethod
    def forward(ctx, logits, target):
        scores = torch.log_softmax(logits, 1, dtype=torch.float32)
        ctx.save_for_backward(scores, target)
        return scores.gather(1, target[:, None])[:, 0].neg()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        scores, target = ctx.saved_tensors
        gradient = gradient[:, None]
        return scores.exp_().mul_(gradient).scatter_add_(1, target[:, None], -gradient), None


def _hard(loss: Tensor, valid: Tensor, threshold: float, least: int) -> Tensor:
    """Bool (N, H, W): the pixels that `ohem_cross_entropy` keeps, by their cross entropy."""
    probability = torch.where(valid, (-loss).exp(), 2)  # ignored pixels come last
    limit: float | Tensor = threshold
    if least:
        # On a GPU, kthvalue searches the whole row with a single block of threads; topk does not.
        smallest = probability.flatten().topk(min(least, probability.numel()), largest=False, sorted=False)
        limit = smallest.values.max().clamp(min=threshold)
    return valid & ~(probability > limit)  # so written, what is not a number is kept, and reported


def valid_weight(label: Tensor, ignore_label: int = 255, class_weights: Tensor | None = None) -> Tensor:
    """Sum up the pixels that count, weighted by class: float32 scalar."""
    valid = label != ignore_label
    if class_weights is None:
        return valid.sum(dtype=torch.float32)
    return (class_weights[torch.where(valid, label, 0).long()] * valid).sum()


def one_hot(label: Tensor, num_classes: int, ignore_label: int) -> Tensor:
    """Return the label as bool (N, C, H, W), without ignored pixels."""
    classes = torch.arange(num_classes, dtype=label.dtype, device=label.device)[:, None, None]
    return (label[:, None] == classes) & (label != ignore_label)[:, None]


def nearby_classes(label: Tensor, num_classes: int, border: int, ignore_label: int = 255) -> Tensor:
    """Find the classes near each pixel, bool (N, C, H, W).

    Within `border` rows and columns of the label's pixel.
    """
    near = one_hot(label, num_classes, ignore_label)
    for axis in (2, 3):
        length, wide = near.shape[axis], near.clone()
        for shift in range(1, min(border, length - 1) + 1):
            wide.narrow(axis, shift, length - shift).logical_or_(near.narrow(axis, 0, length - shift))
            wide.narrow(axis, 0, length - shift).logical_or_(near.narrow(axis, shift, length - shift))
        near = wide
    return near
