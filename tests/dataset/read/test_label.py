"""Reading of labels, and label maps."""

import numpy as np
import pytest
from PIL import Image

from dataset.read.image import read_label
from dataset.read.labelmap import LabelMap
from tests.three_pictures import build, fails, save


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
    message = "label/a.png: value 1000 is not in the label map of custom (0..2 -> 0..2, 255 = ignored)"
    fails(message, build(tree).__getitem__, 0)
    label = build(tree, label_map={0: 0, 1: 1, 2: 2, 1000: 2})[0]["label"]
    assert set(np.unique(label)) == {2}


def test_value_outside_the_map_names_file_value_and_map(tree):
    label = np.asarray(Image.open(tree / "label/b.png")).copy()
    label[3, 4], label[5, 6] = 7, 9
    save(tree / "label/b.png", label)
    fails(
        [
            str(tree / "label/b.png"),
            "values 7, 9 are not in the label map of custom",
            "0..2 -> 0..2, 255 = ignored",
            "label_map",
        ],
        build(tree).__getitem__,
        1,
    )


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
    fails(["label/a.png", "three channels are equal: save one of them"], build(tree).__getitem__, 0)
    colors = np.array([[10, 20, 30], [200, 0, 7], [0, 0, 1]], np.uint8)
    save(tree / "label/a.png", colors[ids])
    fails(["label/a.png", 'label_map with the keys "r,g,b"'], build(tree).__getitem__, 0)
    by_color = {"10,20,30": 0, (200, 0, 7): 1, "0, 0, 1": 255}
    expected = np.where(ids == 2, 255, ids)
    dataset = build(tree, label_map=by_color)
    assert np.array_equal(dataset[0]["label"].numpy(), expected)
    fails("a label of ids, but custom maps colours only", dataset.__getitem__, 1)
    save(tree / "label/a.png", colors[ids] + np.uint8(1))
    fails(["(1, 1, 2), (11, 21, 31), (201, 1, 8)", "rgb (10, 20, 30) -> 0"], dataset.__getitem__, 0)


def test_label_of_another_size(tree):
    save(tree / "label/a.png", np.zeros((11, 16), np.uint8))
    fails(["label/a.png: the label is 16x11", "image/a.png 16x12"], build(tree).__getitem__, 0)


@pytest.mark.parametrize(
    "mapping, message",
    [
        ({0: 3}, "0 -> 3, but the 3 classes have the ids 0 to 2"),
        ({0: "1"}, "0 -> 1"),
        ({-1: 0}, "-1"),
        ({70000: 0}, "70000"),
        ({"1,2": 0}, "'1,2' is no colour"),
        ({"a,b,c": 0}, "is no colour"),
        ({(0, 0, 256): 0}, "is no colour"),
    ],
)
def test_faulty_label_map(mapping, message):
    fails(message, LabelMap, mapping, 3, "custom")


def test_label_map_equals_a_loop(tmp_path):
    rng = np.random.default_rng(0)
    keys, values = rng.permutation(256)[:200].tolist(), rng.integers(0, 19, 200).tolist()
    mapping = dict(zip(keys, values, strict=True))
    raw = rng.choice(list(mapping), (30, 40)).astype(np.uint8)
    expected = np.array([[mapping[int(value)] for value in row] for row in raw])
    assert np.array_equal(LabelMap(mapping, 19, "x").apply(raw), expected)
