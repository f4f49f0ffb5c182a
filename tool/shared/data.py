"""From an experiment to its data.

Data sets, checked and packed, and the batches of a training.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from dataset import SegDataset, augmentation, build_dataset, build_loader
from dataset.augment.mix import Mixer
from dataset.augment.transform import TrainTransform
from dataset.base import Transform
from dataset.load.uniform import ClassUniform, Points, find_points
from dataset.prepare.check import Report, check_dataset, compare_splits
from dataset.prepare.pack import pack_for_a_run
from dataset.prepare.survey import median_frequency
from dataset.read import DataError, packed
from dataset.read.identity import facts
from dataset.read.remote import Url
from util import dist
from util.config.load import RunPaths
from util.config.schema import Config
from util.record.log import log
from util.record.machine import cores
from util.train.loop import Training
from util.train.prefetch import Prefetch
from util.train.resume import Data

MIXED = 0.5  # share of the images that are smaller than the crop, from which on it looks wrong


def files_of(config: Config, split: str, transform: Transform | None = None) -> SegDataset:
    """Build the data set of one split from its files."""
    data = config.data
    list_file = {"train": data.train_list, "val": data.val_list, "test": data.test_list}[split]
    return build_dataset(
        data.name,
        data.root,
        list_file,
        split,
        transform,
        config.seed,
        data.classes,
        data.colors,
        data.label_map,
        data.channels,
        data.range,
    )


def dataset_of(config: Config, split: str, transform: Transform | None = None) -> SegDataset:
    """Build the data set of one split, packed if asked for.

    `loader.packed` asks for it. A split without packed data is read from its files, except when a folder was named and
    this is the training split.

    Raises:
        FileNotFoundError, DataError: the packed data are missing, damaged, or do not fit the files.
    """
    dataset, folder = files_of(config, split, transform), config.loader.packed
    if folder is None:
        return dataset
    if folder == "auto" and isinstance(dataset.root, Url):
        raise DataError(f"loader.packed: auto looks in data.root, {dataset.root}; name a folder of this machine")
    place = Path(dataset.root / "packed" if folder == "auto" else folder)
    there = packed.manifest_file(place, split).is_file() or packed.is_older(place, split)
    if there or (folder != "auto" and split == "train"):
        dataset.source = packed.Packed(place, dataset)
        log.info("%s: packed data %s", split, place)
    else:
        log.info("%s: no packed data in %s, the files are read", split, place)
    return dataset


def keep_in_memory(config: Config, sets: list[SegDataset]) -> None:
    """Pack the data sets into memory for this run.

    If `loader.cache` says so.

    Raises:
        UserError, OSError: a file cannot be read, or there is not enough room.
    """
    if config.loader.cache == "memory":
        several = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1
        run = os.getppid() if several else os.getpid()  # the launcher's, whose processes share the packed data
        folder = pack_for_a_run(sets, run, loader_workers(config))
        log.info("loader.cache: %d decoded images are in %s until the run ends", sum(map(len, sets)), folder)


def loader_workers(config: Config) -> int:
    """Return `loader.workers`, at most this process's share of the cores."""
    return min(config.loader.workers, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def train_transform(config: Config) -> TrainTransform:
    """Build the augmentation of the training samples."""
    augment = config.augment
    return TrainTransform(
        augment.crop,
        augment.scale,
        augment.rotate,
        augment.rotate_prob,
        augment.blur_prob,
        augment.flip_prob,
        augment.jitter,
        config.data.mean,
        photometric=augment.photometric,
        vflip_prob=augment.vflip_prob,
        turn_prob=augment.turn_prob,
        cutout_prob=augment.cutout_prob,
        cutout_size=augment.cutout_size,
        own=[augmentation(name) for name in augment.own],
    )


def build_data(config: Config, run: RunPaths):
    """Training and validation set, checked; rank 0 reads the labels for all."""
    transform = train_transform(config)
    train_set = dataset_of(config, "train", transform)
    transform.num_classes = len(train_set.classes)
    val_set = dataset_of(config, "val") if config.train.val_every else None
    sets = [part for part in (train_set, val_set) if part is not None]
    for part in sets:
        log.info("%s: %d pictures of %s, %d classes", part.split, len(part), part.name, len(part.classes))
    run.folder.mkdir(parents=True, exist_ok=True)
    for warning in dist.main_first(lambda: check_labels(config, sets, run)):
        log.info("data: %s", warning)
    keep_in_memory(config, sets)
    train_set.mixer = mixer_of(config, train_set, run)
    return train_set, val_set


def mixer_of(config: Config, train_set: SegDataset, run: RunPaths) -> Mixer | None:
    """Build what mixes the samples of a training, if anything does.

    Raises:
        DataError: a class to paste is not one of the data set, or in no label.
    """
    augment = config.augment
    if not augment.cutmix_prob + augment.classmix_prob + augment.copy_paste_prob:
        return None
    unknown = [name for name in augment.copy_paste_classes if name not in train_set.classes]
    if unknown:
        raise DataError(f"augment.copy_paste_classes: no class {unknown[0]!r} (known: {', '.join(train_set.classes)})")
    rare = [train_set.classes.index(name) for name in augment.copy_paste_classes]
    table = places_of_classes(config, train_set, run).table if rare else None
    return Mixer(augment.cutmix_prob, augment.classmix_prob, augment.copy_paste_prob, rare, table)


def places_of_classes(config: Config, train_set: SegDataset, run: RunPaths) -> Points:
    """Find pixels of each class; rank 0 reads the labels for all."""
    tile = config.loader.uniform_tile or max(config.augment.crop)
    return dist.main_first(lambda: find_points(train_set, tile, file=run.folder / "uniform.npz"))


def data_of(train_set, val_set) -> Data:
    """Return what a checkpoint, and a continued run, know of the data."""
    sets = {part.split: facts(part) for part in (train_set, val_set) if part is not None}
    colors = [list(map(int, color)) for color in train_set.colors]
    return Data(tuple(train_set.classes), colors, sets, plain_label_map(train_set))


def plain_label_map(dataset: SegDataset) -> dict[str, int]:
    """Return the data set's label map with keys as text.

    A key is a value on disk, "7" or "r,g,b"; it maps to a class index or 255.
    """
    if dataset.label_map is None:
        return {str(index): index for index in range(len(dataset.classes))}
    return {
        ",".join(map(str, key)) if isinstance(key, tuple | list) else str(key): int(value)
        for key, value in dataset.label_map.items()
    }


def check_labels(config: Config, sets: list[SegDataset], run: RunPaths) -> list[str]:
    """Read labels once, as `data.check` says; return what looks wrong.

    What was read is remembered in the run's folder.

    Raises:
        DataError: names the files that cannot be used.
    """
    if config.data.check == "off":
        return []
    sample = config.data.check if isinstance(config.data.check, int) else None
    reports = [checked(part, run, sample) for part in sets]
    warnings = []
    for part, report in zip(sets, reports, strict=True):
        warnings += [f"{part.split}: {text}" for text in report.warnings]
        if part.split == "train" and (found := small_images(config.augment.crop, report.sizes)):
            warnings.append(f"train: {found[0]}")
    if len(sets) == 2:
        warnings += compare_splits(sets[0], reports[0], sets[1], reports[1])
    return warnings


def small_images(crop: tuple[int, int], sizes: Sequence[tuple[int, int, int]]) -> tuple[str, int] | None:
    """Warn where most images are smaller than the crop; with their number.

    sizes: (height, width, images), the most frequent first.
    """
    height, width = crop
    small = sum(count for h, w, count in sizes if h < height or w < width)
    total = sum(count for *_, count in sizes)
    if not total or small < MIXED * total:
        return None
    h, w, _ = sizes[0]
    text = (
        f"{small} of {total} images are smaller than augment.crop {height}x{width} (most are {h}x{w}, height x "
        f"width), and are padded with ignored pixels: augment.crop=[{min(h, height)},{min(w, width)}]"
    )
    return text, small


def checked(dataset: SegDataset, run: RunPaths, sample: int | None = None) -> Report:
    """Check a data set, or so many samples of it.

    What was read is remembered in the run's folder.

    Raises:
        DataError: names the files that cannot be used.
    """

    def told(done: int, count: int) -> None:
        if done:
            log.info("data: check of %s: %d of %d samples are done", dataset.split, done, count)

    name = f"check_{dataset.split}.json" if sample is None else f"check_{dataset.split}_{sample}.json"
    return check_dataset(dataset, stamp=run.folder / name, sample=sample, progress=told)


def with_class_weights(config: Config, train_set: SegDataset, run: RunPaths) -> Config:
    """Return the config with numbers for `loss.class_weights: auto`.

    They are by median frequency (Eigen and Fergus, ICCV 2015, section 6.3.2); classes that no label holds have 0.
    """
    if config.loss.class_weights != "auto":
        return config
    report = dist.main_first(lambda: checked(train_set, run))
    weights = tuple(median_frequency(report.pixels, report.around))
    shown = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(train_set.classes, weights, strict=True))
    log.info("loss.class_weights: %s", shown)
    return config.model_copy(update={"loss": config.loss.model_copy(update={"class_weights": weights})})


def class_uniform(config: Config, train_set, run: RunPaths) -> ClassUniform | None:
    """Build the class-uniform sampler, if any; rank 0 reads the labels."""
    loader = config.loader
    if not loader.uniform:
        return None
    points = places_of_classes(config, train_set, run)
    if points.absent:
        log.info("loader.uniform: no label holds the classes %s; they are left out", ", ".join(points.absent))
    return ClassUniform(points, len(train_set), loader.uniform)


def build_batches(training: Training, train_set, run: RunPaths):
    """Return this process's training batches from the current step on."""
    config = training.config
    return build_loader(
        train_set,
        config.train.batch_size,
        dist.rank(),
        dist.world_size(),
        loader_workers(config),
        config.seed,
        training.step,
        config.train.accumulate,
        pin_memory=training.device.type == "cuda",
        uniform=class_uniform(config, train_set, run),
    )


def batches_on_device(training: Training, loader) -> Prefetch:
    """Return the loader's batches, step by step, on the device."""
    return Prefetch(iter(loader), training.device, training.config.train.accumulate)
