"""Miniature trees of the published data sets, laid out and encoded as their authors ship them."""

import json
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

SIZE = 8, 12


def noise(path: str, size: tuple[int, int]) -> np.ndarray:
    """A picture of squares whose colours come from its path."""
    colors = np.random.default_rng(crc32(path.encode())).integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8)
    return np.kron(colors, np.ones((4, 4, 1), np.uint8))


def save(root: Path, path: str, value=None, palette: bool = False) -> None:
    """A picture that no other is like, or a label full of `value`: an id, a colour, or an array."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    if value is None:
        value = noise(path, SIZE)
    if not isinstance(value, np.ndarray):
        value = np.full((*SIZE, 3) if isinstance(value, tuple) else SIZE, value, np.uint8)
    picture = Image.fromarray(value)
    if palette:
        picture = picture.convert("P") if value.ndim == 3 else Image.fromarray(value, "P")
        picture.putpalette([channel for i in range(256) for channel in (i, 255 - i, i // 2)])
    picture.save(root / path)


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def outlines(root: Path, path: str, *objects) -> None:
    """A `*_polygons.json`: (class, corners) or (class, corners, deleted)."""
    items = [
        {"label": name, "polygon": corners, **({"deleted": 1} if more else {})} for name, corners, *more in objects
    ]
    write(root, path, json.dumps({"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": items}))


ALL = [[-1, -1], [13, -1], [13, 9], [-1, 9]]
CITIES = (("train", "aachen"), ("train", "ulm"), ("val", "munster"), ("test", "bonn"))


def cityscapes(root: Path, kind: str | None = "labelIds") -> None:
    for split, city in CITIES:
        for i in range(2):
            stem = f"{city}_00000{i}_000019"
            save(root, f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
            path = f"gtFine/{split}/{city}/{stem}_gtFine_{kind}"
            if kind == "polygons":
                half = [[6, -1], [13, -1], [13, 9], [6, 9]]
                outlines(root, path + ".json", ("cargroup", ALL), ("license plate", half), ("sky", half, True))
            elif kind is not None:
                save(root, path + ".png", 26 if kind == "labelIds" else 13)


def cityscapes_coarse(root: Path) -> None:
    cityscapes(root)
    save(root, "leftImg8bit/train_extra/erlangen/erlangen_000000_000000_leftImg8bit.png")
    save(root, "gtCoarse/train_extra/erlangen/erlangen_000000_000000_gtCoarse_labelIds.png", 26)


def ade20k(root: Path) -> None:
    for split in ("training", "validation"):
        for i in range(3):
            save(root, f"images/{split}/ADE_{i:08}.jpg")
            save(root, f"annotations/{split}/ADE_{i:08}.png", 150)


def ade20k_full(root: Path) -> None:
    for split in ("training", "validation"):
        path = f"images/ADE/{split}/urban/street/ADE_{split}_00000001"
        save(root, path + ".jpg")
        save(root, path + "_seg.png", (954 // 256 * 10, 954 % 256, 7))  # number 954 of the index is flag
        save(root, path + "/instance_000_ADE.png", 1)


def rugd(root: Path) -> None:
    for sequence in ("creek", "trail", "trail-3", "trail-5", "park-8"):
        save(root, f"RUGD_frames-with-annotations/{sequence}/{sequence}_00001.png")
        save(root, f"RUGD_annotations/{sequence}/{sequence}_00001.png", (108, 64, 20))


def camvid(root: Path) -> None:
    for split in ("train", "val"):
        for i in range(2):
            save(root, f"{split}/{i}.png")
            save(root, f"{split}annot/{i}.png", 8)


def camvid_full(root: Path) -> None:
    for name in ("0016E5_07920", "0016E5_07959", "0016E5_08159", "0001TP_008520", "0001TP_008550", "0006R0_f00930"):
        save(root, f"701_StillsRaw_full/{name}.png")
        save(root, f"LabeledApproved_full/{name}_L.png", (64, 128, 192))
    save(root, "701_StillsRaw_full/Seq05VD_f00000.png")
    save(root, "LabeledApproved_full/Seq05VD_f00000_L.png", (64, 128, 192))


def voc(root: Path) -> None:
    lists = {"train": ["2007_000032", "2007_000039"], "val": ["2007_000033"]}
    for split, names in lists.items():
        write(root, f"VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt", "\n".join(names) + "\n")
        for name in names:
            save(root, f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg")
            save(root, f"VOCdevkit/VOC2012/SegmentationClass/{name}.png", 15, palette=True)


def voc_aug(root: Path) -> None:
    """SBD has a picture of its own (2008_000001), one of VOC's train, and one of VOC's val."""
    from scipy.io import savemat

    voc(root)
    save(root, "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg")
    for name in ("2008_000001", "2007_000032", "2007_000033"):
        path = root / f"benchmark_RELEASE/dataset/cls/{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"GTcls": {"Segmentation": np.full(SIZE, 15 if name.startswith("2008") else 3, np.uint8)}})
    write(root, "benchmark_RELEASE/dataset/train.txt", "2008_000001\n2007_000033\n")
    write(root, "benchmark_RELEASE/dataset/val.txt", "2007_000032\n")


def coco(root: Path) -> None:
    """Two pictures a split: a person (category 1) over a bottle (44) in the left half, and nothing at all."""
    square = [0, 0, 60, 0, 60, 40, 0, 40]
    for split in ("train", "val"):
        images, annotations = [], []
        for number in (1, 2):
            name = f"{number:012}.jpg"
            save(root, f"{split}2017/{name}", noise(f"{split}{name}", (40, 120)))
            images.append({"id": number, "file_name": name, "height": 40, "width": 120})
        for category, shape, area in (
            (1, [square], 2400),
            (44, [[0, 0, 10, 0, 10, 40, 0, 40]], 400),
            (27, [square], 9),
        ):
            annotations.append({"image_id": 1, "category_id": category, "segmentation": shape, "area": area})
        document = {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": []}
        write(root, f"annotations/instances_{split}2017.json", json.dumps(document))


def coco_stuff(root: Path) -> None:
    for split in ("train", "val"):
        save(root, f"{split}2017/000000000001.jpg")
        save(root, f"stuffthingmaps/{split}2017/000000000001.png", 181)


def lip(root: Path) -> None:
    for split in ("train", "val"):
        save(root, f"TrainVal_images/{split}_images/1_2.jpg")
        save(root, f"TrainVal_parsing_annotations/{split}_segmentations/1_2.png", 13)
    save(root, "Testing_images/testing_images/3_4.jpg")


def sbu(root: Path) -> None:
    for folder in ("SBUTrain4KRecoveredSmall", "SBU-Test"):
        save(root, f"{folder}/ShadowImages/lssd1.jpg")
        save(root, f"{folder}/ShadowMasks/lssd1.png", 255)


def mapillary(root: Path, version: str = "v1.2", value: int = 55) -> None:
    for split in ("training", "validation"):
        save(root, f"{split}/images/a-_b.jpg")
        save(root, f"{split}/{version}/labels/a-_b.png", value, palette=True)
    save(root, "testing/images/c.jpg")


def mapillary2(root: Path) -> None:
    mapillary(root, "v2.0", 108)


def bdd100k(root: Path) -> None:
    for split in ("train", "val"):
        save(root, f"images/10k/{split}/0a-1.jpg")
        save(root, f"labels/sem_seg/masks/{split}/0a-1.png", 13)
    save(root, "images/10k/test/2.jpg")


def idd(root: Path) -> None:
    for split, suffix in (("train", "png"), ("train", "jpg"), ("val", "png")):
        save(root, f"leftImg8bit/{split}/7/frame_{suffix}_leftImg8bit.{suffix}")
        objects = [("road", ALL), ("cargroup", ALL), ("no such class", ALL)]
        outlines(root, f"gtFine/{split}/7/frame_{suffix}_gtFine_polygons.json", *objects)


def idd_lite(root: Path) -> None:
    for split in ("train", "val"):
        save(root, f"leftImg8bit/{split}/0/024541_image.jpg")
        save(root, f"gtFine/{split}/0/024541_label.png", 3)


def kitti(root: Path) -> None:
    for i in range(10):
        save(root, f"training/image_2/0000{i:02}_10.png")
        save(root, f"training/semantic/0000{i:02}_10.png", 26)


def kitti_road(root: Path) -> None:
    for i in range(5):
        save(root, f"training/image_2/umm_00000{i}.png")
        save(root, f"training/gt_image_2/umm_road_00000{i}.png", (255, 0, 255))


def uds(root: Path) -> None:
    cityscapes(root / "cityscapes")
    mapillary(root / "mapillary")
    idd(root / "idd")
    bdd100k(root / "bdd100k")


# Name -> the tree, pictures in its lists, and the only class of the first training label.
TREES = {
    "cityscapes": (cityscapes, {"train": 4, "val": 2, "test": 2}, "car"),
    "cityscapes_coarse": (cityscapes_coarse, {"train": 1, "val": 2}, "car"),
    "ade20k": (ade20k, {"train": 3, "val": 3}, "flag"),
    "ade20k_full": (ade20k_full, {"train": 1, "val": 1}, "flag"),
    "rugd": (rugd, {"train": 2, "val": 2, "test": 1}, "dirt"),
    "camvid": (camvid, {"train": 2, "val": 2}, "car"),
    "camvid_full": (camvid_full, {"train": 3, "val": 2, "test": 2}, "car"),
    "voc": (voc, {"train": 2, "val": 1}, "person"),
    "voc_aug": (voc_aug, {"train": 3, "val": 1}, "person"),
    "coco": (coco, {"train": 1, "val": 2}, None),
    "coco_stuff": (coco_stuff, {"train": 1, "val": 1}, "wood"),
    "lip": (lip, {"train": 1, "val": 1, "test": 1}, "face"),
    "sbu": (sbu, {"train": 1, "val": 1}, "shadow"),
    "mapillary": (mapillary, {"train": 1, "val": 1, "test": 1}, "Car"),
    "mapillary2": (mapillary2, {"train": 1, "val": 1, "test": 1}, "Car"),
    "bdd100k": (bdd100k, {"train": 1, "val": 1, "test": 1}, "car"),
    "idd": (idd, {"train": 2, "val": 1}, "car"),
    "idd_lite": (idd_lite, {"train": 1, "val": 1}, "vehicles"),
    "kitti": (kitti, {"train": 8, "val": 2}, "car"),
    "kitti_road": (kitti_road, {"train": 4, "val": 1}, "road"),
    "uds": (uds, {"train": 8, "val": 5}, "car"),
}
