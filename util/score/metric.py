"""Scores of segmentation from one confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from util import UserError
from util.dist import all_reduce_sum_

EXACT_IN_FLOAT = 1 << 24  # whole numbers that float32, OpenCV's type of counts, holds exactly
BYTE = 256  # labels and predictions are bytes, so a pair of them is an index below 256 * 256


@dataclass(frozen=True)
class Scores:
    """Scores as fractions of 1; an undefined value is nan.

    A class that occurs neither in the labels nor in the predictions is left out of the means and stands in `absent`. A
    class that is predicted but never labelled has IoU 0, which counts, and an undefined accuracy, which is left out of
    mAcc.

    Args:
        mIoU: mean of the classes' intersection over union.
        mAcc: mean of the classes' recalls.
        allAcc: share of the labelled pixels that are right.
        iou: intersection over union of each class.
        acc: recall of each class.
        pixels: labelled pixels of each class.
        absent: classes that do not occur.
    """

    mIoU: float
    mAcc: float
    allAcc: float
    iou: tuple[float, ...]
    acc: tuple[float, ...]
    pixels: tuple[int, ...]
    absent: tuple[int, ...]


class ConfusionMatrix:
    """Counts (truth, prediction) pairs in an int64 matrix.

    (C, C): rows are the truth, columns the prediction. Pixels whose label is `ignore_label` are not counted. The counts
    stand on `device`; several processes fill one matrix each with pictures of their own and `reduce` sums them.
    """

    def __init__(self, num_classes: int, ignore_label: int = 255, device: torch.device | str = "cpu"):
        if not 1 <= num_classes < BYTE:
            raise UserError(f"num_classes must be 1 to {BYTE - 1}, not {num_classes}")
        if not num_classes <= ignore_label < BYTE:
            raise UserError(
                f"ignore_label {ignore_label} must lie between the number of classes, {num_classes}, "
                f"and {BYTE - 1}: a class that is ignored would never be scored"
            )
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.matrix = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)
        self._reduced = False

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of one picture, or of several.

        Args:
            prediction: integers in 0..C-1, (H, W) or any shape.
            label: integers in 0..C-1 or `ignore_label`, of the same shape.

        Raises:
            UserError: the shapes differ, or a value lies outside, also where the label is ignored.
        """
        assert not self._reduced, "the matrix was already summed over the processes"
        if prediction.shape != label.shape:
            shapes = f"prediction of shape {tuple(prediction.shape)}, label of shape {tuple(label.shape)}"
            raise UserError(f"{shapes}: they must be equal")
        counts = _pairs(self._as_bytes(label, "label"), self._as_bytes(prediction, "prediction"))
        valid = counts[: self.num_classes, : self.num_classes]
        if int(valid.sum() + counts[self.ignore_label, : self.num_classes].sum()) != label.numel():
            raise UserError(self._complaint(counts))
        self.matrix += valid

    def reduce(self) -> None:
        """Sum the counts of all processes, in place.

        Once, after the last update.
        """
        assert not self._reduced, "a second sum over the processes would count every picture again"
        all_reduce_sum_(self.matrix)
        self._reduced = True

    def result(self) -> Scores:
        """Return the scores of everything counted so far."""
        return scores_of(self.matrix.cpu().numpy())

    def _as_bytes(self, values: Tensor, what: str) -> Tensor:
        """The values as a flat uint8 tensor on the matrix' device, none outside 0..255."""
        if values.is_floating_point():
            raise UserError(f"the {what} must be integers, not {values.dtype}")
        values = values.to(self.matrix.device).flatten()
        if values.dtype != torch.uint8 and values.numel():
            low, high = (int(bound) for bound in values.aminmax())
            if low < 0 or high >= BYTE:
                expected = f"they must be classes 0..{self.num_classes - 1}"
                raise UserError(f"{what} values from {low} to {high}: {expected}")
        return values.to(torch.uint8)

    def _complaint(self, counts: Tensor) -> str:
        first = self.num_classes
        labels = [value for value in _present(counts.sum(1)) if first <= value != self.ignore_label]
        predictions = [value for value in _present(counts.sum(0)) if first <= value]
        found = {"label": labels, "prediction": predictions}
        wrong = " and ".join(f"{what} values {values}" for what, values in found.items() if values)
        return (
            f"{wrong} are no class: expected 0..{self.num_classes - 1}, "
            f"or {self.ignore_label} in a label for pixels to ignore; check the label map"
        )


def scores_of(matrix: np.ndarray) -> Scores:
    """Return the scores of counts (C, C), rows the truth."""
    hit, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    union = truth + predicted - hit
    iou, acc = _ratio(hit, union), _ratio(hit, truth)
    return Scores(
        mIoU=mean_of(iou),
        mAcc=mean_of(acc),
        allAcc=float(_ratio(hit.sum(), truth.sum())),
        iou=tuple(iou.tolist()),
        acc=tuple(acc.tolist()),
        pixels=tuple(truth.tolist()),
        absent=tuple(np.flatnonzero(union == 0).tolist()),
    )


def _pairs(label: Tensor, prediction: Tensor) -> Tensor:
    """How often each pair of bytes occurs in two flat uint8 tensors: int64 (256, 256), rows are the label."""
    if label.device.type == "cpu" and 0 < label.numel() <= EXACT_IN_FLOAT:
        planes = [values[None].numpy() for values in (label, prediction)]
        counts = cv2.calcHist(planes, [0, 1], None, [BYTE, BYTE], [0, BYTE, 0, BYTE])  # three times as fast
        return torch.from_numpy(counts).to(torch.int64)
    pairs = label.to(torch.int32) * BYTE + prediction
    return torch.bincount(pairs, minlength=BYTE * BYTE).view(BYTE, BYTE)


def _present(counts: Tensor) -> list[int]:
    return torch.nonzero(counts).flatten().tolist()


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """Return the mean of the defined values; nan if none is."""
    array = np.asarray(values)
    defined = array[~np.isnan(array)]
    return float(defined.mean()) if defined.size else float("nan")
