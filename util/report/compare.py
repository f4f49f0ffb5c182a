"""Compares results: how far apart, how sure, and where."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from util import UserError, flat
from util.record.files import read_text
from util.report.per_image import NPZ, ImageCounts, mean_iou, read_per_image

RESAMPLES = 2000
SEED = 0  # of the resampling: the same results give the same interval
SHARE = 95  # percent of the resamples within an interval
DISAGREEING = 20  # images that are listed
LARGEST = 2**26
# Keys that cannot move a score, so that runs which differ in them alone are runs of one experiment.
IDLE = (
    *("loader.", "data.root", "data.check", "train.log_every", "train.save", "train.keep_", "train.resume"),
    *("train.trackers", "train.val_curves"),
    *("test.report", "test.pictures", "test.save_", "test.keep_memory"),
)


@dataclass(frozen=True)
class Result:
    """One result.

    metrics: content of metrics.json. counts: of its images, None without them. config: section.key -> value.
    """

    name: str
    folder: Path
    metrics: dict[str, Any]
    counts: ImageCounts | None
    config: dict[str, Any]


def find_result(place: Path) -> Path:
    """Find the folder of a result, or of a run's only one.

    Raises:
        FileNotFoundError: there is none.
        UserError: there are several; names them.
    """
    if place.name == "metrics.json" and place.is_file():
        return place.parent
    if (place / "metrics.json").is_file():
        return place
    found = sorted(file.parent for file in (place / "result").glob("*/metrics.json"))
    found = [place / "result"] if (place / "result" / "metrics.json").is_file() else found
    if not found:
        raise FileNotFoundError(f"{place}: no result (metrics.json) there; evaluate the run: sh tool/test.sh ...")
    if len(found) > 1:
        raise UserError(f"{place} has {len(found)} results; name one: {', '.join(map(str, found))}")
    return found[0]


def read_result(place: Path) -> Result:
    """Read a result.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged, or its files are not of one evaluation.
    """
    folder = find_result(place)
    file = folder / "metrics.json"
    try:
        metrics = json.loads(read_text(file, LARGEST))
        known = metrics["mIoU"], metrics["mAcc"], metrics["allAcc"], metrics["num_images"]
        names = [entry["name"] for entry in metrics["classes"]]
        sound = all(value is None or isinstance(value, int | float) for value in known)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error}); evaluate the run again") from None
    if not sound or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file}: damaged (its scores are no numbers); evaluate the run again")
    counts = read_per_image(folder / NPZ) if (folder / NPZ).is_file() else None
    if counts is not None and not _agree(counts, metrics):
        raise UserError(f"{folder}: metrics.json and {NPZ} are not of one evaluation; evaluate the run again")
    configs = (parent / "config.yaml" for parent in (folder, *folder.resolve().parents[:2]))
    config = next((path for path in configs if path.is_file()), None)
    return Result(str(place), folder, metrics, counts, {} if config is None else flat_config(config))


def _agree(counts: ImageCounts, metrics: Mapping[str, Any]) -> bool:
    if counts.classes[: counts.scored] != tuple(entry["name"] for entry in metrics["classes"]):
        return False
    whole = float(mean_iou(*(part.sum(0) for part in counts.overlaps())))
    told = math.nan if metrics["mIoU"] is None else metrics["mIoU"]
    same = np.isclose(whole, told, rtol=0, atol=1e-9, equal_nan=True)
    return bool(same) and len(counts.names) == metrics["num_images"]


def read_config(file: Path) -> dict[str, Any]:
    """Read a resolved experiment.

    Raises:
        UserError: it is no YAML mapping.
    """
    try:
        raw = yaml.safe_load(read_text(file, LARGEST))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: no experiment")
    return raw


def flat_config(file: Path) -> dict[str, Any]:
    """Read a resolved experiment as section.key -> value.

    Raises:
        UserError: it is no YAML mapping.
    """
    return flat(read_config(file))


def draws(images: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield how often images are drawn: float (resamples, images).

    Up to 100 resamples at a time.
    """
    rng = np.random.default_rng(SEED)
    for start in range(0, resamples, 100):
        yield rng.multinomial(images, np.full(images, 1 / images), min(100, resamples - start)).astype(np.float64)


def resample(overlaps: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int = RESAMPLES) -> np.ndarray:
    """Score every run on images drawn anew: mIoU, (resamples, runs).

    Every run is scored on the same draws, so that differences of columns are paired: Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapters 6 and 13.

    Args:
        overlaps: for each run intersection and union, (images, C) each, of the same images in the same order.
    """
    parts = [(hits.astype(np.float64), unions.astype(np.float64)) for hits, unions in overlaps]
    scores = [
        np.stack([mean_iou(weights @ hits, weights @ unions) for hits, unions in parts], 1)
        for weights in draws(len(parts[0][0]), resamples)
    ]
    return np.concatenate(scores)


