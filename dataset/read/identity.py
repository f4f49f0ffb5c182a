"""Identifies a data set, so that earlier findings hold."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset.read.remote import Member, Url, is_url

if TYPE_CHECKING:
    from dataset.base import SegDataset
    from dataset.read.labelmap import LabelMap

# A part of the fingerprint: raise it when the check learns something, so that old stamps no longer count.
VERSION = 5
# Samples whose files' size and time are asked for at every start. A list of more has as many, evenly spread: two calls
# for each of ten million samples would take minutes on a disk, and hours on a network.
ASKED = 50_000
_TOGETHER = 4096  # pairs of paths that are hashed at once


def describe(dataset: "SegDataset", indices: Iterable[int] | None = None) -> Iterator[list]:
    """Return what each decoded sample depends on.

    Path, size and time (ns) of image and label, label map. Bands and range of the images are named where they are not
    the usual ones. Paths are relative to the data root, so that a data set may be moved. indices: of samples; all.
    """
    usual = dataset.channels == 3 and dataset.limits is None
    bands = [] if usual else [dataset.channels, dataset.limits and list(dataset.limits)]
    digests: dict[int, str] = {}
    for index in range(len(dataset)) if indices is None else indices:
        image, label = dataset.samples[index]
        digest = ""
        if label is not None:
            map_ = dataset.map_for(label)
            if id(map_) not in digests:
                digests[id(map_)] = map_digest(map_)
            digest = digests[id(map_)]
        label_facts = _file_facts(label, dataset.root) if label else [None] * 3
        yield [*_file_facts(image, dataset.root), *label_facts, digest, *bands]


def map_digest(map_: "LabelMap") -> str:
    """Return what two label maps of the same content have in common."""
    content = repr((sorted(map_.ids.items()), sorted(map_.colors.items())))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _file_facts(path: str, root: Path | Url) -> list:
    relative = below(path, root)
    if isinstance(path, Member):
        return [relative or path, path.size, f"{path.version} {path.offset}"]
    if is_url(path):
        return [relative or path, None, None]  # to ask for each would take hours: it is taken as unchanged
    relative = Path(os.path.relpath(path, root)).as_posix() if relative is None else relative
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return [relative, None, None]  # whoever reads it tells
    return [relative, status.st_size, status.st_mtime_ns]


def below(path: str, root: Path | Url) -> str | None:
    """Cut the root off a path; None where that is not enough."""
    prefix = f"{root}/"
    rest = path[len(prefix) :]
    plain = os.sep == "/" and path.startswith(prefix) and rest[:1] not in ("/", ".")
    return rest if plain and "//" not in rest and "/." not in rest else None


def fingerprint(dataset: "SegDataset") -> str:
    """Return a SHA-256 over what a check's result depends on.

    All paths in their order, the label maps, and size and time of the files of at most `ASKED` samples.
    """
    count = len(dataset)
    asked = np.unique(np.linspace(0, count - 1, min(count, ASKED)).astype(np.int64)).tolist()
    known = [VERSION, dataset.name, dataset.split, str(dataset.list_file), facts(dataset), *describe(dataset, asked)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def facts(dataset: "SegDataset") -> dict[str, object]:
    """Return what makes two data sets the same to a run.

    JSON values that stay when the root folder moves. pictures: how many. list: SHA-256 of the samples in their order,
    below the root. classes: names. label_map: SHA-256 of the maps from the values on disk to classes.
    """
    if dataset.samples.digests is None:
        dataset.samples.digests = _digests(dataset)
    paths, maps = dataset.samples.digests
    return {"pictures": len(dataset), "list": paths, "classes": list(dataset.classes), "label_map": maps}


def _digests(dataset: "SegDataset") -> tuple[str, str]:
    """Digest all paths, and the label maps that read them."""
    above = os.path.abspath(dataset.root) + os.sep
    maps: dict[int, LabelMap] = {}

    def name(path: str | None) -> str | None:
        if path is None:
            return None
        short = below(path, dataset.root)
        return (path if is_url(path) else os.path.abspath(path).removeprefix(above)) if short is None else short

    digest, pairs, separator = hashlib.sha256(b"["), iter(dataset.samples), ""
    while some := list(islice(pairs, _TOGETHER)):
        for _, label in some:
            if label is not None:
                map_ = dataset.map_for(label)
                maps.setdefault(id(map_), map_)
        names = json.dumps([[name(path) for path in paths] for paths in some])
        digest.update((separator + names[1:-1]).encode())
        separator = ", "
    digest.update(b"]")
    known = repr([(map_.ids, map_.colors) for map_ in maps.values()])
    return digest.hexdigest(), hashlib.sha256(known.encode()).hexdigest()
