"""Pictures that are cut short, damaged, of absurd size, or no files at all: one error that names them."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from dataset.read import image as reading
from dataset.read.image import read_header, read_image, read_label
from tests.fuzz import hostile

READERS = (read_image, read_label, read_header)


def refused(path, *reasons, readers=READERS):
    for read in readers:
        with hostile.bounded(), pytest.raises((ValueError, OSError)) as caught:
            read(path)
        for part in (path.name, *reasons):
            assert part in str(caught.value)


def written(path, data: bytes):
    path.write_bytes(data)
    return path


def test_the_hand_written_png_is_a_png(tmp_path):
    for interlaced in (False, True):
        path = written(tmp_path / "a.png", hostile.png(hostile.scene(1), interlaced))
        assert np.array_equal(read_label(path), hostile.scene(1))
        assert np.array_equal(read_image(path), np.dstack([hostile.scene(1)] * 3))


@pytest.mark.parametrize("number", range(len(hostile.pictures())))
def test_a_picture_cut_short_anywhere_is_refused_or_whole(tmp_path, number):
    """What a reader takes of the first k bytes must be what it takes of all."""
    data = hostile.pictures()[number]
    path = written(tmp_path / "cut.png", data)
    for read in (read_image, read_label):
        try:
            whole = read(path)
        except ValueError:
            whole = None  # a JPEG as label
        for length in range(0, len(data), max(1, len(data) // 60)):
            written(path, data[:length])
            try:
                part = read(path)
            except ValueError as error:
                assert path.name in str(error)
            else:
                assert np.array_equal(part, whole), f"{length} of {len(data)} bytes"
        written(path, data)


@pytest.mark.parametrize("size", [(100_000, 100_000), (1, 1 << 31 - 1), (1 << 14, (1 << 13) + 1), (0, 5), (5, 0)])
def test_a_png_of_absurd_size_is_refused_by_its_header(tmp_path, size, monkeypatch):
    monkeypatch.setattr(reading, "_decode_fast", lambda *_: pytest.fail("decoded"))
    path = written(tmp_path / "bomb.png", hostile.png(None, size=size, pixels=bytes(1000)))
    refused(path)
    if min(size):
        refused(path, "pixels are not read; cut it into tiles", readers=(read_image, read_label))


def test_other_formats_of_absurd_size_are_refused_by_their_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_decode_fast", lambda *_: pytest.fail("decoded"))
    jpeg = hostile.pillow(Image.fromarray(hostile.scene()), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5  # behind marker, length and depth
    jpeg = jpeg[:at] + struct.pack(">HH", 65500, 65500) + jpeg[at + 4 :]
    bmp = bytearray(hostile.pillow(Image.fromarray(hostile.scene()), "BMP"))
    bmp[18:26] = struct.pack("<ii", 100_000, 100_000)
    for name, data in (("bomb.jpg", jpeg), ("bomb.bmp", bytes(bmp)), ("bomb.ppm", b"P6 99999 99999 255\n" + bytes(99))):
        refused(written(tmp_path / name, data), readers=(read_image, read_header))


def test_the_largest_picture_is_allowed(tmp_path):
    height, width = 1 << 13, 1 << 14
    assert height * width == reading.MAX_PIXELS
    assert read_header(written(tmp_path / "a.png", hostile.png(None, size=(height, width), pixels=b""))) == (
        (height, width),
        1,
    )


def test_damaged_and_strange_pngs_are_refused(tmp_path):
    good = hostile.png(hostile.scene(1))
    at = good.index(b"IDAT") + 8
    refused(
        written(tmp_path / "crc.png", good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]),
        "not a readable",
        readers=(read_image, read_label),
    )
    refused(
        written(tmp_path / "deep.png", hostile.png(hostile.scene(1), depth=16, colour=3)),
        "not a readable",
        readers=(read_image, read_label),
    )
    animated = io.BytesIO()
    frames = [Image.fromarray(hostile.scene() + i) for i in range(2)]
    frames[0].save(animated, "PNG", save_all=True, append_images=frames[1:])
    refused(written(tmp_path / "moves.png", animated.getvalue()), "animated", readers=(read_image, read_label))
    pixels = b"\x09" + hostile.scene(1).tobytes()  # no filter has this number
    for name, content in (("filter.png", pixels), ("few.png", b"\0\0\0")):
        refused(
            written(tmp_path / name, hostile.png(hostile.scene(1), pixels=content)),
            "not a readable",
            readers=(read_image, read_label),
        )


def test_a_png_with_more_pixels_than_its_size_takes_no_memory_for_them(tmp_path):
    pixels = b"".join(b"\0" + row.tobytes() for row in hostile.scene(1)) + bytes(1 << 27)
    path = written(tmp_path / "long.png", hostile.png(hostile.scene(1), pixels=pixels))
    del pixels
    with hostile.bounded():
        try:
            assert np.array_equal(read_label(path), hostile.scene(1))
        except ValueError as error:
            assert path.name in str(error)


def test_texts_of_a_png_that_unpack_to_gigabytes_are_left_packed(tmp_path):
    import zlib

    for kind in (b"zTXt", b"iCCP"):
        extra = (kind, b"name\0\0" + zlib.compress(bytes(1 << 27)))
        path = written(tmp_path / "text.png", hostile.png(hostile.scene(1), extra=(extra,)))
        for read in READERS:
            with hostile.bounded():
                try:
                    read(path)
                except ValueError as error:
                    assert path.name in str(error)


def test_what_is_no_picture_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("pipe.png", "zero.png"):
        refused(tmp_path / name, "a pipe, socket or device")
    refused(tmp_path / "folder.png", "a folder")
    refused(tmp_path / "dangling.png", "no such file")
    refused(tmp_path / "loop.png")
    refused(written(tmp_path / "empty.png", b""), "empty")
    refused(written(tmp_path / "text.png", b"hello, I am a text\n" * 99), "not a readable")
    refused(written(tmp_path / "name.exr", b"v/1\x01\x02\0\0\0" + bytes(99)), "not a readable", readers=(read_image,))
    refused(written(tmp_path / "name.heic", b"\0\0\0\x18ftypheic" + bytes(99)), "not a readable", readers=(read_image,))
    for read in READERS:
        with pytest.raises(ValueError, match="no possible name"):
            read("nul\0.png")


def test_no_program_is_started_for_a_postscript_picture(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n%%EOF\n"
    refused(written(tmp_path / "a.png", eps), "not a readable")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_picture_that_may_not_be_read_is_named(tmp_path):
    path = written(tmp_path / "secret.png", hostile.png(hostile.scene(1)))
    path.chmod(0)
    refused(path)
