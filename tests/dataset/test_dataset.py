"""List files, and the facts of the data sets."""

import numpy as np
import pytest
from PIL import Image

from dataset import DATASETS, build_dataset, dataset_class
from dataset.base import distinct_palette
from dataset.read.labelmap import LabelMap
from dataset.read.listfile import Names, read_list
from tests.three_pictures import build, fails, picture, save, save_palette

pytestmark = pytest.mark.fast


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
    text = f"\ufeff\"a b/it's.png\"\tlabel/a.png\r\n\n  {tree}/image/b.png   'label/b.png'  \n"
    (tree / "own.txt").write_text(text, encoding="utf-8")
    samples = read_list(tree / "own.txt", tree, needs_label=True)
    assert list(samples) == [
        (str(tree / "a b/it's.png"), str(tree / "label/a.png")),
        (str(tree / "image/b.png"), str(tree / "label/b.png")),
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "train.txt: the list is empty"),
        ("\n \n", "train.txt: the list is empty"),
        ("image/a.png\n", "train.txt:1: 1 field (image/a.png)"),
        ("image/a.png,label/a.png\n", "not by a comma"),
        ("\nimage/a.png label/a.png x\n", "train.txt:2: 3 fields"),
        (
            "image/a.png label/a.png\nimage/b.png label/b.png\nimage/a.png label/b.png\n",
            "train.txt:3: the picture image/a.png stands on line 1",
        ),
        ('"image/a.png label/a.png\n', "train.txt:1: the quote"),
        ('"" label/a.png\n', "train.txt:1: an empty path"),
    ],
)
def test_faulty_list_names_file_and_line(tree, text, message):
    (tree / "train.txt").write_text(text)
    fails([str(tree), message], build, tree)


def test_missing_and_foreign_lists(tree):
    fails(
        ["val.txt: no such list file", "or `custom` for pictures and masks of your own"],
        build,
        tree,
        split="val",
        error=FileNotFoundError,
    )
    (tree / "train.txt").write_bytes(b"\xff\xfe\x00")
    fails("train.txt: not UTF-8", build, tree)


def test_unlabelled_lines_only_in_test(tree):
    (tree / "test.txt").write_text("image/a.png\nimage/b.png label/b.png\n")
    dataset = build(tree, split="test")
    assert "label" not in dataset[0] and "label" in dataset[1]
    fails("test.txt:1: 1 field", build, tree, list_file=tree / "test.txt", split="val")


def test_names_are_unique(tmp_path):
    paths = [str(tmp_path / p) for p in ("x/a.png", "y/a.png", "b.png", "c.png", "c.jpg", "../out/a.png")]
    names = Names(paths, tmp_path)
    assert names[:3] == ["x/a", "y/a", "b"] and len(set(names)) == len(names)
    assert not any(".." in name or name.startswith("/") for name in names)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"classes": None}, "no class names"),
        ({"classes": ["a", "a"]}, "'a' stands twice"),
        ({"classes": [str(i) for i in range(256)]}, "at most 255"),
        ({"colors": [[0, 0, 0]]}, "each of the 3 classes"),
        ({"colors": [[0, 0, 256]] * 3}, "from 0 to 255"),
        ({"colors": [[0, 0], [1], [2]]}, "each of the 3 classes"),
    ],
)
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
    by_name = {
        row: city.label_map[label_id] for row, label_id in (("road", 7), ("sky", 23), ("train", 31), ("bicycle", 33))
    }
    assert all(city.classes[train_id] == row for row, train_id in by_name.items())
    assert [city.label_map[i] for i in (0, 1, 6, 9, 14, 18, 29, 30)] == [255] * 8
    assert (ade.label_map[0], ade.classes[ade.label_map[1]], ade.classes[ade.label_map[150]]) == (255, "wall", "flag")
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
    (tmp_path / "train.txt").write_text("a.png a_gtFine_labelIds.png\nb.png b_gtFine_labelTrainIds.png\n")
    dataset = build_dataset("cityscapes", tmp_path)
    assert np.array_equal(dataset[0]["label"], train_ids) and np.array_equal(dataset[1]["label"], train_ids)
    back = dataset.to_label_ids(train_ids)
    assert np.array_equal(back, np.where(train_ids == 255, 0, label_ids))
    own = build_dataset("cityscapes", tmp_path, label_map=dict.fromkeys(range(34), 0), classes=["all"])
    assert set(np.unique(own[1]["label"])) <= {0, 255}


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"custom", "street"}))
def test_the_way_back_inverts_the_label_map(tmp_path, name):
    """What stands on disk is what gives the class again; where several ids are one class there is no way back."""
    save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "test.txt").write_text("a.png\n")
    dataset = build_dataset(name, tmp_path, list_file=tmp_path / "test.txt", split="test")
    classes = np.arange(len(dataset.classes), dtype=np.uint8)[None]
    if name in NO_WAY_BACK:
        fails(f"the label map of {name} gives class ", dataset.to_label_ids, classes)
    else:
        assert np.array_equal(dataset.map_for("").apply(dataset.to_label_ids(classes)), classes)


