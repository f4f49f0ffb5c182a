"""`data`: training samples against the older pipelines.

Step by step, and through the loader.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dataset import build_dataset, build_loader
from dataset.augment.transform import TrainTransform
from dataset.base import Key
from dataset.prepare.pack import pack
from dataset.read import image
from dataset.read.packed import Packed
from dataset.read.source import read_mapped
from tool.bench import data_train, synthetic
from tool.bench.experiment import common_arguments, experiment_of, rounds_argument
from tool.bench.plain import data_pil, data_semseg, data_sfsegnets
from tool.bench.report import Report, Table
from tool.bench.timing import alternate, summarise
from util.config.schema import Config

BASELINES = ("semseg", "sfsegnets", "pil")
WARM_BATCHES = 3
BASELINE_BATCHES = 6


def add(commands) -> None:
    text = "samples a second of the training data, against plain versions of the older pipelines"
    parser = common_arguments(commands, "data", run, text)
    rounds_argument(parser, 5)
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="a data set like the experiment's, with a train.txt; "
        "default: synthetic street pictures, 1024 x 2048, in a temporary folder",
    )
    parser.add_argument("--count", type=int, default=12, metavar="N", help="pictures that are read (default 12)")
    parser.add_argument(
        "--size", nargs=2, type=int, default=(1024, 2048), metavar=("H", "W"), help="of the synthetic pictures"
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures of a batch (default 8)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="workers of the loaders (default 2)")
    parser.add_argument(
        "--train",
        type=int,
        default=0,
        metavar="STEPS",
        help="also: steps of the training loop fed by "
        "each loader, and the share of time that they wait for pictures (default 0: not measured)",
    )
    parser.add_argument(
        "--baseline",
        choices=BASELINES,
        help="the recipe to compare with (default: the one that is nearest to the experiment's)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; return the exit status."""
    config = experiment_of(args)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with tempfile.TemporaryDirectory(prefix="bench_data_") as folder:
            report(args, config, Path(folder)).show(args.json)
    finally:
        torch.set_num_threads(threads)
    return 0


def report(args: argparse.Namespace, config: Config, folder: Path) -> Report:
    """Measure all tables, one after the other; return the report."""
    trial = Trial(args, config, folder)
    tables = [sample_table(trial), stage_table(trial), loader_table(trial)]
    if args.train:
        tables.append(
            data_train.feed_table(config, trial.files.classes, feeders(trial), args.train, args.rounds, trial.batch)
        )
    source = args.pictures or f"{args.count} synthetic street pictures, {args.size[0]} x {args.size[1]}"
    notes = [
        "ratios are to the first row of a table, within the same rounds; other machines have other ratios",
        "the baseline is our plain version of the older pipeline, not its code",
    ]
    if not args.pictures:
        notes.append("synthetic pictures: their PNGs are about as large as Cityscapes', their contents are not")
    return Report(
        command="data",
        experiment=f"{args.dataset} {args.experiment}",
        method=f"baseline {trial.baseline}; {source}, in the page cache; contenders in turn, {args.rounds} rounds; "
        f"samples: processor time, one thread; loaders: wall clock, {args.workers} workers, batch {args.batch}",
        included="reading, decoding, label map, augmentation; the baseline normalises in the worker, ours gives uint8 "
        "and normalises on the device, which is not in the time",
        precision="uint8 pictures and labels; the baseline float32 and int64",
        tables=tables,
        notes=tuple(notes),
    )


class Trial:
    """The data that all tables measure: the pictures as files, and packed."""

    def __init__(self, args: argparse.Namespace, config: Config, folder: Path):
        self.args, self.config = args, config
        self.baseline = args.baseline or nearest_baseline(config)
        self.root = (
            Path(args.pictures) if args.pictures else synthetic.write(folder / "pictures", args.count, tuple(args.size))
        )
        lines = (self.root / "train.txt").read_text(encoding="utf-8").splitlines()[: args.count]
        self.list = folder / "train.txt"
        self.list.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.folder = folder
        self.files = self.dataset()
        pack(self.files, folder / "packed", args.workers)
        map_ = self.files.map_for(self.files.samples[0][1])
        self.mapping = {key: value for key, value in sorted(map_.ids.items()) if key < 256}
        self.count, self.crop, self.batch = len(lines), tuple(self.config.augment.crop), min(args.batch, len(lines))

    def dataset(self, source: str = "files", crop: tuple[int, int] | None = None):
        """Build the data set, augmented, from `source`: files or packed."""
        data, augment = self.config.data, self.config.augment
        transform = TrainTransform(
            crop or augment.crop,
            augment.scale,
            augment.rotate,
            augment.rotate_prob,
            augment.blur_prob,
            augment.flip_prob,
            augment.jitter,
            data.mean,
            photometric=augment.photometric,
        )
        name = data.name if self.args.pictures else synthetic.DATASET
        own = self.args.pictures is not None
        out = build_dataset(
            name,
            self.root,
            self.list,
            "train",
            transform,
            self.config.seed,
            data.classes if own else None,
            None,
            data.label_map if own else None,
        )
        if source == "packed":
            out.source = Packed(self.folder / "packed", out)
        return out

    def loader(self, source: str, pin_memory: bool = False):
        """Build the loader of our data set."""
        return build_loader(self.dataset(source), self.batch, workers=self.args.workers, pin_memory=pin_memory)

    def baseline_loader(self):
        return DataLoader(BaselineSamples(self), self.args.batch, num_workers=self.args.workers)

    def load_baseline(self, index: int, seed: int):
        """Return a sample of the baseline."""
        paths, rng = self.files.samples[index], np.random.default_rng([seed, index])
        if self.baseline == "semseg":
            return data_semseg.load_sample(*paths, self.crop, rng, self.config.augment.scale)
        module = data_pil if self.baseline == "pil" else data_sfsegnets
        return module.load_sample(*paths, self.crop, rng, self.mapping, self.config.augment.scale)

    def contenders(self) -> dict[str, tuple[str, bool]]:
        """Name -> (source, fast PNG decoder) of ours."""
        out = {"files, OpenCV": ("files", False)}
        if image.fast_png is not None:
            out["files, kornia-rs"] = ("files", True)
        return {**out, "packed": ("packed", True)}


