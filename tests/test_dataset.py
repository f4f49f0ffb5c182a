"""List files, reading of pictures and labels, label maps, the facts of the data sets, and the check."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset import DATASETS, build_dataset, dataset_class
from dataset.base import distinct_palette, read_list, unique_names
from dataset.check import check_dataset, compare_splits
from dataset.image import read_header, read_image, read_label
from dataset.labelmap import LabelMap

CAMVID = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "camvid"
needs_camvid = pytest.mark.skipif(not (CAMVID / "train.txt").is_file(), reason=f"no CamVid in {CAMVID}")

EXIF_ORIENTATION = 0x0112


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path, **options)
    return path


def picture(rng, height=12, width=16):
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Three pictures with labels of ids 0 to 2, and the list train.txt."""
    rng = np.random.default_rng(0)
    lines = []
    for name in "abc":
        save(tmp_path / "image" / f"{name}.png", picture(rng))
        save(tmp_path / "label" / f"{name}.png", rng.integers(0, 3, (12, 16)).astype(np.uint8))
        lines.append(f"image/{name}.png label/{name}.png\n")
    (tmp_path / "train.txt").write_text("".join(lines))
    return tmp_path


def build(root, **options):
    return build_dataset("custom", root, **{"classes": ["x", "y", "z"], **options})


