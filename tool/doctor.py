"""Looks for mistakes in a data set before training.

    python -m tool.doctor DATASET [EXPERIMENT] [section.key=value ...] [--html FILE] [--samples]
    python -m tool.doctor --config FILE [section.key=value ...]
    python -m tool.doctor camvid data.root=/data/camvid --html doctor.html

Reads every image and label once, in parallel, and remembers each until it changes: the same command goes on where it
was cut, and reads what has changed. Without EXPERIMENT it is fcn18 of a known data set, else the first experiment in
config/DATASET. Status 2 where a mistake would stop a training or spoil its score; warnings do not count.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from dataset import SegDataset
from dataset.base import Key
from dataset.load.loader import PREFETCHED
from dataset.prepare.doctor import Examined, Finding, compare, examine
from dataset.read import DataError
from dataset.read.files import exists
from dataset.read.remote import place
from tool.shared import cli
from tool.shared.data import files_of, loader_workers, small_images, train_transform
from tool.shared.experiment import find_experiment, first_experiment
from tool.shared.plugins import load
from util import UserError
from util.config.load import Experiment
from util.config.schema import Config
from util.record.files import write_named
from util.record.log import printable
from util.record.machine import cores
from util.record.table import aligned
from util.report.html import filled
from util.report.visual import as_rgb, colorize, data_uri, jpeg

SHARED_MEMORY = Path("/dev/shm")
SHOWN_FILES = 5
PANEL = 360  # pixels of a picture's width on the page
QUALITY = 82  # of it as JPEG
SAMPLES = 12
OVERLAY = 0.55  # share of the class's colour


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    experiment = _experiment(args)
    config = experiment.config
    cache = Path(args.cache) if args.cache else experiment.run.folder.parent / "doctor"
    sets: dict[str, SegDataset] = {}
    found: dict[str, Examined] = {}
    findings: list[Finding] = []
    for split in _splits(config):
        try:
            dataset = files_of(config, split)
        except (DataError, OSError) as error:
            findings.append(Finding(True, split, str(error)))
            continue
        with tqdm(total=len(dataset), desc=split, unit="image", file=sys.stderr, disable=None) as bar:
            found[split] = examine(dataset, args.workers, cache / f"{split}.records", bar.update)
        sets[split] = dataset
        findings += found[split].findings
    for split in ("val", "test"):
        if "train" in sets and split in sets:
            findings += compare(sets["train"], found["train"], sets[split], found[split])
    findings += fits(config, sets, found)
    findings.sort(key=lambda finding: not finding.error)
    print(text(config, sets, found, findings))
    if args.html:
        page = content(config, sets, found, findings, args.samples)
        write_named(args.html, filled("doctor.html", page))
        print(f"page: {printable(args.html)}")
    return 2 if any(finding.error for finding in findings) else 0


def fits(
    config: Config, sets: dict[str, SegDataset], found: dict[str, Examined], shared_memory: Path = SHARED_MEMORY
) -> list[Finding]:
    """List what the experiment asks for and data or machine lack."""
    findings = []
    if "train" in found:
        if small := small_images(config.augment.crop, found["train"].sizes):
            findings.append(Finding(False, "train", small[0], count=small[1]))
        classes = sets["train"].classes
        unknown = [name for name in config.augment.copy_paste_classes if name not in classes]
        if unknown:
            findings.append(
                Finding(True, "train", f"augment.copy_paste_classes: no class {unknown[0]!r} ({', '.join(classes)})")
            )
    needed = batch_bytes(config)
    if shared_memory.is_dir() and (free := shutil.disk_usage(shared_memory).free) < needed:
        findings.append(
            Finding(
                True,
                "machine",
                f"{shared_memory} has {_size(free)} left, and the batches that loader.workers={loader_workers(config)} "
                f"make ahead take {_size(needed)}: lower loader.workers, or enlarge it (docker run --shm-size)",
            )
        )
    decoded = sum(decoded_bytes(each, config.data.channels) for each in found.values())
    if config.loader.cache == "memory" and shared_memory.is_dir():
        free = shutil.disk_usage(shared_memory).free
        if free < decoded:
            findings.append(
                Finding(
                    False,
                    "machine",
                    f"loader.cache=memory: the decoded images take {_size(decoded)}, {shared_memory} has {_size(free)} "
                    "left; python -m tool.pack writes them to a disk instead",
                )
            )
    return findings


def batch_bytes(config: Config) -> int:
    """Return the bytes of all batches that the workers hold."""
    if not loader_workers(config):
        return 0
    height, width = config.augment.crop
    batch = config.train.batch_size // config.train.accumulate
    return loader_workers(config) * PREFETCHED * batch * height * width * (config.data.channels + 1)


def decoded_bytes(examined: Examined, channels: int) -> int:
    """Return the bytes of a list's decoded images and labels."""
    return sum(height * width * count * (channels + 1) for height, width, count in examined.sizes)


