"""Facts of an image file that its header tells.

Kind, size, bands, depth, palette, orientation, compression. Nothing is decoded here, so a file of a few bytes cannot
claim gigabytes of memory, and the check before the first step can tell what will be refused. Pillow parses; of a TIFF
its directory, which says more than Pillow's modes do.
"""

import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.MpoImagePlugin import MpoImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2 as TiffDirectory

from dataset.read import DataError
from dataset.read.files import open_file, require_file

# The most pixels of an image, 16384 x 8192: 384 MiB as RGB. Each sample decodes its whole image, so a larger one
# would be too slow to train on as well.
MAX_PIXELS = 1 << 27
MAX_DECODED = 12 * MAX_PIXELS  # bytes of all bands: three of 32 bits
MAX_BYTES = 8 * MAX_PIXELS  # the largest file, compressed or not
MAX_PAGES = 4096  # of a TIFF
# The formats that are parsed; Pillow knows more, some of which start other programs.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM", "GIF")
NPY = b"\x93NUMPY"
# Pillow warns above its own limit, and refuses above twice its limit; it is told ours.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# What Pillow, tifffile and NumPy raise for a file that they cannot read, or that is too large to be meant seriously.
UNREADABLE: tuple[type[Exception], ...]
UNREADABLE = (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError)
UNREADABLE += (RuntimeError, MemoryError, struct.error, zlib.error)
UNREADABLE += (Image.DecompressionBombError, Image.DecompressionBombWarning)

