"""Packed data: decoded samples as memory-mapped NumPy files.

Only the pages are read that a crop shows. FOLDER/SPLIT holds two files a sample, `AB/NAME.image.npy`, uint8 (H, W, 3),
and, where there is a label, `AB/NAME.label.npy`, uint8 (H, W) in training ids. NAME is a digest of what the sample was
made from (path, size and time of its files, its label map), so that a sample is never found once its files have
changed; AB are its first two letters, since a folder of a hundred thousand files is slow. `manifest.json`, written when
all of a split is packed, tells a reader whose data they are. `dataset.prepare.pack` writes all of it.
"""

import hashlib
import json
import os
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING

import numpy as np

from dataset.read import DataError
from dataset.read.identity import describe
from dataset.read.lazy import Lazy

if TYPE_CHECKING:
    from dataset.base import SegDataset

FORMAT = 2  # a part of every name: files of another form are not found
DIGEST = 12  # bytes
IMAGE, LABEL = ".image.npy", ".label.npy"


def manifest_file(folder: str | Path, split: str) -> Path:
    """Return the path of a split's manifest.

    The file is there once all of the split is packed.
    """
    return Path(folder).expanduser() / split / "manifest.json"


class Stems(Lazy[str]):
    """Paths of each sample's packed files, without ends.

    The ends are `IMAGE` and `LABEL`. Kept are the digests alone; a path is made when asked for.
    """

    def __init__(self, folder: str | Path, dataset: "SegDataset"):
        self.folder = Path(folder).expanduser() / dataset.split
        known = (json.dumps([FORMAT, *entry]).encode() for entry in describe(dataset))
        self.digests = b"".join(hashlib.sha256(each).digest()[:DIGEST] for each in known)

    def __len__(self) -> int:
        return len(self.digests) // DIGEST

    def item(self, index: int) -> str:
        """Return the path of one sample."""
        name = self.digests[DIGEST * index : DIGEST * (index + 1)].hex()
        return f"{self.folder}/{name[:2]}/{name}"


class Packed:
    """`Source` of the packed samples in `folder`.

    The list may name any of the packed samples, in any order.

    Raises:
        FileNotFoundError: the split is not packed, or not all of it, or in an older form.
        DataError: the packed data do not fit the data set: an image that is not packed, a file or label map that has
            changed since.
    """

    def __init__(self, folder: str | Path, dataset: "SegDataset"):
        self.advice = f"pack it again ({pack_command(folder, dataset)}), or set loader.packed to null"
        self.samples = dataset.samples
        manifest = manifest_file(folder, dataset.split)
        if not manifest.is_file():
            older = is_older(folder, dataset.split)
            reason = (
                "the packed data there are of an older form" if older else "the split is not packed, or not all of it"
            )
            raise FileNotFoundError(f"{manifest}: {reason}; {self.advice}")
        self.stems = Stems(folder, dataset)
        for (image, _), stem in zip(dataset.samples, self.stems, strict=True):
            if not os.path.isfile(stem + IMAGE):
                reason = f"not packed, or its files or the label map of {dataset.name} have changed since"
                raise DataError(f"{manifest.parent}: {image} of {dataset.list_file} is {reason}; {self.advice}")

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Give image and label as views of the mapped files.

        Raises:
            DataError: names a file that is missing, damaged or cut short.
        """
        image = self._map(self.stems[index] + IMAGE, 3)
        return image, self._map(self.stems[index] + LABEL, 2) if self.samples[index][1] is not None else None

    def _map(self, path: str, dimensions: int) -> np.ndarray:
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except FileNotFoundError:
            raise DataError(f"{path}: missing; {self.advice}") from None
        except (ValueError, EOFError, SyntaxError, TokenError) as error:
            raise DataError(f"{path}: damaged or cut short ({error}); remove it and {self.advice}") from None
        if array.dtype != np.uint8 or array.ndim != dimensions:
            raise DataError(f"{path}: holds {array.dtype} {array.shape}; remove it and {self.advice}")
        return np.asarray(array)


def is_older(folder: str | Path, split: str) -> bool:
    """Tell whether a split was packed before format 2.

    It was packed into one file then.
    """
    return (Path(folder).expanduser() / f"{split}.json").is_file() and not manifest_file(folder, split).is_file()


def pack_command(folder: str | Path, dataset: "SegDataset") -> str:
    """Give the command that packs a data set into `folder`."""
    own = dataset.name == "custom" or "label_map" in vars(dataset)  # facts that only an experiment knows
    what = "--config EXPERIMENT.yaml" if own else f"{dataset.name} --root {dataset.root}"
    usual = str(Path(folder).expanduser()) == str(dataset.root / "packed")
    where = "" if usual else f" --out {folder}"
    return f"python -m tool.pack {what} --split {dataset.split}{where}"
