"""Cross-entropy of a validation, and precision over recall."""

import math

import numpy as np
import torch
from torch import Tensor

from util.dist import all_reduce_sum_, gather_objects

BINS = 127  # of a histogram of probabilities: as many thresholds as TensorBoard draws at most
GRID = 8  # of every GRID x GRID pixels one is counted, which takes a few percent of the time that all would


class ProbabilityScores:
    """Cross-entropy, and histograms of the probabilities of each class.

    The loss is over all labelled pixels; the histograms are of one pixel in 64, on a grid, and of bounded size.

    Args:
        num_classes: C.
        device: where the probabilities are.
    """

    def __init__(self, num_classes: int, ignore_label: int = 255, device: torch.device | str = "cpu"):
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.loss, self.pixels = 0.0, 0
        self.counts = torch.zeros((2, num_classes, BINS), dtype=torch.int64, device=device)  # of the class, of others

    def update(self, probabilities: Tensor, label: Tensor) -> None:
        """Add a picture.

        Args:
            probabilities: float32 (C, H, W).
            label: integers (H, W) in 0..C-1, or ignore_label.
        """
        label = label.to(probabilities.device)
        labelled = label != self.ignore_label
        of_truth = probabilities.gather(0, label.clamp(max=self.num_classes - 1).long()[None])[0]
        nats = -of_truth.clamp(min=torch.finfo(torch.float32).tiny).log()
        self.loss += float((nats * labelled).sum())
        self.pixels += int(labelled.sum())
        grid = slice(GRID // 2, None, GRID), slice(GRID // 2, None, GRID)
        here = labelled[grid]
        truth, seen = label[grid][here].long(), probabilities[(slice(None), *grid)][:, here]
        classes = torch.arange(self.num_classes, device=label.device)[:, None]
        other = (truth != classes).long()
        place = (other * self.num_classes + classes) * BINS + (seen * (BINS - 1)).long().clamp(0, BINS - 1)
        found = torch.bincount(place.flatten(), minlength=self.counts.numel())
        self.counts += found.view_as(self.counts)

    def reduce(self) -> None:
        """Sum over the processes; once, after the last picture."""
        self.loss, self.pixels = (sum(parts) for parts in zip(*gather_objects((self.loss, self.pixels)), strict=True))
        all_reduce_sum_(self.counts)

    @property
    def cross_entropy(self) -> float:
        """Return the mean over all labelled pixels, in nats; nan without one."""
        return self.loss / self.pixels if self.pixels else math.nan

    def curve(self, index: int) -> np.ndarray | None:
        """Return a class's curve over the thresholds 0 to 1.

        Returns:
            float64 (6, BINS): true and false positives, true and false negatives, precision, recall; None where no
            pixel is of the class.
        """
        right, wrong = (counts[::-1].cumsum()[::-1] for counts in self.counts[:, index].cpu().numpy().astype(float))
        if not right[0]:
            return None
        precision = right / np.maximum(right + wrong, 1)
        return np.stack((right, wrong, wrong[0] - wrong, right[0] - right, precision, right / right[0]))
