"""Pairing, dividing and naming of the user's own pictures."""

import pytest

from dataset.prepare.custom import choose_classes, divide, list_images, pair_folders, pair_table, refuse_smoothed
from tests.official_trees import save

pytestmark = pytest.mark.fast


def tree(root, *paths):
    for path in paths:
        save(root, path, 1)


def test_folders_of_the_usual_names(tmp_path):
    tree(tmp_path, "images/a.jpg", "images/b c.png", "images/lone.jpg", "masks/a.png", "masks/b c.png", "masks/x.png")
    tree(tmp_path, "images/._a.jpg", "masks/.DS_Store.png")
    found = pair_folders(tmp_path)
    assert found.pairs == [("images/a.jpg", "masks/a.png"), ("images/b c.png", "masks/b c.png")]
    assert found.lone_images == ["images/lone.jpg"] and found.lone_masks == ["masks/x.png"]


@pytest.mark.parametrize(
    "image,mask",
    [
        ("images/train/a.jpg", "labels/train/a.png"),
        ("train/images/a.jpg", "train/masks/a.png"),
        ("imgs/a.jpg", "gt/a_mask.png"),
        ("images/img_7.jpg", "masks/mask_7.png"),
        ("JPEGImages/2007_1.jpg", "SegmentationClass/2007_1.png"),
        ("leftImg8bit/val/x/x_0_leftImg8bit.png", "gtFine/val/x/x_0_gtFine_labelIds.png"),
        ("images/0016E5.png", "labels/0016E5_L.png"),
        ("Images/deep/er/a.jpg", "Masks/a.png"),
        ("img/a.jpg", "masks/a.jpg.png"),
    ],
)
def test_names_that_belong_together(tmp_path, image, mask):
    other = image.replace("7", "8").replace("x_0", "y_1").replace("a.jpg", "b.jpg").replace("1.jpg", "2.jpg")
    tree(tmp_path, image, mask, other)
    assert pair_folders(tmp_path).pairs == [(image, mask)]


def test_named_folders_and_patterns(tmp_path):
    tree(tmp_path, "raw/a.jpg", "out/a_mask.png", "out/a_color.png")
    assert pair_folders(tmp_path, "raw", "out/*_mask.png").pairs == [("raw/a.jpg", "out/a_mask.png")]
    tree(tmp_path, "both/1.jpg", "both/1_mask.png", "both/2.jpg", "both/2_mask.png")
    assert pair_folders(tmp_path, "both", "both").pairs == [
        ("both/1.jpg", "both/1_mask.png"),
        ("both/2.jpg", "both/2_mask.png"),
    ]


def test_folders_elsewhere(tmp_path):
    """An absolute folder may lie outside of the root; what it lies in names no split."""
    tree(tmp_path, "test/raw/a.jpg", "test/raw/train/b.jpg", "own/masks/a.png", "own/masks/train/b.png")
    found = pair_folders(tmp_path / "own", str(tmp_path / "test/raw"), str(tmp_path / "own/masks"))
    assert found.pairs == [
        (f"{tmp_path}/test/raw/a.jpg", "masks/a.png"),
        (f"{tmp_path}/test/raw/train/b.jpg", "masks/train/b.png"),
    ]
    assert found.splits == [None, "train"]
    with pytest.raises(ValueError, match="not below .*own, which masks are drawn for"):
        list_images(tmp_path / "own", str(tmp_path / "test/raw"))
    with pytest.raises(ValueError, match="a pattern goes below"):
        pair_folders(tmp_path / "own", f"{tmp_path}/test/raw/*.jpg")


def test_folders_that_hold_something_else(tmp_path):
    tree(tmp_path / "flat", "a.jpg", "a_mask.png")
    with pytest.raises(ValueError, match=r"for those in .*flat itself give --images . --masks \."):
        pair_folders(tmp_path / "flat")
    assert pair_folders(tmp_path / "flat", ".", ".").pairs == [("a.jpg", "a_mask.png")]
    tree(tmp_path / "phone", "masks/a.png")
    (tmp_path / "phone/images").mkdir()
    for name in ("a.heic", "b.HEIC", ".DS_Store"):
        (tmp_path / "phone/images" / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="files that are not read: 2 of .heic; convert them"):
        pair_folders(tmp_path / "phone")


def test_what_cannot_be_paired_is_said(tmp_path):
    with pytest.raises(ValueError, match="no pictures in folders called images, .*; there are: no folders"):
        pair_folders(tmp_path)
    tree(tmp_path, "images/a.jpg", "masks/b.png")
    with pytest.raises(ValueError, match=r"1 pictures \(as images/a.jpg\) and 1 masks \(as masks/b.png\), but no name"):
        pair_folders(tmp_path)
    tree(tmp_path, "masks/a_mask.png", "masks/a_label.png")
    with pytest.raises(ValueError, match="images/a.jpg has several masks: masks/a_label.png, masks/a_mask.png"):
        pair_folders(tmp_path)
    with pytest.raises(ValueError, match="no masks in nowhere; there are: images, masks. Name the folder with --masks"):
        pair_folders(tmp_path, masks="nowhere")
    with pytest.raises(
        ValueError, match="1 pictures and 0 masks in images; a mask beside pictures is told by its name"
    ):
        pair_folders(tmp_path, "images", "images")


