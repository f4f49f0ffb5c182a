"""UDS (unified driving segmentation): four data sets as one.

Cityscapes, Mapillary, IDD and BDD100K, with Cityscapes' 19 classes. Li et al., "SFNet: Faster and Accurate Semantic
Segmentation via Semantic Flow", IJCV 2023; 34,968 / 4,481 pictures: 2,975 / 500 of Cityscapes, 18,000 / 2,000 of
Mapillary (release 1.2), 6,993 / 981 of IDD (part I) and 7,000 / 1,000 of BDD100K. The maps of classes are those of its
authors (github.com/lxtGH/SFSegNets). Everything is written as training ids, 0 to 18 and 255.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.base import SegDataset
from dataset.bdd100k import BDD100K
from dataset.cityscapes import TRAIN_ID_SUFFIX, Cityscapes, label_ids
from dataset.idd import IDD, cityscapes_ids, polygons
from dataset.mapillary import Mapillary
from dataset.prepare.layout import Drawn, Files, Layout, collect, either
from dataset.read.image import read_label
from dataset.read.labelmap import IGNORE, LabelMap

PARTS = {kind.name: kind for kind in (Cityscapes, Mapillary, IDD, BDD100K)}
NUM_CLASSES = len(Cityscapes.classes)

# Mapillary's ids for each class of Cityscapes.
MAPILLARY = (
    (13, 24, 41),  # road: road, lane markings, manhole
    (2, 15),  # sidewalk: curb, sidewalk
    (17,),  # building
    (6,),  # wall
    (3,),  # fence
    (45, 47),  # pole: pole, utility pole
    (48,),  # traffic light
    (50,),  # traffic sign, its front
    (30,),  # vegetation
    (29,),  # terrain
    (27,),  # sky
    (19,),  # person
    (20, 21, 22),  # rider: bicyclist, motorcyclist, other rider
    (55,),  # car
    (61,),  # truck
    (54,),  # bus
    (58,),  # train: on rails
    (57,),  # motorcycle
    (52,),  # bicycle
)
MAPS = {
    "cityscapes": LabelMap(Cityscapes.label_map, NUM_CLASSES, "cityscapes"),
    "mapillary": LabelMap(
        {**dict.fromkeys(range(66), IGNORE), **{i: c for c, ids in enumerate(MAPILLARY) for i in ids}},
        NUM_CLASSES,
        "mapillary",
    ),
    "bdd100k": LabelMap(None, NUM_CLASSES, "bdd100k"),
}


@dataclass(frozen=True)
class _Pictures:
    """The pictures of one split of all parts."""

    split: str

    def __call__(self, root: Path) -> list[str]:
        found = []
        for name, kind in PARTS.items():
            # The labels are looked for later; here a part counts as complete without them.
            files = kind.layout.splits[self.split]
            images = collect(root / name, f"{name} {self.split}", Files(files.images, (), files.count)).images
            found += [f"{name}/{image}" for image in images]
        return found

    def __str__(self) -> str:
        return ", ".join(f"{name}/{either(kind.layout.splits[self.split].images)}" for name, kind in PARTS.items())


def _source(root: Path, image: str) -> str:
    name, _, image = image.partition("/")
    if name == "idd":
        return f"idd/{polygons(root, image)}"  # its label pictures have other classes
    rules = PARTS[name].layout.splits["train"].labels
    paths = [rule.source(root, image) if isinstance(rule, Drawn) else rule(image) for rule in rules]
    return f"{name}/{next((path for path in paths if (root / name / path).is_file()), paths[0])}"


def _tasks(root: Path, images: list[str]) -> Iterator[tuple[str, tuple[str, Path]]]:
    return ((image, (image.partition("/")[0], root / _source(root, image))) for image in images)


def training_ids(task: tuple[str, Path]) -> np.ndarray:
    """Read a label of a part as training ids uint8 (H, W)."""
    part, path = task
    if part == "idd":
        return cityscapes_ids(path)
    if path.name.endswith(TRAIN_ID_SUFFIX):
        return read_label(path)
    raw = label_ids(path) if path.suffix == ".json" else read_label(path)
    return MAPS[part].apply(raw, str(path))


def _files(split: str, count: int) -> Files:
    return Files(_Pictures(split), (Drawn(_source, training_ids, _tasks),), count)


class UDS(SegDataset):
    name = "uds"
    classes = Cityscapes.classes
    colors = Cityscapes.colors
    layout = Layout(
        source="the sites of cityscapes, mapillary, idd and bdd100k",
        licence="the strictest of the four: non-commercial research, no redistribution",
        manual="get the four as docs/datasets.md says, into the folders cityscapes, mapillary, idd and bdd100k (links "
        "to folders do)",
        splits={"train": _files("train", 34968), "val": _files("val", 4481)},
    )
