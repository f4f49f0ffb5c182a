"""Scores of single images: per_image.csv for people, per_image.npz for `tool.compare`."""

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util import UserError
from util.record.files import replacing, write_bytes
from util.record.table import csv_bytes

IGNORE = 255
CSV, NPZ = "per_image.csv", "per_image.npz"


@dataclass(frozen=True)
class ImageScore:
    """Counts and boundary scores of one image (nan: no boundary).

    Its confusion matrix is sparse. cells: truth * C + prediction of the pairs that occur. counts: their pixels.
    """

    name: str
    cells: np.ndarray
    counts: np.ndarray
    boundary_f: float
    boundary_iou: float


@dataclass(frozen=True)
class ImageCounts:
    """The confusion matrices of N images, sparse.

    Those of image i are cells[starts[i] : starts[i + 1]] and the counts there. scored: how many of the classes, the
    first, are in the means; void is not.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    scored: int
    starts: np.ndarray
    cells: np.ndarray
    counts: np.ndarray

    def sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return right, labelled and predicted pixels: int64 (N, C) each."""
        classes = len(self.classes)
        image = np.repeat(np.arange(len(self.names)), np.diff(self.starts))
        truth, prediction = np.divmod(self.cells.astype(np.int64), classes)
        hits, labelled, predicted = (np.zeros((len(self.names), classes), np.int64) for _ in range(3))
        np.add.at(hits, (image[truth == prediction], truth[truth == prediction]), self.counts[truth == prediction])
        np.add.at(labelled, (image, truth), self.counts)
        np.add.at(predicted, (image, prediction), self.counts)
        return hits, labelled, predicted

    def mean_iou(self) -> np.ndarray:
        """Return the mIoU of each image: float (N,).

        It is the mean over the classes that occur in the image, nan without a labelled pixel.
        """
        return mean_iou(*self.overlaps())

    def overlaps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return intersection and union of the scored classes: int64 (N, scored) each."""
        hits, labelled, predicted = self.sums()
        return hits[:, : self.scored], (labelled + predicted - hits)[:, : self.scored]


def sparse_counts(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Count the pairs of truth and prediction in one image.

    Returns:
        the cells (truth * C + prediction) that occur, and their pixels.
    """
    valid = truth != IGNORE
    pairs = truth[valid].astype(np.int32) * num_classes + prediction[valid]
    counts = np.bincount(pairs, minlength=num_classes**2)
    cells = np.flatnonzero(counts)
    return cells.astype(np.uint16), counts[cells].astype(np.uint32)


def mean_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Average the IoU over the last axis.

    Classes without a pixel are left out; nan where there is none.
    """
    there = union > 0
    ratios = np.where(there, intersection / np.maximum(union, 1), 0.0)
    number = there.sum(-1)
    return np.where(number > 0, ratios.sum(-1) / np.maximum(number, 1), np.nan)


def joined(scores: Sequence[ImageScore], classes: Sequence[str], scored: int | None = None) -> ImageCounts:
    """Put the counts of single images together.

    scored: how many of the classes are in the means; None for all.
    """
    starts = np.cumsum([0, *(len(score.cells) for score in scores)])
    cells = np.concatenate([np.zeros(0, np.uint16), *(score.cells for score in scores)])
    counts = np.concatenate([np.zeros(0, np.uint32), *(score.counts for score in scores)])
    return ImageCounts(
        tuple(score.name for score in scores), tuple(classes), scored or len(classes), starts, cells, counts
    )


def write_per_image(
    folder: Path, scores: Sequence[ImageScore], classes: Sequence[str], scored: int | None = None
) -> ImageCounts:
    """Write per_image.csv and per_image.npz; return the counts, see `joined`."""
    together = joined(scores, classes, scored)
    hits, labelled, _ = together.sums()
    rows = []
    for score, iou, right, pixels in zip(scores, together.mean_iou(), hits.sum(1), labelled.sum(1), strict=True):
        values = (float(iou), right / pixels if pixels else math.nan, score.boundary_f, score.boundary_iou)
        rows.append([score.name, *(None if math.isnan(value) else round(value, 6) for value in values), int(pixels)])
    header = ["name", "mIoU", "allAcc", "boundary_f", "boundary_iou", "pixels"]
    write_bytes(folder / CSV, csv_bytes(header, rows))
    with replacing(folder / NPZ) as part, open(part, "wb") as file:
        np.savez_compressed(
            file,
            names=np.array(together.names, np.str_),
            classes=np.array(together.classes, np.str_),
            scored=together.scored,
            starts=together.starts,
            cells=together.cells,
            counts=together.counts,
        )
    return together


def read_per_image(file: Path) -> ImageCounts:
    """Read per_image.npz.

    Raises:
        FileNotFoundError: it is missing; says what writes it.
        UserError: it is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no counts of single images; evaluate the run again with test.report=true")
    try:
        with np.load(file, allow_pickle=False) as stored:
            names, classes = (tuple(stored[key].tolist()) for key in ("names", "classes"))
            starts, cells, counts = (stored[key] for key in ("starts", "cells", "counts"))
            scored = int(stored["scored"])
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: damaged ({error}); evaluate the run again") from None
    whole = (
        starts.shape == (len(names) + 1,)
        and starts[0] == 0
        and (np.diff(starts) >= 0).all()
        and cells.shape == counts.shape == (starts[-1],)
        and (cells < len(classes) ** 2).all()
        and 1 <= scored <= len(classes)
    )
    if not whole:
        raise UserError(f"{file}: damaged (its arrays do not fit together); evaluate the run again")
    return ImageCounts(names, classes, scored, starts, cells, counts.astype(np.int64))