def test_tables(tmp_path):
    tree(tmp_path, "a.jpg", "1.png", "b b.jpg", "2.png")
    table = tmp_path / "pairs.csv"
    table.write_text("image;mask;split\n\na.jpg;1.png;train\nb b.jpg;2.png;valid\n")
    found = pair_table(tmp_path, table)
    assert found.pairs == [("a.jpg", "1.png"), ("b b.jpg", "2.png")] and found.splits == ["train", "val"]
    table.write_text("a.jpg,1.png\na.jpg,9.png\n")
    with pytest.raises(FileNotFoundError, match=r"pairs.csv:2: .*9.png is not there"):
        pair_table(tmp_path, table)
    tree(tmp_path, "c/c.jpg")
    table.write_bytes("\ufeffimage,mask\r\nc\\c.jpg,1.png\r\n".encode())
    assert pair_table(tmp_path, table).pairs == [("c/c.jpg", "1.png")], "as Windows writes it"
    table.write_text("a.jpg,1.png\na.jpg,2.png\n")
    with pytest.raises(ValueError, match="a.jpg stands on two lines"):
        pair_table(tmp_path, table)
    table.write_text("0,a.jpg,1.png\n")
    with pytest.raises(ValueError, match=r"no pairs \(its first line is taken for names of columns, 0 is no file\)"):
        pair_table(tmp_path, table)
    table.write_bytes("ä.jpg,1.png\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 text; save the table as CSV in UTF-8"):
        pair_table(tmp_path, table)
    table.write_text("a.jpg,1.png,dev\n")
    with pytest.raises(ValueError, match=r"pairs.csv:1: a line is `picture,mask` or `picture,mask,split`"):
        pair_table(tmp_path, table)


def test_splits():
    drawn = divide([None] * 10, 0.2, seed=0)
    assert drawn.count("val") == 2 and drawn.count("train") == 8 and drawn == divide([None] * 10, 0.2, seed=0)
    assert drawn != divide([None] * 10, 0.2, seed=1)
    assert divide(["train", "val", None], 0.5, 0) == ["train", "val", None], "as the folders say"
    assert sorted(map(str, divide(["train", "train", "test"], 0.9, 0))) == ["test", "train", "val"]
    assert sorted(divide([None, None], 0.0, 0)) == ["train", "val"], "one picture at least"
    with pytest.raises(ValueError, match="1 pictures with a mask: training and validation need one each"):
        divide([None, "test"], 0.2, 0)


def test_classes_of_ids():
    assert choose_classes([0, 1, 2, 255], None) == choose_classes([2, 0, 1], None)
    assert choose_classes([0, 1, 2, 255], None).names == ("class_0", "class_1", "class_2")
    assert choose_classes([0, 2], ["a", "b", "c"]).label_map is None, "a class that does not occur"
    gaps = choose_classes([10, 30, 255], ["a", "b"])
    assert gaps.names == ("a", "b") and gaps.label_map == {10: 0, 30: 1}
    assert choose_classes([1, 2, 0], None, ignored=[0]).label_map == {1: 0, 2: 1, 0: 255}
    binary = choose_classes([0, 255], None)
    assert binary.names == ("background", "foreground") and binary.label_map == {0: 0, 255: 1}
    assert "mIoU is the mean over both" in binary.note
    with pytest.raises(ValueError, match="3 names of classes, but the masks hold 2 values: 7, 9"):
        choose_classes([7, 9], ["a", "b", "c"])
    with pytest.raises(ValueError, match="256 different values"):
        choose_classes(range(1000, 1256), None)
    with pytest.raises(ValueError, match="every value is ignored"):
        choose_classes([255], None)
    with pytest.raises(ValueError, match=r"one value alone, 0, .* \(transparency is not read\)"):
        choose_classes([0], None)
    assert choose_classes([0], ["background", "leaf"]).names == ("background", "leaf"), "leaves are to come"


def test_classes_of_colours():
    red, black, white = (255, 0, 0), (0, 0, 0), (255, 255, 255)
    found = choose_classes([red, black, white], ["sky", "sea"], ignored=[black])
    assert found.names == ("sky", "sea") and found.label_map == {red: 0, white: 1, black: 255}
    assert choose_classes([red, black], None).names == ("class_0_0_0", "class_255_0_0")
    with pytest.raises(ValueError, match="some masks hold ids and others colours"):
        choose_classes([red, 3], None)
    binary = choose_classes([white, black], None)
    assert binary.names == ("background", "foreground") and binary.label_map == {black: 0, white: 1}
    assert choose_classes([black, (7, 7, 7)], None).names == ("class_0", "class_7"), "ids in three equal channels"


def test_smoothed_masks_are_refused():
    """Values all over the range on few pixels; ids that lie together are classes."""
    edges = dict.fromkeys(range(20, 250, 10), 2)
    with pytest.raises(ValueError, match="0, 255, and 23 values between on 4.4% of the pixels, as smoothed edges do"):
        refuse_smoothed({0: 700, 255: 300, **edges})
    refuse_smoothed({0: 700, 255: 300, **dict.fromkeys(range(1, 21), 2)})  # VOC
    refuse_smoothed({0: 200, 255: 300, **dict.fromkeys(edges, 40)})
    refuse_smoothed({(0, 0, 0): 1, (255, 255, 255): 9})
    refuse_smoothed({0: 1, 255: 9, 128: 1})
