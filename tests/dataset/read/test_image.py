"""Reading of pictures: kinds of files, orientation, and what is not readable."""

import multiprocessing
import os
import threading

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from dataset.prepare.check import check_dataset
from dataset.read import image as reading
from dataset.read.header import read_facts
from dataset.read.image import read_header, read_image, read_label
from dataset.read.source import sample_size
from tests.three_pictures import build, fails, picture, save, save_palette

pytestmark = pytest.mark.fast

EXIF_ORIENTATION = 0x0112


def test_grey_alpha_and_16_bit_pictures(tmp_path):
    rng = np.random.default_rng(0)
    rgb, grey = picture(rng), picture(rng)[:, :, 0]
    deep = rng.integers(0, 65536, (12, 16)).astype(np.uint16)
    assert np.array_equal(read_image(save(tmp_path / "rgb.png", rgb)), rgb)
    assert np.array_equal(read_image(save(tmp_path / "grey.png", grey)), np.dstack([grey] * 3))
    assert np.array_equal(read_image(save(tmp_path / "rgba.png", np.dstack([rgb, grey]))), rgb)
    assert np.array_equal(read_image(save(tmp_path / "deep.png", deep)), np.dstack([deep // 256] * 3))
    rgb16 = rgb.astype(np.uint16) * 256 + 255
    cv2.imwrite(str(tmp_path / "rgb16.png"), rgb16[:, :, ::-1])
    assert np.array_equal(read_image(tmp_path / "rgb16.png"), rgb)
    palette = Image.fromarray(rgb).quantize(7)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


def test_unreadable_pictures_name_the_file(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    for name, options in (("a.png", {}), ("a.jpg", {"quality": 95})):
        data = save(tmp_path / name, rgb, **options).read_bytes()
        for length in (20, len(data) // 2):
            (tmp_path / name).write_bytes(data[:length])
            fails(str(tmp_path / name), read_image, tmp_path / name)
    (tmp_path / "text.png").write_text("hello")
    fails("text.png: not a readable picture", read_image, tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    fails("empty.png: the file is empty", read_image, tmp_path / "empty.png")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "print.jpg")
    fails("print.jpg: a CMYK picture", read_image, tmp_path / "print.jpg")
    fails("print.jpg: a CMYK picture", read_header, tmp_path / "print.jpg")
    save(tmp_path / "float.tif", rgb[:, :, 0].astype(np.float32))
    fails("float.tif: holds float32", read_image, tmp_path / "float.tif")
    fails("none.png: no such file", read_image, tmp_path / "none.png", error=FileNotFoundError)


def test_what_follows_the_end_of_a_jpeg_does_not_count(tmp_path):
    """A camera puts a film behind the picture, and a small picture of its own before it, in the EXIF part."""
    rng = np.random.default_rng(0)
    rgb = cv2.resize(rng.integers(0, 256, (3, 4, 3)).astype(np.uint8), (64, 48))
    small = save(tmp_path / "small.jpg", rgb[:16, :16]).read_bytes()
    data = save(tmp_path / "a.jpg", rgb, exif=b"Exif\0\0" + small, quality=95).read_bytes()
    whole = read_image(tmp_path / "a.jpg")
    film = b"\0\0\0\x20ftypmp42" + b"\xff\xda" + rng.bytes(999)
    (tmp_path / "a.jpg").write_bytes(data + film)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), whole)
    for length in (len(data) - 2, len(data) // 2, len(small) + 30):
        (tmp_path / "a.jpg").write_bytes(data[:length])
        fails(str(tmp_path / "a.jpg"), read_image, tmp_path / "a.jpg")
    data = save(tmp_path / "a.png", rgb).read_bytes()
    (tmp_path / "a.png").write_bytes(data + film)
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)


SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8), (64, 48))
SUFFIXES = ("png", "jpg", "webp", "tif")


def oriented(path, orientation, image=SMOOTH):
    """An image with an orientation, as its format keeps it; and as Pillow shows it."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    save(path, image, exif=exif, **({"quality": 95} if path.suffix in (".jpg", ".webp") else {}))
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened)).astype(int)
    return path, upright


def same(image, truth):
    return image.shape == truth.shape and np.abs(image.astype(int) - truth).max() <= 2


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_in_every_format(tmp_path, orientation, suffix):
    """The upright picture is Pillow's; a label that fits only the stored size keeps the picture as stored."""
    path, upright = oriented(tmp_path / f"a.{suffix}", orientation)
    plain, stored = oriented(tmp_path / f"plain.{suffix}", 1)
    assert same(read_image(path), upright)
    assert same(read_image(path, upright.shape[:2]), upright)
    turned = orientation >= 5
    assert same(read_image(path, stored.shape[:2]), stored if turned else upright)
    assert read_header(path) == ((48, 64), orientation)
    for size in {stored.shape[:2], upright.shape[:2]} if turned else [upright.shape[:2]]:
        save(tmp_path / "label.png", np.zeros(size, np.uint8))
        (tmp_path / "train.txt").write_text(f"{path.name} label.png\n")
        dataset = build(tmp_path)
        assert dataset[0]["image"].shape[1:] == dataset[0]["label"].shape == size == sample_size(*dataset.samples[0])
        assert check_dataset(dataset).largest == size


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_labels_are_turned_as_pictures_are(tmp_path, suffix):
    ids = np.random.default_rng(0).integers(0, 3, (12, 16)).astype(np.uint8)
    path, _ = oriented(tmp_path / f"a.{suffix}", 6, ids)
    assert np.array_equal(read_label(path), np.rot90(ids, -1)) and read_header(path) == ((12, 16), 6)


def test_an_orientation_may_stand_behind_the_picture_of_a_png(tmp_path):
    path, upright = oriented(tmp_path / "a.png", 6)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    last = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert same(read_image(path), upright)


@pytest.mark.parametrize("suffix", [*SUFFIXES, "bmp", "gif", "ppm"])
def test_only_damage_of_the_picture_counts(tmp_path, suffix):
    """Bytes behind the end do not, nor EXIF that cannot be read; a cut does, in every format."""
    path = save(tmp_path / f"a.{suffix}", SMOOTH, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
    data, whole = path.read_bytes(), read_image(path)
    path.write_bytes(data + b"\xff\xda\0\x20ftypmp42" + bytes(range(256)))
    assert np.array_equal(read_image(path), whole)
    if suffix in SUFFIXES[:3]:
        exif = save(tmp_path / f"b.{suffix}", SMOOTH, exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
        assert np.array_equal(read_image(exif), whole)
    path.write_bytes(data[: len(data) * 2 // 3])
    fails(f"{path}: ", read_image, path)


def test_a_gain_map_or_a_preview_is_no_second_picture(tmp_path):
    """CIPA DC-007: the further pictures of a JPEG follow its end."""
    first = Image.fromarray(SMOOTH)
    first.save(tmp_path / "a.jpg", quality=95)
    first.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[first.resize((32, 24))], quality=95)
    assert same(read_image(tmp_path / "b.jpg"), read_image(tmp_path / "a.jpg").astype(int))
    first.save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=[first])
    fails("several pictures in one JPEG", read_image, tmp_path / "b.jpg")


def test_what_is_not_read_is_said_in_its_own_terms(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rng.integers(0, 256, (5, 12, 16)).astype(np.uint8), photometric="minisblack")
    fails("a TIFF of 5 pages", read_facts, path)
    for planar in ("contig", "separate"):
        for bands in (2, 4, 5):
            shape = (12, 16, bands) if planar == "contig" else (bands, 12, 16)
            values = rng.integers(0, 65536, shape).astype(">u2")
            tifffile.imwrite(path, values, photometric="minisblack", planarconfig=planar, byteorder=">")
            fails(f"a TIFF of {bands} bands of uint16, where 3 bands are wanted", read_image, path)
            assert read_facts(path).bands == bands
    tifffile.imwrite(path, rng.random((12, 16, 3)).astype(np.float32), photometric="rgb")
    fails("holds float32 values (a TIFF of 3 bands of float32)", read_image, path)
    Image.new("LAB", (16, 12)).save(path)
    fails("a TIFF in CIELab", read_facts, path)
    Image.new("CMYK", (16, 12)).save(path)
    fails("a TIFF in CMYK", read_facts, path)
    Image.new("RGB", (16, 12)).save(tmp_path / "a.png", format="JPEG2000")
    fails("a.png: not a readable picture (a JPEG 2000 file)", read_facts, tmp_path / "a.png")
    for start, reason in (
        (b"\0\0\0\x20ftypavif", "an AVIF file"),
        (b"\0\0\0\x18ftypheic", "a HEIC file"),
        (b"\0\0\0\x20ftypisom", "a video file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; fetch the file itself"),
        (b"<!DOCTYPE html><title>Log in</title>", "text such as a web page"),
    ):
        (tmp_path / "b.jpg").write_bytes(start + bytes(99))
        fails(f"b.jpg: not a readable picture ({reason}", read_facts, tmp_path / "b.jpg")
    (tmp_path / "._a.png").write_bytes(b"\x00\x05\x16\x07" + bytes(99))
    fails("what macOS leaves beside a file", read_facts, tmp_path / "._a.png")


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_deep_tiffs_keep_their_upper_byte(tmp_path, byteorder, planar, compression):
    values = np.random.default_rng(0).integers(0, 65536, (12, 16, 3)).astype(np.uint16)
    laid = values if planar == "contig" else np.moveaxis(values, 2, 0)
    options = {"photometric": "rgb", "planarconfig": planar, "byteorder": byteorder, "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", laid, **options)
    assert np.array_equal(read_image(tmp_path / "a.tif"), values >> 8)


@pytest.mark.parametrize("name", ["rgba.png", "rgba.webp", "rgba.tif", "five.tif", "two.npy", "grey.png", "la.png"])
def test_bands_are_read_as_asked_for(tmp_path, name):
    rng = np.random.default_rng(0)
    bands = {"rgba": 4, "five": 5, "two": 2, "grey": 1, "la": 2}[name.partition(".")[0]]
    values, path = rng.integers(0, 256, (12, 16, bands)).astype(np.uint8), tmp_path / name
    if name.endswith("npy"):
        np.save(path, values)
    elif name.endswith("tif"):
        tifffile.imwrite(path, values, photometric="rgb" if bands == 4 else "minisblack", planarconfig="contig")
    else:
        save(path, values if bands > 1 else values[:, :, 0], **({"lossless": True} if "webp" in name else {}))
    if name == "rgba.webp":
        values[values[:, :, 3] == 0] = read_image(path, channels=4)[values[:, :, 3] == 0]  # of no colour there
    assert np.array_equal(read_image(path, channels=bands), values)
    if bands in (1, 2) and name != "two.npy":
        assert np.array_equal(read_image(path), np.dstack([values[:, :, 0]] * 3))
    elif name in ("rgba.png", "rgba.webp"):
        assert np.array_equal(read_image(path), values[:, :, :3])
    elif name != "rgba.tif":
        fails(f"{bands} bands of uint8, where 3 bands are wanted; set data.channels: {bands}", read_image, path)
    fails("7 bands are wanted", read_image, path, channels=7)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_palettes_of_pictures_are_colours(tmp_path, suffix):
    indices = np.random.default_rng(0).integers(0, 3, (12, 16))
    colors = np.array([[9, 8, 7], [200, 0, 7], [0, 90, 0]], np.uint8)
    path = save_palette(tmp_path / f"a.{suffix}", indices, colors)
    assert np.array_equal(read_image(path), colors[indices])
    fails(
        "1 band of uint8 with a palette, where 1 bands are wanted; set data.channels: 3", read_image, path, channels=1
    )
    path = save_palette(tmp_path / f"b.{suffix}", indices, [[70] * 3, [7] * 3, [200] * 3])
    assert np.array_equal(read_image(path, channels=1)[:, :, 0], np.array([70, 7, 200])[indices])


def test_a_fourth_band_of_a_tiff_is_not_dropped_unless_it_is_transparency(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 4)).astype(np.uint8)
    for kind, dropped in ((0, False), (1, True), (2, True)):  # TIFF 6.0, ExtraSamples
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[kind])
        if dropped:
            assert np.array_equal(read_image(tmp_path / "a.tif"), values[:, :, :3])
        else:
            fails("4 bands of uint8, where 3 bands are wanted", read_image, tmp_path / "a.tif")
        assert np.array_equal(read_image(tmp_path / "a.tif", channels=4), values)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "uint8"])
