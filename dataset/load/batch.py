"""The samples of a micro-batch, written or stacked into one batch."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from dataset.base import SegDataset
from dataset.load.buffers import new_pinned, new_shared, to_pinned
from dataset.load.sampler import MicroBatch


class FilledBatch:
    """A batch whose samples, all of the transform's crop size, are written straight into their places."""

    def __init__(self, dataset: SegDataset, key: MicroBatch, new: Callable[[tuple[int, ...]], torch.Tensor]):
        size = (len(key.indices), *dataset.transform.crop)
        self.dataset, self.key = dataset, key
        self.image, self.label = new((*size, 3)), new(size)

    @property
    def jobs(self) -> list[Callable[[], None]]:
        places = zip(self.key.keys, self.image.numpy(), self.label.numpy(), strict=True)
        return [partial(self._fill, *place) for place in places]

    def _fill(self, key: tuple, image: np.ndarray, label: np.ndarray) -> None:
        self.dataset.fill(key, image, label)

    def finish(self) -> dict:
        return {"image": self.image.permute(0, 3, 1, 2), "label": self.label, **_names(self.dataset, self.key)}


class StackedBatch:
    """A batch of samples whose size is known only when they are read. pin_memory: read them into page-locked memory."""

    def __init__(self, dataset: SegDataset, key: MicroBatch, pin_memory: bool = False):
        self.dataset, self.key = dataset, key
        self.read = partial(dataset.sample, own=to_pinned) if pin_memory else dataset.sample
        self.samples: list[dict | None] = [None] * len(key.indices)

    @property
    def jobs(self) -> list[Callable[[], None]]:
        return [partial(self._read, place, each) for place, each in enumerate(self.key.keys)]

    def _read(self, place: int, key: tuple) -> None:
        self.samples[place] = self.read(key)

    def finish(self) -> dict:
        first = self.samples[0]
        for sample in self.samples[1:]:
            if sample["image"].shape != first["image"].shape:
                raise ValueError(
                    f"{sample['name']} is {_size(sample)} and {first['name']} {_size(first)}: "
                    "pictures of different sizes cannot be stacked; give the data set a transform "
                    "with a crop size"
                )
        image = torch.stack([sample["image"].permute(1, 2, 0) for sample in self.samples]).permute(0, 3, 1, 2)
        label = torch.stack([sample["label"] for sample in self.samples])
        return {"image": image, "label": label, **_names(self.dataset, self.key)}


class Single:
    """One sample as the data set gives it."""

    def __init__(self, dataset: SegDataset, index: int, new: Callable = new_shared):
        self.dataset, self.index, self.sample = dataset, index, {}

    @property
    def jobs(self) -> list[Callable[[], None]]:
        return [self._read]

    def _read(self) -> None:
        self.sample = self.dataset[self.index]

    def finish(self) -> dict:
        return self.sample


def begin_batch(dataset: SegDataset, key: MicroBatch, new: Callable = new_shared) -> FilledBatch | StackedBatch:
    """The batch of `key`, its jobs not yet run. new: gives its memory, see `buffers.py`."""
    if hasattr(dataset.transform, "crop"):
        return FilledBatch(dataset, key, new)
    return StackedBatch(dataset, key, pin_memory=new is new_pinned)


def _names(dataset: SegDataset, key: MicroBatch) -> dict:
    return {"name": [dataset.sample_name(index) for index in key.indices], "epoch": key.epoch, "step": key.step}


def _size(sample: dict) -> str:
    _, height, width = sample["image"].shape
    return f"{width}x{height}"
