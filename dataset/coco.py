"""COCO 2017: everyday scenes, 118,287 / 5,000 pictures.

As 21 classes (`coco`) or as 171 (`coco_stuff`). Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014;
Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018. `coco` has the 20 classes of PASCAL VOC and
background, drawn from the instances. It follows the reference training of torchvision, whose published weights it
scores: pixels of two or more instances are ignored, training leaves out pictures with 1,000 labelled pixels or fewer
(the sum of the instances' areas), and val has all pictures.

`coco_stuff` has the 80 things and 91 stuff classes of the maps of the 164k release: 8 bit, id - 1, 255 = unlabelled.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.annotations import stream_json
from dataset.prepare.layout import Archive, Drawn, Files, Layout, renamed
from dataset.prepare.raster import coco_mask, is_size
from dataset.read import DataError
from dataset.read.labelmap import IGNORE
from dataset.read.remote import Url
from dataset.voc import VOC

# COCO's category for each VOC class, from aeroplane to tvmonitor.
CATEGORIES = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
MIN_AREA = 1000  # pixels

# Things have the ids 1 to 90, stuff 92 to 182; these ids were given up before the release.
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
THINGS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
    *("surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
    *("chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
STUFF = (
    *("banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard"),
    *("carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard"),
    *("curtain", "desk-stuff", "dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone"),
    *("floor-tile", "floor-wood", "flower", "fog", "food-other", "fruit", "furniture-other", "grass"),
    *("gravel", "ground-other", "hill", "house", "leaves", "light", "mat", "metal", "mirror-stuff", "moss"),
    *("mountain", "mud", "napkin", "net", "paper", "pavement", "pillow", "plant-other", "plastic"),
    *("platform", "playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad"),
    *("sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw"),
    *("structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable", "wall-brick"),
    *("wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other"),
    *("waterdrops", "window-blind", "window-other", "wood"),
)

PICTURES = (
    Archive("http://images.cocodataset.org/zips/train2017.zip", "md5:cced6f7f71b7629ddf16f17bbcfab6b2"),
    Archive("http://images.cocodataset.org/zips/val2017.zip", "md5:442b8da7639aecaf257c1dceb8ba8c80"),
)
SOURCE = "https://cocodataset.org"
LICENCE = "annotations CC BY 4.0; pictures under the terms of Flickr"

Instance = tuple[int, list | dict]


def _annotations(_, image: str) -> str:
    """train2017/X.jpg -> annotations/instances_train2017.json"""
    return f"annotations/instances_{PurePosixPath(image).parts[0]}.json"


def _tasks(root: Path, images: list[str]) -> Iterator[tuple[str, tuple[str, tuple[int, int], list[Instance]]]]:
    """Yield (picture, (picture, size, instances as (class, segmentation))), in the order of the pictures."""
    path = root / _annotations(root, images[0])
    classes = {category: i + 1 for i, category in enumerate(CATEGORIES)}
    sizes: dict[str, tuple[int, int, int]] = {}
    instances: dict[int, list[Instance]] = defaultdict(list)
    areas: dict[int, float] = defaultdict(float)
    try:
        for key, item in stream_json(path, ("images", "annotations")):
            if key == "images":
                sizes[item["file_name"]] = item["id"], item["height"], item["width"]
                areas[item["id"]] += 0  # where it has no instance
            elif item["category_id"] in classes:
                shape = item["segmentation"]
                shape = shape if isinstance(shape, dict) else [np.array(outline, float) for outline in shape]
                instances[item["image_id"]].append((classes[item["category_id"]], shape))
                areas[item["image_id"]] += item["area"]
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the instances of COCO 2017 ({type(error).__name__}: {error})") from None
    training = images[0].startswith("train")
    for image in images:
        name = PurePosixPath(image).name
        if name not in sizes:
            raise DataError(f"{path}: says nothing of {image}; are pictures and annotations of one release?")
        number, height, width = sizes[name]
        if not is_size((height, width)):
            raise DataError(f"{path}: {image} has the height {height!r} and the width {width!r}, which are none")
        if not training or areas[number] > MIN_AREA:
            yield image, (image, (height, width), instances.pop(number, []))


def draw_instances(task: tuple[str, tuple[int, int], list[Instance]]) -> np.ndarray:
    """Draw the instances of one picture.

    Returns ids 0 to 20, and 255 where two or more instances overlap.
    """
    image, size, instances = task
    label, count = np.zeros(size, np.uint8), np.zeros(size, np.uint16)
    for value, segmentation in instances:
        try:
            mask = coco_mask(segmentation, size)
        except DataError as error:
            raise DataError(f"the instances of {image}: {error}") from None
        label[mask] = value
        count += mask
    label[count > 1] = IGNORE
    return label


class COCO(SegDataset):
    name = "coco"
    classes = VOC.classes
    colors = VOC.colors
    layout = Layout(
        source=SOURCE,
        licence=LICENCE,
        splits={
            "train": Files(("train2017/*.jpg",), (Drawn(_annotations, draw_instances, _tasks),), 118287),
            "val": Files(("val2017/*.jpg",), (Drawn(_annotations, draw_instances, _tasks),), 5000),
        },
        downloads=(
            *PICTURES,
            Archive(
                "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
                "md5:f4bbac642086de4f52a3fdda2de5fa2c",
            ),
        ),
    )


class COCOStuff(SegDataset):
    name = "coco_stuff"
    classes = THINGS + STUFF
    label_map = {number - 1: i for i, number in enumerate(n for n in range(1, 183) if n not in UNUSED)}
    layout = Layout(
        source="https://github.com/nightrome/cocostuff",
        licence=LICENCE,
        splits={
            "train": Files(("train2017/*.jpg",), (renamed("train2017", "stuffthingmaps/train2017", ".png"),), 118287),
            "val": Files(("val2017/*.jpg",), (renamed("val2017", "stuffthingmaps/val2017", ".png"),), 5000),
        },
        downloads=(
            *PICTURES,
            Archive(
                "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
                into="stuffthingmaps",
            ),
        ),
    )

    @classmethod
    def default_list(cls, root: Path | Url, split: str) -> Path | Url:
        """Return this data set's own list in the folder of `coco`."""
        return root / f"{cls.name}_{split}.txt"
