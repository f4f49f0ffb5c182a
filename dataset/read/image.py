"""Image and label files to arrays: what is read, what is refused, and which way up.

Pillow reads the headers, before anything is decoded, so that a file of a few bytes cannot claim gigabytes of memory;
OpenCV decodes images, Pillow labels. Every refusal is a ValueError that begins with the file's name and says what to
do.
"""

import io
import re
import struct
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image

from dataset.read import DataError
from dataset.read.files import read_bytes, require_file

fast_png: ModuleType | None
try:
    from kornia_rs import io as fast_png  # optional; decodes the same pixels in less than half the time
except ImportError:
    fast_png = None

# The most pixels of an image, 16384 x 8192: 384 MiB as RGB. Each sample decodes its whole image, so a larger one
# would be too slow to train on as well.
MAX_PIXELS = 1 << 27
MAX_BYTES = 8 * MAX_PIXELS  # the largest file, compressed or not
# The formats that are parsed; Pillow knows more, some of which start other programs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")
# Pillow warns above its own limit, and refuses above twice its limit; it is told ours.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# What Pillow raises for a file that it cannot read, or that is too large to be meant seriously.
_UNREADABLE: tuple[type[Exception], ...]
_UNREADABLE = (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError)
_UNREADABLE += (RuntimeError, MemoryError, struct.error, zlib.error)
_UNREADABLE += (Image.DecompressionBombError, Image.DecompressionBombWarning)

EXIF_ORIENTATION = 0x0112
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
# A marker of a JPEG (ITU-T T.81, B.1.1.2); coded data hold none but the restart markers D0 to D7.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


class Header(NamedTuple):
    """size: (height, width) as stored. orientation: of EXIF, 1 to 8. fast: the fast decoder reads it."""

    kind: str
    size: tuple[int, int]
    orientation: int
    fast: bool


