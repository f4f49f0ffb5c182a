"""`lists`: what a list of many samples costs before the first step.

Lists that are opened name files that are not there. Those that are checked name a hundred small pictures, in folders
that lead to the same one through links, so that every line has paths of its own and real files behind them.
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from dataset.base import SegDataset
from dataset.load.sampler import StepSampler
from dataset.prepare.check import check_dataset
from dataset.read.identity import facts, fingerprint
from tool.bench.experiment import rounds_argument
from tool.bench.plain import lists as plain
from tool.bench.report import Report, Table
from tool.bench.timing import alternate, memory_added, summarise

FILES = 100  # pictures that there are in truth
CLASSES = ("a", "b", "c")
BATCH = 16


def add(commands) -> None:
    text = "memory and time of opening lists of many samples, of a start, and of the check"
    parser = commands.add_parser("lists", help=text, description=text)
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[100_000, 1_000_000], metavar="N", help="lengths of the lists"
    )
    parser.add_argument("--check", type=int, nargs="*", default=[], metavar="N", help="lengths that are checked, too")
    parser.add_argument(
        "--plain", type=int, default=1_000_000, metavar="N", help="longest list that is read as Python objects"
    )
    rounds_argument(parser, 3)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.set_defaults(run=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    """Measure and print; return the exit status."""
    tables, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pictures(root / "f")
        for count in args.samples:
            file = write_list(root, count, False)
            tables.append(opening(root, file, count, args.rounds, count <= args.plain))
            figures[f"{count:,} samples: a start"] = start(root, file, count, args.rounds)
        for count in args.check:
            figures[f"{count:,} samples: the check"] = checking(root, write_list(root, count, True), count)
    Report(
        "lists",
        f"of {', '.join(f'{count:,}' for count in args.samples)} samples",
        f"processor seconds of one process, {args.rounds} rounds in turn; memory is what a forked process has more, at "
        f"its peak and afterwards; {FILES} pictures of 32 x 32 behind folders that are links",
        "opening: pairs, names, the search for images that stand twice; not whether the files are there, which is for "
        "the check. A start: digest of the list, size and time of at most 50,000 samples' "
        "files, the order of an epoch. The check: headers and labels, by one thread",
        "none",
        tables,
        figures,
        ("paths as Cityscapes has them, 130 bytes a line; ratios are to the first row of a table",),
    ).show(args.json)
    return 0


def write_pictures(folder: Path) -> None:
    """Write `FILES` small pictures and their labels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(FILES):
        cv2.imwrite(str(folder / f"{number:02}_leftImg8bit.png"), rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))
        cv2.imwrite(str(folder / f"{number:02}_gtFine_labelIds.png"), rng.integers(0, 3, (32, 32)).astype(np.uint8))


def write_list(root: Path, count: int, real: bool) -> Path:
    """Write a list of `count` samples; real: their files are there."""
    file = root / f"{count}_{real}.txt"
    with open(file, "w", encoding="utf-8") as out:
        for index in range(count):
            city = f"city{index // FILES:06}"
            if real:
                if not os.path.lexists(root / city):
                    os.symlink("f", root / city)
                out.write(f"{city}/{index % FILES:02}_leftImg8bit.png {city}/{index % FILES:02}_gtFine_labelIds.png\n")
            else:
                name = f"{city}/{city}_{index:08}"
                out.write(f"leftImg8bit/train/{name}_leftImg8bit.png gtFine/train/{name}_gtFine_labelIds.png\n")
    return file


def opened(root: Path, file: Path) -> SegDataset:
    return SegDataset(root, file, classes=CLASSES)


def opening(root: Path, file: Path, count: int, rounds: int, with_plain: bool) -> Table:
    """Measure how a list is opened."""
    ways: dict[str, Callable[[], object]] = {"Python objects": partial(plain.read, file, root)} if with_plain else {}
    ways["ours"] = partial(opened, root, file)
    facts_of = {}
    for name, way in ways.items():
        peak, kept = (round(each * 2**20 / count) for each in memory_added(way))
        facts_of[name] = {"bytes a sample": kept, "at the peak": peak}
    rows = summarise(alternate(ways, rounds, 0))
    return Table(f"{count:,} samples: opening the list", rows, "s", 1.0, facts_of)


def start(root: Path, file: Path, count: int, rounds: int) -> dict[str, float]:
    """Measure a start on a list that was checked before.

    Processor seconds, and memory.
    """
    dataset = opened(root, file)

    def digest() -> None:
        dataset.samples.digests = None
        facts(dataset)

    digest()
    ways = {
        "digest of the list": digest,
        "have files changed": partial(fingerprint, dataset),
        "order of an epoch": lambda: next(iter(StepSampler(count, BATCH))),
    }
    rows = summarise(alternate(ways, rounds, 0))
    most = max(memory_added(way)[0] for way in ways.values())
    return {f"{row.name}, s": row.median for row in rows} | {"bytes a sample at the peak": most * 2**20 / count}


def checking(root: Path, file: Path, count: int) -> dict[str, float]:
    """Measure the check: time of a sample, memory of all."""
    dataset = opened(root, file)
    seconds = multiprocessing.Value("d")

    def check() -> None:
        seconds.value = alternate({"check": partial(check_dataset, dataset, workers=1)}, 1, 0)["check"][0]

    more = memory_added(check)[0]
    return {"processor µs a sample": 1e6 * seconds.value / count, "MiB more at the peak": more}
