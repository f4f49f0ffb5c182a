"""ADE20K, scene parsing benchmark: 150 classes, 20,210 / 2,000 pictures.

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017, and "Semantic Understanding of Scenes through
the ADE20K Dataset", IJCV 2019. On disk 0 is "other objects", which the benchmark ignores, and class i stands
as i + 1.

`ade20k_full` is the release of 2021 at full size, 25,574 / 2,000 pictures, whose colour-coded labels are written as
these 150 classes.
"""

from pathlib import Path

import cv2
import numpy as np

from dataset.base import SegDataset
from dataset.prepare.layout import Archive, Drawn, Files, Layout
from dataset.read import DataError
from dataset.read.labelmap import IGNORE

# The first of the benchmark's synonyms for each class, as the published results name them.
CLASSES = (
    "wall",
    "building",
    "sky",
    "floor",
    "tree",
    "ceiling",
    "road",
    "bed",
    "windowpane",
    "grass",
    "cabinet",
    "sidewalk",
    "person",
    "earth",
    "door",
    "table",
    "mountain",
    "plant",
    "curtain",
    "chair",
    "car",
    "water",
    "painting",
    "sofa",
    "shelf",
    "house",
    "sea",
    "mirror",
    "rug",
    "field",
    "armchair",
    "seat",
    "fence",
    "desk",
    "rock",
    "wardrobe",
    "lamp",
    "bathtub",
    "railing",
    "cushion",
    "base",
    "box",
    "column",
    "signboard",
    "chest of drawers",
    "counter",
    "sand",
    "sink",
    "skyscraper",
    "fireplace",
    "refrigerator",
    "grandstand",
    "path",
    "stairs",
    "runway",
    "case",
    "pool table",
    "pillow",
    "screen door",
    "stairway",
    "river",
    "bridge",
    "bookcase",
    "blind",
    "coffee table",
    "toilet",
    "flower",
    "book",
    "hill",
    "bench",
    "countertop",
    "stove",
    "palm",
    "kitchen island",
    "computer",
    "swivel chair",
    "boat",
    "bar",
    "arcade machine",
    "hovel",
    "bus",
    "towel",
    "light",
    "truck",
    "tower",
    "chandelier",
    "awning",
    "streetlight",
    "booth",
    "television receiver",
    "airplane",
    "dirt track",
    "apparel",
    "pole",
    "land",
    "bannister",
    "escalator",
    "ottoman",
    "bottle",
    "buffet",
    "poster",
    "stage",
    "van",
    "ship",
    "fountain",
    "conveyer belt",
    "canopy",
    "washer",
    "plaything",
    "swimming pool",
    "stool",
    "barrel",
    "basket",
    "waterfall",
    "tent",
    "bag",
    "minibike",
    "cradle",
    "oven",
    "ball",
    "food",
    "step",
    "tank",
    "trade name",
    "microwave",
    "pot",
    "animal",
    "bicycle",
    "lake",
    "dishwasher",
    "screen",
    "blanket",
    "sculpture",
    "hood",
    "sconce",
    "vase",
    "traffic light",
    "tray",
    "ashcan",
    "fan",
    "pier",
    "crt screen",
    "plate",
    "monitor",
    "bulletin board",
    "shower",
    "radiator",
    "glass",
    "clock",
    "flag",
)