def fails(message, function, *arguments, error=ValueError, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    assert type(caught.value) is error
    for part in [message] if isinstance(message, str) else message:
        assert part in str(caught.value)


# --- list files ---

def test_samples_and_tensors(tree):
    dataset = build(tree)
    sample = dataset[1]
    assert len(dataset) == 3 and sample["name"] == "b" and dataset.ignore_label == 255
    expected = np.asarray(Image.open(tree / "image/b.png")).transpose(2, 0, 1)
    assert np.array_equal(sample["image"].numpy(), expected)
    assert np.array_equal(sample["label"].numpy(), np.asarray(Image.open(tree / "label/b.png")))
    assert sample["image"].dtype == sample["label"].dtype and str(sample["label"].dtype) == "torch.uint8"
    with pytest.raises(IndexError):
        dataset[3]


def test_list_accepts_quotes_absolute_paths_bom_and_blank_lines(tree):
    save(tree / "a b" / "it's.png", picture(np.random.default_rng(1)))
    text = (f'\ufeff"a b/it\'s.png"\tlabel/a.png\r\n\n  {tree}/image/b.png   \'label/b.png\'  \n')
    (tree / "own.txt").write_text(text, encoding="utf-8")
    samples = read_list(tree / "own.txt", tree, needs_label=True)
    assert samples == [(str(tree / "a b/it's.png"), str(tree / "label/a.png")),
                       (str(tree / "image/b.png"), str(tree / "label/b.png"))]


@pytest.mark.parametrize("text, message", [
    ("", "train.txt: the list is empty"),
    ("\n \n", "train.txt: the list is empty"),
    ("image/a.png\n", "train.txt:1: 1 field (image/a.png)"),
    ("image/a.png,label/a.png\n", "not by a comma"),
    ("\nimage/a.png label/a.png x\n", "train.txt:2: 3 fields"),
    ("image/a.png label/a.png\nimage/b.png label/b.png\nimage/a.png label/b.png\n",
     "train.txt:3: the picture image/a.png stands on line 1"),
    ('"image/a.png label/a.png\n', "train.txt:1: the quote"),
    ('"" label/a.png\n', "train.txt:1: an empty path"),
])
def test_faulty_list_names_file_and_line(tree, text, message):
    (tree / "train.txt").write_text(text)
    fails([str(tree), message], build, tree)


def test_missing_files_name_list_and_line(tree):
    with open(tree / "train.txt", "a") as file:
        file.write("image/d.png label/a.png\n")
    fails(["train.txt:4: image/d.png does not exist", "data root"], build, tree, error=FileNotFoundError)
    fails("val.txt: no such list file", build, tree, split="val", error=FileNotFoundError)
    (tree / "train.txt").write_bytes(b"\xff\xfe\x00")
    fails("train.txt: not UTF-8", build, tree)


def test_unlabelled_lines_only_in_test(tree):
    (tree / "test.txt").write_text("image/a.png\nimage/b.png label/b.png\n")
    dataset = build(tree, split="test")
    assert "label" not in dataset[0] and "label" in dataset[1]
    fails("test.txt:1: 1 field", build, tree, list_file=tree / "test.txt", split="val")


def test_names_are_unique(tmp_path):
    paths = [str(tmp_path / p) for p in ("x/a.png", "y/a.png", "b.png", "c.png", "c.jpg", "../out/a.png")]
    names = unique_names(paths, tmp_path)
    assert names[:3] == ["x/a", "y/a", "b"] and len(set(names)) == len(names)
    assert not any(".." in name or name.startswith("/") for name in names)


# --- pictures ---

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


def test_fast_png_decoder_gives_the_same_pixels(tmp_path):
    pytest.importorskip("kornia_rs", reason="the optional PNG decoder is not installed")
    rng = np.random.default_rng(0)
    rgb, grey = picture(rng, 50, 70), rng.integers(0, 30, (50, 70)).astype(np.uint8)
    assert np.array_equal(read_image(save(tmp_path / "a.png", rgb)), rgb)
    assert np.array_equal(read_label(save(tmp_path / "b.png", grey)), grey)


# --- labels ---

def test_labels_are_read_as_stored(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 4, (12, 16)).astype(np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette(rng.integers(0, 256, 768).astype(np.uint8).tolist())
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_label(tmp_path / "palette.png"), ids)
    for bits in (2, 4):
        low = Image.fromarray(ids)
        low.save(tmp_path / "low.png", bits=bits)
        assert np.array_equal(read_label(tmp_path / "low.png"), ids)
    Image.fromarray(ids > 1).save(tmp_path / "bit.png")
    assert np.array_equal(read_label(tmp_path / "bit.png"), ids > 1)
    deep = ids.astype(np.uint16) + 300
    assert np.array_equal(read_label(save(tmp_path / "deep.png", deep)), deep)
    for suffix in ("tif", "bmp"):
        assert np.array_equal(read_label(save(tmp_path / f"a.{suffix}", ids)), ids)
    Image.fromarray(np.dstack([ids, ids * 0 + 255]), "LA").save(tmp_path / "la.png")
    assert np.array_equal(read_label(tmp_path / "la.png"), ids)
    fails("a.jpg: a JPEG label", read_label, save(tmp_path / "a.jpg", ids))


def test_sixteen_bit_labels_pass_where_the_map_knows_the_ids(tree):
    save(tree / "label/a.png", np.full((12, 16), 2, np.uint16))
    assert set(np.unique(build(tree)[0]["label"])) == {2}
    save(tree / "label/a.png", np.full((12, 16), 1000, np.uint16))
    fails("label/a.png: value 1000 is not in the label map of custom (0..2 -> 0..2, 255 = ignored)",
          build(tree).read, 0)
    label = build(tree, label_map={0: 0, 1: 1, 2: 2, 1000: 2})[0]["label"]
    assert set(np.unique(label)) == {2}


def test_value_outside_the_map_names_file_value_and_map(tree):
    label = np.asarray(Image.open(tree / "label/b.png")).copy()
    label[3, 4], label[5, 6] = 7, 9
    save(tree / "label/b.png", label)
    fails([str(tree / "label/b.png"), "values 7, 9 are not in the label map of custom",
           "0..2 -> 0..2, 255 = ignored", "label_map"], build(tree).__getitem__, 1)


def test_255_stays_ignored_unless_mapped(tree):
    label = np.zeros((12, 16), np.uint8)
    label[:6] = 255
    save(tree / "label/a.png", label)
    options = {"classes": ["back", "front"], "list_file": tree / "one.txt"}
    (tree / "one.txt").write_text("image/a.png label/a.png\n")
    assert set(np.unique(build(tree, **options)[0]["label"])) == {0, 255}
    mapped = build(tree, label_map={0: 0, 255: 1}, **options)[0]["label"].numpy()
    assert np.array_equal(mapped, label // 255)


def test_label_of_three_channels(tree):
    ids = np.asarray(Image.open(tree / "label/a.png"))
    save(tree / "label/a.png", np.dstack([ids] * 3))
    fails(["label/a.png", "three channels are equal: save one of them"], build(tree).read, 0)
    colors = np.array([[10, 20, 30], [200, 0, 7], [0, 0, 1]], np.uint8)
    save(tree / "label/a.png", colors[ids])
    fails(["label/a.png", 'label_map with the keys "r,g,b"'], build(tree).read, 0)
    by_color = {"10,20,30": 0, (200, 0, 7): 1, "0, 0, 1": 255}
    expected = np.where(ids == 2, 255, ids)
    dataset = build(tree, label_map=by_color)
    assert np.array_equal(dataset[0]["label"].numpy(), expected)
    fails("a label of ids, but custom maps colours only", dataset.read, 1)
    save(tree / "label/a.png", colors[ids] + np.uint8(1))
    fails(["(1, 1, 2), (11, 21, 31), (201, 1, 8)", "rgb (10, 20, 30) -> 0"], dataset.read, 0)


def test_label_of_another_size(tree):
    save(tree / "label/a.png", np.zeros((11, 16), np.uint8))
    fails(["label/a.png: the label is 16x11", "image/a.png 16x12"], build(tree).read, 0)


@pytest.mark.parametrize("mapping, message", [
    ({0: 3}, "0 -> 3, but the 3 classes have the ids 0 to 2"),
    ({0: "1"}, "0 -> 1"), ({-1: 0}, "-1"), ({70000: 0}, "70000"), ({"1,2": 0}, "'1,2' is no colour"),
    ({"a,b,c": 0}, "is no colour"), ({(0, 0, 256): 0}, "is no colour"),
])
def test_faulty_label_map(mapping, message):
    fails(message, LabelMap, mapping, 3, "custom")


def test_label_map_equals_a_loop(tmp_path):
    rng = np.random.default_rng(0)
    keys, values = rng.permutation(256)[:200].tolist(), rng.integers(0, 19, 200).tolist()
    mapping = dict(zip(keys, values, strict=True))
    raw = rng.choice(list(mapping), (30, 40)).astype(np.uint8)
    expected = np.array([[mapping[int(value)] for value in row] for row in raw])
    assert np.array_equal(LabelMap(mapping, 19, "x").apply(raw), expected)


# --- facts ---

@pytest.mark.parametrize("arguments, message", [
    ({"classes": None}, "no class names"),
    ({"classes": ["a", "a"]}, "'a' stands twice"),
    ({"classes": [str(i) for i in range(256)]}, "at most 255"),
    ({"colors": [[0, 0, 0]]}, "each of the 3 classes"),
    ({"colors": [[0, 0, 256]] * 3}, "from 0 to 255"),
    ({"colors": [[0, 0], [1], [2]]}, "each of the 3 classes"),
])
def test_faulty_facts(tree, arguments, message):
    fails(message, build, tree, **arguments)


def test_unknown_data_set_names_the_nearest():
    fails(["'cityscape'", "did you mean 'cityscapes'", "camvid"], build_dataset, "cityscape", "/nowhere")
    fails("known: custom, street", build_dataset, "???", "/nowhere")


@pytest.mark.parametrize("name, count", [("cityscapes", 19), ("ade20k", 150), ("rugd", 24), ("camvid", 11)])
def test_facts_agree_with_one_another(name, count):
    kind = dataset_class(name)
    assert kind.name == name and name in DATASETS
    assert len(kind.classes) == len(set(kind.classes)) == len(kind.colors) == count
    assert kind.colors.dtype == np.uint8 and kind.ignore_label == 255
    map_ = LabelMap(kind.label_map, count, name)
    assert set(map_.ids.values()) == {*range(count), 255}, "every class is on disk, and something is ignored"


def test_published_ids():
    """Spot values of the tables that the data sets publish."""
    city, ade, camvid = (dataset_class(name) for name in ("cityscapes", "ade20k", "camvid"))
    by_name = {row: city.label_map[label_id] for row, label_id in
               (("road", 7), ("sky", 23), ("train", 31), ("bicycle", 33))}
    assert all(city.classes[train_id] == row for row, train_id in by_name.items())
    assert [city.label_map[i] for i in (0, 1, 6, 9, 14, 18, 29, 30)] == [255] * 8
    assert (ade.label_map[0], ade.classes[ade.label_map[1]], ade.classes[ade.label_map[150]]) == (
        255, "wall", "flag")
    assert camvid.label_map[11] == 255 and camvid.classes[3] == "road"


def test_rugd_reads_colours_and_published_ids(tmp_path):
    kind = dataset_class("rugd")
    ids = np.random.default_rng(0).integers(0, 25, (12, 16)).astype(np.uint8)
    table = np.vstack([np.zeros((1, 3), np.uint8), kind.colors])
    expected = np.where(ids == 0, 255, ids - 1)
    save(tmp_path / "a.png", picture(np.random.default_rng(1)))
    (tmp_path / "train.txt").write_text("a.png label.png\n")
    for label in (ids, table[ids]):
        save(tmp_path / "label.png", label)
        assert np.array_equal(build_dataset("rugd", tmp_path)[0]["label"].numpy(), expected)


def test_cityscapes_tells_label_ids_from_train_ids(tmp_path):
    kind = dataset_class("cityscapes")
    label_ids = np.random.default_rng(0).integers(0, 34, (12, 16)).astype(np.uint8)
    train_ids = np.vectorize(kind.label_map.get)(label_ids).astype(np.uint8)
    for name, label in (("a", label_ids), ("b", train_ids)):
        save(tmp_path / f"{name}.png", picture(np.random.default_rng(1)))
        kind_of = "labelIds" if name == "a" else "labelTrainIds"
        save(tmp_path / f"{name}_gtFine_{kind_of}.png", label)
    (tmp_path / "train.txt").write_text(
        "a.png a_gtFine_labelIds.png\nb.png b_gtFine_labelTrainIds.png\n")
    dataset = build_dataset("cityscapes", tmp_path)
    assert np.array_equal(dataset[0]["label"], train_ids) and np.array_equal(dataset[1]["label"], train_ids)
    back = dataset.to_label_ids(train_ids)
    assert np.array_equal(back, np.where(train_ids == 255, 0, label_ids))
    own = build_dataset("cityscapes", tmp_path, label_map=dict.fromkeys(range(34), 0), classes=["all"])
    assert set(np.unique(own[1]["label"])) <= {0, 255}


def test_own_facts_replace_those_of_a_known_data_set(tree):
    fails("label_map of camvid: 1 -> 1, but the 1 classes", build_dataset, "camvid", tree, classes=["one"])
    dataset = build_dataset("camvid", tree, classes=["s", "t"], label_map={0: 0, 1: 1, 2: 255})
    assert dataset.classes == ("s", "t") and dataset.colors.shape == (2, 3)
    assert dataset_class("camvid").classes[0] == "sky"


def test_generated_palette_is_distinct():
    colors = distinct_palette(255)
    assert len({tuple(color) for color in colors.tolist()}) == 255 and (colors.sum(1) > 0).all()
    assert np.array_equal(distinct_palette(5), colors[:5])


# --- the check ---

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
    fails(["train.txt: 3 of 3 samples cannot be used", "label/a.png: value 5 is not in the label map",
           "label/b.png: the label is 3x3", "image/c.png: not a readable picture"],
          check_dataset, build(tree))


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
    monkeypatch.setattr("dataset.check.read_label", lambda path: pytest.fail("read again"))
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
    mapped = [val.read(i)[1] for i in range(5)]
    assert all(np.array_equal(b, np.where(a == 11, 255, a)) for a, b in zip(raw, mapped, strict=True))
