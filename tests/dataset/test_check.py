"""The check of a data set before the first step."""

import json
import os
from dataclasses import asdict

import numpy as np
import pytest
import yaml
from PIL import Image

from dataset import build_dataset
from dataset.prepare.check import check_dataset, compare_splits, sample, shared_images, walk
from dataset.prepare.check.tally import Tally
from dataset.read import DataError
from dataset.read.header import Header
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
    assert lines[0].endswith("train.txt: 3 of 3 samples cannot be used:") and len(lines) == 5
    assert "label/a.png: values 7, 9 are not in the label map" in lines[1] and "the same in" in lines[1]
    assert "label/b.png: value 8 is not in the label map" in lines[2]
    assert lines[3].startswith("6 ids for 3 classes")
    pasted = lines[4].rpartition("label_map: ")[2]
    assert yaml.safe_load(pasted) == {0: 0, 1: 1, 2: 2, 7: 255, 8: 255, 9: 255}
    assert check_dataset(build(tree, label_map=yaml.safe_load(pasted))).ignored == 7


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda ids: ids + 1, r"shifted by one: label_map: {1: 0, 2: 1, 3: 2}"),
        (lambda ids: ids * 7, "not mapped to training ids yet, or were resized by interpolation"),
    ],
)
def test_check_says_what_unknown_values_look_like(tree, change, message):
    for name in "abc":
        ids = np.asarray(Image.open(tree / f"label/{name}.png"))
        save(tree / f"label/{name}.png", change(ids if name != "b" or message[0] == "s" else ids % 2))
    if message[0] == "n":
        save(tree / "label/b.png", np.resize(np.arange(1, 5, dtype=np.uint8), (12, 16)))
    fails(message, check_dataset, build(tree))


def test_check_warns_of_pairs_that_look_wrong(tree):
    """What names, sizes and ignored labels tell, at no cost beside the reading of labels."""
    (tree / "train.txt").write_text("image/a.png label/b.png\nimage/b.png label/a.png\nimage/c.png label/c.png\n")
    save(tree / "label/c.png", np.full((12, 16), 255, np.uint8))
    report = check_dataset(build(tree))
    wrong, blank = report.warnings
    assert "2 labels bear the name of another image" in wrong and f"{tree}/label/b.png stands beside" in wrong
    assert "1 labels in which every pixel is ignored" in blank and f"(first: {tree}/label/c.png)" in blank
    assert report.sizes == ((12, 16, 3),)
    os.rename(tree / "label/a.png", tree / "label/both.png")
    (tree / "train.txt").write_text("image/a.png label/both.png\nimage/b.png label/both.png\n")
    (warning,) = check_dataset(build(tree)).warnings
    assert (
        "2 images of " in warning
        and f"share their label file with another one (first: {tree}/label/both.png" in warning
    )


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
    monkeypatch.setattr("dataset.prepare.check.sample.read_stored", lambda path: pytest.fail("read again"))
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


