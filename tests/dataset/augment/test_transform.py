"""The one-warp augmentation against the obvious sequence: resize, rotate, blur, flip, pad, crop."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from dataset.augment.color import Photometric, color_matrix
from dataset.augment.transform import TrainTransform
from dataset.augment.warp import Drawn, scaled_point

pytestmark = pytest.mark.fast

MEAN = (123.675, 116.28, 103.53)
NO_JITTER = (1.0, 1.0, 1.0, 0.0)
OFF = {"scale": (1, 1), "rotate": (0, 0), "rotate_prob": 0, "blur_prob": 0, "flip_prob": 0}


def slow(image, label, drawn, crop):
    """Whole-picture steps in the recipe's order. The label's resize takes the nearest pixel by centres."""
    image = cv2.resize(image, None, fx=drawn.scale, fy=drawn.scale, interpolation=cv2.INTER_LINEAR)
    label = cv2.resize(label, None, fx=drawn.scale, fy=drawn.scale, interpolation=cv2.INTER_NEAREST_EXACT)
    assert label.shape == drawn.size
    if drawn.angle:
        height, width = label.shape
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), drawn.angle, 1)
        options = {"dsize": (width, height), "borderMode": cv2.BORDER_CONSTANT}
        image = cv2.warpAffine(image, matrix, flags=cv2.INTER_LINEAR, borderValue=MEAN, **options)
        label = cv2.warpAffine(label, matrix, flags=cv2.INTER_NEAREST, borderValue=255, **options)
    if drawn.blur:
        image = cv2.GaussianBlur(image, (5, 5), 0)
    if drawn.flip:
        image, label = cv2.flip(image, 1), cv2.flip(label, 1)
    pads = [max(want - have, 0) for want, have in zip(crop, label.shape, strict=True)]
    sides = [pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2]
    image = cv2.copyMakeBorder(image, *sides, cv2.BORDER_CONSTANT, value=MEAN)
    label = cv2.copyMakeBorder(label, *sides, cv2.BORDER_CONSTANT, value=255)
    top, left = max(drawn.top, 0), max(drawn.left, 0)
    window = np.s_[top : top + crop[0], left : left + crop[1]]
    return np.ascontiguousarray(image[window]), np.ascontiguousarray(label[window])


def noise(height=90, width=120, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        rng.integers(0, 19, (height, width)).astype(np.uint8),
    )


def scene(height=600, width=800):
    """A smooth picture and a label of large regions."""
    y, x = np.mgrid[:height, :width] / 80
    image = np.stack([np.sin(x + y), np.cos(x * y / 5), np.sin(y * 1.3)], -1) * 100 + 128
    label = ((np.sin(x) + np.cos(y)) * 1.4 + 9).astype(np.uint8)
    return image.astype(np.uint8), label


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [(50, 70), (90, 120), (101, 133), (60, 160)])
def test_crop_flip_and_padding_are_exact(crop, flip):
    image, label = noise()
    transform = TrainTransform(crop, **{**OFF, "flip_prob": float(flip)})
    for seed in range(5):
        drawn = transform.draw(np.random.default_rng(seed), label.shape)
        assert drawn.flip == flip
        ours, truth = transform.apply(image, label, drawn), slow(image, label, drawn, crop)
        assert ours[0].dtype == ours[1].dtype == np.uint8
        assert np.array_equal(ours[0], truth[0]) and np.array_equal(ours[1], truth[1])


@pytest.mark.parametrize("factor", [2, 3])
def test_labels_at_whole_scales_are_exact(factor):
    image, label = noise()
    crop = (90 * factor - 7, 120 * factor - 9)
    drawn = Drawn(float(factor), 0.0, True, False, (90 * factor, 120 * factor), 3, 4, NO_JITTER)
    ours = TrainTransform(crop).apply(image, label, drawn)
    big = np.repeat(np.repeat(label, factor, 0), factor, 1)[:, ::-1]
    assert np.array_equal(ours[1], big[3 : 3 + crop[0], 4 : 4 + crop[1]])
    assert np.array_equal(ours[1], slow(image, label, drawn, crop)[1])


# At exactly 0.5 a label's pixel centre falls between two pixels, and either is the nearest.
@pytest.mark.parametrize("scale", [0.52, 0.73, 1.0, 1.37, 2.0])
@pytest.mark.parametrize("angle, flip, blur", [(0.0, False, False), (7.3, True, False), (-9.1, False, True)])
def test_general_parameters_agree_with_the_sequence(scale, angle, flip, blur):
    image, label = scene()
    crop = (240, 260)
    size = (round(600 * scale), round(800 * scale))
    drawn = Drawn(scale, angle, flip, blur, size, (size[0] - 240) // 3, (size[1] - 260) // 2, NO_JITTER)
    ours, truth = TrainTransform(crop).apply(image, label, drawn), slow(image, label, drawn, crop)
    known = (ours[1] != 255) & (truth[1] != 255)
    assert known.mean() > 0.9
    difference = np.abs(ours[0].astype(int) - truth[0])[known]
    assert difference.mean() < 1
    assert (ours[1] == truth[1])[known].mean() > 0.99
    # The sequence rounds labels to pixels twice; where that differs, it does so by one pixel.
    around = np.stack([np.roll(truth[1], (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    assert (around == ours[1]).any(0)[known].mean() > 0.9995


@pytest.mark.parametrize("flip", [False, True])
def test_a_window_resized_alone_is_the_crop_of_the_resized_picture(flip):
    """Without rotation only a window is resized: it may lie a few hundredths of a pixel off, and not more."""
    image, label = scene()
    transform = TrainTransform((200, 230), **{**OFF, "scale": (0.3, 2.2), "flip_prob": float(flip)})
    for seed in range(40):
        drawn = transform.draw(np.random.default_rng(seed), label.shape)
        ours, truth = transform.apply(image, label, drawn), slow(image, label, drawn, transform.crop)
        known = ours[1] != 255
        assert np.array_equal(known, truth[1] != 255)
        difference = np.abs(ours[0].astype(int) - truth[0])
        assert difference[known].mean() < 0.2 and np.percentile(difference, 99.9) <= 2, seed
        assert (difference[~known] == 0).all()


def test_rotation_direction_and_centre():
    """90 degrees about the centre of a square is numpy's rot90, pixel for pixel."""
    image, label = noise(40, 40)
    drawn = Drawn(1.0, 90.0, False, False, (40, 40), 0, 0, NO_JITTER)
    ours = TrainTransform((40, 40)).apply(image, label, drawn)
    assert np.array_equal(ours[0], np.rot90(image)) and np.array_equal(ours[1], np.rot90(label))


