"""Mixes a training crop with one of another sample.

CutMix, ClassMix and copy-paste of rare classes. Each puts pixels of the other crop, with their own labels, in place of
those of the first; so every pixel keeps a label of its own, and no label is made softer. They differ in which pixels:

CutMix: a box of random size and place (Yun et al., "CutMix", ICCV 2019, section 3.1; for segmentation French et al.,
BMVC 2020).
ClassMix: half of the classes of the other crop (Olsson et al., "ClassMix", WACV 2021, section 3.2).
Copy-paste: the rare classes of another crop (Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method",
CVPR 2021, which pastes instances); the crop is one that holds a pixel of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataset.read import DataError
from dataset.read.labelmap import IGNORE


@dataclass(frozen=True)
class Partner:
    """The other sample of a mix.

    kind: "cutmix", "classmix" or "copy_paste". index: line of the list. point: pixel (row, column) that its crop must
    hold, or None.
    """

    kind: str
    index: int
    point: tuple[int, int] | None = None


class Mixer:
    """Draws which samples are mixed, with which others, and how.

    Args:
        cutmix, classmix, copy_paste: shares of the samples; one sample is mixed once at most.
        rare: classes that are pasted.
        points: int32 (P, 4), class, sample, row and column of pixels of the classes, as `find_points` gives them.

    Raises:
        DataError: shares of more than 1 in all, or no class or no pixel to paste.
    """

    def __init__(
        self,
        cutmix: float = 0.0,
        classmix: float = 0.0,
        copy_paste: float = 0.0,
        rare: Sequence[int] = (),
        points: np.ndarray | None = None,
    ):
        self.shares = {"cutmix": cutmix, "classmix": classmix, "copy_paste": copy_paste}
        if min(self.shares.values()) < 0 or sum(self.shares.values()) > 1:
            raise DataError(f"{self.shares}: shares of the samples, none negative and together at most 1")
        self.rare = tuple(rare)
        self.by_class: list[np.ndarray] = []
        if copy_paste:
            table = np.zeros((0, 4), np.int32) if points is None else points
            self.by_class = [rows for number in self.rare if len(rows := table[table[:, 0] == number, 1:])]
            if not self.by_class:
                raise DataError("copy_paste: no label holds a pixel of the classes that are to be pasted")

    def draw(self, rng: np.random.Generator, count: int) -> Partner | None:
        """Draw the other sample of `count`, or None.

        None where the sample stays as it is. Always four numbers, so that switching one mix off leaves the other
        samples as they were.
        """
        u = rng.random(4)
        below = np.cumsum(list(self.shares.values()))
        drawn = int(np.searchsorted(below, u[0], side="right"))
        if drawn == len(below):
            return None
        kind = list(self.shares)[drawn]
        if kind != "copy_paste":
            return Partner(kind, int(u[1] * count))
        rows = self.by_class[int(u[2] * len(self.by_class))]
        sample, row, column = rows[int(u[3] * len(rows))].tolist()
        return Partner(kind, sample, (row, column))

    def apply(
        self,
        kind: str,
        rng: np.random.Generator,
        first: tuple[np.ndarray, np.ndarray],
        other: tuple[np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mix two crops of one size; return image and label.

        Each is an image uint8 (H, W, C) and its label uint8 (H, W).
        """
        (image, label), (other_image, other_label) = first, other
        if kind == "cutmix":
            pasted = box_mask(rng, label.shape)
        elif kind == "classmix":
            pasted = class_mask(rng, other_label)
        else:
            pasted = np.isin(other_label, self.rare)
        return np.where(pasted[:, :, None], other_image, image), np.where(pasted, other_label, label)


def box_mask(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Draw a box, bool (H, W), of a random share.

    The share of the area is uniform. Its sides are the root of that share of the crop's, its centre is uniform, and
    what lies outside of the crop is cut off (Yun et al., equation 2, with a Beta distribution of 1 and 1).
    """
    share, *centre = rng.random(3)
    mask = np.zeros(size, bool)
    sides = []
    for length, place in zip(size, centre, strict=True):
        half, middle = length * np.sqrt(share) / 2, place * length
        sides.append(slice(max(0, round(middle - half)), max(0, round(middle + half))))
    mask[sides[0], sides[1]] = True
    return mask


def class_mask(rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """Mark the pixels of half of a label's classes.

    bool (H, W). Of an odd number one class less is taken, and the only one where there is one; what is ignored is no
    class.
    """
    classes = np.unique(label[label != IGNORE])
    chosen = rng.permutation(classes)[: max(1, len(classes) // 2)]
    return np.isin(label, chosen)
