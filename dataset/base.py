"""List file to samples, samples to tensors, and the facts that every data set declares."""

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.files import read_bytes
from dataset.labelmap import IGNORE, MAX_CLASSES, LabelMap
from dataset.skip import BAD_FILE, void
from dataset.source import Files

Sample = tuple[str, str | None]

# Keeps the random streams of the augmentation and of the order apart (see `loader.epoch_order`).
AUGMENTATION_STREAM = 1

# The longest list file, about two million samples, and its longest line: two of the longest paths Linux has.
MAX_LIST_BYTES = 1 << 27
MAX_LINE = 2 * 4096 + 8
# The longest name of an output without its suffix; file systems allow 255 bytes with all that is put around it.
MAX_STEM_BYTES = 180

# What is no part of a file name on some system, or leads elsewhere.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:|^\.*$")

_FIELD = re.compile(r'"([^"]*)"(?=\s|$)|\'([^\']*)\'(?=\s|$)|(\S+)')


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

    def __init__(self, root, list_file=None, split="train", transform=None, seed=0, classes=None, colors=None,
                 label_map=None):
        self.root = Path(root).expanduser()
        self.split = split
        self.transform = transform
        self.seed = seed
        self._set_facts(classes, colors, label_map)
        self.list_file = Path(list_file).expanduser() if list_file else self.default_list(self.root, split)
        self.samples: list[Sample] = read_list(self.list_file, self.root, needs_label=split != "test")
        self._names = unique_names([image for image, _ in self.samples], self.root)
        self.source = Files(self)
        self.skip_errors = False  # see `skip.py`; only for a training set, whose transform has a crop and a mean

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
        index, image, label, more = self._augmented(key)
        sample = {"image": own(image).permute(2, 0, 1), "name": self.sample_name(index)}
        if label is not None:
            sample["label"] = own(label)
        return {**sample, **more}

    def fill(self, key: int | tuple, image: np.ndarray, label: np.ndarray) -> str | None:
        """Write sample `key` into `image` uint8 (h,w,3) and `label` uint8 (h,w) of the transform's crop size.

        Why it was skipped, where `skip_errors` is set and it cannot be read; else None.
        """
        return self._augmented(key, (image, label))[-1].get("skipped")

    def _augmented(self, key: int | tuple, out: tuple[np.ndarray, np.ndarray] | None = None):
        """Index, picture and label of a sample, written to `out` where it is given, and what else is to be said of
        it: what was drawn for a `DeviceTransform`, and why it was skipped."""
        epoch, index, *place = key if isinstance(key, tuple) else (0, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index = int(index) % len(self)
        rng = np.random.default_rng([AUGMENTATION_STREAM, self.seed, epoch, index, *place[:1]])
        try:
            image, label = self.source.open(index)
        except BAD_FILE as error:
            if not self.skip_errors:
                raise
            return index, *self._void(rng, out, str(error))
        if self.transform is None or label is None:
            return index, image, label, {}
        if not hasattr(self.transform, "crop"):
            image, label = _own(image), _own(label)
        point = [p for p in place[1:] if p is not None]
        target = {} if out is None else {"out": out}
        image, label, *drawn = self.transform(image, label, rng, *point, **target)
        return index, image, label, {"drawn": drawn[0]} if drawn else {}

    def _void(self, rng: np.random.Generator, out: tuple[np.ndarray, np.ndarray] | None, reason: str):
        host = getattr(self.transform, "inner", self.transform)  # that of a `DeviceTransform`
        image, label = void(host.crop, host.mean, out)
        if host is self.transform:
            return image, label, {"skipped": reason}
        image, label, drawn = self.transform(image, label, rng)
        return image, label, {"skipped": reason, "drawn": drawn}

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


def read_list(list_file: Path, root: Path, needs_label: bool) -> list[Sample]:
    """The (picture, label) paths of a list file, in its order; label None where a line has only a picture.

    Raises FileNotFoundError or ValueError beginning with `LIST:LINE:`.
    """
    samples: list[Sample] = []
    first_line: dict[str, int] = {}
    for number, line in _lines(list_file):
        where = f"{list_file}:{number}"
        fields = _fields(line, where)
        if len(fields) > 2 or (len(fields) == 1 and needs_label):
            raise ValueError(f"{where}: {_wrong_count(line, fields, needs_label)}")
        paths = [str(root / field) for field in fields]
        if paths[0] in first_line:
            raise ValueError(f"{where}: the picture {fields[0]} stands on line {first_line[paths[0]]} "
                             "already; remove one of the two lines")
        first_line[paths[0]] = number
        for field, path in zip(fields, paths, strict=True):
            if not os.path.isfile(path):
                found = "is no ordinary file" if os.path.exists(path) else "does not exist"
                raise FileNotFoundError(f"{where}: {field} {found} (looked for {path}); correct the "
                                        "line, or the data root that relative paths start from")
        samples.append((paths[0], paths[1] if len(paths) == 2 else None))
    if not samples:
        raise ValueError(f"{list_file}: the list is empty; write one line `image label` a sample")
    return samples


def _lines(list_file: Path):
    """Line numbers and lines that are not blank."""
    if os.path.isdir(list_file) or not os.path.exists(list_file):
        raise FileNotFoundError(f"{list_file}: no such list file; write it, or for a known data set let "
                                "`python -m tool.prepare <dataset> --root DIR` write it")
    data = read_bytes(list_file, MAX_LIST_BYTES, "list file").removeprefix(b"\xef\xbb\xbf")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{list_file}: not UTF-8 text, but UTF-16; save the list file as UTF-8")
    for number, line in enumerate(io.BytesIO(data), start=1):
        where = f"{list_file}:{number}"
        if len(line) > MAX_LINE:
            raise ValueError(f"{where}: a line of {len(line):,} bytes; a list file holds one line `image label` a "
                             "sample")
        if b"\0" in line:
            raise ValueError(f"{where}: holds a NUL byte; is this a list file, one line `image label` a sample?")
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start} of the line); a list "
                             "file holds one line `image label` a sample") from None
        if text:
            yield number, text


