"""The check of a data set before the first step."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from dataset import build_dataset
from dataset.prepare.check import check_dataset, compare_splits
from tests.paths import SHARED
from tests.three_pictures import build, fails, picture, save

CAMVID = SHARED / "data" / "camvid"
needs_camvid = pytest.mark.skipif(not (CAMVID / "train.txt").is_file(), reason=f"no CamVid in {CAMVID}")


def test_check_counts_pixels(tree):
    report = check_dataset(build(tree, classes=["x", "y", "z", "never"]))
    labels = np.stack([np.asarray(Image.open(tree / f"label/{name}.png")) for name in "abc"])
    assert report.pixels == tuple((labels == i).sum() for i in range(4)) and report.ignored == 0
    assert (report.images, report.labelled, report.smallest, report.largest) == (3, 3, (12, 16), (12, 16))
    assert len(report.warnings) == 1 and "never occur" in report.warnings[0] and "never" in report.warnings[0]


def test_check_names_the_offending_files_and_how_many(tree):
    save(tree / "label/a.png", np.full((12, 16), 5, np.uint8))
    save(tree / "label/b.png", np.zeros((3, 3), np.uint8))
    (tree / "image/c.png").write_text("no picture")
    fails(
        [
            "train.txt: 3 of 3 samples cannot be used",
            "label/a.png: value 5 is not in the label map",
            "label/b.png: the label is 3x3",
            "image/c.png: not a readable picture",
        ],
        check_dataset,
        build(tree),
    )


def test_check_shows_only_the_first_errors(tmp_path):
    for i in range(9):
        save(tmp_path / f"{i}.png", np.zeros((4, 4, 3), np.uint8))
        save(tmp_path / f"{i}_label.png", np.full((4, 4), 9, np.uint8))
    (tmp_path / "train.txt").write_text("".join(f"{i}.png {i}_label.png\n" for i in range(9)))
    fails(["9 of 9", "4_label.png", "and 4 more"], check_dataset, build(tmp_path))


def test_check_reads_colour_and_16_bit_labels(tree):
    colors = np.array([[10, 20, 30], [200, 0, 7], [0, 0, 1]], np.uint8)
    expected = np.zeros(3, int)
    for name in "abc":
        ids = np.asarray(Image.open(tree / f"label/{name}.png"))
        expected += np.bincount(ids.ravel(), minlength=3)
        save(tree / f"label/{name}.png", colors[ids] if name == "a" else ids.astype(np.uint16) + 500)
    map_ = {**{tuple(color): i for i, color in enumerate(colors.tolist())}, 500: 0, 501: 1, 502: 2}
    assert check_dataset(build(tree, label_map=map_)).pixels == tuple(expected)


def test_check_warns_of_labels_already_mapped(tmp_path):
    rng = np.random.default_rng(0)
    save(tmp_path / "a.png", picture(rng))
    (tmp_path / "train.txt").write_text("a.png a_label.png\n")
    train_ids = rng.integers(0, 19, (12, 16)).astype(np.uint8)
    save(tmp_path / "a_label.png", train_ids)
    dataset = build_dataset("cityscapes", tmp_path)
    assert any("already" in text for text in check_dataset(dataset).warnings)
    save(tmp_path / "a_label.png", rng.choice([7, 8, 11, 23, 26, 0], (12, 16)).astype(np.uint8))
    assert not any("already" in text for text in check_dataset(dataset).warnings)


def test_check_warns_of_binary_masks_and_ignored_pixels(tree):
    mask = np.full((12, 16), 255, np.uint8)
    mask[0, 0] = 0
    for name in "abc":
        save(tree / f"label/{name}.png", mask)
    warnings = " ".join(check_dataset(build(tree, classes=["back", "front"])).warnings)
    assert "{0: 0, 255: 1}" in warnings and "99.5% of the pixels" in warnings


def test_compare_splits(tree):
    (tree / "val.txt").write_text("image/a.png label/a.png\n")
    (tree / "train.txt").write_text("image/b.png label/b.png\n")
    save(tree / "label/b.png", np.zeros((12, 16), np.uint8))
    train, val = build(tree), build(tree, split="val")
    reports = check_dataset(train), check_dataset(val)
    warnings = compare_splits(train, reports[0], val, reports[1])
    assert len(warnings) == 1 and "y, z" in warnings[0]
    warnings = compare_splits(val, reports[1], val, reports[1])
    assert len(warnings) == 1 and "1 pictures are in" in warnings[0] and "image/a.png" in warnings[0]


def test_stamp_skips_the_reading_until_something_changes(tree, monkeypatch):
    stamp = tree / "out" / "check.json"
    first = check_dataset(build(tree), stamp=stamp)
    monkeypatch.setattr("dataset.prepare.check.read_label", lambda path: pytest.fail("read again"))
    second = check_dataset(build(tree), stamp=stamp)
    assert second.cached and not first.cached
    assert (second.pixels, second.warnings, second.smallest) == (first.pixels, first.warnings, first.smallest)
    monkeypatch.undo()
    assert not check_dataset(build(tree, label_map={0: 0, 1: 1, 2: 1}), stamp=stamp).cached
    check_dataset(build(tree), stamp=stamp)
    save(tree / "label/a.png", np.full((12, 16), 9, np.uint8))
    os.utime(tree / "label/a.png", ns=(1, 1))
    fails("label/a.png: value 9", check_dataset, build(tree), stamp=stamp)
    save(tree / "label/a.png", np.zeros((12, 16), np.uint8))
    stamp.write_text(stamp.read_text()[:40])
    assert not check_dataset(build(tree), stamp=stamp).cached
    assert json.loads(stamp.read_text())["report"]["images"] == 3


@needs_camvid
def test_real_camvid():
    train, val = build_dataset("camvid", CAMVID), build_dataset("camvid", CAMVID, split="val")
    assert (len(train), len(val)) == (367, 101)
    sample = val[0]
    assert sample["image"].shape == (3, 360, 480) and sample["name"] == "0016E5_07959"
    report = check_dataset(val)
    assert report.labelled == 101 and min(report.pixels) > 0 and 0 < report.ignored < sum(report.pixels)
    raw = [np.asarray(Image.open(label)) for _, label in val.samples[:5]]
    mapped = [val.source.open(i)[1] for i in range(5)]
    assert all(np.array_equal(b, np.where(a == 11, 255, a)) for a, b in zip(raw, mapped, strict=True))