ORIENTATION = 0x0112  # of EXIF 2.32, section 4.6.4, and of TIFF 6.0
# TIFF 6.0: what the tags say in numbers.
_PHOTOMETRIC = {0: "white is zero", 5: "CMYK", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "raw sensor"}
_LOSSY_TIFF = {
    **dict.fromkeys((6, 7), "JPEG"),
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    34887: "LERC",
    50001: "WebP",
    **dict.fromkeys((50002, 52546), "JPEG XL"),
}
# None, CCITT, LZW, JPEG, Deflate, PackBits, LZMA, Zstandard; others are left to tifffile.
_PILLOW_TIFF = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000)
_SAMPLES = {1: "uint", 2: "int", 3: "float"}
# Pillow's modes, as (bands, NumPy type); those of 16 bits a channel are told from the file.
_MODES = {
    "1": (1, "bool"),
    "P": (1, "uint8"),
    "L": (1, "uint8"),
    "LA": (2, "uint8"),
    "RGB": (3, "uint8"),
    "RGBA": (4, "uint8"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
    "I": (1, "uint16"),
    "F": (1, "float32"),
}
# Files that are taken for images and are not read, by what stands at their start.
_OTHER_KINDS = (
    (b"\x00\x00\x00\x0cjP", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (b"\xff\xd8", "a JPEG of a kind that is not read (lossless, 12 bits, or damaged)"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\x00\x05\x16\x07", "what macOS leaves beside a file, no picture"),
    (b"8BPS", "a Photoshop file"),
    (b"\x76\x2f\x31\x01", "an OpenEXR file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF file"),
    (b"PK", "a ZIP file"),
    (b"version https://", "a pointer of Git LFS; fetch the file itself with: git lfs pull"),
    (b"<", "text such as a web page, no picture; perhaps a download that asked for a login"),
)
# ISO/IEC 14496-12, section 4.3: the brand of a file behind "ftyp".
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "an AVIF file"),
    **dict.fromkeys((b"heic", b"heix", b"mif1"), "a HEIC file"),
}
_TOO_LARGE = f"pictures of more than {MAX_PIXELS:,} pixels are not read; cut it into tiles"


class Header(NamedTuple):
    """What a file holds.

    kind: Pillow's name of the format, or NPY. size: (height, width) as stored. orientation: of EXIF, 1 to 8.
    bands: values of a pixel; 1 with a palette. dtype: NumPy's name of their type. palette: RGB uint8 (n, 3), or None.
    alpha: the last band is transparency. lossy: name of a compression that changes values, or "". mode: Pillow's,
    "" where it has none. white_is_zero: the numbers stand for their opposites.
    """

    kind: str
    size: tuple[int, int]
    orientation: int = 1
    bands: int = 1
    dtype: str = "uint8"
    palette: np.ndarray | None = None
    alpha: bool = False
    lossy: str = ""
    mode: str = ""
    white_is_zero: bool = False

    def __str__(self) -> str:
        bands = "1 band" if self.bands == 1 else f"{self.bands} bands"
        palette = "" if self.palette is None else " with a palette"
        return f"{'a' if self.kind != 'MPO' else 'an'} {self.kind} of {bands} of {self.dtype}{palette}"

    @property
    def upright(self) -> tuple[int, int]:
        """Give the size (height, width) once the orientation has been applied."""
        return upright_size(self.size, self.orientation)


def upright_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the size (height, width) of an image turned upright."""
    height, width = stored
    return (width, height) if orientation >= 5 else (height, width)


def read_facts(path: str | Path) -> Header:
    """Read the facts of an image file without decoding it.

    Raises:
        FileNotFoundError: the file is missing.
        DataError: its header is no image's, or says what is not read.
    """
    if not require_file(path, "picture"):
        raise DataError(f"{path}: the file is empty; fetch it again")
    with open_file(path) as file:
        return parse_header(path, file)


def parse_header(path: str | Path, file: BinaryIO) -> Header:
    """Read the facts of an image from its open file.

    `path` is for errors.

    Raises:
        DataError: the header is no image's, or says what is not read.
    """
    start = file.read(16)
    file.seek(0)
    try:
        if start.startswith(NPY):
            header = _npy(path, file)
        elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            header = _tiff(path, file)
        else:
            header = _other(path, file)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{path}: {_TOO_LARGE}") from None
    except Image.UnidentifiedImageError:
        reason = next((name for magic, name in _OTHER_KINDS if start.startswith(magic)), None)
        if start[4:8] == b"ftyp":
            reason = _BRANDS.get(start[8:12], "a video file")
        reason = reason or "its header is damaged, or of no known format"
        kinds = "PNG, JPEG, TIFF, BMP, WebP, PPM, GIF and NPY"
        raise DataError(f"{path}: not a readable picture ({reason}); known are {kinds}") from None
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable picture ({error}); fetch it again") from None
    height, width = header.size
    if height * width > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} pixels; {_TOO_LARGE}")
    if height < 1 or width < 1:
        raise DataError(f"{path}: {width}x{height} pixels, which is no picture; fetch it again")
    if height * width * header.bands * np.dtype(header.dtype).itemsize > MAX_DECODED:
        raise DataError(f"{path}: {header}, {width}x{height}, is too large to decode as a whole; cut it into tiles")
    return header


def _npy(path: str | Path, file: BinaryIO) -> Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if len(shape) not in (2, 3) or dtype.kind not in "buif":
        raise DataError(f"{path}: an array {shape} of {dtype}; pictures are numbers (height, width, bands)")
    bands = shape[2] if len(shape) == 3 else 1
    return Header("NPY", (shape[0], shape[1]), bands=bands, dtype=dtype.newbyteorder("=").name)


def _tiff(path: str | Path, file: BinaryIO) -> Header:
    head = file.read(8)
    if head.startswith(b"MM\0+"):
        raise DataError(f"{path}: a BigTIFF of big-endian byte order, which is not read; save it as little-endian")
    directory = TiffDirectory(head + file.read(8) if b"+" in head[:4] else head)
    pages: list[dict] = []
    seen: set[int] = set()
    while directory.next and directory.next not in seen and len(pages) < MAX_PAGES:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        pages.append(dict(directory))
    # NewSubfileType: a smaller form of another page (1) or its transparency (4), as cloud-optimised files have them.
    if sum(not page.get(254, 0) & 5 for page in pages) > 1:
        raise DataError(f"{path}: a TIFF of {len(pages)} pages; save the one picture that is meant")
    page = pages[0]
    bits, form = (
        tuple(value) if isinstance(value, tuple) else (value,) for value in (page.get(258, 1), page.get(339, 1))
    )
    photometric, bands = page.get(262, 1), page.get(277, 1)
    if len(set(bits)) > 1 or len(set(form)) > 1 or form[0] not in _SAMPLES or bits[0] not in (1, 2, 4, 8, 16, 32, 64):
        raise DataError(
            f"{path}: a TIFF of {bands} bands, of {', '.join(map(str, bits))} bits and sample formats "
            f"{', '.join(map(str, form))}; save all bands as integers of 8 or 16 bits, or floats of 32"
        )
    if photometric in _PHOTOMETRIC and photometric != 0:
        raise DataError(f"{path}: a TIFF in {_PHOTOMETRIC[photometric]}, not RGB or grey; convert it to RGB")
    dtype = "bool" if bits[0] == 1 else f"{_SAMPLES[form[0]]}{max(bits[0], 8)}"
    if dtype == "float8":
        raise DataError(f"{path}: a TIFF of {bands} bands of floats of {bits[0]} bits; save floats of 32 bits")
    extra = page.get(338, ())
    mode, palette = "", None
    compression = page.get(259, 1)
    if _pillow_reads(photometric, bands, dtype, compression):
        with Image.open(file, formats=("TIFF",)) as picture:
            mode, palette = picture.mode, _palette(picture) if photometric == 3 else None
    elif photometric == 3:
        raise DataError(
            f"{path}: a TIFF with a palette, of {bits[0]} bits and compression {compression}; save it as PNG"
        )
    orientation = page.get(ORIENTATION, 1)
    return Header(
        "TIFF",
        (page[257], page[256]),
        orientation if orientation in range(1, 9) else 1,
        bands,
        dtype,
        palette,
        bool(extra) and extra[-1] in (1, 2),
        _LOSSY_TIFF.get(compression, ""),
        mode,
        photometric == 0,
    )


def _pillow_reads(photometric: int, bands: int, dtype: str, compression: int) -> bool:
    """Tell whether Pillow decodes a TIFF without loss of depth or bands."""
    return (
        bands in (1, 3)
        and compression in _PILLOW_TIFF
        and (dtype in ("uint8", "bool") or (dtype == "uint16" and bands == 1 and photometric != 0))
    )


def _other(path: str | Path, file: BinaryIO) -> Header:
    start = file.read(32)
    file.seek(0)
    with Image.open(file, formats=FORMATS) as picture:
        (width, height), kind, mode = picture.size, str(picture.format), picture.mode
        if mode in ("CMYK", "YCCK"):
            raise DataError(f"{path}: a CMYK picture; its colours depend on a print profile, convert it to RGB")
        if mode not in _MODES:
            raise DataError(f"{path}: a {kind} of the mode {mode}, which is not read; convert it to RGB or grey")
        if isinstance(picture, MpoImageFile) and _several_views(picture):
            raise DataError(f"{path}: several pictures in one JPEG (MPO); save the one picture that is meant")
        if kind != "MPO" and getattr(picture, "is_animated", False):
            raise DataError(f"{path}: an animated {kind}; save the one picture that is meant")
        bands, dtype = _MODES[mode]
        lossy = "JPEG" if kind in ("JPEG", "MPO") else ""
        if kind == "PNG":
            bands = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[start[25]]
            dtype = {1: "bool" if mode == "1" else "uint8", 16: "uint16"}.get(start[24], "uint8")
        elif kind == "PPM" and isinstance(highest := (picture.tile[0][3] or (0,))[-1], int) and mode != "F":
            dtype = "uint16" if highest > 255 else "uint8"
        palette = _palette(picture) if mode == "P" else None
        orientation = _orientation(picture, file, kind)
    if kind == "WEBP":
        lossy = "lossy WebP" if _webp_is_lossy(file) else ""
    if kind == "PPM" and _ppm_goes_on(file, (height, width), bands, dtype, start):
        raise DataError(f"{path}: several pictures in one PPM; save the one picture that is meant")
    return Header(kind, (height, width), orientation, bands, dtype, palette, mode in ("LA", "RGBA"), lossy, mode)


def _palette(picture: Image.Image) -> np.ndarray:
    """Give the palette of an image that is not decoded, uint8 (256, 3) RGB."""
    if picture.palette is None:
        raise SyntaxError("its palette is missing")  # as Pillow says that a file breaks the rules of its format
    rawmode, data = picture.palette.getdata()
    probe = Image.new("P", (1, 1))
    probe.putpalette(data, rawmode)
    return np.array(probe.getpalette("RGB"), np.uint8).reshape(-1, 3)


def _several_views(picture: MpoImageFile) -> bool:
    """Tell whether an MPO holds more than one picture, not just a gain map or a preview of the first.

    CIPA DC-007, section 5.2.3.3: the types of views are named; cameras leave the type of other pictures undefined, and
    these are smaller than the first.
    """
    entries = (picture.mpinfo or {}).get(0xB002, [])
    if any(entry["Attribute"]["MPType"].startswith("Multi-Frame") for entry in entries):
        return True
    size = picture.size
    for number in range(1, len(entries)):
        try:
            picture.seek(number)
            same = picture.size == size
        except UNREADABLE:  # the second picture is damaged, or cut off: it is not the one that is read
            same = False
        if same:
            return True
    picture.seek(0)
    return False


def _orientation(picture: Image.Image, file: BinaryIO, kind: str) -> int:
    """Read the orientation, 1 to 8; 1 where the EXIF data are absent or damaged, which is no damage of the picture."""
    if kind == "PNG" and "exif" not in picture.info and (exif := _late_exif(file)):
        picture.info["exif"] = b"Exif\0\0" + exif
    try:
        # Not that of PngImageFile, which decodes the image to look for late chunks.
        orientation = Image.Image.getexif(picture).get(ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _late_exif(file: BinaryIO) -> bytes | None:
    """Read the chunk eXIf of a PNG, which may stand behind the picture."""
    place = 8
    while True:
        file.seek(place)
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            return None
        length = int.from_bytes(start[:4], "big")
        if start[4:] == b"eXIf":
            return file.read(length)
        place += 12 + length


def _webp_is_lossy(file: BinaryIO) -> bool:
    """Tell whether a WebP holds a chunk of the lossy codec (RFC 9649, section 2.5)."""
    place = 12
    while True:
        file.seek(place)
        start = file.read(8)
        if len(start) < 8 or start[:4] == b"VP8L":
            return False
        if start[:4] == b"VP8 ":
            return True
        length = int.from_bytes(start[4:], "little")
        place += 8 + length + length % 2


def _ppm_goes_on(file: BinaryIO, size: tuple[int, int], bands: int, dtype: str, start: bytes) -> bool:
    """Tell whether another picture follows the first in a binary PGM or PPM."""
    if start[:2] not in (b"P5", b"P6"):
        return False
    with Image.open(file, formats=("PPM",)) as picture:
        offset = picture.tile[0][2]
    file.seek(offset + size[0] * size[1] * bands * np.dtype(dtype).itemsize)
    return file.read(2) in (b"P5", b"P6")
