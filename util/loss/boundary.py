"""Losses of boundary and detail maps.

Their truth is where classes of the label meet. Every function takes logits (N, 1, h, w) of any float type and size,
resizes them bilinearly to the label (corners aligned), computes in float32, leaves ignored pixels out, and is zero,
with a zero gradient, where no pixel counts. What a pixel weighs depends on all that a process sees in a forward pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The Laplacian of the published STDC code, and the share of its value at strides 1, 2 and 4 in tenths.
LAPLACIAN = ((-1.0, -1.0, -1.0), (-1.0, 8.0, -1.0), (-1.0, -1.0, -1.0))
SHARES = {1: 6, 2: 3, 4: 1}


def boundary(logits: Tensor, label: Tensor, ignore_label: int = 255, width: int = 4) -> Tensor:
    """Return the class-balanced binary cross entropy of boundary logits.

    The boundary loss of PIDNet (Xu et al., CVPR 2023, section 3.4; after Liao et al. and Takikawa et al.): a boundary
    pixel weighs the share of the others, another one the share of the boundary pixels; the mean over the pixels that
    count. The published code weighs it 20, and has ignored pixels as such without a boundary; here they are left out.

    Args:
        logits: (N, 1, h, w). label: (N, H, W).
        width: of the boundaries, in pixels; 4 in the published code.
    """
    truth, valid = boundaries(label, ignore_label, width), label != ignore_label
    scores = _at_full_size(logits, label)
    count, found = valid.sum(), (truth & valid).sum()
    weight = torch.where(truth, count - found, found) / count.clamp(min=1)
    loss = F.binary_cross_entropy_with_logits(scores, truth.float(), reduction="none")
    return torch.where(valid, loss * weight, 0).sum() / count.clamp(min=1)


def boundaries(label: Tensor, ignore_label: int = 255, width: int = 4) -> Tensor:
    """Find where two classes meet in a label.

    bool (N, H, W).

    Of two neighbours in a row, a column or a diagonal, one is marked if both count and their classes differ; the marks
    are then widened to squares of `width`, one pixel further up and left than down and right where it is even.
    """
    valid, found = label != ignore_label, torch.zeros_like(label, dtype=torch.bool)
    later, earlier, whole = slice(1, None), slice(None, -1), slice(None)
    pairs = (
        ((later, whole), (earlier, whole)),
        ((whole, earlier), (whole, later)),
        ((earlier, earlier), (later, later)),
        ((earlier, later), (later, earlier)),
    )
    for marked, other in pairs:
        here, there = (whole, *marked), (whole, *other)
        found[here] |= (label[here] != label[there]) & valid[here] & valid[there]
    before = width // 2
    padded = F.pad(found.float(), (before, width - 1 - before) * 2)
    return F.max_pool2d(padded, width, 1) > 0


def near_boundary(label: Tensor, logits: Tensor, ignore_label: int = 255, threshold: float = 0.8) -> Tensor:
    """Ignore the pixels that the network takes for no boundary.

    Returns the label with these ignored. PIDNet's boundary-awareness loss is that of its logits on these (section 3.4
    of the paper, equation 5).

    Args:
        label: (N, H, W).
        logits: (N, 1, h, w) of the boundary head; no gradient flows to them.
        threshold: probability that a pixel has to exceed.

    Returns:
        (N, H, W), `ignore_label` where the probability is not above the threshold.
    """
    return torch.where(_at_full_size(logits.detach(), label).sigmoid() > threshold, label, ignore_label)


def detail(logits: Tensor, label: Tensor, ignore_label: int = 255) -> Tensor:
    """Return binary cross entropy plus soft Dice loss of detail logits.

    The detail loss of STDC (Fan et al., CVPR 2021, section 3.3). The Dice loss is that of each picture, averaged over
    the pictures. Ignored pixels are left out; the published code has them as a class of their own.

    Args:
        logits: (N, 1, h, w); or (N, 2, h, w), the logits of no detail and of one, as MMSegmentation's head has them.
        label: (N, H, W).
    """
    if logits.shape[1] == 2:
        logits = logits[:, 1:] - logits[:, :1]
    truth, valid = details(label, ignore_label), label != ignore_label
    scores = _at_full_size(logits, label)
    loss = F.binary_cross_entropy_with_logits(scores, truth.float(), reduction="none")
    entropy = torch.where(valid, loss, 0).sum() / valid.sum().clamp(min=1)
    probability, hits = torch.where(valid, scores.sigmoid(), 0).flatten(1), (truth & valid).flatten(1)
    overlap = (probability * hits).sum(1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(1) + hits.sum(1) + 1)
    return entropy + dice.mean()


def details(label: Tensor, ignore_label: int = 255) -> Tensor:
    """Find the details of a label: bool (N, H, W).

    As in the published code: where the Laplacian of the class indices is positive, at strides 1, 2 and 4, enlarged by
    nearest neighbours; a pixel is a detail if the sum weighted by 0.6, 0.3 and 0.1 exceeds 0.1, so that stride 4 alone
    makes none. Outside the picture the index counts as 0, and an ignored pixel as 255, above all classes: of two
    classes that meet, the pixels of the higher one are details.
    """
    indices = torch.where(label == ignore_label, 255, label).float()[:, None]
    kernel = torch.tensor(LAPLACIAN, device=label.device)[None, None]
    tenths = torch.zeros_like(indices)
    for stride, share in SHARES.items():
        positive = (F.conv2d(indices, kernel, stride=stride, padding=1) > 0.1).float()
        tenths = tenths + share * F.interpolate(positive, indices.shape[-2:], mode="nearest")
    return tenths[:, 0] > 1


def _at_full_size(logits: Tensor, label: Tensor) -> Tensor:
    """Return the logits (N, 1, h, w) at the size of the label, (N, H, W) in float32."""
    return F.interpolate(logits.float(), label.shape[-2:], mode="bilinear", align_corners=True)[:, 0]