def test_smaller_picture_is_padded_in_the_middle():
    image, label = noise(20, 30)
    ours = TrainTransform((41, 50), **OFF)(image, label, np.random.default_rng(0))
    assert np.array_equal(ours[1][10:30, 10:40], label)
    border = np.ones((41, 50), bool)
    border[10:30, 10:40] = False
    assert (ours[1][border] == 255).all() and (ours[0][border] == [124, 116, 104]).all()


def test_no_new_label_value_and_no_loss_of_alignment():
    """Labels are never interpolated, and stay on their pixels: the picture here is a drawing of the label."""
    values = np.array([0, 7, 18, 30], np.uint8)
    label = np.repeat(np.repeat(values[np.random.default_rng(0).integers(0, 4, (6, 8))], 20, 0), 20, 1)
    image = np.dstack([label] * 3) * np.uint8(4)
    transform = TrainTransform((100, 110), blur_prob=0)
    for seed in range(60):
        crop, mask = transform(image, label, np.random.default_rng(seed))
        assert crop.shape == (100, 110, 3) and set(np.unique(mask)) <= {*values.tolist(), 255}
        known = cv2.erode((mask != 255).astype(np.uint8), np.ones((3, 3))) > 0
        assert (crop[:, :, 0] == mask * np.uint8(4))[known].mean() > 0.8


def test_same_generator_same_crop():
    image, label = noise()
    transform = TrainTransform((50, 60), jitter=0.3)
    first = transform(image, label, np.random.default_rng([1, 2, 3]))
    again = transform(image, label, np.random.default_rng([1, 2, 3]))
    other = transform(image, label, np.random.default_rng([1, 2, 4]))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_switching_one_augmentation_off_leaves_the_other_draws():
    full = TrainTransform((50, 60), jitter=0.3).draw(np.random.default_rng(5), (90, 120))
    less = TrainTransform((50, 60), blur_prob=0, flip_prob=0).draw(np.random.default_rng(5), (90, 120))
    assert (full.scale, full.angle, full.top, full.left) == (less.scale, less.angle, less.top, less.left)