def text(config: Config, sets: dict[str, SegDataset], found: dict[str, Examined], findings: list[Finding]) -> str:
    """Write what was found for a terminal."""
    lines = []
    for split, each in found.items():
        report = each.report
        sizes = ", ".join(f"{count} of {height}x{width}" for height, width, count in each.sizes[:3])
        more = f" and {len(each.sizes) - 3} sizes more" if len(each.sizes) > 3 else ""
        remembered = " (remembered, no file has changed)" if each.cached else ""
        lines.append(
            f"{split}: {report.images} images, {report.labelled} with a usable label; {sizes}{more} (height x width)"
            f"{remembered}"
        )
    for split, each in found.items():
        if each.report.labelled:
            lines += ["", *_class_lines(class_rows(split, sets[split], each))]
            break
    if "train" in found:
        lines += ["", f"{statistics(found['train'])} of train (0 to 255)"]
    lines += [*notes(config, sets, found), ""]
    for finding in findings:
        lines.append(f"{'error' if finding.error else 'warning'}: {finding.where}: {finding.text}")
        lines += [f"    {file}" for file in finding.files[:SHOWN_FILES]]
        if finding.files and finding.count > SHOWN_FILES:
            lines.append(f"    and {finding.count - SHOWN_FILES} more")
    errors = sum(finding.error for finding in findings)
    lines.append(f"{_number(errors, 'error')}, {_number(len(findings) - errors, 'warning')}")
    return "\n".join(lines)


def statistics(examined: Examined) -> str:
    """Write mean and deviation of the images' channels."""
    mean, deviation = (np.round(each, 2).tolist() for each in (examined.mean, examined.deviation))
    return f"mean {mean}, deviation {deviation}"


def notes(config: Config, sets: dict[str, SegDataset], found: dict[str, Examined]) -> list[str]:
    """Say what memory is needed, and what mIoU means of two classes."""
    decoded = sum(decoded_bytes(each, config.data.channels) for each in found.values())
    out = [
        f"decoded images: {_size(decoded)} (what tool.pack or loader.cache=memory keep); batches made ahead: "
        f"{_size(batch_bytes(config))} of shared memory"
    ]
    classes = next(iter(sets.values())).classes if sets else ()
    if len(classes) == 2:
        out.append(
            f"two classes: mIoU is the mean of the IoU of {classes[0]!r} and of {classes[1]!r}, and the first is high "
            f"where it covers most of the image; the IoU of {classes[1]!r} alone is beside it in metrics.json"
        )
    return out


def content(
    config: Config, sets: dict[str, SegDataset], found: dict[str, Examined], findings: list[Finding], samples: bool
) -> dict[str, Any]:
    """Gather what the page shows."""
    examples = []
    for split in ("train", "val"):
        if split in sets and not examples:
            for index, name in enumerate(sets[split].classes):
                pictures = [overlay(sets[split], each, index) for each in found[split].examples[index]]
                if pictures:
                    examples.append({"name": name, "color": sets[split].colors[index].tolist(), "pictures": pictures})
    shown = []
    if samples and "train" in sets and not any(finding.error for finding in findings):
        train = sets["train"]
        train.transform = train_transform(config)
        chosen = np.linspace(0, len(train) - 1, min(SAMPLES, len(train))).astype(int).tolist()
        for index in chosen:
            sample = train[Key(0, index)]
            image = sample["image"].permute(1, 2, 0).numpy()
            pair = np.hstack([as_rgb(image), colorize(sample["label"].numpy(), train.colors)])
            shown.append({"name": sample["name"], "uri": _uri(pair, 2 * PANEL)})
    return {
        "heading": f"Doctor: {config.data.name}",
        "findings": findings,
        "splits": [
            {
                "name": split,
                "examined": each,
                "classes": class_rows(split, sets[split], each),
                "statistics": statistics(each),
            }
            for split, each in found.items()
        ],
        "open": SHOWN_FILES,
        "notes": notes(config, sets, found),
        "examples": examples,
        "samples": shown,
    }


