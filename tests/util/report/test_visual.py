"""util/report/visual.py: colours, side-by-side pictures, the confusion picture."""

import numpy as np
import pytest

from dataset.base import distinct_palette
from util.report.visual import colorize, confusion_picture, triptych

pytestmark = pytest.mark.fast


def random_label(size=(20, 30), classes=5, seed=0):
    label = np.random.default_rng(seed).integers(0, classes, size, dtype=np.uint8)
    label[0, :5] = 255
    return label


def random_photo(size=(20, 30)):
    return np.random.default_rng(9).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_colorize_looks_each_pixel_up():
    label, colors = random_label(), distinct_palette(5)
    picture = colorize(label, colors)
    for y, x in np.ndindex(label.shape):
        expected = (0, 0, 0) if label[y, x] == 255 else tuple(colors[label[y, x]])
        assert tuple(picture[y, x]) == expected


def test_colorize_refuses_values_without_a_colour():
    with pytest.raises(ValueError, match=r"\[7, 33\] have no colour: expected 0..4"):
        colorize(np.array([[0, 7, 33, 255]], np.uint8), distinct_palette(5))
    with pytest.raises(ValueError, match="int64"):
        colorize(np.zeros((3, 3), np.int64), distinct_palette(5))


def test_triptych_is_photo_truth_prediction():
    photo, truth, prediction, colors = random_photo(), random_label(), random_label(seed=1), distinct_palette(5)
    row = triptych(photo, truth, prediction, colors)
    assert row.dtype == np.uint8
    gap = (row.shape[1] - 3 * 30) // 2
    assert row.shape == (20, 3 * 30 + 2 * gap, 3)
    assert 1 <= gap <= 4
    assert np.array_equal(row[:, :30], photo)
    assert np.array_equal(row[:, 30 + gap : 60 + gap], colorize(truth, colors))
    assert np.array_equal(row[:, -30:], colorize(prediction, colors))
    assert (row[:, 30 : 30 + gap] == 255).all()


def test_triptych_without_truth_has_two_panels():
    photo, prediction, colors = random_photo(), random_label(), distinct_palette(5)
    row = triptych(photo, None, prediction, colors)
    assert np.array_equal(row[:, :30], photo)
    assert np.array_equal(row[:, -30:], colorize(prediction, colors))
    assert row.shape[1] < 70


@pytest.mark.parametrize("width", [60, 400, 3000])
def test_legend_shows_the_classes_that_occur(width):
    photo, colors = random_photo((20, width)), distinct_palette(6)
    truth = np.full((20, width), 1, np.uint8)
    prediction = np.full((20, width), 4, np.uint8)
    names = ["a", "road", "c", "d", "vegetation", "f"]
    picture = triptych(photo, truth, prediction, colors, names)
    plain = triptych(photo, truth, prediction, colors)
    assert np.array_equal(picture[:20], plain)
    strip = picture[20:].reshape(-1, 3)
    shown = [bool((strip == color).all(1).any()) for color in colors]
    assert shown == [False, True, False, False, True, False]


def test_triptych_names_both_sizes_when_they_differ():
    with pytest.raises(ValueError, match="20 x 30, but a label map of 20 x 29"):
        triptych(random_photo(), None, random_label((20, 29)), distinct_palette(5))


@pytest.mark.parametrize("classes", [1, 2, 19, 41, 150])
def test_confusion_picture_shows_shares_of_each_row(classes):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 50, (classes, classes))
    matrix[classes // 2] = 0
    names = [f"class number {index}" for index in range(classes)]
    picture = confusion_picture(matrix, names)
    assert picture.dtype == np.uint8
    assert max(picture.shape) < 2600
    times = rng.integers(1, 9, (classes, 1))
    assert np.array_equal(confusion_picture(matrix * times, names), picture)
    assert np.array_equal(picture[:10], np.full_like(picture[:10], 255))


def test_confusion_picture_is_dark_where_all_pixels_are():
    """A permutation matrix: as many fully dark cells as classes, the rest white."""
    names = [str(index) for index in range(50)]
    straight = confusion_picture(np.eye(50, dtype=np.int64), names)
    mirrored = confusion_picture(np.eye(50, dtype=np.int64)[:, ::-1], names)
    dark = (straight == (10, 40, 100)).all(2)
    rows, columns = np.nonzero(dark)
    assert np.corrcoef(rows, columns)[0, 1] > 0.99
    assert not np.array_equal(straight, mirrored)