def test_distribution_of_the_draws():
    transform = TrainTransform((100, 100))
    rng = np.random.default_rng(0)
    draws = [transform.draw(rng, (200, 300)) for _ in range(4000)]
    scales = np.array([drawn.scale for drawn in draws])
    angles = np.array([drawn.angle for drawn in draws])
    assert abs(scales.mean() - 1.25) < 0.03 and 0.5 <= scales.min() < 0.51 and 1.99 < scales.max() <= 2
    assert abs((angles == 0).mean() - 0.5) < 0.03 and np.abs(angles).max() <= 10
    assert abs(np.mean([drawn.flip for drawn in draws]) - 0.5) < 0.03
    assert abs(np.mean([drawn.blur for drawn in draws]) - 0.5) < 0.03
    assert all(0 <= drawn.top <= drawn.size[0] - 100 for drawn in draws)
    tops = [TrainTransform((100, 300), **OFF).draw(rng, (103, 300)).top for _ in range(400)]
    assert set(tops) == {0, 1, 2, 3}


def test_very_wide_picture():
    """Wider than the 16 bit coordinates of some warps."""
    label = np.zeros((40, 40000), np.uint8)
    label[:, 39990:] = 7
    drawn = Drawn(1.0, 0.0, False, False, label.shape, 5, 39968, NO_JITTER)
    ours = TrainTransform((32, 32)).apply(np.dstack([label] * 3), label, drawn)
    assert np.array_equal(ours[1], label[5:37, 39968:])
    assert np.array_equal(ours[0][:, :, 1], label[5:37, 39968:])


def test_colour_matrix_against_the_single_steps():
    image, _ = noise()
    values = image.astype(np.float64)
    grey = np.array([0.299, 0.587, 0.114])

    def blend(a, b, factor):
        return factor * a + (1 - factor) * b

    expected = values * 0.9
    expected = blend(expected, (expected @ grey).mean(), 1.2)
    expected = blend(expected, (expected @ grey)[:, :, None], 0.7)
    matrix = color_matrix((0.9, 1.2, 0.7, 0.0), image)
    assert np.abs(values @ matrix[:, :3].T + matrix[:, 3] - expected).max() < 1e-6
    ours = cv2.transform(image, matrix)
    assert np.abs(ours - np.clip(expected, 0, 255)).max() < 0.75


def test_hue_turns_colours_and_keeps_greys():
    turn = color_matrix((1, 1, 1, 1 / 3), np.zeros((2, 2, 3), np.uint8))
    assert np.abs(turn[:, :3] @ np.full(3, 100.0) - 100).max() < 0.1
    red, green, blue = (turn[:, :3] @ np.eye(3)[i] for i in range(3))
    assert (np.argmax(red), np.argmax(green), np.argmax(blue)) in {(1, 2, 0), (2, 0, 1)}
    thrice = np.linalg.matrix_power(turn[:, :3], 3)
    assert np.abs(thrice - np.eye(3)).max() < 1e-9
    assert np.abs(color_matrix(NO_JITTER, np.zeros((2, 2, 3), np.uint8))[:, :3] - np.eye(3)).max() < 1e-9


def test_jitter_changes_the_picture_but_not_the_label():
    image, label = scene()
    plain = TrainTransform((100, 100), **OFF)(image, label, np.random.default_rng(3))
    jittered = TrainTransform((100, 100), jitter=(0.4, 0.4, 0.4, 0.1), **OFF)(image, label, np.random.default_rng(3))
    assert np.array_equal(plain[1], jittered[1]) and not np.array_equal(plain[0], jittered[0])
    assert TrainTransform((4, 4), jitter=0.25).jitter == (0.25,) * 4


POINTS = [(0, 0), (0, 119), (89, 0), (89, 119), (45, 60), (3, 80)]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("crop", [(30, 40), (90, 120), (101, 50), (200, 210)])
def test_a_crop_holds_the_point_it_was_asked_for(point, crop):
    """Whatever the scale, the angle and the mirror, and also where rotation carries a corner out."""
    label = np.zeros((90, 120), np.uint8)
    y, x = point
    label[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = 7
    transform = TrainTransform(crop, rotate_prob=0.7, blur_prob=0)
    for seed in range(60):
        drawn = transform.draw(np.random.default_rng(seed), label.shape, point)
        row, column = scaled_point(drawn, point)
        row, column = row - drawn.top, column - drawn.left
        assert 0 <= row < crop[0] and 0 <= column < crop[1]
        _, mask = transform(np.dstack([label] * 3), label, np.random.default_rng(seed), point)
        # A pixel at the very border may fall half a pixel outside.
        assert (mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] == 7).any()


