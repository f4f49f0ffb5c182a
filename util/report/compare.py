"""Compares results: how far apart, how sure, and where."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from util import UserError
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


def flat_config(file: Path) -> dict[str, Any]:
    """Read a resolved experiment as section.key -> value.

    Raises:
        UserError: it is no YAML mapping.
    """
    try:
        raw = yaml.safe_load(read_text(file, LARGEST))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{file}: no experiment")
    flat: dict[str, Any] = {}
    for section, content in raw.items():
        if isinstance(content, dict):
            flat |= {f"{section}.{key}": value for key, value in content.items()}
        else:
            flat[str(section)] = content
    return flat


def resample(overlaps: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int = RESAMPLES) -> np.ndarray:
    """Score every run on images drawn anew: mIoU, (resamples, runs).

    Every run is scored on the same draws, so that differences of columns are paired: Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapters 6 and 13.

    Args:
        overlaps: for each run intersection and union, (images, C) each, of the same images in the same order.
    """
    images = len(overlaps[0][0])
    rng = np.random.default_rng(SEED)
    parts = [(hits.astype(np.float64), unions.astype(np.float64)) for hits, unions in overlaps]
    scores = np.empty((resamples, len(parts)))
    for start in range(0, resamples, 100):
        weights = rng.multinomial(images, np.full(images, 1 / images), min(100, resamples - start)).astype(np.float64)
        for run, (hits, unions) in enumerate(parts):
            scores[start : start + 100, run] = mean_iou(weights @ hits, weights @ unions)
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
    scores = resample([counts.overlaps() for counts in aligned]) if aligned else None
    notes += _protocols(results)
    runs, differences = [], []
    for index, result in enumerate(results):
        entry = {key: result.metrics[key] for key in ("mIoU", "mAcc", "allAcc", "num_images")}
        entry |= {"name": result.name, "seed": result.config.get("seed", result.metrics.get("seed"))}
        entry["interval"] = None if scores is None else interval(scores[:, index])
        runs.append(entry)
        if index and None not in (entry["mIoU"], runs[0]["mIoU"]):
            bounds = None if scores is None else interval(scores[:, index] - scores[:, 0])
            apart = None if bounds is None else bounds[0] > 0 or bounds[1] < 0
            difference = entry["mIoU"] - runs[0]["mIoU"]
            differences.append({"name": result.name, "mIoU": difference, "interval": bounds, "apart": apart})
    return {
        "runs": runs,
        "against": first.name,
        "differences": differences,
        "resamples": RESAMPLES,
        "classes": class_differences(results),
        "keys": differing_keys(results),
        "seeds": over_seeds(results),
        "images": disagreeing(aligned) if aligned and len(results) > 1 else [],
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
    told = [[(result.metrics.get("protocol") or {}).get(key) for key in keys] for result in results]
    return [
        f"{result.name}: another {key} ({value}) than {results[0].name} ({first})"
        for result, values in zip(results[1:], told[1:], strict=True)
        for key, value, first in zip(keys, values, told[0], strict=True)
        if value != first
    ]


def align(results: Sequence[Result]) -> tuple[list[ImageCounts], list[str]]:
    """Bring the images of all results into one order.

    Returns:
        the counts; or none, and the reason, where they are not the same images.
    """
    missing = [result.name for result in results if result.counts is None]
    if missing:
        return [], [f"no intervals: {', '.join(missing)} without {NPZ}; evaluate again with test.report=true"]
    counts = [result.counts for result in results if result.counts is not None]
    first = counts[0]
    if not first.names:
        return [], ["no intervals: no image was scored"]
    aligned = [first]
    for result, other in zip(results[1:], counts[1:], strict=True):
        if set(other.names) != set(first.names):
            shared = len({*other.names} & {*first.names})
            sizes = f"{len(first.names)} and {len(other.names)}, {shared} in common"
            return [], [f"no intervals: {results[0].name} and {result.name} are of other images ({sizes})"]
        place = {name: index for index, name in enumerate(other.names)}
        ordered = _take(other, [place[name] for name in first.names])
        if not np.array_equal(ordered.sums()[1][:, : ordered.scored], first.sums()[1][:, : first.scored]):
            return [], [f"no intervals: {results[0].name} and {result.name} have other labels for the same images"]
        aligned.append(ordered)
    return aligned, []


def _take(counts: ImageCounts, order: Sequence[int]) -> ImageCounts:
    """Put the images into another order."""
    parts = [np.arange(counts.starts[index], counts.starts[index + 1]) for index in order]
    place = np.concatenate(parts).astype(np.int64)
    starts = np.cumsum([0, *(len(part) for part in parts)])
    names = tuple(counts.names[index] for index in order)
    return ImageCounts(names, counts.classes, counts.scored, starts, counts.cells[place], counts.counts[place])


def class_differences(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Give the IoU of each class and its differences to the first."""
    rows = []
    for entries in zip(*(result.metrics["classes"] for result in results), strict=True):
        iou = [entry["iou"] for entry in entries]
        difference = [None if value is None or iou[0] is None else value - iou[0] for value in iou[1:]]
        rows.append({"name": entries[0]["name"], "iou": iou, "difference": difference})
    return rows


def differing_keys(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Give the keys of the experiments that differ, and their values."""
    keys = sorted({key for result in results for key in result.config})
    rows = [{"key": key, "values": [result.config.get(key) for result in results]} for key in keys]
    return [row for row in rows if any(value != row["values"][0] for value in row["values"][1:])]


def experiment_key(config: Mapping[str, Any]) -> str:
    """Return what runs of one experiment with other seeds have in common."""
    kept = {key: value for key, value in config.items() if key != "seed" and not key.startswith(IDLE)}
    return json.dumps(kept, sort_keys=True, default=str)


def over_seeds(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Give mean and deviation of results over seeds.

    They differ in their seed alone; the deviation is that of a sample (n - 1).
    """
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.config:
            groups.setdefault(experiment_key(result.config), []).append(result)
    rows = []
    for group in groups.values():
        scores = [result.metrics["mIoU"] for result in group if result.metrics["mIoU"] is not None]
        seeds = [result.config.get("seed") for result in group]
        if len(scores) > 1 and len(set(map(str, seeds))) == len(seeds):
            mean, deviation = float(np.mean(scores)), float(np.std(scores, ddof=1))
            names = [result.name for result in group]
            rows.append({"runs": names, "seeds": seeds, "mean": mean, "deviation": deviation})
    return rows


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
