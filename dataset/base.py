"""List file to samples, samples to tensors, and the facts that every data set declares."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.read.labelmap import IGNORE, MAX_CLASSES, LabelMap
from dataset.read.listfile import Sample, read_list, unique_names
from dataset.read.source import Files

# Keeps the random streams of the augmentation and of the order apart (see `loader.epoch_order`).
AUGMENTATION_STREAM = 1


class SegDataset(Dataset):
    """Pictures and labels named by a list file.

    Served as it is, it is the user's own data ("custom"); a subclass declares the facts of a published data
    set: `name`, `classes`, `colors`, `label_map`.

    root: the folder that relative paths of the list start from. list_file: None for `root/<split>.txt`.
    split: "train", "val", "test" or another name; lines of "test" may name a picture without a label.
    transform: None, or a callable (image (H,W,3), label (H,W), rng[, point]) -> (image, label). One with an
    attribute `crop`, the (height, width) of all its results, is also called with `out=(image, label)`, arrays to
    write to; it must read its arguments by `.shape` and `[rows, columns]` only (see `source.py`).
    classes, colors, label_map: replace the declared facts; colors None with new classes draws a palette.

    Raises ValueError for facts that contradict one another and for a faulty list file, naming file and line;
    FileNotFoundError for a missing list or picture.
    """

    name: str = "custom"
    classes: tuple[str, ...] = ()
    colors: np.ndarray | None = None
    label_map: Mapping | None = None
    ignore_label: int = IGNORE

    def __init__(
        self, root, list_file=None, split="train", transform=None, seed=0, classes=None, colors=None, label_map=None
    ):
        self.root = Path(root).expanduser()
        self.split = split
        self.transform = transform
        self.seed = seed
        self._set_facts(classes, colors, label_map)
        self.list_file = Path(list_file).expanduser() if list_file else self.default_list(self.root, split)
        self.samples: list[Sample] = read_list(self.list_file, self.root, needs_label=split != "test")
        self._names = unique_names([image for image, _ in self.samples], self.root)
        self.source = Files(self)

    @classmethod
    def default_list(cls, root: Path, split: str) -> Path:
        """The list file that is read when none is named."""
        return Path(root) / f"{split}.txt"

    def _set_facts(self, classes: Sequence[str] | None, colors, label_map: Mapping | None) -> None:
        if classes is not None:
            self.classes = tuple(str(name) for name in classes)
        check_classes(self.classes, self.name)
        if colors is None and len(self.classes) == len(type(self).classes):
            colors = self.colors
        self.colors = check_colors(colors, len(self.classes), self.name)
        if label_map is not None:
            self.label_map = dict(label_map)
        self._map = LabelMap(self.label_map, len(self.classes), self.name)

    def map_for(self, label_path: str) -> LabelMap:
        """The map of one label file; the same for all unless a data set has several kinds of label files."""
        return self._map

    def to_label_ids(self, prediction: np.ndarray) -> np.ndarray:
        """Training ids uint8 (H, W) to the ids that the data set's test server wants; here unchanged."""
        return prediction

    def sample_name(self, index: int) -> str:
        """A name for outputs that no other sample has; see `unique_names`."""
        return self._names[index]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple) -> dict:
        """Sample `index` or `(epoch, index)`: dict(image uint8 (3,H,W) RGB, label uint8 (H,W), name).

        `label` is absent where the list names none. The image's memory is laid out (H,W,3). The augmentation
        is drawn from (seed, epoch, index) alone; a plain index means epoch 0.

        Where an epoch may hold a sample more than once, the key is `(epoch, index, position, point)`: its
        position in the epoch, from which the augmentation is drawn too, and None or a pixel (row, column) of
        the picture, which the transform then gets as its fourth argument.
        """
        return self.sample(key)

    def sample(self, key: int | tuple, own: Callable | None = None) -> dict:
        """As `__getitem__`. own: makes the tensors, of arrays that are not to be written to."""
        own = own or _own_tensor
        index, image, label = self._augmented(key)
        sample = {"image": own(image).permute(2, 0, 1), "name": self.sample_name(index)}
        if label is not None:
            sample["label"] = own(label)
        return sample

    def fill(self, key: int | tuple, image: np.ndarray, label: np.ndarray) -> None:
        """Write sample `key` into `image` uint8 (h,w,3) and `label` uint8 (h,w) of the transform's crop size."""
        self._augmented(key, (image, label))

    def _augmented(self, key: int | tuple, out: tuple[np.ndarray, np.ndarray] | None = None):
        """Index, picture and label of a sample, written to `out` where it is given."""
        epoch, index, *place = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index = int(index) % len(self)
        rng = np.random.default_rng([AUGMENTATION_STREAM, self.seed, epoch, index, *place[:1]])
        image, label = self.source.open(index)
        if self.transform is None or label is None:
            return index, image, label
        if not hasattr(self.transform, "crop"):
            image, label = _own(image), _own(label)
        point = [p for p in place[1:] if p is not None]
        target = {} if out is None else {"out": out}
        return index, *self.transform(image, label, rng, *point, **target)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Picture uint8 (H,W,3) and label uint8 (H,W) in training ids, or None, before any augmentation.

        Raises ValueError naming the file: unreadable, sizes that differ, a value outside the label map.
        """
        image, label = self.source.open(index)
        return _own(image), None if label is None else _own(label)


def _own(array) -> np.ndarray:
    """A contiguous array that may be written to; a copy of one that the source keeps."""
    return np.require(array, requirements=["C", "W"])


def _own_tensor(array) -> torch.Tensor:
    return torch.from_numpy(_own(array))


def check_classes(classes: Sequence[str], owner: str) -> None:
    """Raise ValueError unless there are 1 to 255 different names."""
    if not classes:
        raise ValueError(f"data set {owner}: no class names; give `classes`, a list of names in the order of the ids")
    if len(classes) > MAX_CLASSES:
        raise ValueError(
            f"data set {owner}: {len(classes)} classes; labels are 8 bit with 255 ignored, so "
            f"at most {MAX_CLASSES} are possible"
        )
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise ValueError(f"data set {owner}: the class name {repeated[0]!r} stands twice in `classes`")


def check_colors(colors, count: int, owner: str) -> np.ndarray:
    """`colors` as uint8 (count, 3) RGB; None draws a palette. Raises ValueError for anything else."""
    if colors is None:
        return distinct_palette(count)
    try:
        array = np.array(colors)
    except ValueError:
        array = np.zeros(0)
    if array.shape != (count, 3) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ValueError(
            f"data set {owner}: `colors` must hold one [r, g, b] with numbers from 0 to 255 for "
            f"each of the {count} classes; it has the shape {array.shape}"
        )
    return array.astype(np.uint8)


def distinct_palette(count: int) -> np.ndarray:
    """`count` (up to 255) different colours, uint8 (count, 3) RGB, none of them black.

    The bits of the index, dealt in turn to red, green and blue from the highest bit down, as the PASCAL VOC
    development kit numbers its colours; counted from 1, because black is left to ignored pixels.
    """
    index = np.arange(1, count + 1)
    colors = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors
