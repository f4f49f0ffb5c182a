"""Cityscapes: streets of 50 cities, 2,975 / 500 / 1,525 pictures.

All pictures have 2048x1024 pixels. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR
2016; ids and colours from `labels.py` of the official scripts (github.com/mcordts/cityscapesScripts). The download
holds `*_labelIds.png` with the ids 0 to 33, the scripts can make `*_labelTrainIds.png` with 0 to 18; the file's name
tells which map to use. Where a tree holds neither, `*_polygons.json` is drawn.

20,000 more pictures are labelled coarsely (`cityscapes_coarse`): few, generous outlines, and much left unlabelled.
"""

from pathlib import Path

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.annotations import draw_polygons
from dataset.prepare.layout import Drawn, Files, Layout
from dataset.read.labelmap import IGNORE, LabelMap
from dataset.read.remote import Url

# Name, id on disk in *_labelIds.png, colour; the position is the training id.
TABLE = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
# Every class of the annotations; the position is the id. "license plate" has the id -1: it stays what it lies on.
NAMES = (
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
IDS = {**{name: i for i, name in enumerate(NAMES)}, "license plate": -1}
TRAIN_ID_SUFFIX = "_labelTrainIds.png"


def _label(kind: str, labels: str):
    """leftImg8bit/val/CITY/X_leftImg8bit.png -> gtFine/val/CITY/X_gtFine_KIND, and gtCoarse alike."""

    def rule(image: str) -> str:
        return image.removesuffix("_leftImg8bit.png").replace("leftImg8bit/", f"{labels}/", 1) + f"_{labels}_{kind}"

    return rule


def label_ids(path: Path) -> np.ndarray:
    """Draw the label ids 0 to 33 of a `*_polygons.json`."""
    return draw_polygons(path, IDS, background=0)


def _files(split: str, count: int, labels: str = "gtFine") -> Files:
    polygons = _label("polygons.json", labels)
    rules = (
        _label("labelTrainIds.png", labels),
        _label("labelIds.png", labels),
        Drawn(lambda _, image: polygons(image), label_ids),
    )
    # The test labels of the download are blank, the truth stays on the server: its lines name only pictures.
    needed = split != "test"
    return Files((f"leftImg8bit/{split}/*/*_leftImg8bit.png",), rules if needed else (), count, needed)


LICENCE = "non-commercial research and teaching, no redistribution"


class Cityscapes(SegDataset):
    name = "cityscapes"
    classes = tuple(name for name, _, _ in TABLE)
    colors = np.array([color for _, _, color in TABLE], np.uint8)
    label_map = {**dict.fromkeys(range(34), IGNORE), **{row[1]: i for i, row in enumerate(TABLE)}}
    layout = Layout(
        source="https://www.cityscapes-dataset.com",
        licence=LICENCE,
        manual="register there, and unpack leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241 MB) "
        "into one folder",
        splits={"train": _files("train", 2975), "val": _files("val", 500), "test": _files("test", 1525)},
    )

    def _set_facts(self, classes, colors, label_map) -> None:
        super()._set_facts(classes, colors, label_map)
        own = label_map is not None
        self._train_id_map = self._map if own else LabelMap(None, len(self.classes), self.name)

    def map_for(self, label_path: str) -> LabelMap:
        """Return the label map that the file's name asks for.

        The identity for `*_labelTrainIds.png`, the official table for everything else; a user's own `label_map` holds
        for all files.
        """
        return self._train_id_map if label_path.endswith(TRAIN_ID_SUFFIX) else self._map


class CityscapesCoarse(Cityscapes):
    """Coarsely labelled pictures (`train_extra`), scored on the fine val pictures."""

    name = "cityscapes_coarse"
    layout = Layout(
        source="https://www.cityscapes-dataset.com",
        licence=LICENCE,
        manual="register there, and unpack leftImg8bit_trainextra.zip (44 GB), gtCoarse.zip (1.3 GB), "
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into one folder",
        splits={"train": _files("train_extra", 19998, "gtCoarse"), "val": _files("val", 500)},
    )

    @classmethod
    def default_list(cls, root: Path | Url, split: str) -> Path | Url:
        """Return this data set's own list in the folder of `cityscapes`."""
        return root / f"{cls.name}_{split}.txt"
