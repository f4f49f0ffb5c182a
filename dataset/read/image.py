"""Picture and label files to arrays: what is read, what is refused, and which way up.

Every refusal is a `ValueError` that begins with the file's name and says what to do about it. Size and kind are
read from the header before anything is decoded, so that a file of a few bytes cannot claim gigabytes of memory.
"""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from dataset.read.files import read_bytes, require_file

try:
    from kornia_rs import io as fast_png  # optional; decodes the same pixels in less than half the time
except ImportError:
    fast_png = None

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
PNG_HEADER_SIZE = 33  # signature and the IHDR chunk, which every PNG begins with
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # of each colour type
EXIF_ORIENTATION = 0x0112

# The most pixels of a picture, 16384 x 8192: 384 MiB as RGB. Each sample decodes its whole picture, so a larger one
# would be too slow to train on as well.
MAX_PIXELS = 1 << 27
# The largest file, compressed or not: 8 bytes for each of the pixels.
MAX_BYTES = 8 * MAX_PIXELS
# A progressive JPEG repeats each pixel in every scan, and a scan can be a few bytes: pixels x scans is the work.
MAX_JPEG_WORK = 10 * MAX_PIXELS
# The formats whose headers are parsed; Pillow knows more, some of which start other programs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")
# Pillow warns above its own limit, and refuses above twice its limit; it is told ours.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# What Pillow raises for a file that it cannot read, or that is too large to be meant seriously.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

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
    size, orientation = _check_header(path, data)
    image = _decode(data)
    if image is None or image.shape[:2] != size:
        raise ValueError(
            f"{path}: not a readable picture (damaged, or cut short); "
            "fetch it again or take its line out of the list file"
        )
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
    size, _ = _check_header(path, data)
    depth, colour_type = data[24], data[25]
    if colour_type == 3:
        return _read_label_with_pillow(path, data)
    label = _decode(data)
    if label is None or label.shape[:2] != size:
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
    if not require_file(path, "picture"):
        raise ValueError(f"{path}: the file is empty; fetch it again")
    return _read_header(path, path)


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
    data = read_bytes(path, MAX_BYTES, "picture")
    if not data:
        raise ValueError(f"{path}: the file is empty; fetch it again")
    if data.startswith(PNG_SIGNATURE) and len(data) < PNG_HEADER_SIZE:
        raise ValueError(f"{path}: the PNG ends inside its header; fetch it again")
    return data


def _check_header(path: str | Path, data: bytes) -> tuple[tuple[int, int], int]:
    """Size (height, width) and EXIF orientation of the picture in `data`.

    Raises ValueError, before anything is decoded, for what is too large, cut short, or no picture.
    """
    if data.startswith(PNG_SIGNATURE):
        width, height = struct.unpack(">II", data[16:24])
        _check_size(path, height, width)
        _check_png(path, data)
        return (height, width), 1
    size, orientation = _read_header(path, io.BytesIO(data))
    if data.startswith(JPEG_SIGNATURE):
        _check_jpeg(path, data, size[0] * size[1])
    return size, orientation


def _read_header(path: str | Path, source) -> tuple[tuple[int, int], int]:
    """Size (height, width) and EXIF orientation in the header of `source`, a path or an open file."""
    try:
        with Image.open(source, formats=FORMATS) as header:
            width, height = header.size
            name, mode = header.format, header.mode
            orientation = header.getexif().get(EXIF_ORIENTATION, 1) if name in ("JPEG", "MPO") else 1
    except Image.DecompressionBombError:
        raise ValueError(f"{path}: {_too_large()}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path}: not a readable picture (its header is damaged, or of no known format); known are "
            "PNG, JPEG, TIFF, BMP, WebP, PPM and GIF"
        ) from None
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None
    _check_size(path, height, width)
    if mode == "CMYK":
        raise ValueError(f"{path}: a CMYK picture; its colours depend on a print profile, convert it to RGB")
    # Other formats than JPEG: as stored, as OpenCV and most tools ignore their orientation.
    return (height, width), orientation if orientation in _UPRIGHT else 1


def _check_size(path: str | Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{path}: {width}x{height} pixels; {_too_large()}")
    if height < 1 or width < 1:
        raise ValueError(f"{path}: {width}x{height} pixels, which is no picture; fetch it again")


def _too_large() -> str:
    return f"pictures of more than {MAX_PIXELS:,} pixels are not read; cut it into tiles"


def _check_png(path: str | Path, data: bytes) -> None:
    """Raise ValueError unless header, chunk lengths and end are those of one PNG picture."""
    if data[12:16] != b"IHDR" or data[24] not in PNG_DEPTHS.get(data[25], ()):
        raise ValueError(f"{path}: the PNG's header is damaged; fetch it again")
    for kind, start, end in _png_chunks(data):
        if end > len(data):
            break
        if kind == b"acTL":
            raise ValueError(f"{path}: an animated PNG; save the one picture that is meant")
        if kind == b"IEND":
            return
        if kind[:1].isupper() and zlib.crc32(memoryview(data)[start : end - 4]) != _number(data, end - 4):
            raise ValueError(
                f"{path}: not a readable picture (the checksum of the PNG's {kind!r} is wrong); fetch it again"
            )
    raise ValueError(f"{path}: not a readable picture (the PNG is cut short); fetch it again")


def _png_chunks(data: bytes):
    """(kind, start, end) of each chunk of a PNG: `start` at its kind, `end` behind its checksum."""
    start = len(PNG_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 12 + _number(data, start)
        yield data[start + 4 : start + 8], start + 4, end
        start = end


def _number(data: bytes, start: int) -> int:
    return int.from_bytes(data[start : start + 4], "big")


def _check_jpeg(path: str | Path, data: bytes, pixels: int) -> None:
    # Without the end marker some decoders fill the missing part with grey and report success.
    if not data.endswith(b"\xff\xd9") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError(f"{path}: not a readable picture (the JPEG is cut short); fetch it again")
    scans = data.count(b"\xff\xda")
    if scans * pixels > MAX_JPEG_WORK:
        raise ValueError(
            f"{path}: a JPEG of {pixels:,} pixels in {scans:,} scans, which takes too long to decode; save it anew"
        )


class _BareException:
    """Lets nothing but an `Exception` of no more special class pass unseen: so the fast decoder reports damage."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> bool:
        return kind is Exception


def _decode(data: bytes) -> np.ndarray | None:
    """The stored pixels, grey (H, W), RGB (H, W, 3) or RGBA (H, W, 4), of any depth; None if undecodable."""
    if fast_png is not None and data.startswith(PNG_SIGNATURE) and _is_plain_png(data):
        width, height = _number(data, 16), _number(data, 20)
        with _BareException():
            pixels = fast_png.decode_image_png_u8(data, (height, width), "rgb" if data[25] == 2 else "mono")
            return pixels if data[25] == 2 else pixels[:, :, 0]
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # sizes beyond OpenCV's limit, or no memory
        return None
    if pixels is None or pixels.ndim == 2:
        return pixels
    codes = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    return cv2.cvtColor(pixels, codes[pixels.shape[2]]) if pixels.shape[2] in codes else pixels


def _is_plain_png(data: bytes) -> bool:
    """8 bit grey or RGB, not interlaced, no transparency: what the fast decoder is given."""
    return (
        data[24] == 8
        and data[25] in (0, 2)
        and data[28] == 0
        and all(kind != b"tRNS" for kind, _, _ in _png_chunks(data))
    )


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
    _check_header(path, data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
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
