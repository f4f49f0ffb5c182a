"""What the doctor wants to know of one sample."""

from base64 import b64decode, b64encode
from hashlib import blake2b
from typing import NamedTuple

import cv2
import numpy as np

from dataset.prepare.survey import MAX_VALUES, count_values, moments
from dataset.read import DataError
from dataset.read.header import read_facts
from dataset.read.image import Limits, Stored, read_image, read_stored

THUMB = 16  # side of the grey image by which images are compared


class Seen(NamedTuple):
    """One sample, as a worker saw it.

    label: its different values, (1, n) or (1, n, 3); counts: the pixels of each. low, high: of the image as read. deep:
    it is stored with more than 8 bits. clear: it has a band of transparency that is not read.
    """

    size: tuple[int, int]
    label: Stored | None
    counts: np.ndarray
    low: int
    high: int
    deep: bool
    clear: bool
    mean: np.ndarray
    deviation: np.ndarray
    digest: int
    thumb: np.ndarray

    def as_json(self) -> list:
        """Return the same as values of JSON; see `from_json`."""
        label = None
        if self.label is not None:
            values, palette = self.label
            label = [values.dtype.name, values[0].tolist(), None if palette is None else _text(palette)]
        numbers = [self.counts.tolist(), self.low, self.high, self.deep, self.clear]
        moments = [self.mean.tolist(), self.deviation.tolist()]
        return [self.size, label, *numbers, *moments, self.digest, _text(self.thumb)]

    @classmethod
    def from_json(cls, values: list) -> "Seen":
        """Return what `as_json` has been given."""
        size, label, counts, low, high, deep, clear, mean, deviation, digest, thumb = values
        stored = None
        if label is not None:
            kind, numbers, colors = label
            palette = None if colors is None else _bytes(colors).reshape(-1, 3)
            stored = Stored(np.array([numbers], kind), palette)
        return cls(
            tuple(size),
            stored,
            np.array(counts, np.int64),
            low,
            high,
            deep,
            clear,
            np.array(mean),
            np.array(deviation),
            digest,
            _bytes(thumb),
        )


def _text(array: np.ndarray) -> str:
    return b64encode(np.ascontiguousarray(array).data).decode()


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(b64decode(text), np.uint8)


class Failed(NamedTuple):
    """A sample that cannot be used, by kind and message."""

    kind: str
    text: str


def look(paths: tuple[str, str | None], channels: int = 3, limits: Limits | None = None) -> Seen | Failed:
    """Decode one sample and return what it holds."""
    image_path, label_path = paths
    label, counts = None, np.zeros(0, np.int64)
    kind = "label"
    try:
        if label_path is not None:
            stored = read_stored(label_path)
            values, pixels = count_values(stored.values)
            if len(values) > MAX_VALUES:
                text = f"{label_path}: {len(values)} different values, as in a photo; a label has one for each class"
                return Failed("label", text)
            label = Stored(np.array([values], stored.values.dtype), stored.palette)
            counts = np.array(pixels, np.int64)
        kind = "image"
        header = read_facts(image_path)
        label_size = None if label_path is None else stored.values.shape[:2]
        image = read_image(image_path, label_size, channels, limits)
    except (DataError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            return Failed(kind, f"{error.filename}: {error.strerror}")
        return Failed(kind, str(error))
    if label_size is not None and image.shape[:2] != label_size:
        sizes = " and ".join(f"{width}x{height}" for height, width in (label_size, image.shape[:2]))
        return Failed("size", f"{label_path} and {image_path}: {sizes} (width x height)")
    bands = [image[:, :, i] for i in range(image.shape[2])]
    thumbs = [cv2.resize(band, (THUMB, THUMB), interpolation=cv2.INTER_AREA) for band in bands]
    digest = int.from_bytes(blake2b(image.data, digest_size=8, key=str(image.shape).encode()).digest(), "little")
    return Seen(
        (image.shape[0], image.shape[1]),
        label,
        counts,
        int(image.min()),
        int(image.max()),
        header.dtype not in ("bool", "uint8"),
        header.alpha and header.bands > channels,
        *moments(image),
        max(digest, 1),
        np.rint(np.mean(thumbs, axis=0)).astype(np.uint8).ravel(),
    )