NO_WAY_BACK = {"camvid_full"}


def test_the_way_back_of_classes_of_ones_own(tree):
    classes = np.array([[0, 1, 2, 255]], np.uint8)
    assert build(tree, label_map={10: 0, 20: 1, 30: 2, 7: 255, 9: 255}).to_label_ids(classes).tolist() == [
        [10, 20, 30, 7]
    ]
    assert build(tree, label_map={10: 0, 2000: 1, 30: 2}).to_label_ids(classes).tolist() == [[10, 2000, 30, 255]]
    assert build(tree).to_label_ids(classes).tolist() == classes.tolist()
    colors = {"1,2,3": 0, "4,5,6": 1, (7, 8, 9): 2}
    assert build(tree, label_map=colors).to_label_ids(classes)[0, :3].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    fails(
        "gives class 'x' the values 0, 3 on disk", build(tree, label_map={0: 0, 3: 0, 1: 1, 2: 2}).to_label_ids, classes
    )
    fails("gives class 'z' no value on disk", build(tree, label_map={0: 0, 1: 1}).to_label_ids, classes)
    own = build_dataset("cityscapes", tree, classes=["flat", "rest"], label_map={**dict.fromkeys(range(34), 1), 7: 0})
    fails("gives class 'rest' the values 0, 1, 2", own.to_label_ids, classes)


def test_colours_of_all_classes_decode_labels_drawn_in_them(tree):
    colors = np.array([[10, 20, 30], [200, 0, 7], [0, 0, 1]], np.uint8)
    ids = np.asarray(Image.open(tree / "label/a.png"))
    save(tree / "label/a.png", colors[ids])
    save_palette(tree / "label/b.png", 2 - ids, colors[::-1])
    dataset = build(tree, colors=colors.tolist())
    assert all(np.array_equal(dataset[i]["label"], ids) for i in (0, 1))
    assert set(np.unique(dataset[2]["label"])) == {0, 1, 2}  # ids
    drawn = colors[ids]
    drawn[0] = 0
    save(tree / "label/a.png", drawn)
    fails("value (0, 0, 0) is not in the label map", dataset.__getitem__, 0)
    void = build(tree, colors=colors.tolist(), label_map={"0,0,0": 255, "rest": "identity"})
    assert (void[0]["label"][0] == 255).all() and np.array_equal(void[0]["label"][1:], ids[1:])
    same = build(tree, colors=[[0, 0, 1], [0, 0, 1], [9, 9, 9]])
    fails("not in the label map", same.__getitem__, 0)


def test_the_identity_may_be_extended(tree):
    label = np.asarray(Image.open(tree / "label/a.png")).copy()
    label[0] = 77
    save(tree / "label/a.png", label)
    dataset = build(tree, label_map={77: 255, 1: 2, "rest": "identity"})
    expected = np.array([0, 2, 2])[label % 77]
    expected[0] = 255
    assert np.array_equal(dataset[0]["label"], expected) and dataset.label_map == {0: 0, 1: 2, 2: 2, 77: 255}


def test_lists_of_other_systems(tree):
    """Windows writes backslashes, line ends and a byte order mark; macOS decomposes accents."""
    for name in ("label", "image"):
        (tree / f"{name}/a.png").rename(tree / f"{name}/A\u0308 e\u0301.png")
    line = '"image\\\u00c4 \u00e9.png" "label\\\u00c4 \u00e9.png"\r\n'
    (tree / "train.txt").write_bytes(b"\xef\xbb\xbf" + line.encode())
    dataset = build(tree)
    assert dataset[0]["label"].shape == (12, 16) and dataset.samples[0][0].endswith("A\u0308 e\u0301.png")
    (tree / "train.txt").write_text("image/B.PNG label/b.png\n")
    message = f"image/B.PNG does not exist, but {tree}/image/b.png does; write it with the same capitals"
    fails(message, build(tree).__getitem__, 0, error=FileNotFoundError)
    (tree / "train.txt").write_text("image\\x.png label\\x.png\n")
    fails("a backslash separates no folders here", build(tree).__getitem__, 0, error=FileNotFoundError)


def test_own_facts_replace_those_of_a_known_data_set(tree):
    fails("label_map of camvid: 1 -> 1, but the 1 classes", build_dataset, "camvid", tree, classes=["one"])
    dataset = build_dataset("camvid", tree, classes=["s", "t"], label_map={0: 0, 1: 1, 2: 255})
    assert dataset.classes == ("s", "t") and dataset.colors.shape == (2, 3)
    assert dataset_class("camvid").classes[0] == "sky"


def test_generated_palette_is_distinct():
    colors = distinct_palette(255)
    assert len({tuple(color) for color in colors.tolist()}) == 255 and (colors.sum(1) > 0).all()
    assert np.array_equal(distinct_palette(5), colors[:5])
