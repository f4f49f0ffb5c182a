"""The obvious training loop.

Eager float32, N,C,H,W, `F.cross_entropy` on whole maps, an unfused optimiser. What the training loops of semseg, SFNet
and SFSegNets do in a step, without their per-step metrics, which would make them slower still: the picture is converted
and normalised on the host's side of the step, the label widened to int64, hard pixels found by sorting all
probabilities.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = 255


class PlainLoop:
    """Network, loss and optimiser; `step` is one optimiser step.

    Args:
        network: maps (N, 3, H, W) to a dict of logits (N, C, H, W).
        weights: of each output's loss.
        class_weights: (C,), or None.
        hard: (threshold, pixels kept at least) of online hard example mining; None: plain cross entropy.
        optimizer: makes the optimiser of a list of parameters.
        mean, std: of the colours, three numbers each.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: Mapping[str, float],
        class_weights: Tensor | None,
        hard: tuple[float, int] | None,
        optimizer: Callable[[list], torch.optim.Optimizer],
        mean,
        std,
        device: torch.device | str = "cpu",
    ):
        self.network = network.to(device).train()
        self.weights, self.hard, self.device = weights, hard, device
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.optimizer = optimizer(list(network.parameters()))
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def step(self, image: Tensor, label: Tensor) -> Tensor:
        """Train one step; return the loss.

        image: uint8 (N, 3, H, W). label: uint8 (N, H, W).
        """
        image = (image.contiguous().to(self.device).float() - self.mean) / self.std
        label = label.to(self.device).long()
        outputs = self.network(image)
        loss = sum(self.weights[name] * self.loss(logits, label) for name, logits in outputs.items())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the mean over pixels, or over the hard ones."""
        if self.hard is None:
            return F.cross_entropy(logits, label, self.class_weights, ignore_index=IGNORE)
        threshold, least = self.hard
        with torch.no_grad():
            valid = label != IGNORE
            true = logits.softmax(1).gather(1, torch.where(valid, label, 0)[:, None])[:, 0]
            ordered = true[valid].sort().values
            if len(ordered):
                threshold = max(threshold, float(ordered[min(least, len(ordered)) - 1]))
            label = torch.where(valid & (true <= threshold), label, IGNORE)
        return F.cross_entropy(logits, label, self.class_weights, ignore_index=IGNORE)
