"""Mixes of two crops, against loops over their pixels; and the same from the same key."""

import numpy as np
import pytest

from dataset.augment.mix import Mixer, box_mask, class_mask
from dataset.augment.transform import TrainTransform
from dataset.base import Key
from dataset.load.uniform import find_points
from tests.three_pictures import build, fails, save

pytestmark = pytest.mark.fast
CROP = (10, 14)


def crops(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*CROP, 3)).astype(np.uint8), rng.choice([0, 1, 2, 3, 255], CROP).astype(np.uint8)


@pytest.mark.parametrize("kind", ["cutmix", "classmix", "copy_paste"])
def test_pixels_move_with_their_labels(kind):
    """Each pixel is that of one of the two crops, with its own label; which, a loop says."""
    for seed in range(20):
        first, other = crops(seed), crops(seed + 100)
        points = np.array([[2, 0, 0, 0]], np.int32)
        mixer = Mixer(copy_paste=1.0, rare=(2, 3), points=points) if kind == "copy_paste" else Mixer(**{kind: 1.0})
        image, label = mixer.apply(kind, np.random.default_rng(seed), first, other)
        if kind == "cutmix":
            u = np.random.default_rng(seed).random(3)
            sides = [side * u[0] ** 0.5 for side in CROP]
            low = [round(place * side - cut / 2) for place, side, cut in zip(u[1:], CROP, sides, strict=True)]
            high = [round(place * side + cut / 2) for place, side, cut in zip(u[1:], CROP, sides, strict=True)]
        chosen = {2, 3}
        if kind == "classmix":
            there = sorted(set(other[1].ravel().tolist()) - {255})
            chosen = set(np.random.default_rng(seed).permutation(np.uint8(there)).tolist()[: max(1, len(there) // 2)])
        for y in range(CROP[0]):
            for x in range(CROP[1]):
                inside = low[0] <= y < high[0] and low[1] <= x < high[1] if kind == "cutmix" else None
                taken = inside if kind == "cutmix" else int(other[1][y, x]) in chosen
                source = other if taken else first
                assert image[y, x].tolist() == source[0][y, x].tolist() and label[y, x] == source[1][y, x]


def test_boxes_have_any_share_and_place():
    """Of the area's share uniform in 0..1 and a uniform centre, half a side is cut off at a border now and then."""
    rng = np.random.default_rng(0)
    masks = np.array([box_mask(rng, (40, 60)) for _ in range(4000)])
    sides = np.linspace(0, 1, 400) ** 0.5
    expected = np.mean(np.square([np.mean([min(1, c + s / 2) - max(0, c - s / 2) for c in sides**2]) for s in sides]))
    assert abs(masks.mean() - expected) < 0.02
    assert np.abs(masks.mean(0) - masks.mean(0)[::-1, ::-1]).max() < 0.06


@pytest.mark.parametrize("values, count", [([4, 5, 6, 7], 2), ([1, 2, 3, 255], 1), ([3, 255], 1), ([255], 0)])
def test_half_of_the_classes(values, count):
    label = np.array(values, np.uint8)[None].repeat(2, 0)
    mask = class_mask(np.random.default_rng(0), label)
    assert len(np.unique(label[mask])) == count and not mask[label == 255].any()


def test_shares_are_kept_and_others_stay():
    mixer, rng = Mixer(cutmix=0.2, classmix=0.3), np.random.default_rng(0)
    drawn = [mixer.draw(rng, 7) for _ in range(4000)]
    kinds = [partner and partner.kind for partner in drawn]
    assert abs(kinds.count("cutmix") / 4000 - 0.2) < 0.03 and abs(kinds.count("classmix") / 4000 - 0.3) < 0.03
    assert {partner.index for partner in drawn if partner} == set(range(7))
    alone = [Mixer(cutmix=0.2).draw(np.random.default_rng(seed), 7) for seed in range(200)]
    both = [mixer.draw(np.random.default_rng(seed), 7) for seed in range(200)]
    assert all(one == two for one, two in zip(alone, both, strict=True) if one is not None)
    fails("together at most 1", Mixer, cutmix=0.6, classmix=0.5)
    fails("no label holds a pixel", Mixer, copy_paste=0.5, rare=(1,), points=np.zeros((0, 4), np.int32))


def test_a_sample_is_a_function_of_its_key(tree):
    """The rare class stands in one pixel of one picture of three: whatever it is pasted into holds it."""
    for name in "abc":
        label = np.zeros((12, 16), np.uint8)
        label[6:, :8] = 1
        if name == "b":
            label[2, 13] = 2
        save(tree / f"label/{name}.png", label)
    options = {"scale": (1, 1), "rotate_prob": 0, "blur_prob": 0}
    plain, mixed, again = (build(tree, transform=TrainTransform((8, 8), **options), seed=3) for _ in range(3))
    points = find_points(plain, 16, workers=1).table
    for dataset in (mixed, again):
        dataset.mixer = Mixer(copy_paste=0.5, rare=(2,), points=points)
    pasted = 0
    for epoch in range(20):
        for index in (2, 0):
            key = Key(epoch, index)
            one, two, before = mixed[key], again[key], plain[key]
            assert np.array_equal(one["image"], two["image"]) and np.array_equal(one["label"], two["label"])
            new = one["label"].numpy() == 2
            assert new.sum() <= 1
            assert np.array_equal(one["label"].numpy()[~new], before["label"].numpy()[~new])
            assert np.array_equal(one["image"].numpy()[:, ~new], before["image"].numpy()[:, ~new])
            pasted += int(new.sum())
    assert 8 <= pasted <= 32
