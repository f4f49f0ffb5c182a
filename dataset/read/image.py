"""Image and label files to arrays.

What is read, what is refused, and which way up. The header (`dataset.read.header`) says what a file is before anything
is decoded. OpenCV decodes images, Pillow labels and palettes, tifffile the TIFFs of several bands or of more than 8
bits. Every refusal is a DataError that begins with the file's name and says what to do.
"""

import importlib
import io
import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import Image

from dataset.read import DataError
from dataset.read.files import read_bytes
from dataset.read.header import FORMATS, MAX_BYTES, UNREADABLE, Header, parse_header, read_facts
from dataset.read.header import MAX_PIXELS as MAX_PIXELS
from dataset.read.header import upright_size as upright_size

fast_png: ModuleType | None = None
with suppress(ImportError):  # optional; decodes the same pixels in less than half the time
    fast_png = importlib.import_module("kornia_rs.io")

MAX_SECONDS = 60.0  # of decoding: the largest image takes a few
# EXIF 2.32, section 4.6.4: rotation and flip; the values 5 to 8 exchange width and height.
_UPRIGHT = {
    2: (None, 1),
    3: (cv2.ROTATE_180, None),
    4: (None, 0),
    5: (cv2.ROTATE_90_CLOCKWISE, 1),
    6: (cv2.ROTATE_90_CLOCKWISE, None),
    7: (cv2.ROTATE_90_CLOCKWISE, 0),
    8: (cv2.ROTATE_90_COUNTERCLOCKWISE, None),
}
_INVERSE = {6: 8, 8: 6}  # every other orientation is its own inverse
# A marker of a JPEG (ITU-T T.81, B.1.1.2); coded data hold none but the restart markers D0 to D7.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")

Limits = tuple[float, float] | tuple[str, str] | tuple[np.ndarray, np.ndarray]
Decoder = Callable[[str | Path, bytes, Header], np.ndarray]
Jobs = SimpleQueue[tuple[Future[np.ndarray], Decoder, str | Path, bytes, Header]]
_idle: list[Jobs] = []  # of decoding threads; a forked process has none of them
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


class Stored(NamedTuple):
    """A label as it stands on disk.

    values: ids, uint8 or uint16 (H, W), or colours, uint8 (H, W, 3) RGB. palette: RGB uint8 (256, 3) of ids, or None.
    """

    values: np.ndarray
    palette: np.ndarray | None = None

    @property
    def meant(self) -> np.ndarray:
        """Return the palette's grey values, or the values.

        The greys where the palette holds nothing else.
        """
        if self.palette is None or (self.palette != self.palette[:, :1]).any():
            return self.values
        return self.palette[:, 0][self.values]


def read_image(
    path: str | Path, label_size: tuple[int, int] | None = None, channels: int = 3, limits: Limits | None = None
) -> np.ndarray:
    """Read an image as uint8 (H, W, channels).

    RGB where there are three. A grey image becomes three equal channels, and a channel of transparency is dropped
    unless `channels` counts it. An orientation (EXIF, in any format) is applied, except where `label_size` (height,
    width) fits the stored image and not the upright one: then the label was drawn on the stored image.

    Args:
        limits: values that become 0 and 255, as two numbers, or as two percentages ("2%", "98%") of the sorted values
            of each band of the image. None: integers of 16 bits keep their upper byte.

    Raises:
        FileNotFoundError: the file is missing.
        DataError: it is no readable image, or has other bands or another depth than asked for.
    """
    image, header = read_bands(path, channels, limits)
    image = to_8_bits(image, limits)
    if image.ndim == 2:
        image = np.dstack([image] * channels) if channels > 1 else image[:, :, None]
    image = image[:, :, [0] * channels] if header.bands == 2 != channels else image[:, :, :channels]
    if apply_rotation(header.size, header.orientation, label_size):
        image = _turn(image, header.orientation)
    return np.ascontiguousarray(image)


def read_bands(path: str | Path, channels: int = 3, limits: Limits | None = None) -> tuple[np.ndarray, Header]:
    """Read an image as stored, and its header.

    (H, W) or (H, W, bands) of its own depth; see `read_image`.

    Raises:
        FileNotFoundError: the file is missing.
        DataError: it is no readable image, or has other bands or another depth than asked for.
    """
    data, header = _read(path)
    check_bands(path, header, channels, limits)
    return _within(path, _decode, data, header), header


