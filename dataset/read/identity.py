"""Identifies a data set, so that earlier findings hold."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataset.base import SegDataset

# A part of the fingerprint: raise it when the check learns something, so that old stamps no longer count.
VERSION = 3


def describe(dataset: "SegDataset") -> Iterator[list]:
    """Return what each decoded sample depends on.

    Path, size and time (ns) of image and label, label map. Of a file: path, size and time (ns). Bands and range of the
    images are named where they are not the usual ones. Paths are relative to the data root, so that a data set may be
    moved.
    """
    digests: dict[int, str] = {}
    usual = dataset.channels == 3 and dataset.limits is None
    bands = [] if usual else [dataset.channels, dataset.limits and list(dataset.limits)]
    for image, label in dataset.samples:
        digest = ""
        if label is not None:
            map_ = dataset.map_for(label)
            if id(map_) not in digests:
                content = repr((sorted(map_.ids.items()), sorted(map_.colors.items())))
                digests[id(map_)] = hashlib.sha256(content.encode()).hexdigest()[:16]
            digest = digests[id(map_)]
        label_facts = _file_facts(label, dataset.root) if label else [None] * 3
        yield [*_file_facts(image, dataset.root), *label_facts, digest, *bands]


def _file_facts(path: str, root: Path) -> list:
    status = os.stat(path)
    return [Path(os.path.relpath(path, root)).as_posix(), status.st_size, status.st_mtime_ns]


def fingerprint(dataset: "SegDataset") -> str:
    """Return a SHA-256 over what a check's result depends on."""
    known = [VERSION, dataset.name, dataset.split, str(dataset.list_file), dataset.classes, *describe(dataset)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def facts(dataset: "SegDataset") -> dict[str, object]:
    """Return what makes two data sets the same to a run.

    JSON values that stay when the root folder moves. pictures: how many. list: SHA-256 of the samples in their order,
    below the root. classes: names. label_map: SHA-256 of the maps from the values on disk to classes.
    """
    root = os.path.abspath(dataset.root) + os.sep
    names = [[path and os.path.abspath(path).removeprefix(root) for path in paths] for paths in dataset.samples]
    maps = {id(map_): map_ for _, label in dataset.samples if label for map_ in [dataset.map_for(label)]}
    known = repr([(map_.ids, map_.colors) for map_ in maps.values()])
    return {
        "pictures": len(dataset),
        "list": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        "classes": list(dataset.classes),
        "label_map": hashlib.sha256(known.encode()).hexdigest(),
    }