def read_image(path: str | Path, label_size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image as RGB, uint8 (H, W, 3).

    Grey images become three equal channels, an alpha channel is dropped, and 16 bit become 8 by keeping the
    upper byte. A JPEG that carries an EXIF rotation is turned upright, except where `label_size` (height,
    width) fits the stored image and not the upright one: then the label was drawn on the stored image.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no readable image of 8 or 16 bits.
    """
    data, header = _read(path, verify=True)
    if header.fast:
        image = _decode_fast(path, data, header)
        image = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    else:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.shape[:2] != header.size:
            raise DataError(f"{path}: not a readable picture (damaged, or cut short); fetch it again")
        if pixels.dtype == np.uint16:
            pixels = np.right_shift(pixels, 8).astype(np.uint8)
        if pixels.dtype != np.uint8:
            raise DataError(f"{path}: holds {pixels.dtype} values; convert it to 8 or 16 bit integers")
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        codes = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
        if channels not in codes:
            raise DataError(f"{path}: has {channels} channels; pictures have 1, 3 or 4")
        image = cv2.cvtColor(pixels, codes[channels])
    if header.orientation != 1 and apply_rotation(header.size, header.orientation, label_size):
        rotation, flip = _UPRIGHT[header.orientation]
        image = image if rotation is None else cv2.rotate(image, rotation)
        image = image if flip is None else cv2.flip(image, flip)
    return image


def read_label(path: str | Path) -> np.ndarray:
    """Read a label as it stands on disk: ids, uint8 or uint16 (H, W), or colours, uint8 (H, W, 3) RGB.

    A palette image gives its indices, and a grey one of 1, 2 or 4 bits the stored numbers 0 to 15. An
    alpha channel is dropped.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is unreadable, lossy, or holds other numbers.
    """
    data, header = _read(path)
    if header.kind in ("JPEG", "MPO"):
        raise DataError(f"{path}: a JPEG label; JPEG changes the ids along every edge, save labels as PNG")
    if header.fast:
        return _decode_fast(path, data, header)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            alpha = {"LA": "L", "RGBA": "RGB", "YCbCr": "RGB"}
            label = np.asarray(picture.convert(alpha[picture.mode]) if picture.mode in alpha else picture)
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a readable label ({error}); fetch it again, or save it as PNG") from None
    if header.kind == "PNG":
        depth, colour_type = data[24], data[25]
        if depth == 16 and label.ndim == 3:
            raise DataError(f"{path}: a colour label of {depth} bits a channel; save colour labels with 8 bits")
        if colour_type == 0 and depth in (2, 4):
            label = label // (255 // (2**depth - 1))  # Pillow spreads them over 0..255
    if label.dtype == np.bool_:
        label = label.astype(np.uint8)
    if label.dtype == np.int32 and label.min() >= 0 and label.max() < 65536:
        label = label.astype(np.uint16)
    if label.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: holds {label.dtype} values; save class ids as an 8 or 16 bit PNG")
    return label


def read_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """Read the size (height, width) of an image as stored and its EXIF orientation (1 to 8), without decoding it.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: its header is no image's.
    """
    if not require_file(path, "picture"):
        raise DataError(f"{path}: the file is empty; fetch it again")
    header = _header(path, path)
    return header.size, header.orientation


def apply_rotation(stored: tuple[int, int], orientation: int, label_size: tuple[int, int] | None) -> bool:
    """Tell whether an image of size `stored` (height, width) is turned upright, given its label's size.

    Tools that draw labels show an image upright, so that is the rule also where sizes cannot tell: square
    images, and orientations that keep the size. Only a label that fits nothing but the stored image
    was drawn on the stored image.
    """
    if orientation == 1:
        return False
    upright = upright_size(stored, orientation)
    return label_size is None or tuple(label_size) == upright or tuple(label_size) != tuple(stored)


def upright_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Give the size (height, width) of an image once its EXIF orientation has been applied."""
    height, width = stored
    return (width, height) if orientation >= 5 else (height, width)


def _read(path: str | Path, verify: bool = False) -> tuple[bytes, Header]:
    """Read a file and its header. verify: look for damage that OpenCV before version 5 does not tell of."""
    data = read_bytes(path, MAX_BYTES, "picture")
    if not data:
        raise DataError(f"{path}: the file is empty; fetch it again")
    header = _header(path, io.BytesIO(data), verify)
    if verify and header.kind in ("JPEG", "MPO") and not _jpeg_ends(data):
        raise DataError(f"{path}: not a readable picture (the JPEG is cut short); fetch it again")
    return data, header


def _header(path: str | Path, source: str | Path | BinaryIO, verify: bool = False) -> Header:
    try:
        with Image.open(source, formats=FORMATS) as picture:
            (width, height), kind, mode, info = picture.size, str(picture.format), picture.mode, picture.info
            # Of other formats the orientation is ignored, as OpenCV and most tools do.
            orientation = picture.getexif().get(EXIF_ORIENTATION, 1) if kind in ("JPEG", "MPO") else 1
            frames = getattr(picture, "n_frames", 1) if kind == "PNG" else 1
            raw = picture.tile[0][3] if kind == "PNG" else ""  # mode and depth as stored
            plain = raw in ("L", "RGB") and not info.get("interlace") and "transparency" not in info
            fast = plain and fast_png is not None
            if verify and kind == "PNG" and not fast:  # the fast decoder does so itself
                picture.verify()
    except Image.DecompressionBombError:
        raise DataError(f"{path}: {_TOO_LARGE}") from None
    except Image.UnidentifiedImageError:
        kinds = "PNG, JPEG, TIFF, BMP, WebP, PPM and GIF"
        reason = "its header is damaged, or of no known format"
        raise DataError(f"{path}: not a readable picture ({reason}); known are {kinds}") from None
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a readable picture ({error}); fetch it again") from None
    if height * width > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} pixels; {_TOO_LARGE}")
    if height < 1 or width < 1:
        raise DataError(f"{path}: {width}x{height} pixels, which is no picture; fetch it again")
    if mode == "CMYK":
        raise DataError(f"{path}: a CMYK picture; its colours depend on a print profile, convert it to RGB")
    if frames > 1:
        raise DataError(f"{path}: an animated PNG; save the one picture that is meant")
    return Header(kind, (height, width), orientation if orientation in _UPRIGHT else 1, fast)


_TOO_LARGE = f"pictures of more than {MAX_PIXELS:,} pixels are not read; cut it into tiles"


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


def _decode_fast(path: str | Path, data: bytes, header: Header) -> np.ndarray:
    assert fast_png is not None
    colour = data[25] == 2
    with _BareException():
        pixels = fast_png.decode_image_png_u8(data, header.size, "rgb" if colour else "mono")
        return pixels if colour else pixels[:, :, 0]
    raise DataError(f"{path}: not a readable picture (damaged, or cut short); fetch it again")
