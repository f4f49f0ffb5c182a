"""What every data set is: a list file, samples, and declared facts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.read import DataError
from dataset.read.image import Limits
from dataset.read.labelmap import IGNORE, MAX_CLASSES, LabelMap
from dataset.read.listfile import Images, Names, Samples
from dataset.read.remote import Url, place
from dataset.read.shard import read_samples
from dataset.read.source import Files, Source

if TYPE_CHECKING:
    from dataset.augment.mix import Partner

# Keeps the random streams of the augmentation and of the order apart (see `sampler.epoch_order`).
AUGMENTATION_STREAM = 1
MIX_STREAM = 4


class Key(NamedTuple):
    """The sample that a training asks for.

    With the seed, a key decides all that is drawn for its sample.

    epoch: from 0 on. index: line of the list. Where an epoch may hold a sample more than once, also position: the
    sample's place in the epoch, from which its augmentation is drawn too, and point: a pixel (row, column) of the
    image that the crop must hold, None for any crop.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    position: int | None = None
    point: tuple[int, int] | None = None


class Sample(TypedDict, total=False):
    """One sample of a data set.

    image: uint8 (C, H, W), RGB where C is 3, its memory laid out (H, W, C). label: uint8 (H, W), absent where the list
    names none. name: of outputs, see `SegDataset.sample_name`.
    """

    image: torch.Tensor
    label: torch.Tensor
    name: str


