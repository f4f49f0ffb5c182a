"""Where decoded samples come from.

The files themselves, or a form of them that is faster to read.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from dataset.read import DataError
from dataset.read.image import Limits, apply_rotation, read_header, read_image, read_stored, upright_size
from dataset.read.labelmap import LabelMap
from dataset.read.listfile import Samples


class Source(Protocol):
    """Gives the samples of a data set.

    All sources of one give the same, bit for bit.
    """

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return image (H, W, 3) and label (H, W) or None.

        Both uint8, the label in training ids; not to be written to.
        """


class Files:
    """Reads, decodes and maps the files at every visit.

    Args:
        samples: the paths of each image and its label.
        map_for: gives the label map of a label file.
        channels, limits: see `read_image`.
    """

    def __init__(
        self, samples: Samples, map_for: Callable[[str], LabelMap], channels: int = 3, limits: Limits | None = None
    ):
        self.samples, self.map_for = samples, map_for
        self.channels, self.limits = channels, limits

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Give image and label, see `Source`.

        Raises:
            DataError: names the file: unreadable, sizes that differ, a value outside the label map.
            FileNotFoundError: it is missing; names list file and line.
            OSError: the system does not give it.
        """
        image_path, label_path = self.samples[index]
        with self.samples.naming(index):
            if label_path is None:
                return read_image(image_path, None, self.channels, self.limits), None
            label = read_mapped(label_path, self.map_for(label_path))
            image = read_image(image_path, label.shape, self.channels, self.limits)
        check_sizes(image_path, image.shape[:2], label_path, label.shape)
        return image, label


def read_mapped(path: str, map_: LabelMap) -> np.ndarray:
    """Read a label file in training ids, uint8 (H, W).

    Raises:
        DataError, OSError: names the file: unreadable, or a value outside the map.
    """
    return map_.apply(map_.raw_values(read_stored(path), path), path)


def sample_size(image_path: str, label_path: str | None) -> tuple[int, int]:
    """Give the (height, width) of `Files.open` from the headers alone.

    Raises:
        DataError, OSError: names a file that cannot be read.
    """
    size, orientation = read_header(image_path)
    label_size = upright_size(*read_header(label_path)) if label_path is not None and orientation != 1 else None
    return upright_size(size, orientation) if apply_rotation(size, orientation, label_size) else size


def check_sizes(image_path: str, image_size: Sequence[int], label_path: str, label_size: Sequence[int]) -> None:
    """Check that image and label are of one size, (height, width).

    Raises:
        DataError: names both files and sizes.
    """
    if tuple(image_size) != tuple(label_size):
        raise DataError(
            f"{label_path}: the label is {label_size[1]}x{label_size[0]} (width x height), its picture "
            f"{image_path} {image_size[1]}x{image_size[0]}; pair the right files, or resize the label by "
            "nearest neighbour"
        )
