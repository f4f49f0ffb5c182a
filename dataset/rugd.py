"""RUGD: unstructured outdoor terrain, 24 classes, 4,779 / 733 / 1,924 frames.

Seen by a ground robot; void is a class of its own on disk. Wigness et al., "A RUGD Dataset for Autonomous Navigation
and Visual Perception in Unstructured Outdoor Environments", IROS 2019. The labels are colour pictures; the split goes
by video sequence, as in the paper. Labels converted to single-channel ids by the published colour table (0 void, 1
dirt, ... 24 picnic-table) are read too.
"""

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.layout import Files, Layout
from dataset.read.labelmap import IGNORE

VOID_COLOR = (0, 0, 0)

# RUGD_annotation-colormap.txt, ids 1 to 24.
TABLE = (
    ("dirt", (108, 64, 20)),
    ("sand", (255, 229, 204)),
    ("grass", (0, 102, 0)),
    ("tree", (0, 255, 0)),
    ("pole", (0, 153, 153)),
    ("water", (0, 128, 255)),
    ("sky", (0, 0, 255)),
    ("vehicle", (255, 255, 0)),
    ("container", (255, 0, 127)),
    ("asphalt", (64, 64, 64)),
    ("gravel", (255, 128, 0)),
    ("building", (255, 0, 0)),
    ("mulch", (153, 76, 0)),
    ("rock-bed", (102, 102, 0)),
    ("log", (102, 0, 0)),
    ("bicycle", (0, 255, 128)),
    ("person", (204, 153, 255)),
    ("fence", (102, 0, 204)),
    ("bush", (255, 153, 204)),
    ("sign", (0, 102, 102)),
    ("rock", (153, 204, 255)),
    ("bridge", (102, 255, 255)),
    ("concrete", (101, 101, 11)),
    ("picnic-table", (114, 85, 47)),
)

SEQUENCES = {
    "train": (
        "park-2",
        "trail",
        "trail-3",
        "trail-4",
        "trail-6",
        "trail-9",
        "trail-10",
        "trail-11",
        "trail-12",
        "trail-14",
        "trail-15",
        "village",
    ),
    "val": ("park-8", "trail-5"),
    "test": ("creek", "park-1", "trail-7", "trail-13"),
}


def _label(image: str) -> str:
    return image.replace("RUGD_frames-with-annotations/", "RUGD_annotations/", 1)


def _files(split: str, count: int) -> Files:
    patterns = tuple(f"RUGD_frames-with-annotations/{name}/*.png" for name in SEQUENCES[split])
    return Files(patterns, (_label,), count, required=split != "test")


class RUGD(SegDataset):
    name = "rugd"
    classes = tuple(name for name, _ in TABLE)
    colors = np.array([color for _, color in TABLE], np.uint8)
    label_map = {
        0: IGNORE,
        **{i + 1: i for i in range(24)},
        VOID_COLOR: IGNORE,
        **{color: i for i, (_, color) in enumerate(TABLE)},
    }
    layout = Layout(
        source="http://rugd.vision (RUGD_frames-with-annotations.zip and RUGD_annotations.zip)",
        licence="none stated; ask its authors before any use other than research",
        splits={"train": _files("train", 4779), "val": _files("val", 733), "test": _files("test", 1924)},
    )
