"""The check of a data set before the first step."""

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset import build_dataset
from dataset.prepare.check import check_dataset, compare_splits
from dataset.read import DataError
from tests.paths import SHARED
from tests.three_pictures import build, fails, picture, save, save_palette

pytestmark = pytest.mark.fast

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


def test_masks_of_0_and_255_are_refused_with_the_map(tree):
    mask = np.full((12, 16), 255, np.uint8)
    mask[0, 0] = 0
    for name in "abc":
        save(tree / f"label/{name}.png", mask)
    options = {"classes": ["back", "front"]}
    fails(["train.txt: the labels hold only 0 and 255", "{0: 0, 255: 1}"], check_dataset, build(tree, **options))
    assert check_dataset(build(tree, label_map={0: 0, 255: 1}, **options)).pixels == (3, 3 * 191)
    said = check_dataset(build(tree, label_map={0: 0, 1: 1, 255: 255}, **options))
    assert any("99.5% of the pixels" in warning for warning in said.warnings)


def test_check_warns_where_depth_is_not_used(tree):
    rng = np.random.default_rng(0)
    for name in "abc":
        save(tree / f"image/{name}.png", rng.integers(0, 2401, (12, 16)).astype(np.uint16))
    (warning,) = check_dataset(build(tree)).warnings
    assert "use 10 of the 256 levels" in warning and "data.range: [" in warning
    assert not check_dataset(build(tree, limits=(0, 2400))).warnings
    assert check_dataset(build(tree, limits=(0, 60000))).warnings
    save(tree / "image/a.png", np.dstack([picture(rng), np.full((12, 16), 9, np.uint8)]))
    assert any("transparency, which is not read" in text for text in check_dataset(build(tree)).warnings)


def test_check_groups_unknown_values_and_gives_the_map(tree):
    for name in "abc":
        label = np.asarray(Image.open(tree / f"label/{name}.png")).copy()
        label[0, :2] = 7, 9
        label[1, 0] = 8 if name == "b" else 0
        save(tree / f"label/{name}.png", label)
    dataset = build(tree)
    try:
        check_dataset(dataset)
    except DataError as error:
        lines = str(error).split("\n  ")
    assert lines[0].endswith("train.txt: 3 of 3 samples cannot be used:") and len(lines) == 4
    assert "label/a.png: values 7, 9 are not in the label map" in lines[1] and "the same in" in lines[1]
    assert "label/b.png: value 8 is not in the label map" in lines[2]
    pasted = lines[3].rpartition("label_map: ")[2]
    assert yaml.safe_load(pasted) == {0: 0, 1: 1, 2: 2, 7: 255, 8: 255, 9: 255}
    assert check_dataset(build(tree, label_map=yaml.safe_load(pasted))).ignored == 7


def test_a_picture_in_place_of_a_colour_label_is_one_line(tree):
    save(tree / "label/a.png", picture(np.random.default_rng(0), 40, 40))
    save(tree / "image/a.png", picture(np.random.default_rng(0), 40, 40))
    by_color = {(0, 0, 0): 0, (1, 1, 1): 1, (2, 2, 2): 2, 0: 0, 1: 1, 2: 2}
    fails(
        ["1 of 3 samples", "colours are not in the label map of custom: a picture"],
        check_dataset,
        build(tree, label_map=by_color),
    )


def test_palettes_of_a_set_must_agree(tree):
    """The indices are ids as in VOC as long as each has one colour in all files."""
    ids = {name: np.asarray(Image.open(tree / f"label/{name}.png")) for name in "abc"}
    colors = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [9, 9, 200]], np.uint8)
    for name in "abc":
        save_palette(tree / f"label/{name}.png", ids[name], colors)
    counted = np.bincount(np.concatenate([each.ravel() for each in ids.values()]), minlength=3)
    report = check_dataset(build(tree))
    assert report.pixels == tuple(counted) and report.palette == ((0, 0, 0, 0), (1, 128, 0, 0), (2, 0, 128, 0))
    save_palette(tree / "label/b.png", ids["b"], colors[[0, 1, 2, 0]])  # an entry that no pixel has
    assert check_dataset(build(tree)).pixels == tuple(counted)
    save_palette(tree / "label/b.png", 2 - ids["b"], colors[[2, 1, 0]])  # the same picture, other indices
    fails(["label/b.png: its palette gives index 0 the colour (0, 128, 0)", "label/a.png"], check_dataset, build(tree))
    by_color = {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2}
    assert check_dataset(build(tree, label_map=by_color)).pixels == tuple(counted)


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
    monkeypatch.setattr("dataset.prepare.check.read_stored", lambda path: pytest.fail("read again"))
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
