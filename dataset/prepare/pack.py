"""Writes the packed form of a data set.

For good or for one run; for the form see `dataset/read/packed.py`. Each file gets its name when all of it is on the
disk, the image's after the label's. So the names tell what is done, and a packing that was killed goes on with the same
command.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from dataset.base import SegDataset
from dataset.load.loader import build_eval_loader
from dataset.prepare.lock import hold, lock, show_life
from dataset.prepare.room import check_room
from dataset.read import DataError
from dataset.read.files import replacing
from dataset.read.identity import facts
from dataset.read.packed import FORMAT, IMAGE, LABEL, Packed, Stems, manifest_file
from dataset.read.source import Source, sample_size


def pack(
    dataset: SegDataset, folder: str | Path, workers: int = 0, progress: Callable[[], object] = lambda: None
) -> int:
    """Pack what is missing, remove what is old; return all bytes.

    Old is what belongs to other samples. A second process that packs the same split waits for the first.

    Args:
        dataset: its `source` is read, its transform is not applied.
        folder: holds a folder for each split.
        workers: processes that read and write; 0: this one does.
        progress: called after each sample.

    Raises:
        DataError: a file of the data set that cannot be read.
        OSError: the disk has not enough room, which is known before anything is written.
    """
    manifest = manifest_file(folder, dataset.split)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    with open(manifest.with_name("lock"), "a+", encoding="utf-8", errors="replace") as guard:
        hold(guard)
        stems = Stems(folder, dataset)
        missing = [index for index, stem in enumerate(stems) if not os.path.isfile(stem + IMAGE)]
        check_room(manifest.parent, sum(_bytes(dataset, index) for index in missing), "packing")
        for _ in range(len(dataset) - len(missing)):
            progress()
        for _ in build_eval_loader(PackedWhenRead(dataset.source, stems), missing, workers):
            show_life(guard)
            progress()

        files = {stem + end for stem in stems for end in (IMAGE, LABEL)}
        for path in manifest.parent.glob("??/*"):
            if str(path) not in files:
                path.unlink()
        size = sum(path.stat().st_size for path in manifest.parent.glob("??/*"))
        content = {"format": FORMAT, "data set": dataset.name, "split": dataset.split, "bytes": size, **facts(dataset)}
        with replacing(manifest) as file:
            file.write(json.dumps(content, indent=1).encode())
    return size


class PackedWhenRead(Dataset):
    """Data set that packs a sample when asked; gives its index."""

    def __init__(self, source: Source, stems: Sequence[str]):
        self.source, self.stems = source, stems

    def __getitem__(self, index: int) -> int:
        image, label = self.source.open(index)
        for array, end in ((label, LABEL), (image, IMAGE)):
            if array is not None:
                array = np.ascontiguousarray(array)
                with replacing(Path(self.stems[index] + end)) as file:
                    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                    file.write(array.data)
        return index


def _bytes(dataset: SegDataset, index: int) -> int:
    with dataset.samples.naming(index):
        height, width = sample_size(*dataset.samples[index])
    return height * width * (dataset.channels + (dataset.samples[index][1] is not None))


def verify(dataset: SegDataset, folder: str | Path) -> None:
    """Compare all packed samples with the files of the data set.

    Raises:
        DataError, OSError: one differs, is damaged or missing, or a file of the data set cannot be read.
    """
    packed = Packed(folder, dataset)
    for index, stem in enumerate(packed.stems):
        for one, other, end in zip(packed.open(index), dataset.source.open(index), (IMAGE, LABEL), strict=True):
            if one is not None and not np.array_equal(one, np.asarray(other)):
                raise DataError(f"{stem}{end}: differs from {dataset.samples[index]}; remove it and {packed.advice}")


def pack_for_a_run(datasets: Sequence[SegDataset], run: int, workers: int) -> Path:
    """Let data sets read from memory during a run; return the folder.

    What was packed there is gone after the run. They are in shared memory, or, where that is too small, in the
    temporary folder, whose files the system keeps in memory as long as there is room.

    Args:
        run: a number that the processes of this run on this machine have in common: they share the packed data.
        workers: processes that read and write.

    Raises:
        DataError, OSError: as `pack`.
    """
    needed = sum(_bytes(dataset, index) for dataset in datasets for index in range(len(dataset)))
    places = [Path(place) for place in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(place)]
    place = next((place for place in places if shutil.disk_usage(place).total > 2 * needed), places[-1])
    prefix = f"segmentation-{os.getuid() if hasattr(os, 'getuid') else 0}-"
    folder = place / f"{prefix}{run}"
    folder.mkdir(exist_ok=True, mode=0o700)
    users = os.open(folder / "users", os.O_CREAT | os.O_RDWR)  # open, and so locked, as long as this process lives
    lock(users, shared=True)
    atexit.register(_remove_unused, folder)  # what is registered last runs first: then the lock is given back
    atexit.register(os.close, users)
    for other in place.glob(f"{prefix}*"):
        _remove_unused(other)  # what a killed run has left; not this folder, whose users are locked
    for dataset in datasets:
        pack(dataset, folder, workers)
        dataset.source = Packed(folder, dataset)
    return folder


def _remove_unused(folder: Path) -> None:
    try:
        with open(folder / "users", encoding="ascii") as users:
            lock(users.fileno(), wait=False)
            shutil.rmtree(folder)
    except (BlockingIOError, FileNotFoundError):
        pass  # a process reads there, or another one has removed it