def class_intervals(first: ImageCounts, other: ImageCounts) -> list[list[float] | None]:
    """Give the paired interval of the difference in IoU, class by class.

    None for a class that a resample may lack, as it occurs in few images.
    """
    if len(first.names) < 2:
        return [None] * first.scored
    parts = [[part.astype(np.float64) for part in counts.overlaps()] for counts in (first, other)]
    differences = []
    for weights in draws(len(first.names), RESAMPLES):
        iou = []
        for hits, unions in parts:
            union = weights @ unions
            iou.append(np.divide(weights @ hits, union, out=np.full(union.shape, np.nan), where=union > 0))
        differences.append(iou[1] - iou[0])
    return [interval(column) for column in np.concatenate(differences).T]


def resampled(results: Sequence[Result], aligned: Sequence[ImageCounts | None]) -> list[np.ndarray | None]:
    """Score each result on images drawn anew: mIoU, (resamples,).

    Those that are aligned share their draws. None where there are less than two images to draw from.
    """
    together = {index: counts for index, counts in enumerate(aligned) if counts is not None and len(counts.names) > 1}
    shared = resample([counts.overlaps() for counts in together.values()]) if together else np.zeros((0, 0))
    scores: list[np.ndarray | None] = [None] * len(results)
    for place, index in enumerate(together):
        scores[index] = shared[:, place]
    for index, result in enumerate(results):
        if aligned[index] is None and result.counts is not None and len(result.counts.names) > 1:
            scores[index] = resample([result.counts.overlaps()])[:, 0]
    return scores


def interval(values: np.ndarray) -> list[float] | None:
    """Return the middle 95 % of resampled values.

    None where one is undefined.
    """
    if np.isnan(values).any():
        return None
    rest = (100 - SHARE) / 2
    return [float(bound) for bound in np.percentile(values, (rest, 100 - rest))]


def compare(results: Sequence[Result]) -> dict[str, Any]:
    """Compare results with the first, in plain types.

    Raises:
        UserError: they are of other classes, or a result is named twice.
    """
    first, names = results[0], [result.name for result in results]
    classes = [entry["name"] for entry in first.metrics["classes"]]
    for result in results[1:]:
        other = [entry["name"] for entry in result.metrics["classes"]]
        if other != classes:
            raise UserError(f"{first.name} and {result.name} are of other classes: {_first_difference(classes, other)}")
    if len(set(names)) < len(names):
        raise UserError("a result is named twice; each can be compared with others only")
    aligned, notes = align(results)
    scores = resampled(results, aligned)
    if any(result.counts is not None and len(result.counts.names) == 1 for result in results):
        notes.append("a single image has no interval")  # every resample would be that image
    seeds, same = over_seeds(results)
    notes += _protocols(results) + same
    runs, differences = [], []
    for index, result in enumerate(results):
        entry = {key: result.metrics[key] for key in ("mIoU", "mAcc", "allAcc", "num_images")}
        entry |= {"name": result.name, "seed": result.config.get("seed", result.metrics.get("seed"))}
        own, base = scores[index], scores[0]
        entry["interval"] = None if own is None else interval(own)
        runs.append(entry)
        if index and None not in (entry["mIoU"], runs[0]["mIoU"]):
            bounds = None
            if own is not None and base is not None and aligned[index] is not None:
                bounds = interval(own - base)
            apart = None if bounds is None else bounds[0] > 0 or bounds[1] < 0
            difference = entry["mIoU"] - runs[0]["mIoU"]
            differences.append({"name": result.name, "mIoU": difference, "interval": bounds, "apart": apart})
    return {
        "runs": runs,
        "against": first.name,
        "differences": differences,
        "resamples": RESAMPLES,
        "classes": class_differences(results, aligned),
        "keys": differing_keys(results),
        "seeds": seeds,
        "images": disagreeing([counts for counts in aligned if counts is not None]) if all(aligned) else [],
        "notes": notes,
    }


def _first_difference(one: list[str], other: list[str]) -> str:
    if len(one) != len(other):
        return f"{len(one)} and {len(other)} classes"
    index = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return f"class {index} is {one[index]!r} and {other[index]!r}"


