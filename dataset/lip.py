"""LIP: parts of bodies, 30,462 / 10,000 / 10,000 pictures.

Persons cut out of COCO, with 19 parts of body and clothing. Gong et al., "Look into Person: Self-supervised
Structure-sensitive Learning and a New Benchmark for Human Parsing", CVPR 2017. On disk 0 is background, a class like
the others; nothing is ignored. Left and right are the person's: a mirrored picture would need these classes exchanged,
so training does not mirror (`augment.flip_prob: 0`).
"""

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.layout import Files, Layout, renamed

# The colours are those that the published results are drawn in.
TABLE = (
    ("background", (0, 0, 0)),
    ("hat", (128, 0, 0)),
    ("hair", (255, 0, 0)),
    ("glove", (0, 85, 0)),
    ("sunglasses", (170, 0, 51)),
    ("upper clothes", (255, 85, 0)),
    ("dress", (0, 0, 85)),
    ("coat", (0, 119, 221)),
    ("socks", (85, 85, 0)),
    ("pants", (0, 85, 85)),
    ("jumpsuit", (85, 51, 0)),
    ("scarf", (52, 86, 128)),
    ("skirt", (0, 128, 0)),
    ("face", (0, 0, 255)),
    ("left arm", (51, 170, 221)),
    ("right arm", (0, 255, 255)),
    ("left leg", (85, 255, 170)),
    ("right leg", (170, 255, 85)),
    ("left shoe", (255, 255, 0)),
    ("right shoe", (255, 170, 0)),
)


def _files(split: str, count: int) -> Files:
    label = renamed(f"TrainVal_images/{split}_images", f"TrainVal_parsing_annotations/{split}_segmentations", ".png")
    return Files((f"TrainVal_images/{split}_images/*.jpg",), (label,), count)


class LIP(SegDataset):
    name = "lip"
    classes = tuple(name for name, _ in TABLE)
    colors = np.array([color for _, color in TABLE], np.uint8)
    layout = Layout(
        source="http://sysu-hcp.net/lip",
        licence="non-commercial research and education",
        manual="unpack TrainVal_images.zip, TrainVal_parsing_annotations.zip and Testing_images.zip of the task for "
        "single persons into one folder",
        splits={
            "train": _files("train", 30462),
            "val": _files("val", 10000),
            "test": Files(("Testing_images/testing_images/*.jpg",), (), 10000, required=False),
        },
    )
