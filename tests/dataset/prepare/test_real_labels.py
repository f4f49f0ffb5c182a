"""Real label files in their official encodings, each through its data set's reader, against counted pixels."""

import json
import shutil

import cv2
import numpy as np
import pytest

from dataset import dataset_class
from dataset.ade20k import ADE20KFull, read_full
from dataset.base import SegDataset
from dataset.cityscapes import label_ids
from dataset.prepare.convert import convert
from dataset.prepare.layout import collect
from dataset.read.image import read_label
from tests.paths import SHARED

REAL = SHARED / "real"
pytestmark = pytest.mark.skipif(not (REAL / "expected.json").is_file(), reason=f"{REAL} is not there")

AACHEN = "cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine"
# Folder of the real files -> the data set that reads its labels; the rest are instances, and outputs of networks.
READ_AS = {
    **{name: name for name in ("ade20k", "cityscapes", "voc", "coco_stuff", "lip", "bdd100k", "mapillary", "idd_lite")},
    "cityscapes_small": "cityscapes",
    "SegmentationClassAug": "voc_aug",
}
NO_LABELS = ("instanceIds", "val_inst", "lednet_output")


def labels_of_ids() -> list[tuple[str, str]]:
    """(data set, file) of each label whose ids expected.json counts."""
    if not (REAL / "expected.json").is_file():
        return []
    counts = json.loads((REAL / "expected.json").read_text())["data"]
    files = [path.removeprefix("data/") for path, entry in counts.items() if "values" in entry]
    files = [path for path in files if not any(word in path for word in NO_LABELS)]
    return [
        (next(name for folder, name in reversed(READ_AS.items()) if folder in path.split("/")), path) for path in files
    ]


# Ids on disk -> training ids, from the descriptions of the data sets (255 = ignored).
CITYSCAPES = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10} | {
    **{24 + i: 11 + i for i in range(5)},
    **{31 + i: 16 + i for i in range(3)},
}


def stuff(value):
    """COCO's id - 1, where eleven ids are not used."""
    unused = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
    return value - sum(each < value for each in unused)


TRAINING_ID = {
    "ade20k": lambda v: 255 if v == 0 else v - 1,
    "coco_stuff": stuff,
    "labelIds": lambda v: CITYSCAPES.get(v, 255),
}


