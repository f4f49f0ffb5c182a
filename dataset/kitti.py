"""KITTI: streets around Karlsruhe.

200 pictures with Cityscapes' classes (`kitti`), 289 in which the road is marked (`kitti_road`). Alhaija et al.,
"Augmented Reality Meets Computer Vision", IJCV 2018, and Fritsch et al., "A New Performance Measure and Evaluation
Benchmark for Road Detection Algorithms", ITSC 2013. Neither has an official val split: every fifth picture in the order
of the names is held out. The labels of the test pictures stay on the server.
"""

import numpy as np

from dataset.base import SegDataset
from dataset.cityscapes import Cityscapes
from dataset.prepare.layout import Archive, EveryFifth, Files, Layout, renamed
from dataset.read.labelmap import IGNORE

LICENCE = "CC BY-NC-SA 3.0"


def _files(train: int, val: int, test: int, label) -> dict[str, Files]:
    pattern = "training/image_2/*.png"
    return {
        "train": Files(EveryFifth(pattern, held_out=False), (label,), train),
        "val": Files(EveryFifth(pattern, held_out=True), (label,), val),
        "test": Files(("testing/image_2/*.png",), (), test, required=False),
    }


def _road_label(image: str) -> str:
    """training/image_2/um_000000.png -> training/gt_image_2/um_road_000000.png"""
    return image.replace("image_2/", "gt_image_2/", 1).replace("_0", "_road_0", 1)


class KITTI(SegDataset):
    """Cityscapes' label ids on disk, 0 to 33."""

    name = "kitti"
    classes = Cityscapes.classes
    colors = Cityscapes.colors
    label_map = Cityscapes.label_map
    layout = Layout(
        source="https://www.cvlibs.net/datasets/kitti/eval_semantics.php",
        licence=LICENCE,
        splits=_files(160, 40, 200, renamed("image_2/", "semantic/")),
        downloads=(Archive("https://s3.eu-central-1.amazonaws.com/avg-kitti/data_semantics.zip"),),
    )


class KITTIRoad(SegDataset):
    """KITTI's road benchmark.

    Colours on disk: red is no road, magenta is road, black is not judged.
    """

    name = "kitti_road"
    classes = ("no road", "road")
    colors = np.array([(255, 0, 0), (255, 0, 255)], np.uint8)
    label_map = {(255, 0, 0): 0, (255, 0, 255): 1, (0, 0, 0): IGNORE}
    layout = Layout(
        source="https://www.cvlibs.net/datasets/kitti/eval_road.php",
        licence=LICENCE,
        splits=_files(232, 57, 290, _road_label),
        downloads=(Archive("https://s3.eu-central-1.amazonaws.com/avg-kitti/data_road.zip", folder="data_road"),),
    )
