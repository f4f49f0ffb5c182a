"""IDD: traffic on Indian roads, 6,993 / 981 / 2,029 pictures.

Classes of level 3; the lite form too. Varma et al., "IDD: A Dataset for Exploring Problems of Autonomous Navigation in
Unconstrained Environments", WACV 2019; ids and colours from the official scripts (github.com/AutoNUE/public-code). The
labels are outlines, which are drawn; `*_labellevel3Ids.png`, which the official scripts can make, are taken where they
are.

`idd_lite` has 7 classes (level 1) at 320 x 227, as label pictures, 1,403 / 204 / 404.
"""

from pathlib import Path

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.annotations import draw_polygons
from dataset.prepare.layout import Drawn, Files, Layout, renamed
from dataset.read.labelmap import IGNORE

# Name, training id of Cityscapes, id of level 3, colour; the position is the official id.
TABLE = (
    ("road", 0, 0, (128, 64, 128)),
    ("parking", 255, 1, (250, 170, 160)),
    ("drivable fallback", 255, 1, (81, 0, 81)),
    ("sidewalk", 1, 2, (244, 35, 232)),
    ("rail track", 255, 3, (230, 150, 140)),
    ("non-drivable fallback", 9, 3, (152, 251, 152)),
    ("person", 11, 4, (220, 20, 60)),
    ("animal", 255, 4, (246, 198, 145)),
    ("rider", 12, 5, (255, 0, 0)),
    ("motorcycle", 17, 6, (0, 0, 230)),
    ("bicycle", 18, 7, (119, 11, 32)),
    ("autorickshaw", 255, 8, (255, 204, 54)),
    ("car", 13, 9, (0, 0, 142)),
    ("truck", 14, 10, (0, 0, 70)),
    ("bus", 15, 11, (0, 60, 100)),
    ("caravan", 255, 12, (0, 0, 90)),
    ("trailer", 255, 12, (0, 0, 110)),
    ("train", 16, 12, (0, 80, 100)),
    ("vehicle fallback", 255, 12, (136, 143, 153)),
    ("curb", 255, 13, (220, 190, 40)),
    ("wall", 3, 14, (102, 102, 156)),
    ("fence", 4, 15, (190, 153, 153)),
    ("guard rail", 255, 16, (180, 165, 180)),
    ("billboard", 255, 17, (174, 64, 67)),
    ("traffic sign", 7, 18, (220, 220, 0)),
    ("traffic light", 6, 19, (250, 170, 30)),
    ("pole", 5, 20, (153, 153, 153)),
    ("polegroup", 255, 20, (153, 153, 153)),
    ("obs-str-bar-fallback", 255, 21, (169, 187, 214)),
    ("building", 2, 22, (70, 70, 70)),
    ("bridge", 255, 23, (150, 100, 100)),
    ("tunnel", 255, 23, (150, 120, 90)),
    ("vegetation", 8, 24, (107, 142, 35)),
    ("sky", 10, 25, (70, 130, 180)),
    ("fallback background", 255, 25, (169, 187, 214)),
)
NOT_DRAWN = ("unlabeled", "ego vehicle", "rectification border", "out of roi", "license plate")

# Several classes share an id of level 3: it is called after the one named here, else after the first.
_CALLED = {1: "drivable fallback", 3: "non-drivable fallback", 12: "vehicle fallback"}
LEVEL_3 = {row[2]: row for row in reversed(TABLE)}
LEVEL_3.update({row[2]: row for row in TABLE if row[0] == _CALLED.get(row[2])})
LEVEL_3_IDS = {**{row[0]: row[2] for row in TABLE}, **dict.fromkeys(NOT_DRAWN, IGNORE)}
CITYSCAPES_IDS = {**{row[0]: row[1] for row in TABLE}, **dict.fromkeys(NOT_DRAWN, IGNORE)}
LITE = (
    ("drivable", (128, 64, 128)),
    ("non-drivable", (244, 35, 232)),
    ("living things", (220, 20, 60)),
    ("vehicles", (0, 0, 142)),
    ("road-side objects", (220, 190, 40)),
    ("far objects", (70, 70, 70)),
    ("sky", (70, 130, 180)),
)

SOURCE = "https://idd.insaan.iiit.ac.in"
LICENCE = "non-commercial research, no redistribution"


def _label(ending: str):
    """leftImg8bit/val/DRIVE/X_leftImg8bit.png -> gtFine/val/DRIVE/X_gtFine_ENDING; frames may be JPEGs, too."""
    return lambda image: (
        image.replace("leftImg8bit/", "gtFine/", 1).rpartition("_leftImg8bit.")[0] + f"_gtFine_{ending}"
    )


def polygons(_, image: str) -> str:
    """Name the outlines of a picture."""
    return _label("polygons.json")(image)


def level_3_ids(path: Path) -> np.ndarray:
    """Draw the outlines of a file as training ids.

    Objects that are in no list of classes are left out, as officially.
    """
    return draw_polygons(path, LEVEL_3_IDS, background=IGNORE, skip_unknown=True)


def cityscapes_ids(path: Path) -> np.ndarray:
    """Draw the training ids of Cityscapes, 0 to 18 and 255."""
    return draw_polygons(path, CITYSCAPES_IDS, background=IGNORE, skip_unknown=True)


def _files(split: str, count: int) -> Files:
    images = tuple(f"leftImg8bit/{split}/*/*_leftImg8bit.{suffix}" for suffix in ("png", "jpg"))
    labels = (_label("labellevel3Ids.png"), Drawn(polygons, level_3_ids))
    return Files(images, labels if split != "test" else (), count, required=split != "test")


class IDD(SegDataset):
    name = "idd"
    classes = tuple(LEVEL_3[i][0] for i in range(26))
    colors = np.array([LEVEL_3[i][3] for i in range(26)], np.uint8)
    layout = Layout(
        source=SOURCE,
        licence=LICENCE,
        manual="register there, and unpack IDD Segmentation part I (18 GB); part II adds pictures to the same folders",
        splits={"train": _files("train", 6993), "val": _files("val", 981), "test": _files("test", 2029)},
    )


def _lite_files(split: str, count: int) -> Files:
    label = renamed("leftImg8bit/", "gtFine/", "")
    labels = (lambda image: label(image).removesuffix("_image") + "_label.png",) if split != "test" else ()
    return Files((f"leftImg8bit/{split}/*/*_image.jpg",), labels, count, required=split != "test")


class IDDLite(SegDataset):
    name = "idd_lite"
    classes = tuple(name for name, _ in LITE)
    colors = np.array([color for _, color in LITE], np.uint8)
    layout = Layout(
        source=SOURCE,
        licence=LICENCE,
        manual="register there, and unpack IDD Lite (idd20k_lite)",
        splits={"train": _lite_files("train", 1403), "val": _lite_files("val", 204), "test": _lite_files("test", 404)},
    )