def test_a_range_is_spread_over_8_bits(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 100, (12, 16, 3)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    expected = [[[round(min(max((float(v) - 20) * 255 / 60, 0), 255)) for v in p] for p in row] for row in values]
    assert np.array_equal(read_image(tmp_path / "a.tif", limits=(20, 80)), expected)
    shares = read_image(tmp_path / "a.tif", limits=("10%", "90%")).astype(float)
    for band in range(3):
        low, high = np.percentile(values[:, :, band], [10, 90])
        assert (
            np.abs(shares[:, :, band] - (values[:, :, band] - low).clip(0, high - low) * 255 / (high - low)).max() < 1
        )
    if dtype == "float32":
        values[0, 0] = np.nan, np.inf, -np.inf
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
        assert read_image(tmp_path / "a.tif", limits=(20, 80))[0, 0].tolist() == [0, 255, 0]


def test_a_picture_that_takes_too_long_is_named(tmp_path, monkeypatch):
    """A JPEG of thousands of scans would hold a worker for hours; here the limit is what is short."""
    path = save(tmp_path / "a.jpg", SMOOTH)
    done = threading.Event()
    monkeypatch.setattr(reading, "MAX_SECONDS", 0.01)
    monkeypatch.setattr(reading, "_decode", lambda *_: done.wait(20))
    fails("a.jpg: not decoded after 0.01 seconds", read_image, path)
    done.set()


def test_images_are_decoded_in_threads_that_stay(tmp_path, monkeypatch):
    """A process that is forked while such a thread ends would have a lock of OpenCV's for ever."""
    path, decode, threads = save(tmp_path / "a.png", SMOOTH), reading._decode, set()

    def noted(*arguments):
        threads.add(threading.current_thread())
        return decode(*arguments)

    monkeypatch.setattr(reading, "_decode", noted)
    for _ in range(20):
        read_image(path)
    (thread,) = threads
    assert thread.is_alive() and thread is not threading.current_thread()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_decodes_with_threads_of_its_own(tmp_path):
    path = save(tmp_path / "a.png", SMOOTH)
    expected = read_image(path)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert np.array_equal(pool.apply_async(read_image, (path,)).get(60), expected)


def test_exif_rotation_of_square_pictures_is_applied(tmp_path):
    square = np.zeros((64, 64, 3), np.uint8)
    square[:32] = 255
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    path = save(tmp_path / "a.jpg", square, exif=exif.tobytes())
    image = read_image(path, (64, 64))
    assert image[:, 40:].min() > 200 and image[:, :24].max() < 50


@pytest.mark.parametrize("fast", [True, False])
def test_png_decoders_give_the_same_pixels_and_find_the_same_damage(tmp_path, monkeypatch, fast):
    if fast:
        pytest.importorskip("kornia_rs", reason="the optional PNG decoder is not installed")
    else:
        monkeypatch.setattr(reading, "fast_png", None)
    rng = np.random.default_rng(0)
    rgb, grey = picture(rng, 50, 70), rng.integers(0, 30, (50, 70)).astype(np.uint8)
    assert np.array_equal(read_image(save(tmp_path / "a.png", rgb)), rgb)
    assert np.array_equal(read_label(save(tmp_path / "b.png", grey)), grey)
    assert np.array_equal(read_image(tmp_path / "b.png"), np.dstack([grey] * 3))
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    fails("a.png: not a readable picture", read_image, tmp_path / "a.png")
    fails("a.png: not a readable", read_label, tmp_path / "a.png")
