"""`eval`: evaluation outside the network, against older ways."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool.bench.experiment import (
    check_size,
    class_count,
    common_arguments,
    experiment_of,
    rounds_argument,
    size_argument,
)
from tool.bench.plain import evaluate as eval_plain
from tool.bench.report import Report, Table
from tool.bench.timing import alternate, peak_memory_added, summarise
from util import UserError
from util.score.coarse import CoarsePredictor
from util.score.metric import ConfusionMatrix
from util.score.predict import Predictor

SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
THREE = (0.5, 1.0, 2.0)
COARSE = 8  # pixels between the outputs of the network of the fast mode
SEMSEG, SLIDING, EXACT, FAST = "semseg's way", "SFSegNets' sliding way", "ours, exact", "ours, windows fast"
METHOD = (
    "processor seconds of one process, all its threads, that a picture costs outside the network: the network is a 1x1 "
    "convolution, and the seconds within it are subtracted; the contenders take turns, the first row is the reference; "
    "{threads} thread(s). Peak memory is what a process of its own adds for one picture, network included"
)
INCLUDED = (
    "resizing, windows, mirrored windows, normalisation, softmax, averages, largest class; enlarging the network's "
    "output where the table says so; not reading, scoring, writing"
)
NOTES = (
    "the older ways are written anew in tool/bench/plain/evaluate.py",
    "SFSegNets averages logits, its windows grow with the scale: its classes are expected to differ",
    "a picture too large for SFSegNets' way in the free memory is halved for its tables",
    "a random network is noise: agreement of windows fast on a trained one is higher (metrics.json, test.compare)",
)


@dataclass(frozen=True)
class Task:
    """What is evaluated: picture, classes, window, protocol, colours.

    picture: uint8 (H, W, 3).
    """

    picture: np.ndarray
    classes: int
    crop: int
    rate: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Points(nn.Module):
    """1x1 convolution on every `stride`-th pixel.

    `spent` are the processor seconds within it.
    """

    def __init__(self, classes: int, stride: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stride, self.spent, self.gives_coarse = stride, 0.0, stride > 1
        self.weight = nn.Parameter(torch.randn(classes, 3, 1, 1, generator=generator), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(classes, generator=generator), requires_grad=False)

    def coarse(self, x: Tensor) -> Tensor:
        """Map pictures (N, 3, H, W) to logits (N, C, h, w)."""
        begin = time.process_time()
        logits = F.conv2d(x[:, :, :: self.stride, :: self.stride], self.weight, self.bias)
        self.spent += time.process_time() - begin
        return logits

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.coarse(x)
        if self.stride > 1:
            logits = F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
        return {"out": logits}


def add(commands) -> None:
    text = "evaluation outside the network against the ways of older repositories: seconds, memory, agreement, metric"
    parser = common_arguments(commands, "eval", run, text)
    size_argument(parser, "1024 2048")
    rounds_argument(parser, 5)
    parser.add_argument("--picture", metavar="FILE", help="instead of a drawn one; --size resizes it")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads (default 1)")
    parser.add_argument("--grow", action="store_true", help="also: 19 and 150 classes, three sizes")


def run(args: argparse.Namespace) -> int:
    """Measure and print; return the exit status."""
    config = experiment_of(args)
    if args.threads < 1:
        raise UserError(f"--threads {args.threads}: at least one")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    rate = config.test.stride_rate
    picture = picture_of(args.picture, args.size)
    crop = max(config.augment.crop)
    task = Task(picture, class_count(config), crop, rate, tuple(config.data.mean), tuple(config.data.std))
    rounds, coarse = args.rounds, f"logits at stride {COARSE}, enlarging included"
    tables = [
        against_semseg(task, "1 scale, full-size logits", (1.0,), 1, rounds),
        against_semseg(task, "6 scales, full-size logits", SIX, 1, rounds),
        against_semseg(task, f"1 scale, {coarse}", (1.0,), COARSE, rounds),
        against_semseg(task, f"6 scales, {coarse}", SIX, COARSE, rounds),
        against_sliding(task, "1 scale, full-size logits", (1.0,), 1, rounds),
        against_sliding(task, "3 scales, full-size logits", THREE, 1, rounds),
        against_sliding(task, f"3 scales, {coarse}", THREE, COARSE, rounds),
        metric(task, rounds),
    ]
    if args.grow:
        tables += growth(task, rounds)
    height, width = picture.shape[:2]
    title = f"{args.dataset} {args.experiment}, {height} x {width}, {task.classes} classes, windows of {crop}, mirrored"
    method = METHOD.format(threads=args.threads)
    Report("eval", title, method, INCLUDED, "float32; the older ways sum in float64", tables, notes=NOTES).show(
        args.json
    )
    return 0


def picture_of(file: str | None, size: Sequence[int] | None) -> np.ndarray:
    """Return the picture of a file, or a drawn one.

    uint8 (H, W, 3) RGB, resized where a size is given.
    """
    if file is None:
        height, width = check_size(tuple(size or (1024, 2048)))
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)
    picture = cv2.imread(file)
    if picture is None:
        raise UserError(f"--picture {file}: no readable picture")
    if size:
        picture = cv2.resize(picture, check_size(tuple(size))[::-1], interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture[..., ::-1])


def against_semseg(task: Task, title: str, scales: Sequence[float], stride: int, rounds: int, memory=True) -> Table:
    """Measure semseg's way against ours.

    At a coarse stride the fast mode too.
    """
    nets = {name: Points(task.classes, stride) for name in (SEMSEG, EXACT, *([FAST] if stride > 1 else []))}
    image = torch.from_numpy(task.picture).permute(2, 0, 1).contiguous()
    contenders: dict[str, Callable] = {SEMSEG: lambda: plain(task, nets[SEMSEG], scales).argmax(2)}
    ours = {name: predictor(task, nets[name], scales, name == FAST) for name in nets if name != SEMSEG}
    contenders |= {name: lambda predict=predict: predict(image) for name, predict in ours.items()}
    expected = plain(task, nets[SEMSEG], scales)
    classes = expected.argmax(2)
    facts = {}
    for name, predict in ours.items():
        found = predict.probabilities(image).permute(1, 2, 0).numpy()
        facts[name] = {
            "same class": float((predict(image).numpy() == classes).mean()),
            "largest difference": float(np.abs(found - expected).max()),
        }
        del found
    del expected
    table = outside(title, contenders, nets, rounds, facts)
    # of its own: the one above has its working memory already
    fresh = {name: lambda name=name: predictor(task, nets[name], scales, name == FAST)(image) for name in ours}
    return with_memory(table, {**contenders, **fresh}) if memory else table


def against_sliding(task: Task, title: str, scales: Sequence[float], stride: int, rounds: int) -> Table:
    """SFSegNets' sliding way against ours in windows of the same size."""
    task = fitting(task, scales)
    nets = {SLIDING: Points(task.classes, stride), EXACT: Points(task.classes, stride)}
    image = torch.from_numpy(task.picture).permute(2, 0, 1).contiguous()
    crop = min(832, *task.picture.shape[:2])
    task = replace(task, crop=crop, rate=2 / 3)
    ours = predictor(task, nets[EXACT], scales, False)
    contenders = {
        SLIDING: lambda: eval_plain.sliding(
            lambda batch: nets[SLIDING](batch)["out"], task.picture, task.classes, crop, scales, task.mean, task.std
        ).argmax(0),
        EXACT: lambda: ours(image),
    }
    facts = {EXACT: {"same class": float((ours(image).numpy() == contenders[SLIDING]()).mean())}}
    height, width = task.picture.shape[:2]
    title = f"{title}, {height} x {width}, sliding windows of {crop}"
    table = outside(title, contenders, nets, rounds, facts)
    return with_memory(table, {**contenders, EXACT: lambda: predictor(task, nets[EXACT], scales, False)(image)})