class Transform(Protocol):
    """Augments one sample; `dataset.augment.transform.TrainTransform` is the one of training.

    crop: (height, width) of every result, so that they can be stacked.
    """

    crop: tuple[int, int]

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, point: tuple[int, int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return new arrays for an image and its label.

        image: uint8 (H, W, 3). label: uint8 (H, W). Neither may be written to.
        """


class Mix(Protocol):
    """Mixes crops of two samples; `dataset.augment.mix.Mixer` is the one of training."""

    def draw(self, rng: np.random.Generator, count: int) -> "Partner | None":
        """Draw the other of `count` samples, or None."""

    def apply(
        self,
        kind: str,
        rng: np.random.Generator,
        first: tuple[np.ndarray, np.ndarray],
        other: tuple[np.ndarray, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mix two crops, each an image and its label."""


class SegDataset(Dataset):
    """Images and labels named by a list file.

    Served as it is, it is the user's own data ("custom"); a subclass declares the facts of a published data
    set: `name`, `classes`, `colors`, `label_map`. `source` is where decoded samples come from: the files at first.

    Args:
        root: the folder that relative paths of the list start from, or its URL.
        list_file: None for `root/<split>.txt`; or tar shards, see `dataset.read.shard`.
        split: "train", "val", "test" or another name; lines of "test" may name an image without a label.
        transform: None, or what augments the samples that have a label.
        seed: of the augmentation.
        classes: names, in place of the declared ones.
        colors: RGB of each class, in place of the declared ones; None with new classes draws a palette.
        label_map: value on disk -> class, in place of the declared one; "rest": "identity" adds the ids of the classes
            that it does not name.
        channels: bands of an image.
        limits: values that become 0 and 255, see `read_image`.

    Raises:
        DataError: facts that contradict one another, or a faulty list file, with file and line.
        FileNotFoundError: a missing list. A missing image or label is told when it is read, or by the check.
    """

    name: str = "custom"
    classes: tuple[str, ...] = ()
    colors: np.ndarray | None = None
    label_map: Mapping | None = None
    ignore_label: int = IGNORE
    disk_ids: tuple[int, ...] | None = None  # of each class, where label_map gives several

    def __init__(
        self,
        root: str | Path,
        list_file: str | Path | None = None,
        split: str = "train",
        transform: Transform | None = None,
        seed: int = 0,
        classes: Sequence[str] | None = None,
        colors: Sequence | np.ndarray | None = None,
        label_map: Mapping | None = None,
        channels: int = 3,
        limits: Limits | None = None,
    ):
        self.root = place(root)
        self.split = split
        self.transform = transform
        self.seed = seed
        self.channels, self.limits = channels, limits
        self.mixer: Mix | None = None  # of the augmented crops; set by whoever knows the classes' places
        self._set_facts(classes, colors, label_map)
        self.list_file = place(list_file) if list_file else self.default_list(self.root, split)
        self.samples: Samples = read_samples(self.list_file, self.root, needs_label=split != "test")
        self._names = Names(Images(self.samples), self.root)
        self.source: Source = Files(self.samples, self.map_for, channels, limits)

    @classmethod
    def default_list(cls, root: Path | Url, split: str) -> Path | Url:
        """Give the list file that is read when none is named."""
        return root / f"{split}.txt"

    def _set_facts(
        self, classes: Sequence[str] | None, colors: Sequence | np.ndarray | None, label_map: Mapping | None
    ) -> None:
        if classes is not None or label_map is not None:
            self.disk_ids = None
        if classes is not None:
            self.classes = tuple(str(name) for name in classes)
        check_classes(self.classes, self.name)
        declared = colors is None and len(self.classes) == len(type(self).classes)
        self.colors = check_colors(self.colors if declared else colors, len(self.classes), self.name)
        if label_map is not None:
            self.label_map = dict(label_map)
            if self.label_map.pop("rest", None) is not None:
                self.label_map = {**{i: i for i in range(len(self.classes))}, **self.label_map}
        # Colours of the user's own classes are those of labels drawn in colours; others may be for drawing alone.
        own = colors is not None and (classes is not None or not type(self).classes)
        drawn = [(int(r), int(g), int(b)) for r, g, b in self.colors] if own else None
        self._map = LabelMap(self.label_map, len(self.classes), self.name, drawn)

    def map_for(self, label_path: str) -> LabelMap:
        """Return the label map of one label file.

        It is the same for all unless a data set has several kinds of label files.
        """
        return self._map

    def to_label_ids(self, prediction: np.ndarray) -> np.ndarray:
        """Map training ids uint8 (H, W) to what stands in label files.

        Returns:
            Ids uint8 or uint16 (H, W), or colours uint8 (H, W, 3) where the label map has nothing else.

        Raises:
            DataError: the label map does not give each class one value on disk.
        """
        if self.disk_ids is not None:
            return np.array([*self.disk_ids, *[IGNORE] * (256 - len(self.disk_ids))], np.uint8)[prediction]
        return self._map.invert(self.classes)[prediction]

    def read_range(self, limits: Limits | None) -> None:
        """Read the images by another range of values, see `read_image`.

        Raises:
            DataError: they are read from packed data, whose values are fixed.
        """
        if not isinstance(self.source, Files):
            raise DataError(
                f"{self.list_file}: packed with data.range {self.limits}, not {limits}; set loader.packed to null"
            )
        self.limits = self.source.limits = limits

    def sample_name(self, index: int) -> str:
        """Give a name for outputs that no other sample has; see `Names`."""
        return self._names[index]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key | int) -> Sample:
        """Return one sample, augmented as its key says.

        An index alone is the key of that sample in epoch 0.

        Raises:
            DataError: a file that is unreadable, sizes that differ, a value outside the label map.
            OSError: a file that is missing, or that the system does not give.
        """
        if not isinstance(key, Key):
            key = Key(0, int(key))
        count = len(self.samples)
        if not -count <= key.index < count:
            raise IndexError(f"sample {key.index} of {count}")
        index = key.index % count
        image, label = self.source.open(index)
        if self.transform is not None and label is not None:
            place = [] if key.position is None else [key.position]
            stream = [self.seed, key.epoch, index, *place]
            rng = np.random.default_rng([AUGMENTATION_STREAM, *stream])
            image, label = self.transform(image, label, rng, key.point)
            if self.mixer is not None:
                image, label = self._mix(np.random.default_rng([MIX_STREAM, *stream]), image, label)
        # A copy of what is not to be written to: of packed data without a transform.
        image = np.require(image, requirements=["C", "W"])
        sample: Sample = {"image": torch.from_numpy(image).permute(2, 0, 1), "name": self._names[index]}
        if label is not None:
            sample["label"] = torch.from_numpy(np.require(label, requirements=["C", "W"]))
        return sample

    def _mix(self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mix a crop with one of another sample, if one is drawn."""
        assert self.mixer is not None and self.transform is not None
        partner = self.mixer.draw(rng, len(self.samples))
        if partner is None:
            return image, label
        other_image, other_label = self.source.open(partner.index)
        if other_label is None:
            return image, label
        other = self.transform(other_image, other_label, rng, partner.point)
        return self.mixer.apply(partner.kind, rng, (image, label), other)


def check_classes(classes: Sequence[str], owner: str) -> None:
    """Check that there are 1 to 255 different names.

    Raises:
        DataError: there are not.
    """
    if not classes:
        raise DataError(f"data set {owner}: no class names; give `classes`, a list of names in the order of the ids")
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"data set {owner}: {len(classes)} classes; labels are 8 bit with 255 ignored, so "
            f"at most {MAX_CLASSES} are possible"
        )
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise DataError(f"data set {owner}: the class name {repeated[0]!r} stands twice in `classes`")


def check_colors(colors: Sequence | np.ndarray | None, count: int, owner: str) -> np.ndarray:
    """Give `colors` as uint8 (count, 3) RGB; None draws a palette.

    Raises:
        DataError: they are anything else than RGB colours, one a class.
    """
    if colors is None:
        return distinct_palette(count)
    try:
        array = np.array(colors)
    except ValueError:
        array = np.zeros(0)
    if array.shape != (count, 3) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise DataError(
            f"data set {owner}: `colors` must hold one [r, g, b] with numbers from 0 to 255 for "
            f"each of the {count} classes; it has the shape {array.shape}"
        )
    return array.astype(np.uint8)


def distinct_palette(count: int) -> np.ndarray:
    """Return `count` different colours, none of them black.

    They are uint8 (count, 3) RGB; count is at most 255.

    The bits of the index, dealt in turn to red, green and blue from the highest bit down, as the PASCAL VOC
    development kit numbers its colours; counted from 1, because black is left to ignored pixels.
    """
    index = np.arange(1, count + 1)
    colors = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors
