"""Scores of a network with an output for unlabelled pixels."""

from dataclasses import replace

import torch
from torch import Tensor

from util.score.metric import ConfusionMatrix, Scores, mean_of, scores_of


class VoidConfusion(ConfusionMatrix):
    """Counts ignored pixels as one more class, the last.

    It has no part in the means. A class that is seen where the label is ignored, or void that is seen where it is not,
    counts as wrong, as in the evaluation of ESPNet (Mehta et al., ECCV 2018). Counts: int64 (C + 1, C + 1).

    Args:
        num_classes: C, without void.
    """

    def __init__(self, num_classes: int, ignore_label: int = 255, device: torch.device | str = "cpu"):
        super().__init__(num_classes + 1, ignore_label, device)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of one picture; prediction 0..C, label 0..C-1 or `ignore_label`."""
        super().update(prediction, torch.where(label == self.ignore_label, self.num_classes - 1, label))

    def result(self) -> Scores:
        """Return the scores of the C classes.

        The pixel accuracy is over all pixels, ignored ones too.
        """
        return _without_void(scores_of(self.matrix.cpu().numpy()))

    def labelled(self) -> Scores:
        """Return the scores over the labelled pixels alone.

        Void is a wrong prediction there like any other.
        """
        matrix = self.matrix.cpu().numpy().copy()
        matrix[-1] = 0
        return _without_void(scores_of(matrix))


def _without_void(whole: Scores) -> Scores:
    iou, acc, pixels = whole.iou[:-1], whole.acc[:-1], whole.pixels[:-1]
    absent = tuple(index for index in whole.absent if index < len(iou))
    return replace(whole, mIoU=mean_of(iou), mAcc=mean_of(acc), iou=iou, acc=acc, pixels=pixels, absent=absent)
