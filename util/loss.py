"""Losses: functions of (logits, label), and their weighted sum over a network's outputs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        label_smoothing: share of the target spread evenly over all classes (Szegedy et al., CVPR 2016, section 7).
        normaliser: divides the sum instead of `valid_weight` of this label (for a batch in several parts).

    Returns:
        Scalar; zero, with a zero gradient, if no pixel counts.
    """
    if normaliser is None:
        normaliser = valid_weight(label, ignore_label, class_weights)
    total = F.cross_entropy(
        logits.float(), label.long(), class_weights, ignore_index=ignore_label, reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / torch.where(normaliser > 0, normaliser, 1)


def valid_weight(label: Tensor, ignore_label: int = 255, class_weights: Tensor | None = None) -> Tensor:
    """Scalar float32: how many pixels of `label` count, each by the weight of its class."""
    valid = label != ignore_label
    if class_weights is None:
        return valid.sum(dtype=torch.float32)
    return (class_weights[torch.where(valid, label, 0).long()] * valid).sum()


class SegLoss(nn.Module):
    """The weighted sum of a loss over the outputs of a network.

    Args:
        weights: weight of each output by its name; an output that is not listed is an error.
        class_weights: weight of each class, in class order.

    Raises:
        ValueError: the number of class weights is not `num_classes`.
    """

    def __init__(
        self,
        weights: dict[str, float],
        num_classes: int,
        ignore_label: int = 255,
        class_weights: tuple[float, ...] | None = None,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"loss.class_weights: {len(class_weights)} weights for {num_classes} classes")
        self.weights, self.ignore_label, self.label_smoothing = dict(weights), ignore_label, label_smoothing
        table = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", table)

    def normaliser(self, label: Tensor) -> Tensor:
        """What the sum over `label` (N, H, W) is divided by; adds up over the parts of a batch."""
        return valid_weight(label, self.ignore_label, self.class_weights)

    def forward(self, outputs: dict[str, Tensor], label: Tensor, normaliser: Tensor | None = None):
        """Total (scalar with a gradient) and the unweighted terms {output: detached scalar}.

        Args:
            outputs: name -> logits (N, C, H, W).
            label: (N, H, W).

        Raises:
            ValueError: an output has no weight.
        """
        unknown = sorted(set(outputs) - set(self.weights))
        if unknown:
            raise ValueError(f"loss.weights has no weight for the network's output {unknown}; give it one, 0 to drop")
        if normaliser is None:
            normaliser = self.normaliser(label)
        terms = {
            name: cross_entropy(
                logits, label, self.ignore_label, self.class_weights, self.label_smoothing, normaliser
            )
            for name, logits in outputs.items()
        }
        total = sum(self.weights[name] * term for name, term in terms.items())
        return total, {name: term.detach() for name, term in terms.items()}