def fitting(task: Task, scales: Sequence[float]) -> Task:
    """Halve the task's picture until SFSegNets' way fits the memory.

    It has some 14 maps in float64.
    """
    picture, share = task.picture, 14 * 8 * task.classes * max(scales) ** 2
    while picture.shape[0] * picture.shape[1] * share > 0.7 * free_memory() and min(picture.shape[:2]) > 64:
        picture = cv2.resize(picture, (picture.shape[1] // 2, picture.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return replace(task, picture=picture)


def free_memory() -> float:
    """Return the bytes that can be had without swapping.

    Without limit where the system does not tell.
    """
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(float(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except FileNotFoundError:
        return float("inf")


def plain(task: Task, net: Points, scales: Sequence[float]) -> np.ndarray:
    """Build semseg's way."""
    return eval_plain.windowed(
        net.coarse, task.picture, task.classes, task.crop, scales, task.mean, task.std, task.rate
    )


def predictor(task: Task, net: Points, scales: Sequence[float], fast: bool) -> Predictor:
    """Build our predictor on the same windows."""
    kind, window = CoarsePredictor if fast else Predictor, (task.crop, task.crop)
    return kind(net, task.classes, task.mean, task.std, scales, True, window, task.rate)


def outside(title: str, contenders: dict, nets: dict[str, Points], rounds: int, facts: dict) -> Table:
    """Measure the contenders less the time within their networks.

    They have run before.
    """
    within: dict[str, list[float]] = {name: [] for name in contenders}

    def counted(name: str) -> Callable[[], None]:
        def call() -> None:
            nets[name].spent = 0.0
            contenders[name]()
            within[name].append(nets[name].spent)

        return call

    seconds = alternate({name: counted(name) for name in contenders}, rounds, warmup=0, clock="cpu")
    rest = {name: [a - b for a, b in zip(seconds[name], within[name], strict=True)] for name in contenders}
    return Table(title, summarise(rest), "seconds a picture", facts=facts)


def with_memory(table: Table, contenders: dict[str, Callable]) -> Table:
    """Return the table with each contender's peak memory."""
    added = {name: round(peak_memory_added(contender)) for name, contender in contenders.items()}
    facts = {name: {"peak MiB": value, **table.facts.get(name, {})} for name, value in added.items()}
    return replace(table, facts=facts)


def metric(task: Task, rounds: int) -> Table:
    """Measure the counting of a picture in three ways.

    Three histograms of bytes as semseg has them, a masked count, ours with its checks.
    """
    rng = np.random.default_rng(0)
    height, width = task.picture.shape[:2]
    blocks = rng.integers(0, task.classes, (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    label = np.ascontiguousarray(blocks.repeat(16, 0).repeat(16, 1)[:height, :width])
    prediction = np.where(rng.random(label.shape) < 0.9, label, rng.integers(0, task.classes, label.shape))
    prediction = prediction.astype(np.uint8)
    label[rng.random(label.shape) < 0.1] = eval_plain.IGNORE
    confusion = ConfusionMatrix(task.classes)
    tensors = torch.from_numpy(prediction), torch.from_numpy(label)
    contenders = {
        "semseg's histograms": lambda: eval_plain.areas(prediction, label, task.classes),
        "SFSegNets' masked count": lambda: eval_plain.histogram(prediction, label, task.classes),
        "ours, values checked": lambda: confusion.update(*tensors),
    }
    rows = summarise(alternate(contenders, max(rounds, 5), warmup=1, clock="cpu"))
    return Table("confusion of one picture", rows, "ms", 1000)


def growth(task: Task, rounds: int) -> list[Table]:
    """Measure one scale with more classes and larger pictures.

    Windows of at most 473, so that a small picture has some.
    """
    tables = []
    for classes in (19, 150):
        for size in ((256, 512), (512, 1024), (768, 1536)):
            smaller = cv2.resize(task.picture, size[::-1], interpolation=cv2.INTER_AREA)
            some = replace(task, picture=smaller, classes=classes, crop=min(task.crop, 473))
            title = f"{classes} classes, {size[0]} x {size[1]}, windows of {some.crop}, 1 scale, full-size logits"
            tables.append(against_semseg(some, title, (1.0,), 1, rounds, memory=False))
    return tables