def _fields(line: str, where: str) -> list[str]:
    fields = []
    for match in _FIELD.finditer(line):
        double, single, plain = match.groups()
        if plain is not None and plain[0] in "\"'":
            raise ValueError(f"{where}: the quote of {plain} is not closed; quote a whole path: \"a b.png\"")
        fields.append(next(text for text in (double, single, plain) if text is not None))
    if "" in fields:
        raise ValueError(f"{where}: an empty path in quotes; write `image label`")
    return fields


def _wrong_count(line: str, fields: list[str], needs_label: bool) -> str:
    if len(fields) == 1:
        hint = "separate the two by white space, not by a comma" if "," in line else \
            "write `image label` (only the split \"test\" may leave the label out)"
        return f"1 field ({fields[0]}), where a picture and its label are wanted; {hint}"
    wanted = "`image label`" if needs_label else "`image label` or `image`"
    return f"{len(fields)} fields, where {wanted} is wanted; put a path with spaces in double quotes"


def unique_names(paths: Sequence[str], root: Path) -> list[str]:
    """A name for each picture that no other has: its stem; where stems collide, its path below `root` without
    suffix; where these collide too, its number in the list is added.

    Each is a relative path that stays in the folder it is written to, on any system: a part that is no file name
    (dots alone, control characters, a backslash, a drive letter, too long) is written in other letters and numbered.
    """
    stems = [Path(path).stem for path in paths]
    names = [_below(paths[i], root).with_suffix("").as_posix() if repeated else stems[i]
             for i, repeated in enumerate(_repeated(stems))]
    names = [_harmless(name, i) for i, name in enumerate(names)]
    while len(set(names)) < len(names):
        names = [f"{names[i]}_{i}" if repeated else names[i] for i, repeated in enumerate(_repeated(names))]
    return names


def _harmless(name: str, index: int) -> str:
    parts = name.split("/")
    if all(_UNSAFE.search(part) is None and len(os.fsencode(part)) <= MAX_STEM_BYTES for part in parts):
        return name
    cut = [_UNSAFE.sub("_", part).encode("utf-8", "replace")[:MAX_STEM_BYTES].decode("utf-8", "ignore") or "_"
           for part in parts]
    return f"{'/'.join(cut)}_{index}"


def _repeated(names: list[str]) -> list[bool]:
    count = Counter(names)
    return [count[name] > 1 for name in names]


def _below(path: str, root: Path) -> Path:
    """`path` relative to `root`; a picture outside of it keeps its path without anchor and without `..`."""
    relative = Path(os.path.relpath(path, root))
    if ".." in relative.parts:
        absolute = Path(os.path.abspath(path))
        relative = absolute.relative_to(absolute.anchor)
    return relative


def check_classes(classes: Sequence[str], owner: str) -> None:
    """Raise ValueError unless there are 1 to 255 different names."""
    if not classes:
        raise ValueError(f"data set {owner}: no class names; give `classes`, a list of names in the order of "
                         "the ids")
    if len(classes) > MAX_CLASSES:
        raise ValueError(f"data set {owner}: {len(classes)} classes; labels are 8 bit with 255 ignored, so "
                         f"at most {MAX_CLASSES} are possible")
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
        raise ValueError(f"data set {owner}: `colors` must hold one [r, g, b] with numbers from 0 to 255 for "
                         f"each of the {count} classes; it has the shape {array.shape}")
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