def many(root, count=40, seed=0):
    """A list of pictures of several sizes and depths, and labels of ids and palettes, all right."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        height, width = rng.integers(2, 9, 2).tolist()
        deep, alpha = i % 7 == 3, i % 5 == 2
        image = rng.integers(0, 3000 if deep else 256, (height, width, 3 + alpha))
        save(root / f"{i}.png", image.astype(np.uint8) if not deep or alpha else image[..., 0].astype(np.uint16))
        ids = rng.integers(0, 3, (height, width)).astype(np.uint8)
        if i % 3:
            save(root / f"{i}_label.png", ids)
        else:
            save_palette(root / f"{i}_label.png", ids, np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8))
        lines.append(f"{i}.png {i}_label.png\n")
    (root / "train.txt").write_text("".join(lines))
    return root


def cut(monkeypatch, root, after, **options):
    """Check until `after` samples were added, as if the process were killed then; return what was read."""
    read = []

    def inspect(dataset, index):
        if len(read) == after:
            raise KeyboardInterrupt
        read.append(index)
        return real(dataset, index)

    real = sample._inspect
    with monkeypatch.context() as patch:
        patch.setattr(sample, "_inspect", inspect)
        patch.setattr(walk, "SAVE_SECONDS", -1.0)
        try:
            return check_dataset(build(root), workers=1, **options), read
        except KeyboardInterrupt:
            return None, read


@pytest.mark.parametrize("cuts", [[], [1], [13], [5, 20], [39], [40]])
def test_a_check_that_was_cut_continues(tmp_path, monkeypatch, cuts):
    root = many(tmp_path / "data")
    whole = check_dataset(build(root))
    stamp, before = tmp_path / "check.json", []
    for after in cuts:
        _, read = cut(monkeypatch, root, after - len(before), stamp=stamp)
        before += read
    report, read = cut(monkeypatch, root, -1, stamp=stamp)
    assert report == (whole if not cuts or cuts[-1] < 40 else report) and report.pixels == whole.pixels
    assert before + read == list(range(40)), "no sample is read twice"
    assert not os.path.exists(f"{stamp}.part") and check_dataset(build(root), stamp=stamp).cached


def test_a_check_that_was_cut_reports_the_mistakes_of_both_parts(tmp_path, monkeypatch):
    root = many(tmp_path / "data")
    for i in (2, 9, 31, 32, 33, 34, 35):
        save(root / f"{i}_label.png", np.full((3, 3), 7 if i < 34 else 9, np.uint8))
        save(root / f"{i}.png", np.zeros((3, 3, 3), np.uint8))
    for i in (0, 10, 20, 21, 22, 30, 36):
        (root / f"{i}.png").unlink()
    with pytest.raises(DataError) as whole:
        check_dataset(build(root))
    assert "14 of 40 samples cannot be used" in str(whole.value) and "and 2 more" in str(whole.value)
    assert "and 1 more" not in str(whole.value) and "train.txt:1: 0.png does not exist" in str(whole.value)
    stamp = tmp_path / "check.json"
    cut(monkeypatch, root, 15, stamp=stamp)
    with pytest.raises(DataError) as continued:
        check_dataset(build(root), stamp=stamp)
    assert str(continued.value) == str(whole.value) and not os.path.exists(f"{stamp}.part")


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "[]",
        "{",
        '{"fingerprint": KEY, "tally": {"done": 41}}',
        '{"fingerprint": KEY, "tally": {"done": -1}}',
        '{"fingerprint": KEY, "tally": {"done": 3, "chosen": [99]}}',
        '{"fingerprint": KEY, "tally": {"values": {"x": {"first": 40}}}}',
        '{"fingerprint": KEY, "tally": {"values": {"x": {"first": 0, "pixels": {"65536": 1}}}}}',
        '{"fingerprint": KEY, "tally": {"stride": 0}}',
        '{"fingerprint": "other", "tally": {"done": 3}}',
    ],
)
def test_a_record_that_does_not_fit_is_left_out(tmp_path, monkeypatch, wrong):
    root, stamp = many(tmp_path / "data"), tmp_path / "check.json"
    cut(monkeypatch, root, 5, stamp=stamp)
    key = json.loads((tmp_path / "check.json.part").read_text())["fingerprint"]
    (tmp_path / "check.json.part").write_text(wrong.replace("KEY", json.dumps(key)))
    assert check_dataset(build(root), stamp=stamp) == check_dataset(build(root))


def test_a_sample_of_the_list_is_checked(tmp_path, monkeypatch):
    root, stamp = many(tmp_path / "data"), tmp_path / "check.json"
    report, read = cut(monkeypatch, root, -1, stamp=stamp, sample=10)
    assert len(set(read)) == report.images == 10 and read == sorted(read)
    assert any(f"10 of 40 samples of {root}/train.txt were read" in warning for warning in report.warnings)
    labels = np.concatenate([np.asarray(Image.open(root / f"{i}_label.png")).ravel() for i in read])
    assert report.pixels == tuple(np.bincount(labels, minlength=3))
    assert check_dataset(build(root), stamp=stamp, sample=10).cached
    assert not check_dataset(build(root), stamp=stamp, sample=11).cached
    assert check_dataset(build(root), sample=40) == check_dataset(build(root), sample=99) == check_dataset(build(root))
    (root / f"{read[3]}.png").unlink()
    fails("1 of 10 samples that were read cannot be used", check_dataset, build(root), sample=10)


def test_what_the_check_keeps_does_not_grow_with_the_list(tree):
    """Sums and a few examples: the record of 100,000 samples with mistakes of all kinds is a few kilobytes."""
    header = Header("PNG", (4, 4), bands=4, dtype="uint16", alpha=True)
    raw, mapped = (np.array([0, 2]), np.array([9, 7])), np.bincount([0] * 9 + [2] * 7, minlength=256)
    dataset, sizes = build(tree), []
    for count in (1_000, 100_000):
        tally = Tally()
        for i in range(count):
            unknown = {3 + i % 50: 1} if i % 3 == 0 else {}
            found = DataError(f"{i}") if i % 3 == 1 else sample.Finding((4, 4), header, raw, mapped, unknown)
            tally.add(dataset, i % 3, found)
        sizes.append(len(json.dumps(asdict(tally))))
        assert tally.failed == len(range(1, count, 3)) and tally.images == tally.deep == count - tally.failed
        assert tally.bad == tally.failed + len(range(0, count, 3)) and tally.mapped[2] == 7 * tally.labelled
        assert sum(each.count for each in tally.values[next(iter(tally.values))].unknown.values()) == len(
            range(0, count, 3)
        )
    assert abs(sizes[0] - sizes[1]) < 2_000, sizes


def test_images_of_both_lists_are_found_through_links(tree):
    (tree / "linked").symlink_to(tree / "image")
    (tree / "single").mkdir()
    (tree / "single/c.png").symlink_to(tree / "image/c.png")
    lines = "linked/a.png label/a.png\nsingle/c.png label/c.png\nlabel/b.png label/b.png\n"
    (tree / "val.txt").write_text(lines)
    assert shared_images(build(tree).samples, build(tree, split="val").samples) == [0, 1]


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
