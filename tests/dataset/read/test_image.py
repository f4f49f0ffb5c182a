"""Reading of pictures: kinds of files, orientation, and what is not readable."""

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset.prepare.check import check_dataset
from dataset.read import image as reading
from dataset.read.image import read_header, read_image, read_label
from tests.three_pictures import build, fails, picture, save

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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_follows_the_label(tmp_path, orientation):
    """The upright picture is Pillow's; a label that fits only the stored size keeps the picture as stored."""
    from PIL import ImageOps

    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8), (64, 48))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = save(tmp_path / "a.jpg", smooth, exif=exif.tobytes(), quality=95)
    stored = np.asarray(Image.open(path)).astype(int)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path))).astype(int)

    def same(image, truth):
        return image.shape == truth.shape and np.abs(image.astype(int) - truth).max() <= 2

    assert same(read_image(path), upright)
    assert same(read_image(path, upright.shape[:2]), upright)
    turned = orientation >= 5
    assert same(read_image(path, stored.shape[:2]), stored if turned else upright)
    assert read_header(path) == ((48, 64), orientation)

    label = np.zeros(stored.shape[:2] if turned else upright.shape[:2], np.uint8)
    save(tmp_path / "a.png", label)
    (tmp_path / "train.txt").write_text("a.jpg a.png\n")
    dataset = build(tmp_path)
    assert dataset[0]["image"].shape[1:] == dataset[0]["label"].shape
    assert check_dataset(dataset).images == 1


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
