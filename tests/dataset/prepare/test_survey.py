"""Pixels, mean and deviation over files, against NumPy on all of them at once."""

import numpy as np
import pytest
from PIL import Image

from dataset.prepare.survey import Survey, count_values, measure, survey
from tests.three_pictures import save_palette

pytestmark = pytest.mark.fast


def test_sums_over_files(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((8, 12), (16, 4), (8, 8))]
    masks = [rng.integers(0, 3, picture.shape[:2], np.uint8) for picture in pictures]
    pairs = []
    for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / f"{i}_mask.png")
        pairs.append((f"{i}.png", f"{i}_mask.png", "val" if i == 2 else "train"))
    found = survey(tmp_path, pairs)
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures[:2]]).astype(float)
    assert np.allclose(found["train"].mean, pixels.mean(0)) and np.allclose(found["train"].deviation, pixels.std(0))
    assert found["train"].count == 2 and (found["train"].height, found["train"].width) == (8, 4)
    ids = np.concatenate([mask.ravel() for mask in masks[:2]])
    assert dict(found["train"].pixels) == {i: int((ids == i).sum()) for i in range(3)}
    assert dict(found["val"].pixels) == {i: int((masks[2] == i).sum()) for i in range(3)}


def test_masks_whose_palettes_differ_are_counted_by_colour(tmp_path):
    ids = np.random.default_rng(0).integers(0, 3, (8, 12))
    colors = np.array([[0, 0, 0], [200, 0, 7], [0, 90, 0]], np.uint8)
    Image.new("RGB", (12, 8)).save(tmp_path / "a.png")
    pairs = [("a.png", "0.png", "train"), ("a.png", "1.png", "val")]
    save_palette(tmp_path / "0.png", ids, colors)
    save_palette(tmp_path / "1.png", ids, colors)
    counts = np.bincount(ids.ravel()).tolist()
    assert survey(tmp_path, pairs)["train"].pixels == dict(enumerate(counts))
    save_palette(tmp_path / "1.png", 2 - ids, colors[::-1])
    by_color = {tuple(color): count for color, count in zip(colors.tolist(), counts, strict=True)}
    found = survey(tmp_path, pairs)
    assert found["train"].pixels == found["val"].pixels == by_color
    ids[0] = 255
    save_palette(tmp_path / "0.png", ids, np.resize(colors, (21, 3)))
    assert survey(tmp_path, pairs[:1])["train"].pixels[255] == 12, "an index behind the palette is itself"


def test_median_frequency():
    """Two masks of 100 pixels: class 0 fills 150 of 200, class 1 40 of 100 where it is, class 2 10 of 100."""
    seen = Survey(pixels={0: 150, 1: 40, 2: 10}, around={0: 200, 1: 100, 2: 100})
    assert np.allclose(seen.class_weights([[0], [1], [2], [3]]), [0.4 / 0.75, 1, 4, 0])


def test_colours_are_counted():
    label = np.zeros((2, 3, 3), np.uint8)
    label[0, 1:] = 1, 2, 3
    assert dict(zip(*count_values(label), strict=True)) == {(0, 0, 0): 4, (1, 2, 3): 2}
    assert dict(zip(*count_values(np.array([[700, 700], [3, 700]], np.uint16)), strict=True)) == {3: 1, 700: 3}


def test_pairs_that_cannot_be_used_are_named(tmp_path):
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((8, 11), np.uint8)).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    noise = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    Image.fromarray(noise).save(tmp_path / "photo.png")
    pairs = [("a.png", "small.png", "train"), ("a.png", "broken.png", "train"), ("photo.png", "noise.png", "val")]
    with pytest.raises(ValueError, match="3 pairs cannot be used") as told:
        survey(tmp_path, pairs)
    text = str(told.value)
    assert (
        "different sizes, 12 x 8 and 11 x 8" in text
        and "broken.png" in text
        and "different values, as in a picture" in text
    )


def test_images_are_measured_over_all_pixels(tmp_path):
    """Images of different sizes count by their pixels."""
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((8, 12), (3, 5), (40, 7))]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(float)
    mean, deviation = measure([str(tmp_path / f"{i}.png") for i in range(3)])
    assert np.allclose(mean, pixels.mean(0)) and np.allclose(deviation, pixels.std(0))