def class_rows(split: str, dataset: SegDataset, examined: Examined) -> list[dict[str, Any]]:
    """Give the lines of the table of classes.

    Weights are those of the training split: a loss has no other labels.
    """
    report = examined.report
    total = max(sum(report.pixels) + report.ignored, 1)
    weights = examined.class_weights if split == "train" else [None] * len(dataset.classes)
    columns = zip(dataset.classes, dataset.colors.tolist(), report.pixels, weights, strict=True)
    rows = [
        {"name": name, "color": color, "share": pixels / total, "weight": weight}
        for name, color, pixels, weight in columns
    ]
    return [*rows, {"name": "ignored", "color": [0, 0, 0], "share": report.ignored / total, "weight": None}]


def overlay(dataset: SegDataset, index: int, wanted: int) -> dict[str, str]:
    """Draw the pixels of one class in its colour, others darker."""
    image, label = dataset.source.open(index)
    assert label is not None, "an example has a label"
    shade = np.where(label[:, :, None] == wanted, np.array(dataset.colors[wanted], np.float32), 0)
    share = np.where(label[:, :, None] == wanted, OVERLAY, 1 - OVERLAY)
    mixed = as_rgb(image) * (1 - share) + shade * share
    return {"name": dataset.sample_name(index), "uri": _uri(np.rint(mixed).astype(np.uint8), PANEL)}


def _uri(picture: np.ndarray, width: int) -> str:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    smooth = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_NEAREST
    small = cv2.resize(picture, (width, height), interpolation=smooth)
    return data_uri("image/jpeg", jpeg(small, QUALITY))


def _class_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Write the table of classes for a terminal."""
    weighed = any(row["weight"] is not None for row in rows)
    lines = [["class", "share of pixels", *(["weight by median frequency"] if weighed else [])]]
    for row in rows:
        weight = "" if row["weight"] is None else f"{row['weight']:.4g}"
        lines.append([row["name"], f"{row['share']:.3%}", *([weight] if weighed else [])])
    return aligned(lines)


def _number(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _splits(config: Config) -> list[str]:
    """List the splits to look at: what a training reads, and the test list where there is one."""
    tested = config.data.test_list is not None or exists(place(config.data.root) / "test.txt")
    return ["train", *(["val"] if config.train.val_every else []), *(["test"] if tested else [])]


def _experiment(args: argparse.Namespace) -> Experiment:
    """Read the experiment that the words name; without a name the first of the data set."""
    words = args.words
    if args.config is not None:
        return load(args.config, words)
    names = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    if not 1 <= len(names) <= 2:
        raise UserError("which data set? Write for example: python -m tool.doctor camvid data.root=/data/camvid")
    dataset, *experiments = names
    if dataset == "custom":
        raise UserError("data of your own are known by their experiment: python -m tool.doctor --config FILE")
    if experiments:
        return load(find_experiment(dataset, experiments[0]), overrides)
    return load(first_experiment(dataset), overrides)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.Parser(
        prog="python -m tool.doctor", description=__doc__, example="python -m tool.doctor camvid --html doctor.html"
    )
    parser.add_argument("words", nargs="*", default=[], metavar="DATASET EXPERIMENT section.key=value")
    parser.add_argument("--config", metavar="FILE", help="the experiment, instead of its name")
    parser.add_argument("--html", metavar="FILE", help="one page that needs no network")
    parser.add_argument(
        "--samples", action="store_true", help="show augmented samples on the page, as training has them"
    )
    parser.add_argument("--workers", type=int, default=cores(), metavar="N", help="processes (default: the cores)")
    parser.add_argument("--cache", metavar="DIR", help="where results are remembered (default: exp/DATASET/doctor)")
    args = parser.parse_intermixed_args(argv)
    if args.samples and not args.html:
        raise UserError("--samples are pictures; give --html FILE, the page that shows them")
    return args


if __name__ == "__main__":
    cli.command(main)
