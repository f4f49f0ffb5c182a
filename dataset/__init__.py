"""Data sets by name, and the loaders of training and evaluation."""

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.augment.transform import Augmentation
from dataset.base import SegDataset, Transform
from dataset.load.loader import build_eval_loader, build_loader
from dataset.read import DataError
from dataset.read.image import Limits

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "SegDataset",
    "augmentation",
    "build_dataset",
    "build_eval_loader",
    "build_loader",
    "dataset_class",
]

# Name -> where the class stands; imported when it is asked for.
DATASETS: dict[str, str | type[SegDataset]] = {
    "custom": "dataset.base.SegDataset",
    "street": "dataset.street.Street",
    "cityscapes": "dataset.cityscapes.Cityscapes",
    "cityscapes_coarse": "dataset.cityscapes.CityscapesCoarse",
    "ade20k": "dataset.ade20k.ADE20K",
    "ade20k_full": "dataset.ade20k.ADE20KFull",
    "rugd": "dataset.rugd.RUGD",
    "camvid": "dataset.camvid.CamVid",
    "camvid_full": "dataset.camvid.CamVidFull",
    "voc": "dataset.voc.VOC",
    "voc_aug": "dataset.voc.VOCAug",
    "coco": "dataset.coco.COCO",
    "coco_stuff": "dataset.coco.COCOStuff",
    "lip": "dataset.lip.LIP",
    "sbu": "dataset.sbu.SBU",
    "mapillary": "dataset.mapillary.Mapillary",
    "mapillary2": "dataset.mapillary.Mapillary2",
    "bdd100k": "dataset.bdd100k.BDD100K",
    "idd": "dataset.idd.IDD",
    "idd_lite": "dataset.idd.IDDLite",
    "kitti": "dataset.kitti.KITTI",
    "kitti_road": "dataset.kitti.KITTIRoad",
    "uds": "dataset.uds.UDS",
}


# Augmentations of the user, name -> where the function stands; see `TrainTransform`.
AUGMENTATIONS: dict[str, str | Augmentation] = {}


def dataset_class(name: str) -> type[SegDataset]:
    """Return the class of a data set.

    It carries the facts: `classes`, `colors`, `label_map`.

    Raises:
        DataError: the name is unknown; the error lists all names and the nearest one.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(str(name).lower(), DATASETS, n=1)
        own = "; a class of yours: the experiment, or --plugin, names it" if "." in str(name) else ""
        hint = own or f"; did you mean {near[0]!r}?" if near else '; "custom" serves your own data'
        raise DataError(f"unknown data set {name!r}{hint} (known: {', '.join(DATASETS)})")
    kind = _imported(DATASETS[name])
    if not (isinstance(kind, type) and issubclass(kind, SegDataset)):
        raise DataError(f"data set {name!r} is {kind!r}; a data set is a subclass of dataset.SegDataset")
    return kind


def augmentation(name: str) -> Augmentation:
    """Return the user's augmentation of a name.

    Raises:
        DataError: the name is unknown.
    """
    if name not in AUGMENTATIONS:
        raise DataError(f"unknown augmentation {name!r} (known: {', '.join(AUGMENTATIONS) or 'none'})")
    change = _imported(AUGMENTATIONS[name])
    signature = inspect.signature(change)
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise DataError(
            f"augment.own: {name}{signature}: {error}; an augmentation is a function (image, label, rng) -> both"
        ) from None
    return change


def _imported(entry: Any) -> Any:
    """The class or function of a table's entry, which a plugin may have put there itself."""
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def build_dataset(
    name: str,
    root: str | Path,
    list_file: str | Path | None = None,
    split: str = "train",
    transform: Transform | None = None,
    seed: int = 0,
    classes: Sequence[str] | None = None,
    colors: Sequence | np.ndarray | None = None,
    label_map: Mapping | None = None,
    channels: int = 3,
    limits: Limits | None = None,
) -> SegDataset:
    """Build a data set by its name.

    Args:
        name: a key of `DATASETS`, "custom" for your own pictures, or a class's dotted path. The other arguments are
            those of `SegDataset`.
    """
    return dataset_class(name)(
        root,
        list_file=list_file,
        split=split,
        transform=transform,
        seed=seed,
        classes=classes,
        colors=colors,
        label_map=label_map,
        channels=channels,
        limits=limits,
    )
