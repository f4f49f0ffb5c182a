"""BDD100K: driving in the United States, 7,000 / 1,000 / 2,000 pictures.

Frames of a dashboard camera, labelled with Cityscapes' 19 classes. Yu et al., "BDD100K: A Diverse Driving Dataset for
Heterogeneous Multitask Learning", CVPR 2020. On disk 0 to 18 are the training ids, and 255 is ignored.
"""

from dataset.base import SegDataset
from dataset.cityscapes import Cityscapes
from dataset.prepare.layout import Files, Layout, renamed


def _files(split: str, count: int) -> Files:
    # The release of 2018 is the folder `seg`, and calls its labels otherwise.
    images = (f"images/10k/{split}/*.jpg", f"seg/images/{split}/*.jpg")
    labels = (
        renamed("images/10k/", "labels/sem_seg/masks/", ".png"),
        renamed("seg/images/", "seg/labels/", "_train_id.png"),
    )
    return Files(images, labels if split != "test" else (), count, required=split != "test")


class BDD100K(SegDataset):
    name = "bdd100k"
    classes = Cityscapes.classes
    colors = Cityscapes.colors
    layout = Layout(
        source="https://bdd-data.berkeley.edu",
        licence="pictures for research and education, no commercial use; labels BSD-3",
        manual="register there, and unpack `10K Images` and `Segmentation` into one folder: it holds images/10k and "
        "labels/sem_seg",
        splits={"train": _files("train", 7000), "val": _files("val", 1000), "test": _files("test", 2000)},
    )
