"""Picture and label files to arrays: what is read, what is refused, and which way up.

Every refusal is a `ValueError` that begins with the file's name and says what to do about it.
"""

import io
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

try:
    from kornia_rs import io as fast_png  # optional; decodes the same pixels in less than half the time
except ImportError:
    fast_png = None

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
PNG_HEADER_SIZE = 33  # signature and the IHDR chunk, which every PNG begins with
EXIF_ORIENTATION = 0x0112

# What Pillow raises for a file that it cannot read, or that is too large to be meant seriously.
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)

# EXIF 2.32, section 4.6.4: the values 5 to 8 exchange width and height when they are applied.
_UPRIGHT = {
    2: (None, 1),
    3: (cv2.ROTATE_180, None),
    4: (None, 0),
    5: (cv2.ROTATE_90_CLOCKWISE, 1),
    6: (cv2.ROTATE_90_CLOCKWISE, None),
    7: (cv2.ROTATE_90_CLOCKWISE, 0),
    8: (cv2.ROTATE_90_COUNTERCLOCKWISE, None),
}


def read_image(path: str | Path, label_size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a picture as RGB, uint8 (H, W, 3).

    Grey pictures become three equal channels, an alpha channel is dropped, and 16 bit become 8 by keeping the
    upper byte. A JPEG that carries an EXIF rotation is turned upright, except where `label_size` (height,
    width) fits the stored picture and not the upright one: then the label was drawn on the stored picture.

    Raises FileNotFoundError for a missing file, ValueError for one that is no readable 8 or 16 bit picture.
    """
    data = _read_bytes(path)
    image = _decode(data)
    if image is None or _is_cut_short(data):
        raise ValueError(f"{path}: not a readable picture (damaged, cut short, too large, or no "
                         "picture at all); "
                         "fetch it again or take its line out of the list file")
    orientation = _jpeg_orientation(path, data)
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{path}: holds {image.dtype} values; convert it to 8 or 16 bit integers")
    if apply_rotation(image.shape[:2], orientation, label_size):
        image = _turn_upright(image, orientation)
    return _to_rgb(path, image)


def read_label(path: str | Path) -> np.ndarray:
    """Read a label as it stands on disk: ids, uint8 or uint16 (H, W), or colours, uint8 (H, W, 3) RGB.

    A palette picture gives its indices, and a grey one of 1, 2 or 4 bits the stored numbers 0 to 15. An
    alpha channel is dropped.

    Raises FileNotFoundError for a missing file, ValueError for a file that is unreadable or lossy.
    """
    data = _read_bytes(path)
    if data.startswith(JPEG_SIGNATURE):
        raise ValueError(f"{path}: a JPEG label; JPEG changes the ids along every edge, save labels as PNG")
    if not data.startswith(PNG_SIGNATURE):
        return _read_label_with_pillow(path, data)
    depth, colour_type = data[24], data[25]
    if colour_type == 3:
        return _read_label_with_pillow(path, data)
    label = _decode(data)
    if label is None:
        raise ValueError(f"{path}: not a readable PNG (damaged or cut short); fetch it again")
    if label.ndim == 3 and depth != 8:
        raise ValueError(f"{path}: a colour label of {depth} bits a channel; save colour labels with 8 bits")
    if depth < 8:
        # libpng spreads 1, 2 and 4 bit greys over 0..255; the division gives the stored numbers back.
        label = label // (255 // (2**depth - 1))
    if label.ndim == 3:
        label = label[:, :, 0] if colour_type == 4 else _to_rgb(path, label)
    return np.ascontiguousarray(label)


def read_header(path: str | Path) -> tuple[tuple[int, int], int]:
    """Size (height, width) of a picture as stored and its EXIF orientation (1 to 8), without decoding it."""
    try:
        with Image.open(path) as header:
            width, height = header.size
            return (height, width), _orientation(path, header)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None


def apply_rotation(stored: tuple[int, int], orientation: int, label_size: tuple[int, int] | None) -> bool:
    """Whether a picture of size `stored` (height, width) is turned upright, given its label's size.

    Tools that draw labels show a picture upright, so that is the rule also where sizes cannot tell: square
    pictures, and orientations that keep the size. Only a label that fits nothing but the stored picture
    was drawn on the stored picture.
    """
    if orientation == 1:
        return False
    upright = upright_size(stored, orientation)
    return label_size is None or tuple(label_size) == upright or tuple(label_size) != tuple(stored)


def upright_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Size (height, width) of a picture once its EXIF orientation has been applied."""
    height, width = stored
    return (width, height) if orientation >= 5 else (height, width)


def _read_bytes(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    if not data:
        raise ValueError(f"{path}: the file is empty; fetch it again")
    if data.startswith(PNG_SIGNATURE) and len(data) < PNG_HEADER_SIZE:
        raise ValueError(f"{path}: the PNG ends inside its header; fetch it again")
    return data


def _decode(data: bytes) -> np.ndarray | None:
    """The stored pixels, grey (H, W), RGB (H, W, 3) or RGBA (H, W, 4), of any depth; None if undecodable."""
    if fast_png is not None and data.startswith(PNG_SIGNATURE) and _is_plain_png(data):
        width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        pixels = fast_png.decode_image_png_u8(data, (height, width), "rgb" if data[25] == 2 else "mono")
        return pixels if data[25] == 2 else pixels[:, :, 0]
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # sizes beyond OpenCV's limit
        return None
    if pixels is None or pixels.ndim == 2:
        return pixels
    codes = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return cv2.cvtColor(pixels, codes[pixels.shape[2]]) if pixels.shape[2] in codes else pixels


def _is_plain_png(data: bytes) -> bool:
    """8 bit grey or RGB, not interlaced, no transparency, every checksum right: what the fast decoder is
    given. It reports damage by a bare Exception without the file's name, so damaged files go the ordinary
    way."""
    if data[24] != 8 or data[25] not in (0, 2) or data[28] != 0:
        return False
    view, start = memoryview(data), len(PNG_SIGNATURE)
    while start + 12 <= len(data):
        length, kind = int.from_bytes(data[start:start + 4], "big"), data[start + 4:start + 8]
        end = start + 8 + length
        if kind == b"tRNS" or zlib.crc32(view[start + 4:end]) != int.from_bytes(data[end:end + 4], "big"):
            return False
        if kind == b"IEND":
            return True
        start = end + 4
    return False


def _is_cut_short(data: bytes) -> bool:
    """A JPEG without its end marker: some decoders fill the missing part with grey and report success."""
    if not data.startswith(JPEG_SIGNATURE) or data.endswith(b"\xff\xd9"):
        return False
    return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def _jpeg_orientation(path: str | Path, data: bytes) -> int:
    if not data.startswith(JPEG_SIGNATURE):
        return 1
    try:
        with Image.open(io.BytesIO(data)) as header:
            return _orientation(path, header)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable JPEG ({error})") from None


def _orientation(path: str | Path, header: Image.Image) -> int:
    """EXIF orientation of a JPEG; 1 (as stored) for other formats, as OpenCV and most tools ignore theirs."""
    if header.mode == "CMYK":
        raise ValueError(f"{path}: a CMYK picture; its colours depend on a print profile, convert it to RGB")
    if header.format not in ("JPEG", "MPO"):
        return 1
    orientation = header.getexif().get(EXIF_ORIENTATION, 1)
    return orientation if orientation in _UPRIGHT else 1


def _turn_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    rotation, flip = _UPRIGHT[orientation]
    if rotation is not None:
        image = cv2.rotate(image, rotation)
    return image if flip is None else cv2.flip(image, flip)


def _to_rgb(path: str | Path, image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] not in (3, 4):
        raise ValueError(f"{path}: has {image.shape[2]} channels; pictures have 1, 3 or 4")
    return np.ascontiguousarray(image[:, :, :3])


def _read_label_with_pillow(path: str | Path, data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode in ("RGBA", "CMYK", "YCbCr"):
                picture = picture.convert("RGB")
            label = np.asarray(picture)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable label ({error}); save labels as PNG") from None
    if label.dtype == np.bool_:
        label = label.astype(np.uint8)
    if label.dtype == np.int32 and label.min() >= 0 and label.max() < 65536:
        label = label.astype(np.uint16)
    if label.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{path}: holds {label.dtype} values; save class ids as an 8 or 16 bit PNG")
    return label
