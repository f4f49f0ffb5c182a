"""Where the pictures and labels of a data set come from: the files themselves, or a form that is faster to read.

A source has

- `open(index)`: picture uint8 (H,W,3) and label uint8 (H,W) in training ids, or None. Both have `shape` and may be
  cut by `[rows, columns]`; `np.asarray` gives all of it. They are not to be written to.
- `prepare(workers)`: what has to be done once before the loaders start.
- `threads`: whether `open` leaves other threads running, so that a loader needs no processes.

All sources of a data set give the same samples, bit for bit. Sources: `Files` here, `packed.Packed`,
`cache.MemoryCache`.
"""

import numpy as np

from dataset.read.image import apply_rotation, read_header, read_image, read_label, upright_size


class Files:
    """Reads, decodes and maps the files at every visit.

    Its fast PNG decoder holds Python's interpreter lock, so loaders read by processes.
    """

    threads = False

    def __init__(self, dataset):
        self.dataset = dataset

    def prepare(self, workers: int) -> None:
        pass

    def open(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Raises ValueError naming the file: unreadable, sizes that differ, a value outside the label map."""
        image_path, label_path = self.dataset.samples[index]
        if label_path is None:
            return read_image(image_path), None
        label = self.dataset.map_for(label_path).apply(read_label(label_path), label_path)
        image = read_image(image_path, label.shape)
        check_sizes(image_path, image.shape[:2], label_path, label.shape)
        return image, label


def sample_size(image_path: str, label_path: str | None) -> tuple[int, int]:
    """(height, width) that `Files.open` will give, from the headers alone.

    Raises ValueError or FileNotFoundError naming a file that cannot be read.
    """
    size, orientation = read_header(image_path)
    label_size = read_header(label_path)[0] if label_path is not None and orientation != 1 else None
    return upright_size(size, orientation) if apply_rotation(size, orientation, label_size) else size


def check_sizes(image_path: str, image_size, label_path: str, label_size) -> None:
    """Raise ValueError naming both files unless picture and label are of one size, (height, width)."""
    if tuple(image_size) != tuple(label_size):
        raise ValueError(
            f"{label_path}: the label is {label_size[1]}x{label_size[0]} (width x height), its picture "
            f"{image_path} {image_size[1]}x{image_size[0]}; pair the right files, or resize the label by "
            "nearest neighbour"
        )