def _protocols(results: Sequence[Result]) -> list[str]:
    """Say where scores of different protocols or splits are compared."""
    keys = ("split", "name", "scales", "flip", "window", "stride_rate", "base_size", "windows", "void")
    known = [result for result in results if result.metrics.get("protocol")]
    told = [[result.metrics["protocol"].get(key) for key in keys] for result in known]
    notes = [
        f"{result.name}: another {key} ({_word(value)}) than {known[0].name} ({_word(first)})"
        for result, values in zip(known[1:], told[1:], strict=True)
        for key, value, first in zip(keys, values, told[0], strict=True)
        if value != first
    ]
    unknown = [result.name for result in results if not result.metrics.get("protocol")]
    if known and unknown:
        notes.append(f"{', '.join(unknown)}: of predictions that were on disk; their protocol is not known")
    return notes


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def align(results: Sequence[Result]) -> tuple[list[ImageCounts | None], list[str]]:
    """Bring the images of all results into the order of the first.

    Returns:
        the counts of each, None where it has none or is not of the first's images; and the reasons.
    """
    first, notes = results[0].counts, []
    aligned: list[ImageCounts | None] = [first if first is not None and first.names else None]
    missing = [result.name for result in results if result.counts is None]
    if missing:
        notes.append(f"no interval: {', '.join(missing)} without {NPZ}; evaluate again with test.report=true")
    if first is not None and not first.names:
        notes.append(f"no interval: no image of {results[0].name} was scored")
    for result in results[1:]:
        other, reason = result.counts, None
        if aligned[0] is None or other is None:
            aligned.append(None)
            continue
        pair, ordered = f"{results[0].name} and {result.name}", None
        if set(other.names) != set(aligned[0].names):
            shared = len({*other.names} & {*aligned[0].names})
            sizes = f"{len(aligned[0].names)} and {len(other.names)}, {shared} in common"
            reason = f"no interval of their difference: {pair} are of other images ({sizes})"
        else:
            place = {name: index for index, name in enumerate(other.names)}
            ordered = _take(other, [place[name] for name in aligned[0].names])
            here, there = (counts.sums()[1][:, : counts.scored] for counts in (ordered, aligned[0]))
            if not np.array_equal(here, there):
                reason = f"no interval of their difference: {pair} have other labels for the same images"
        aligned.append(ordered if reason is None else None)
        notes += [] if reason is None else [reason]
    return aligned, notes


def _take(counts: ImageCounts, order: Sequence[int]) -> ImageCounts:
    """Put the images into another order."""
    parts = [np.arange(counts.starts[index], counts.starts[index + 1]) for index in order]
    place = np.concatenate(parts).astype(np.int64)
    starts = np.cumsum([0, *(len(part) for part in parts)])
    names = tuple(counts.names[index] for index in order)
    return ImageCounts(names, counts.classes, counts.scored, starts, counts.cells[place], counts.counts[place])


def class_differences(results: Sequence[Result], aligned: Sequence[ImageCounts | None]) -> list[dict[str, Any]]:
    """Give the IoU of each class, its differences and their intervals."""
    first, classes = aligned[0], len(results[0].metrics["classes"])
    intervals = [
        [None] * classes if first is None or counts is None else class_intervals(first, counts)
        for counts in aligned[1:]
    ]
    rows = []
    for index, entries in enumerate(zip(*(result.metrics["classes"] for result in results), strict=True)):
        iou = [entry["iou"] for entry in entries]
        difference = [None if value is None or iou[0] is None else value - iou[0] for value in iou[1:]]
        bounds = [each[index] for each in intervals]
        apart = [None if each is None else each[0] > 0 or each[1] < 0 for each in bounds]
        row = {"name": entries[0]["name"], "iou": iou, "difference": difference, "interval": bounds, "apart": apart}
        rows.append(row)
    return rows


def differing_keys(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Give the keys of the experiments that differ, and their values."""
    configs = [dict(leaf for item in result.config.items() for leaf in _leaves(*item)) for result in results]
    keys = sorted({key for config in configs for key in config})
    rows = [{"key": key, "values": [config.get(key) for config in configs]} for key in keys]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"][1:])]


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values of a key, those of a mapping one by one."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def experiment_key(config: Mapping[str, Any]) -> str:
    """Return what runs of one experiment with other seeds have in common."""
    kept = {key: value for key, value in config.items() if key != "seed" and not key.startswith(IDLE)}
    return json.dumps(kept, sort_keys=True, default=str)


def over_seeds(results: Sequence[Result]) -> tuple[list[dict[str, Any]], list[str]]:
    """Give mean and deviation of results over seeds.

    They differ in their seed alone, and are of the same images; the deviation is that of a sample (n - 1).

    Returns:
        a row for each experiment; and which results are in none, as another has their seed.
    """
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        if result.config:
            images = result.metrics["num_images"] if result.counts is None else tuple(sorted(result.counts.names))
            groups.setdefault((experiment_key(result.config), images), []).append(result)
    rows, notes = [], []
    for group in groups.values():
        names = [result.name for result in group]
        scores = [result.metrics["mIoU"] for result in group]
        seeds = [result.config.get("seed") for result in group]
        if len(group) < 2 or None in scores or len(set(map(str, seeds))) == 1:
            continue
        if len(set(map(str, seeds))) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            notes.append(f"no mean over seeds of {', '.join(names)}: seed {twice} comes more than once")
            continue
        mean, deviation = float(np.mean(scores)), float(np.std(scores, ddof=1))
        rows.append({"runs": names, "seeds": seeds, "mean": mean, "deviation": deviation})
    return rows, notes


def disagreeing(aligned: Sequence[ImageCounts]) -> list[dict[str, Any]]:
    """Give the images whose mIoU differs most between the results."""
    scores = np.stack([counts.mean_iou() for counts in aligned], 1)
    spread = np.nan_to_num(scores.max(1) - scores.min(1))
    order = np.argsort(-spread, kind="stable")[:DISAGREEING]
    return [
        {"name": aligned[0].names[index], "mIoU": scores[index].tolist(), "spread": float(spread[index])}
        for index in order.tolist()
        if spread[index] > 0
    ]