def counted(label):
    values, counts = np.unique(label, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def expected_values(path):
    entry = json.loads((REAL / "expected.json").read_text())["data"][f"data/{path}"]
    return {int(value): count for value, count in entry["values"].items()}


def read_as(name, path, folder) -> np.ndarray:
    """The label in training ids, as a sample of the data set has it; its picture is a blank one of the same size."""
    raw = read_label(REAL / "data" / path)
    cv2.imwrite(str(folder / "picture.png"), np.zeros((*raw.shape[:2], 3), np.uint8))
    (folder / "train.txt").write_text(f"picture.png {REAL / 'data' / path}\n")
    return dataset_class(name)(folder, list_file=folder / "train.txt")[0]["label"].numpy()


@pytest.mark.parametrize("name,path", labels_of_ids())
def test_pixel_counts(tmp_path, name, path):
    kind = "labelIds" if path.endswith("_labelIds.png") else name
    wanted: dict[int, int] = {}
    for value, count in expected_values(path).items():
        value = value if value == 255 else TRAINING_ID.get(kind, lambda v: v)(value)
        wanted[value] = wanted.get(value, 0) + count
    assert counted(read_as(name, path, tmp_path)) == wanted


@pytest.mark.parametrize("frame", ["creek_00001", "park-8_00001", "village_00003"])
def test_colours_of_rugd(tmp_path, frame):
    """The ids of the published table begin at 1, with 0 for void."""
    wanted = json.loads((REAL / "expected.json").read_text())["data"][f"data/rugd/annotations/{frame}.png"]
    wanted = next(value for key, value in wanted.items() if isinstance(value, dict))
    found = counted(read_as("rugd", f"rugd/annotations/{frame}.png", tmp_path))
    assert found == {(255 if int(v) == 0 else int(v) - 1): n for v, n in wanted.items()}


@pytest.mark.parametrize("frame", range(7959, 8160, 40))
def test_colours_of_camvid_are_its_ids(tmp_path, frame):
    wanted = read_label(SHARED / f"data/camvid/valannot/0016E5_0{frame}.png")
    found = read_as("camvid", f"camvid_color/val_labels/0016E5_0{frame}_L.png", tmp_path)
    assert (found == np.where(wanted == 11, 255, wanted)).all()


def test_lane_of_kitti(tmp_path):
    """Red, magenta and black of the picture, counted by themselves."""
    picture = cv2.imread(str(REAL / "data/kitti_road/training/gt_image_2/um_lane_000000.png"))[:, :, ::-1]
    red, magenta = ((picture == colour).all(axis=2).sum() for colour in ((255, 0, 0), (255, 0, 255)))
    found = counted(read_as("kitti_road", "kitti_road/training/gt_image_2/um_lane_000000.png", tmp_path))
    assert found.get(0, 0) == red and found.get(1, 0) == magenta and red + magenta > 0


def test_outlines_of_cityscapes_give_the_official_training_ids():
    """The official script draws labelTrainIds from the outlines: at 99.9998 % of the pixels in its own check."""
    drawn = label_ids(REAL / "data" / f"{AACHEN}_polygons.json")
    trained = np.full(256, 255, np.uint8)
    trained[list(CITYSCAPES)] = list(CITYSCAPES.values())
    official = read_label(REAL / "data" / f"{AACHEN}_labelTrainIds.png")
    assert (trained[drawn] == official).mean() > 0.99999
    assert (drawn == read_label(REAL / "data" / f"{AACHEN}_labelIds.png")).mean() > 0.995


def test_the_full_ade20k_gives_the_benchmark():
    """The benchmark's label is the nearest reduction of the full one, at every pixel."""
    full = read_full(REAL / "data/ade20k/convertFromADE/ADE_train_00000970_raw.png")
    official = read_label(REAL / "data/ade20k/convertFromADE/ADE_train_00000970_challenge.png")
    height, width = official.shape
    rows = np.ceil((np.arange(height) + 0.5) * full.shape[0] / height - 0.5).astype(int)
    columns = np.ceil((np.arange(width) + 0.5) * full.shape[1] / width - 0.5).astype(int)
    reduced = full[np.ix_(rows.clip(0, full.shape[0] - 1), columns.clip(0, full.shape[1] - 1))]
    assert (reduced == official).mean() > 0.99


def test_the_full_ade20k_names_its_classes(tmp_path):
    """A picture of the release of 2021: the classes that its own JSON names, as far as the benchmark has them."""
    folder = "images/ADE/training/urban/street"
    shutil.copytree(REAL / "data/ade20k/full_2021_17_01" / folder, tmp_path / folder)
    found = collect(tmp_path, "train", ADE20KFull.layout.splits["train"])
    ((_, label),) = convert(tmp_path, found, tmp_path / "prepared")
    kind: type[SegDataset] = ADE20KFull
    drawn = {kind.classes[value - 1] for value in np.unique(read_label(label)) if value}
    named = {"building", "sky", "tree", "road", "sidewalk", "person", "car", "signboard", "streetlight"}
    assert drawn == named | {"traffic light", "ashcan", "minibike"}


def test_instances_of_coco_give_the_reference_labels(tmp_path):
    """The pixels that torchvision's reference training has, with the masks of pycocotools 2.0.11."""
    (tmp_path / "val2017").symlink_to(REAL / "data/coco/val2017")
    (tmp_path / "annotations").symlink_to(REAL / "data/coco/annotations")
    found = collect(tmp_path, "val", dataset_class("coco").layout.splits["val"])
    labels = {image: counted(read_label(path)) for image, path in convert(tmp_path, found, tmp_path / "prepared")}
    assert labels == {
        "val2017/000000444010.jpg": {0: 37303, 9: 6859, 11: 102091, 15: 153547, 255: 7400},
        "val2017/000000471345.jpg": {0: 14151, 11: 293049},
        "val2017/000000475546.jpg": {0: 140853, 15: 46596, 255: 51},
        "val2017/000000516168.jpg": {0: 172041, 5: 6788, 9: 9304, 11: 100326, 15: 18589, 255: 152},
        "val2017/000000547503.jpg": {0: 125627, 5: 1423, 15: 60393, 255: 57},
        "val2017/000000565004.jpg": {0: 195783, 5: 20068, 11: 34527, 15: 22515, 255: 387},
    }