@pytest.mark.parametrize("flip", [False, True])
def test_the_point_is_where_the_label_says(flip):
    """Every pixel has an id of its own; at whole scales it keeps it."""
    label = np.arange(240, dtype=np.uint8).reshape(12, 20)
    for factor in (1, 3):
        transform = TrainTransform((9, 11), **{**OFF, "scale": (factor, factor), "flip_prob": float(flip)})
        for seed in range(40):
            point = (seed * 7 % 12, seed * 3 % 20)
            drawn = transform.draw(np.random.default_rng(seed), label.shape, point)
            _, mask = transform.apply(np.dstack([label] * 3), label, drawn)
            row, column = scaled_point(drawn, point)
            assert mask[row - drawn.top, column - drawn.left] == label[point]
            assert 0 <= drawn.top <= drawn.size[0] - 9 and 0 <= drawn.left <= drawn.size[1] - 11


def test_the_crops_round_a_point_are_equally_frequent():
    """In 20 columns those of width 5 that hold column 2 begin at 0, 1 or 2; those that hold 10 at 6 to 10."""
    transform = TrainTransform((4, 5), **OFF)
    rng = np.random.default_rng(0)
    for column, starts in ((2, 3), (10, 5), (19, 1)):
        lefts = [transform.draw(rng, (4, 20), (1, column)).left for _ in range(1500)]
        values, counts = np.unique(lefts, return_counts=True)
        assert len(values) == starts and values.max() == min(column, 15)
        assert counts.min() > 0.8 * 1500 / starts


def test_a_point_changes_nothing_but_the_place_of_the_crop():
    transform = TrainTransform((50, 60), jitter=0.3, photometric=True)
    free = transform.draw(np.random.default_rng(5), (90, 120))
    held = transform.draw(np.random.default_rng(5), (90, 120), (2, 3))
    assert (free.top, free.left) != (held.top, held.left)
    assert replace(held, top=free.top, left=free.left) == free


def slow_photometric(image, drawn):
    """The steps of the published transform on BGR, each of its own, cut to 8 bit after each."""

    def convert(values, factor=1.0, offset=0.0):
        return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)

    image = convert(image[:, :, ::-1], offset=drawn.brightness)
    if not drawn.contrast_last:
        image = convert(image, drawn.contrast)
    for factor, turn in ((drawn.saturation, 0), (1.0, drawn.hue)):
        if factor == 1 and not turn:
            continue
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], factor)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + turn) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if drawn.contrast_last:
        image = convert(image, drawn.contrast)
    return image[:, :, ::-1]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("brightness, contrast", [(0, 1), (-31.7, 1), (12.3, 0.51), (30, 1.49)])
@pytest.mark.parametrize("saturation, hue", [(1, 0), (0.6, 0), (1.45, 0), (1, -18), (1, 17)])
def test_photometric_distortion_is_the_sequence_of_its_steps(brightness, contrast, last, saturation, hue):
    image, _ = noise()
    drawn = Photometric(brightness, contrast, last, saturation, hue)
    assert np.array_equal(drawn.apply(image), slow_photometric(image, drawn))


def test_saturation_and_hue_together_differ_by_rounding_alone():
    image = scene()[0]
    drawn = Photometric(5, 1.2, True, 0.7, 11)
    difference = np.abs(drawn.apply(image).astype(int) - slow_photometric(image, drawn))
    assert difference.mean() < 1.5 and np.percentile(difference, 99) <= 6


def test_distribution_of_the_photometric_distortion():
    rng = np.random.default_rng(0)
    draws = [Photometric.draw(rng) for _ in range(4000)]
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -18, 17),
    ):
        values = np.array([getattr(drawn, name) for drawn in draws], float)
        near = (high - low) / 30
        assert abs((values != neutral).mean() - (0.5 if name != "hue" else 0.5 * 35 / 36)) < 0.03
        assert low <= values.min() < low + near and high - near < values.max() <= high
    assert abs(np.mean([drawn.contrast_last for drawn in draws]) - 0.5) < 0.03