# The colours in which published ADE20K results are drawn.
COLORS = (
    (120, 120, 120),
    (180, 120, 120),
    (6, 230, 230),
    (80, 50, 50),
    (4, 200, 3),
    (120, 120, 80),
    (140, 140, 140),
    (204, 5, 255),
    (230, 230, 230),
    (4, 250, 7),
    (224, 5, 255),
    (235, 255, 7),
    (150, 5, 61),
    (120, 120, 70),
    (8, 255, 51),
    (255, 6, 82),
    (143, 255, 140),
    (204, 255, 4),
    (255, 51, 7),
    (204, 70, 3),
    (0, 102, 200),
    (61, 230, 250),
    (255, 6, 51),
    (11, 102, 255),
    (255, 7, 71),
    (255, 9, 224),
    (9, 7, 230),
    (220, 220, 220),
    (255, 9, 92),
    (112, 9, 255),
    (8, 255, 214),
    (7, 255, 224),
    (255, 184, 6),
    (10, 255, 71),
    (255, 41, 10),
    (7, 255, 255),
    (224, 255, 8),
    (102, 8, 255),
    (255, 61, 6),
    (255, 194, 7),
    (255, 122, 8),
    (0, 255, 20),
    (255, 8, 41),
    (255, 5, 153),
    (6, 51, 255),
    (235, 12, 255),
    (160, 150, 20),
    (0, 163, 255),
    (140, 140, 140),
    (250, 10, 15),
    (20, 255, 0),
    (31, 255, 0),
    (255, 31, 0),
    (255, 224, 0),
    (153, 255, 0),
    (0, 0, 255),
    (255, 71, 0),
    (0, 235, 255),
    (0, 173, 255),
    (31, 0, 255),
    (11, 200, 200),
    (255, 82, 0),
    (0, 255, 245),
    (0, 61, 255),
    (0, 255, 112),
    (0, 255, 133),
    (255, 0, 0),
    (255, 163, 0),
    (255, 102, 0),
    (194, 255, 0),
    (0, 143, 255),
    (51, 255, 0),
    (0, 82, 255),
    (0, 255, 41),
    (0, 255, 173),
    (10, 0, 255),
    (173, 255, 0),
    (0, 255, 153),
    (255, 92, 0),
    (255, 0, 255),
    (255, 0, 245),
    (255, 0, 102),
    (255, 173, 0),
    (255, 0, 20),
    (255, 184, 184),
    (0, 31, 255),
    (0, 255, 61),
    (0, 71, 255),
    (255, 0, 204),
    (0, 255, 194),
    (0, 255, 82),
    (0, 10, 255),
    (0, 112, 255),
    (51, 0, 255),
    (0, 194, 255),
    (0, 122, 255),
    (0, 255, 163),
    (255, 153, 0),
    (0, 255, 10),
    (255, 112, 0),
    (143, 255, 0),
    (82, 0, 255),
    (163, 255, 0),
    (255, 235, 0),
    (8, 184, 170),
    (133, 0, 255),
    (0, 255, 92),
    (184, 0, 255),
    (255, 0, 31),
    (0, 184, 255),
    (0, 214, 255),
    (255, 0, 112),
    (92, 255, 0),
    (0, 224, 255),
    (112, 224, 255),
    (70, 184, 160),
    (163, 0, 255),
    (153, 0, 255),
    (71, 255, 0),
    (255, 0, 163),
    (255, 204, 0),
    (255, 0, 143),
    (0, 255, 235),
    (133, 255, 0),
    (255, 0, 235),
    (245, 0, 255),
    (255, 0, 122),
    (255, 245, 0),
    (10, 190, 212),
    (214, 255, 0),
    (0, 204, 255),
    (20, 0, 255),
    (255, 255, 0),
    (0, 153, 255),
    (0, 41, 255),
    (0, 255, 204),
    (41, 0, 255),
    (41, 255, 0),
    (173, 0, 255),
    (0, 245, 255),
    (71, 0, 255),
    (122, 0, 255),
    (0, 255, 184),
    (0, 92, 255),
    (184, 255, 0),
    (0, 133, 255),
    (255, 214, 0),
    (25, 194, 194),
    (102, 255, 0),
    (92, 0, 255),
)
# The number of each class in the index of the full data set, from mapFromADE.txt of the benchmark
# (github.com/CSAILVision/sceneparsing); three classes have a second one.
FULL_INDEX = """
    2978 312 2420 976 2855 447 2131 165 3055 1125 350 2377 1831 838 774 2684 1610 1910 687 471 401 2994 1735 2473
    2329 1276 2264 1564 2178 913 57 2272 907 724 2138 2985 1395 155 2053 689 137 266 581 2380 491 627 2212 2388
    2423 943 2096 1121 1788 2530 2185 420 1948 1869 2251 2531 2128 294 239 212 571 2793 978 236 1240 181 629 2598
    1744 1374 591 2679 223 123 47 1282 327 2821 1451 2880 2828 480 77 2616 246 2733 14 738 38 1936 1401 120 868
    1702 249 308 1969 2526 2928 2337 1023 609 389 2989 1930 2668 2586 131 146 3016 2739 95 1563 642 1708 103 1002
    2569 2704 2833 1551 1981 29 187 1393 747 2254 206 2262 1260 2243 2932 2836 2850 64 894 1858 3109 1919 1583 318
    2356 2046 1098 530 954
"""
SECOND_INDEX = {783: 15, 533: 36, 247: 89}
_FULL_TO_150 = np.zeros(25 * 256 + 256, np.uint8)
_FULL_TO_150[[int(number) for number in FULL_INDEX.split()]] = np.arange(1, 151)
_FULL_TO_150[list(SECOND_INDEX)] = list(SECOND_INDEX.values())

LICENCE = "annotations BSD-3; pictures for non-commercial research and education only"


def _label(image: str) -> str:
    """images/training/NAME.jpg -> annotations/training/NAME.png"""
    return image.replace("images/", "annotations/", 1).removesuffix(".jpg") + ".png"


class ADE20K(SegDataset):
    name = "ade20k"
    classes = CLASSES
    colors = np.array(COLORS, np.uint8)
    label_map = {0: IGNORE, **{i + 1: i for i in range(150)}}
    layout = Layout(
        source="http://sceneparsing.csail.mit.edu",
        licence=LICENCE,
        splits={
            "train": Files(("images/training/*.jpg",), (_label,), 20210),
            "val": Files(("images/validation/*.jpg",), (_label,), 2000),
        },
        downloads=(
            Archive(
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
                folder="ADEChallengeData2016",
            ),
        ),
    )


def read_full(path: Path) -> np.ndarray:
    """Read a `*_seg.png` of the full release as benchmark ids.

    The ids are 0 to 150, uint8 (H, W). Red and green hold the class, red // 10 * 256 + green; blue tells instances
    apart.
    """
    coded = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if coded is None:
        raise DataError(f"{path}: not a readable picture (damaged or cut short); fetch it again")
    return _FULL_TO_150[coded[:, :, 0].astype(np.int32) // 10 * 256 + coded[:, :, 1]]


def _full_source(_, image: str) -> str:
    return image.removesuffix(".jpg") + "_seg.png"


class ADE20KFull(ADE20K):
    name = "ade20k_full"
    layout = Layout(
        source="https://groups.csail.mit.edu/vision/datasets/ADE20K",
        licence=LICENCE,
        manual="register there, and unpack the full data set (ADE20K_2021_17_01); its folder `images` is below DIR",
        splits={
            "train": Files(("images/ADE/training/**/*.jpg",), (Drawn(_full_source, read_full),), 25574),
            "val": Files(("images/ADE/validation/**/*.jpg",), (Drawn(_full_source, read_full),), 2000),
        },
    )