def nearest_baseline(config: Config) -> str:
    """Name the older recipe whose augmentation is nearest."""
    augment = config.augment
    if any(augment.jitter) or augment.photometric:
        return "sfsegnets"
    return "semseg" if augment.rotate_prob and any(augment.rotate) else "pil"


@contextmanager
def decoder(fast: bool):
    """Have files decoded by kornia-rs, or by OpenCV alone."""
    kept, image.fast_png = image.fast_png, image.fast_png if fast else None
    try:
        yield
    finally:
        image.fast_png = kept


def sample_table(trial: Trial) -> Table:
    """Measure the processor time of a sample."""
    rounds = itertools.count()

    def all_of_baseline():
        seed = next(rounds)
        for index in range(trial.count):
            trial.load_baseline(index, seed)

    def all_of(dataset, fast: bool, epochs):
        epoch = next(epochs)
        with decoder(fast):
            for index in range(trial.count):
                dataset[Key(epoch, index)]

    runs: dict[str, Callable] = {f"baseline {trial.baseline}": all_of_baseline}
    for name, (source, fast) in trial.contenders().items():
        runs[name] = partial(all_of, trial.dataset(source), fast, itertools.count())
    rows = summarise(alternate(runs, trial.args.rounds), trial.count)
    return Table(
        f"A sample, crop {trial.crop[0]} x {trial.crop[1]}, one core",
        rows,
        "ms a picture",
        1000.0,
        {row.name: {"pictures/s": round(1 / row.median, 1)} for row in rows},
    )


def stage_table(trial: Trial) -> Table:
    """Measure the stages of our sample against decoding by OpenCV."""
    dataset, transform = trial.dataset(), trial.dataset().transform
    samples = dataset.samples
    arrays = [dataset.source.open(index) for index in range(trial.count)]
    drawn = [transform.draw(np.random.default_rng(index), label.shape) for index, (_, label) in enumerate(arrays)]
    crop = np.empty((*trial.crop, 3), np.uint8)
    batch = np.empty((trial.count, *trial.crop, 3), np.uint8)

    def decode(fast: bool):
        with decoder(fast):
            for path, _ in samples:
                image.read_image(path)

    def labels():
        for _, path in samples:
            read_mapped(path, dataset.map_for(path))

    stages: dict[str, Callable] = {"picture, OpenCV": partial(decode, False)}
    if image.fast_png is not None:
        stages["picture, kornia-rs"] = partial(decode, True)
    stages |= {
        "label and map": labels,
        "augmentation": lambda: [transform.apply(*pair, each) for pair, each in zip(arrays, drawn, strict=True)],
        "of it: blur 5x5": lambda: [cv2.GaussianBlur(crop, (5, 5), 0) for each in drawn if each.blur],
        "copy into the batch": lambda: [np.copyto(place, crop) for place in batch],
    }
    return Table(
        "Stages of our sample, one core",
        summarise(alternate(stages, trial.args.rounds), trial.count),
        "ms a picture",
        1000.0,
    )


class BaselineSamples(Dataset):
    """The baseline as the older loaders serve it."""

    def __init__(self, trial: Trial):
        self.trial = trial

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int):
        return self.trial.load_baseline(index % self.trial.count, index)


def loader_table(trial: Trial) -> Table:
    """Measure a picture's wall clock through the running loader."""
    args, seconds = trial.args, {}
    loaders: dict[str, tuple[Callable, bool, int]] = {
        f"baseline {trial.baseline}": (trial.baseline_loader, True, BASELINE_BATCHES)
    }
    for name, (source, fast) in trial.contenders().items():
        loaders[name] = (partial(trial.loader, source), fast, 12 if source == "files" else 40)
    for number in range(args.rounds + 1):
        for name, (make, fast, batches) in loaders.items():
            with decoder(fast):
                spent = _steady(make(), batches) / (batches * args.batch)
            if number:
                seconds.setdefault(name, []).append(spent)
    rows = summarise(seconds)
    return Table(
        f"Through the loader, {args.workers} workers, batch {args.batch}",
        rows,
        "ms a picture",
        1000.0,
        {row.name: {"pictures/s": round(1 / row.median, 1)} for row in rows},
    )


def _steady(loader, batches: int) -> float:
    """Seconds of `batches` batches, after the first few."""
    iterator = iter(loader)
    for _ in range(WARM_BATCHES):
        next(iterator)
    begin = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return time.perf_counter() - begin


def feeders(trial: Trial) -> dict[str, Callable]:
    """Name the loaders for the training step, of each source."""
    gpu = torch.cuda.is_available()
    names = {source: name for name, (source, _) in trial.contenders().items()}  # of the files the faster decoder's
    return {name: partial(trial.loader, source, gpu) for source, name in names.items()}
