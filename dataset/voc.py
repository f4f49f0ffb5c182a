"""PASCAL VOC 2012: 20 kinds of objects, 1,464 / 1,449 pictures (`voc`).

Background is a class too. With SBD's labels `voc_aug`. Everingham et al., "The PASCAL Visual Object Classes Challenge:
A Retrospective", IJCV 2015. Labels are palette pictures whose indices are the ids; 255, the border of each object, is
ignored.

`voc_aug` trains on 10,582 pictures: those that Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV
2011 (SBD), have labelled, without VOC's val pictures, and VOC's own train pictures with VOC's own labels.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.layout import Archive, Drawn, Files, Layout, Listed, MissingFiles
from dataset.read import DataError
from dataset.read.image import read_label
from dataset.read.remote import Url

TABLE = (
    ("background", (0, 0, 0)),
    ("aeroplane", (128, 0, 0)),
    ("bicycle", (0, 128, 0)),
    ("bird", (128, 128, 0)),
    ("boat", (0, 0, 128)),
    ("bottle", (128, 0, 128)),
    ("bus", (0, 128, 128)),
    ("car", (128, 128, 128)),
    ("cat", (64, 0, 0)),
    ("chair", (192, 0, 0)),
    ("cow", (64, 128, 0)),
    ("diningtable", (192, 128, 0)),
    ("dog", (64, 0, 128)),
    ("horse", (192, 0, 128)),
    ("motorbike", (64, 128, 128)),
    ("person", (192, 128, 128)),
    ("pottedplant", (0, 64, 0)),
    ("sheep", (128, 64, 0)),
    ("sofa", (0, 192, 0)),
    ("train", (128, 192, 0)),
    ("tvmonitor", (0, 64, 128)),
)

DEVKIT = "VOCdevkit/VOC2012"
PICTURE = f"{DEVKIT}/JPEGImages/{{}}.jpg"
AUGMENTED = f"{DEVKIT}/SegmentationClassAug"
SBD = "benchmark_RELEASE/dataset"
LICENCE = "pictures under the terms of Flickr; for research"
DOWNLOAD = Archive(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar", "md5:6cd6e144f989b92b3379bac3b3de84fd"
)


def _listed(split: str) -> Listed:
    return Listed(f"{DEVKIT}/ImageSets/Segmentation/{split}.txt", PICTURE)


def _label(image: str) -> str:
    return f"{DEVKIT}/SegmentationClass/{PurePosixPath(image).stem}.png"


def _augmented_label(image: str) -> str:
    return f"{AUGMENTED}/{PurePosixPath(image).stem}.png"


class _AugmentedPictures:
    """The pictures of SBD, or those of a folder SegmentationClassAug, and of VOC's train without VOC's val."""

    def __call__(self, root: Path) -> list[str]:
        lists = [Listed(f"{SBD}/{split}.txt", PICTURE)(root) for split in ("train", "val")]
        images = {image for each in lists for image in each}
        if not images:
            images = {PICTURE.format(path.stem) for path in (root / AUGMENTED).glob("[!.]*.png")}
        val = set(_listed("val")(root))
        if images and not val:
            raise MissingFiles(
                f"train: {_listed('val').list_file} is not there, which says what is not to be trained on"
            )
        return sorted((images | set(_listed("train")(root))) - val) if images else []

    def __str__(self) -> str:
        return f"{PICTURE.format('*')} with {SBD}/cls/*.mat or {AUGMENTED}/*.png"


def _sbd_source(root: Path, image: str) -> str:
    """VOC's own label where there is one, else SBD's."""
    own = _label(image)
    return own if (root / own).is_file() else f"{SBD}/cls/{PurePosixPath(image).stem}.mat"


def read_sbd(path: Path) -> np.ndarray:
    """Read a label of SBD (.mat) or VOC (.png): uint8 (H, W)."""
    if path.suffix == ".png":
        return read_label(path)
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise DataError("the labels of SBD are MATLAB files: python -m pip install scipy (extra `data`)") from None
    try:
        label = loadmat(path)["GTcls"]["Segmentation"][0, 0].astype(np.uint8)
        if label.ndim != 2:
            raise ValueError(f"an array {label.shape}")
        return label
    except (KeyError, ValueError, TypeError, IndexError, MatReadError) as error:
        raise DataError(f"{path}: no label of SBD ({error})") from None


class VOC(SegDataset):
    name = "voc"
    classes = tuple(name for name, _ in TABLE)
    colors = np.array([color for _, color in TABLE], np.uint8)
    layout = Layout(
        source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
        licence=LICENCE,
        splits={
            "train": Files(_listed("train"), (_label,), 1464),
            "val": Files(_listed("val"), (_label,), 1449),
            "test": Files(_listed("test"), (), 1456, required=False),
        },
        downloads=(DOWNLOAD,),
    )


class VOCAug(VOC):
    name = "voc_aug"
    layout = Layout(
        source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012 and "
        "http://home.bharathh.info/pubs/codes/SBD/download.html",
        licence=LICENCE,
        splits={
            "train": Files(_AugmentedPictures(), (_augmented_label, Drawn(_sbd_source, read_sbd)), 10582),
            "val": VOC.layout.splits["val"],
        },
        downloads=(
            DOWNLOAD,
            Archive(
                "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
                "md5:82b4d87ceb2ed10f6038a1cba92111cb",
            ),
        ),
    )

    @classmethod
    def default_list(cls, root: Path | Url, split: str) -> Path | Url:
        """Return this data set's own list in the folder of `voc`."""
        return root / f"{cls.name}_{split}.txt"