def check_bands(path: str | Path, header: Header, channels: int, limits: Limits | None) -> None:
    """Check an image's bands and depth by its header alone.

    Raises:
        DataError: it has not, and what there is.
    """
    bands, colours = header.bands, header.bands - header.alpha
    if header.palette is not None:
        bands = colours = 1 if (header.palette == header.palette[:, :1]).all() else 3
    if channels not in (bands, colours) and not (channels == 3 and colours == 1):
        advice = f"set data.channels: {bands}, or save the bands that are meant"
        raise DataError(f"{path}: {header}, where {channels} bands are wanted; {advice}")
    if limits is None and header.dtype not in ("bool", "uint8", "uint16"):
        raise DataError(
            f"{path}: holds {header.dtype} values ({header}); give data.range: [LOW, HIGH], the values that become 0 "
            "and 255"
        )


def to_8_bits(image: np.ndarray, limits: Limits | None) -> np.ndarray:
    """Return an image as uint8, its range spread over 0..255.

    For the limits see `read_image`.
    """
    if limits is None:
        if image.dtype == np.uint16:
            return np.right_shift(image, 8).astype(np.uint8)
        return image.astype(np.uint8) * np.uint8(255) if image.dtype == np.bool_ else image
    values = np.nan_to_num(image.astype(np.float32), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    low, high = limits_of(values, limits)
    # Where a band has one value alone, its limits are one as well.
    scaled = (values - low) * (255 / np.maximum(high - low, np.finfo(np.float32).tiny))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def limits_of(values: np.ndarray, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that become 0 and 255.

    Those of each band where percentages say them. values: (H, W), or (H, W, bands).
    """
    return _limit(values, limits[0]), _limit(values, limits[1])


def _limit(values: np.ndarray, limit: float | str | np.ndarray) -> np.ndarray:
    match = _PERCENT.fullmatch(limit) if isinstance(limit, str) else None
    if match is None:
        return np.asarray(limit, np.float32)
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.nan_to_num(np.nanpercentile(finite, float(match[1]), axis=(0, 1))).astype(np.float32)


def read_label(path: str | Path) -> np.ndarray:
    """Read a label as it stands on disk.

    Ids, uint8 or uint16 (H, W), or colours, uint8 (H, W, 3) RGB. An image with a palette gives its indices, or the grey
    values where the palette holds greys alone; a grey one of 1, 2 or 4 bits the stored numbers 0 to 15. Transparency is
    dropped.

    Raises:
        FileNotFoundError: the file is missing.
        DataError: it is unreadable, lossy, or holds other numbers.
    """
    return read_stored(path).meant


def read_stored(path: str | Path) -> Stored:
    """Read a label and its palette, see `Stored`.

    The orientation of an image is applied to it as well.

    Raises:
        FileNotFoundError: the file is missing.
        DataError: it is unreadable, lossy, or holds other numbers.
    """
    data, header = _read(path)
    check_label(path, header)
    values = _within(path, _decode_label, data, header)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.dtype.kind in "iu" and values.dtype != np.uint8 and values.size:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise DataError(f"{path}: holds numbers from {low} to {high}; save class ids as an 8 or 16 bit PNG")
        values = values.astype(np.uint16)
    palette = None if header.palette is None else _whole_palette(path, header.palette, values)
    return Stored(np.ascontiguousarray(_turn(values, header.orientation)), palette)


def _whole_palette(path: str | Path, palette: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Complete a palette of greys that are their own indices; Pillow writes short ones.

    Raises:
        DataError: it has other greys, and none for an index that occurs.
    """
    count, highest = len(palette), int(values.max())
    if highest < count or (palette != palette[:, :1]).any():
        return palette
    if (palette[:, 0] != np.arange(count)).any():
        raise DataError(f"{path}: its palette has {count} greys, and none for the index {highest}; save the label anew")
    return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def check_label(path: str | Path, header: Header) -> None:
    """Check by the header that a file can hold classes.

    Ids or colours.

    Raises:
        DataError: its compression changes values, or it has other bands or another depth.
    """
    if header.lossy:
        what = (
            "JPEG label"
            if header.kind in ("JPEG", "MPO")
            else f"label in {header.kind} with {header.lossy} compression"
        )
        what = f"{header.lossy} label" if header.kind == "WEBP" else what
        raise DataError(f"{path}: a {what}; it changes the ids along every edge, save labels as PNG")
    if header.bands - header.alpha not in (1, 3):
        raise DataError(f"{path}: a label that is {header}; save class ids in one band, or colours in three")
    if header.bands > 2 and header.dtype != "uint8":
        raise DataError(f"{path}: a label of colours that is {header}; save colour labels with 8 bits")
    if header.dtype.startswith("float"):
        raise DataError(f"{path}: holds {header.dtype} values; save class ids as an 8 or 16 bit PNG")
    if header.white_is_zero and header.dtype != "bool":
        raise DataError(f"{path}: a label whose numbers are stored as their opposites (white is zero); save it as PNG")


def read_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """Read the stored size and the orientation of an image.

    (height, width), and 1 to 8; nothing is decoded.

    Raises:
        FileNotFoundError: the file is missing.
        DataError: its header is no image's.
    """
    header = read_facts(path)
    return header.size, header.orientation


def apply_rotation(stored: tuple[int, int], orientation: int, label_size: Sequence[int] | None) -> bool:
    """Tell whether an image is turned upright for its label.

    stored: its size (height, width). Tools that draw labels show an image upright, so that is the rule also where sizes
    cannot tell: square images, and orientations that keep the size. Only a label that fits nothing but the stored image
    was drawn on the stored image.
    """
    if orientation == 1:
        return False
    upright = upright_size(stored, orientation)
    return label_size is None or tuple(label_size) == upright or tuple(label_size) != tuple(stored)


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image as stored upright."""
    rotation, flip = _UPRIGHT.get(orientation, (None, None))
    bands = [image[:, :, i : i + 4] for i in range(0, image.shape[2], 4)] if image.ndim == 3 else [image]
    for number, band in enumerate(bands):
        band = np.ascontiguousarray(band)
        band = band if rotation is None else cv2.rotate(band, rotation)
        band = band if flip is None else cv2.flip(band, flip)
        bands[number] = band[:, :, None] if image.ndim == 3 and band.ndim == 2 else band
    return bands[0] if len(bands) == 1 else np.concatenate(bands, axis=2)


def _read(path: str | Path) -> tuple[bytes, Header]:
    data = read_bytes(path, MAX_BYTES, "picture")
    if not data:
        raise DataError(f"{path}: the file is empty; fetch it again")
    header = parse_header(path, io.BytesIO(data))
    # OpenCV before version 5 does not tell of such damage.
    if header.kind in ("JPEG", "MPO") and not _jpeg_ends(data):
        raise DataError(f"{path}: not a readable picture (the JPEG is cut short); fetch it again")
    return data, header


def _within(path: str | Path, decode: Decoder, data: bytes, header: Header) -> np.ndarray:
    """Decode in a thread that is given up after `MAX_SECONDS`.

    A JPEG may hold thousands of scans.

    Raises:
        DataError: it took too long.
    """
    try:
        jobs = _idle.pop()
    except IndexError:
        jobs = SimpleQueue()
        threading.Thread(target=_decode_jobs, args=(jobs,), name="decode", daemon=True).start()
    result: Future[np.ndarray] = Future()
    jobs.put((result, decode, path, data, header))
    try:
        return result.result(MAX_SECONDS)
    except FutureTimeoutError:
        raise DataError(f"{path}: not decoded after {MAX_SECONDS:g} seconds; save the picture anew") from None


def _decode_jobs(jobs: Jobs) -> None:
    """Decode what comes, for as long as the process runs.

    A thread that ends takes a lock of OpenCV for a moment. A process that is forked in this moment, such as a loader's
    worker, has the lock for ever: its first image would hold it up, and all of its threads.
    """
    while True:
        result, decode, path, data, header = jobs.get()
        outcome: Any
        give: Callable[[Any], None]
        try:
            outcome, give = decode(path, data, header), result.set_result
        except BaseException as error:  # raised again by `result`, in the thread that waits
            outcome, give = error, result.set_exception
        _idle.append(jobs)  # before the other thread goes on, and reads the next image
        give(outcome)
        del result, data, outcome, give  # an idle thread keeps no image


def _decode(path: str | Path, data: bytes, header: Header) -> np.ndarray:
    """Decode an image as stored, of the file's own depth.

    It is (H, W), or (H, W, bands) with red first.
    """
    if (fast := _decode_fast(path, data, header)) is not None:
        return fast
    if header.kind == "NPY" or (header.kind == "TIFF" and not header.mode):
        return _decode_array(path, data, header)
    if header.palette is not None or header.kind in ("TIFF", "GIF", "BMP") or header.mode in ("1", "F"):
        return _decode_pillow(path, data, header)
    _verify_png(path, data, header)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != header.size:
        raise DataError(f"{path}: not a readable picture (damaged, or cut short); fetch it again")
    if header.bands == 1:
        return image if image.ndim == 2 else image[:, :, 0]
    if header.bands == 2:  # OpenCV makes blue, green, red and alpha of grey and alpha
        return image[:, :, [0, -1]]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if header.bands == 3 else cv2.COLOR_BGRA2RGBA)[:, :, : header.bands]


def _decode_label(path: str | Path, data: bytes, header: Header) -> np.ndarray:
    if (fast := _decode_fast(path, data, header)) is not None:
        return fast
    if header.kind == "NPY" or (header.kind == "TIFF" and not header.mode):
        values = _decode_array(path, data, header)
    elif header.kind == "PPM" and header.mode != "1":
        values = _decode(path, data, header)  # Pillow spreads the numbers over 0 to 255
    else:
        _verify_png(path, data, header)
        values = _decode_pillow(path, data, header, indices=True)
        depth, colour_type = data[24:26]
        if header.kind == "PNG" and colour_type == 0 and depth in (2, 4):
            values = values // (255 // (2**depth - 1))  # Pillow spreads them over 0..255
        if header.kind == "TIFF" and header.palette is None and header.dtype == "uint8":
            bits = _tiff_bits(path, data)
            values = values // (255 // (2**bits - 1)) if bits < 8 else values
    if values.ndim == 3:
        values = values[:, :, 0] if header.bands < 3 else values[:, :, :3]
    return values


def _tiff_bits(path: str | Path, data: bytes) -> int:
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return int(file.pages.first.bitspersample)
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable picture ({error}); fetch it again, or save it as PNG") from None


def _decode_pillow(path: str | Path, data: bytes, header: Header, indices: bool = False) -> np.ndarray:
    """Decode by Pillow: as stored with `indices`, else palettes as RGB."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            wanted = {"YCbCr": "RGB", "P": "P" if indices else "RGB"}.get(picture.mode, picture.mode)
            image = np.asarray(picture if wanted == picture.mode else picture.convert(wanted))
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable picture ({error}); fetch it again, or save it as PNG") from None
    if header.kind == "TIFF" and header.orientation != 1:  # Pillow has turned it
        image = _turn(image, _INVERSE.get(header.orientation, header.orientation))
    return image.astype(np.uint16) if image.dtype.kind in "iu" and header.dtype == "uint16" else image


def _decode_array(path: str | Path, data: bytes, header: Header) -> np.ndarray:
    """Decode NumPy's format by NumPy, and TIFF by tifffile, in the byte order of this machine."""
    try:
        if header.kind == "NPY":
            image = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page = file.pages.first
                image = page.asarray()
                image = np.moveaxis(image, 0, 2) if page.axes == "SYX" else image
    except UNREADABLE as error:
        hint = "python -m pip install imagecodecs" if "imagecodecs" in str(error) else "fetch it again"
        raise DataError(f"{path}: {header} cannot be decoded ({error}); {hint}") from None
    shape = image.shape[2:] if image.ndim == 3 else ((1,) if image.ndim == 2 else None)
    if image.shape[:2] != header.size or shape != (header.bands,):
        raise DataError(
            f"{path}: {header} whose values are laid out as {image.shape}; save it as (height, width, bands)"
        )
    image = image[:, :, 0] if header.bands == 1 and image.ndim == 3 else image
    return image.astype(image.dtype.newbyteorder("="), copy=False)


def _verify_png(path: str | Path, data: bytes, header: Header) -> None:
    """Look for damage that OpenCV before version 5 does not tell of; the fast decoder does so itself."""
    if header.kind == "PNG":
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                picture.verify()
        except UNREADABLE as error:
            raise DataError(f"{path}: not a readable picture ({error}); fetch it again") from None


def _jpeg_ends(data: bytes) -> bool:
    """Tell whether the end marker of the picture is there; what follows it, a film for example, does not count."""
    place = 2
    while match := _JPEG_MARKER.search(data, place):
        if match[1] == b"\xd9":
            return True
        place = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return False


class _BareException(AbstractContextManager):
    """Lets nothing but an `Exception` of no more special class pass unseen: so the fast decoder reports damage."""

    def __exit__(self, kind: type | None, error: object, trace: object) -> bool:
        return kind is Exception


def _decode_fast(path: str | Path, data: bytes, header: Header) -> np.ndarray | None:
    """Decode a PNG by the fast decoder; None where it is not installed, or the PNG not 8-bit, plain, grey or RGB."""
    plain = header.kind == "PNG" and data[24] == 8 and data[25] in (0, 2) and not data[28]
    if fast_png is None or not plain or b"tRNS" in data[: data.find(b"IDAT")]:
        return None
    colour = header.bands == 3
    with _BareException():
        pixels = fast_png.decode_image_png_u8(data, header.size, "rgb" if colour else "mono")
        return pixels if colour else pixels[:, :, 0]
    raise DataError(f"{path}: not a readable picture (damaged, or cut short); fetch it again")
