"""What the names and values of a whole list tell."""

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.custom import bare_name
from dataset.read.labelmap import IGNORE, Key, LabelMap


def misnamed(dataset: SegDataset) -> np.ndarray:
    """Find labels that bear the name of another image of the list.

    Names are compared without what tools add to them. Returns indices, int64 (N,).
    """
    bare = (_digest(bare_name(os.path.splitext(path)[0])) for pair in _labelled(dataset) for path in pair)
    names = np.fromiter(bare, np.uint64).reshape(-1, 2)
    own, other = names[:, 0], names[:, 1]
    found, counts = np.unique(own, return_counts=True)
    once = found[counts == 1]
    return _places(dataset)[(own != other) & np.isin(own, once) & np.isin(other, once)]


def sharing(dataset: SegDataset) -> np.ndarray:
    """Find images whose label file stands beside another image, too.

    Returns indices, int64 (N,).
    """
    labels = np.fromiter((_digest(label) for _, label in _labelled(dataset)), np.uint64)
    _, where, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return _places(dataset)[counts[where] > 1]


def _labelled(dataset: SegDataset) -> Iterator[tuple[str, str]]:
    return ((image, label) for image, label in dataset.samples if label is not None)


def _places(dataset: SegDataset) -> np.ndarray:
    """Indices of the samples that have a label."""
    return np.flatnonzero(np.fromiter((label is not None for _, label in dataset.samples), bool))


def _digest(text: str) -> int:
    """8 bytes instead of a name, of which a list may have millions."""
    return int.from_bytes(blake2b(os.fsencode(text), digest_size=8).digest(), "little")


def unknown_hint(map_: LabelMap, unknown: Sequence[Key], pixels: np.ndarray, classes: int) -> str:
    """Say what labels look like whose values a map does not know.

    unknown: these values. pixels: of each id in the files, (65536,).
    """
    ids = [value for value in np.flatnonzero(pixels).tolist() if value != IGNORE]
    identity = {i: i for i in range(classes)}
    if map_.given != identity or not all(isinstance(value, int) for value in unknown):
        return ""
    if list(unknown) == [classes]:
        shifted = ", ".join(f"{i + 1}: {i}" for i in range(min(classes, 12))) + (", ..." if classes > 12 else "")
        zero = "0: 255, " if 0 in ids else ""
        return (
            f"; they go from {ids[0]} to {classes} where {classes} classes have the ids 0 to {classes - 1}, as if "
            f"shifted by one: label_map: {{{zero}{shifted}}}"
        )
    if len(ids) > classes:
        return (
            f"; {len(ids)} ids for {classes} classes: labels that were not mapped to training ids yet, or were "
            "resized by interpolation"
        )
    return ""
