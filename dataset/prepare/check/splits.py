"""Compares two lists that are used together."""

import os

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.check.report import Report, names_of
from dataset.prepare.check.tally import palettes_differ
from dataset.read import DataError
from dataset.read.listfile import Images, Samples


def compare_splits(train: SegDataset, train_report: Report, val: SegDataset, val_report: Report) -> list[str]:
    """List warnings about two lists that are used together.

    Classes that only the second holds, images that both hold.

    Raises:
        DataError: the palettes of their labels give one index different colours.
    """
    known = {index: (r, g, b) for index, r, g, b in train_report.palette}
    for index, r, g, b in val_report.palette:
        if (first := known.get(index, (r, g, b))) != (r, g, b):
            where, other = f"the labels of {train.list_file}", str(val.list_file)
            raise DataError(palettes_differ(index, first, where, (r, g, b), other))
    warnings = []
    counts = zip(train.classes, train_report.pixels, val_report.pixels, strict=True)
    absent = [name for name, seen, wanted in counts if wanted and not seen]
    if absent:
        warnings.append(
            f"classes of {val.list_file} that never occur in {train.list_file}, so no network "
            f"can learn them: {names_of(absent[:10], len(absent))}"
        )
    shared = shared_images(train.samples, val.samples)
    if len(shared):
        warnings.append(
            f"{len(shared)} pictures are in {train.list_file} and in {val.list_file} (first: "
            f"{val.samples[shared[0]][0]}); a score on pictures of the training is no score"
        )
    return warnings


def shared_images(first: Samples, second: Samples) -> list[int]:
    """List the images of the second list that the first holds too.

    By the file that a path leads to, through links of folders and of files, as long as a file's name stays the same.
    """
    lists = (first, second)
    names = [
        np.fromiter((hash(os.path.basename(path)) for path in Images(each)), np.int64, len(each)) for each in lists
    ]
    same = [np.flatnonzero(np.isin(own, other)).tolist() for own, other in (names, names[::-1])]
    files = [
        np.array([hash(os.path.realpath(each[index][0])) for index in indices], np.int64)
        for each, indices in zip(lists, same, strict=True)
    ]
    return [index for index, held in zip(same[1], np.isin(files[1], files[0]).tolist(), strict=True) if held]