def test_photometric_distortion_leaves_the_label_and_the_other_draws():
    image, label = scene()
    plain, distorted = (TrainTransform((100, 100), photometric=on) for on in (False, True))
    seeds = range(8)
    for seed in seeds:
        draws = [t.draw(np.random.default_rng(seed), label.shape) for t in (plain, distorted)]
        assert replace(draws[1], photometric=None) == draws[0]
    results = [[t(image, label, np.random.default_rng(seed)) for seed in seeds] for t in (plain, distorted)]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(*results, strict=True))
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop": (0, 5)}, "crop"),
        ({"crop": 5}, "crop"),
        ({"crop": (4.5, 5)}, "crop"),
        ({"scale": (2, 1)}, "scale"),
        ({"scale": (0, 1)}, "scale"),
        ({"rotate": (1,)}, "rotate"),
        ({"blur_prob": 2}, "blur_prob"),
        ({"flip_prob": -1}, "flip_prob"),
        ({"jitter": (0.1, 0.1)}, "jitter"),
        ({"jitter": 0.7}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"^{message}: "):
        TrainTransform(**{"crop": (4, 4), **options})


def test_bands_are_augmented_as_each_alone():
    """Seven bands in one draw are what each gives as a picture of one band."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (90, 120, 7)).astype(np.uint8), rng.integers(0, 5, (90, 120)).astype(np.uint8)
    mean = tuple(range(10, 80, 10))
    for seed, rotate in ((0, 0), (1, 1), (2, 1)):
        options = {"rotate_prob": rotate, "blur_prob": 1.0}
        drawn = TrainTransform((100, 110), mean=mean, **options).draw(np.random.default_rng(seed), label.shape)
        whole, _ = TrainTransform((100, 110), mean=mean, **options).apply(image, label, drawn)
        for band in range(7):
            single = TrainTransform((100, 110), mean=mean[band : band + 1], **options)
            alone, _ = single.apply(image[:, :, band : band + 1], label, drawn)
            assert np.abs(whole[:, :, band].astype(int) - alone[:, :, 0]).max() <= 1


@pytest.mark.parametrize("crop", [(50, 70), (120, 90), (101, 133)])
def test_turns_and_vertical_flips_are_exact(crop):
    """A crop of the turned size, turned and flipped as a whole."""
    image, label = noise()
    transform = TrainTransform(crop, **OFF, vflip_prob=0.5, turn_prob=0.75)
    seen = set()
    for seed in range(30):
        drawn = transform.draw(np.random.default_rng(seed), label.shape)
        inner = crop[::-1] if drawn.turn % 2 else crop
        truth = [np.rot90(part, drawn.turn) for part in slow(image, label, drawn, inner)]
        truth = [part[::-1] if drawn.vertical else part for part in truth]
        ours = transform.apply(image, label, drawn)
        assert ours[1].shape == crop and all(np.array_equal(a, b) for a, b in zip(ours, truth, strict=True))
        assert all(part.flags.c_contiguous for part in ours)
        seen.add((drawn.turn, drawn.vertical))
    assert len(seen) == 8


def test_cut_out_squares_are_ignored_and_of_the_mean_colour():
    """DeVries and Taylor: a square of a fixed side, its centre anywhere, cut off at the borders."""
    image, label = noise()
    with_hole = TrainTransform((60, 80), **OFF, cutout_prob=1.0, cutout_size=0.5)
    without = TrainTransform((60, 80), **OFF)
    centres = []
    for seed in range(200):
        ours = with_hole(image, label, np.random.default_rng(seed))
        truth = without(image, label, np.random.default_rng(seed))
        rows, columns = np.nonzero(ours[1] == 255)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        for part, value in zip(truth, (np.rint(MEAN), 255), strict=True):
            part[top:bottom, left:right] = value
        assert all(np.array_equal(a, b) for a, b in zip(ours, truth, strict=True))
        assert bottom - top == 30 or top == 0 or bottom == 60
        centres.append(top if bottom == 60 else bottom - 30)
    assert min(centres) < -10 and max(centres) > 40


def test_the_new_choices_leave_the_others_as_they_were():
    plain = TrainTransform((50, 60), photometric=True).draw(np.random.default_rng(5), (90, 120))
    more = TrainTransform((50, 60), photometric=True, vflip_prob=1, cutout_prob=1).draw(
        np.random.default_rng(5), (90, 120)
    )
    assert replace(more, vertical=False, hole=None) == plain


def test_a_point_stays_in_a_turned_crop():
    image, label = noise()
    transform = TrainTransform((40, 20), turn_prob=1.0, vflip_prob=0.5, blur_prob=0, rotate_prob=0)
    for seed in range(40):
        point = tuple(np.random.default_rng(seed).integers(0, (90, 120)).tolist())
        label[:] = 0
        label[max(0, point[0] - 2) : point[0] + 3, max(0, point[1] - 2) : point[1] + 3] = 7
        assert (transform(image, label, np.random.default_rng(seed), point)[1] == 7).any()
