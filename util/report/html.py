"""report.html: a result as one page that needs no network."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from util.record.files import write_bytes
from util.report.details import Measured
from util.report.per_image import ImageCounts, mean_iou
from util.report.sizes import SIZES
from util.report.visual import data_uri

NAME = "report.html"
LARGEST_MATRIX = 40  # classes up to which the cells of the confusion matrix hold numbers
LARGEST_LEGEND = 24  # lines of a chart up to which it has a legend
CONFUSIONS = 20  # pairs of classes that are listed
MOST_IMAGES = 2000  # lines of the table of images; per_image.csv has all
CHART = (640, 240)  # size of a chart's inside, in its own units
TICKS = 4
STEPS = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)  # from one tick to the next, times a power of ten
NOTES = (
    ("absent", "Neither labelled nor predicted, left out of the means"),
    ("never_labelled", "Predicted but never labelled, so that their IoU is 0 and counts"),
)


@dataclass(frozen=True)
class Page:
    """What a report shows.

    Args:
        title: of the experiment.
        metrics: content of metrics.json.
        names: of the confusion matrix: the classes, and void where it is one.
        matrix: confusion matrix, int64 (names, names), rows = truth.
        colors: uint8 (names, 3) RGB.
        measured: boundaries, sizes and images; None where they were not measured.
        counts: of the images; None where they were not measured.
        history: lines of history.csv; none where no training is known.
        config: the experiment as YAML.
    """

    title: str
    metrics: Mapping[str, Any]
    names: Sequence[str]
    matrix: np.ndarray
    colors: np.ndarray
    measured: Measured | None
    counts: ImageCounts | None
    history: Sequence[Mapping[str, str]]
    config: str


def write_report(folder: Path, page: Page) -> Path:
    """Write report.html; return its path."""
    bins = None if page.counts is None else histogram(page.counts.mean_iou())
    content = {
        "page": page,
        "metrics": page.metrics,
        "classes": class_rows(page),
        "sizes": size_rows(page.measured),
        "matrix": matrix_rows(page),
        "confusions": confusions(page),
        "numbers": len(page.colors) <= LARGEST_MATRIX,
        "charts": charts(page),
        "histogram": bins,
        "tallest": max(bin["count"] for bin in bins or [{"count": 0}]),
        "ranked": 0 if page.counts is None else int((~np.isnan(page.counts.mean_iou())).sum()),
        "images": image_rows(page),
        "most": MOST_IMAGES,
        "shown": shown_images(page),
        "facts": facts(page.metrics),
        "notes": [(key, text) for key, text in NOTES if page.metrics.get(key)],
        "boundary_iou": None if page.measured is None else float(mean_iou(*page.measured.band)),
    }
    write_bytes(folder / NAME, filled("report.html", content))
    return folder / NAME


def filled(template: str, content: dict[str, Any]) -> bytes:
    """Fill in a template; text is escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "template")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "colour": colour}
    text = environment.get_template(template).render(content)
    return text.encode("utf-8", "backslashreplace")  # names of files are not always UTF-8


def percent(value: float | None) -> str:
    """Write a fraction in percent, a dash where it is undefined."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def colour(rgb: Sequence[int]) -> str:
    """Write a colour as CSS does."""
    return "#{:02x}{:02x}{:02x}".format(*(int(value) for value in rgb))


def ratio(part: np.ndarray, whole: np.ndarray) -> list[float | None]:
    """Divide; None where the whole is 0."""
    return [float(a) / float(b) if b else None for a, b in zip(part, whole, strict=True)]


def class_rows(page: Page) -> list[dict[str, Any]]:
    """Give the lines of the table of classes."""
    measured, classes = page.measured, page.metrics["classes"]
    columns: dict[str, list] = {"precision": ratio(page.matrix.diagonal(), page.matrix.sum(0))}
    if measured is not None:
        columns["boundary_f"] = [None if math.isnan(value) else float(value) for value in measured.boundary_f]
        columns["boundary_iou"] = ratio(*measured.band)
        columns |= {size: ratio(*measured.sizes[:, index]) for index, size in enumerate(SIZES)}
    total = max(sum(entry["pixels"] for entry in classes), 1)
    return [
        dict(entry)
        | {"color": color, "share": entry["pixels"] / total}
        | {name: values[index] for name, values in columns.items()}
        for index, (entry, color) in enumerate(zip(classes, page.colors.tolist(), strict=False))  # without void
    ]


def size_rows(measured: Measured | None) -> list[dict[str, Any]]:
    """Give the mean IoU of each size of objects."""
    if measured is None:
        return []
    rows = []
    for index, size in enumerate(SIZES):
        values = [value for value in ratio(*measured.sizes[:, index]) if value is not None]
        rows.append({"name": size, "iou": float(np.mean(values)) if values else None, "classes": len(values)})
    return rows


def matrix_rows(page: Page) -> list[dict[str, Any]]:
    """Give the lines of the confusion matrix as shares of the truth.

    None where a class has no pixel.
    """
    rows = []
    for name, line in zip(page.names, page.matrix.tolist(), strict=True):
        total = sum(line)
        rows.append({"name": name, "cells": [value / total for value in line] if total else None})
    return rows


def confusions(page: Page) -> list[dict[str, Any]]:
    """Give the pairs of classes that are confused most often."""
    wrong = page.matrix * ~np.eye(len(page.matrix), dtype=bool)
    totals, rows = page.matrix.sum(1), []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS].tolist():
        truth, prediction = divmod(place, len(wrong))
        if pixels := int(wrong[truth, prediction]):
            names = {"truth": page.names[truth], "prediction": page.names[prediction]}
            rows.append(names | {"pixels": pixels, "share": pixels / int(totals[truth])})
    return rows


def rounded_top(largest: float) -> float:
    """Return the end of an axis with round ticks, `largest` or above."""
    power = 10.0 ** math.floor(math.log10(largest / TICKS))
    return TICKS * power * next(step for step in STEPS if step * power >= largest / TICKS * (1 - 1e-9))


def chart(series: Sequence[tuple[str, str | None, list[tuple[float, float]]]], top: float | None) -> dict[str, Any]:
    """Lay out a chart of lines.

    Args:
        series: name, colour (None for the next of the page) and points of each line.
        top: the end of the vertical axis, which begins at 0; None for a round number above the largest value.
    """
    points = [point for _, _, line in series for point in line]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    high = top or rounded_top(max([y for _, y in points if math.isfinite(y)] + [1e-9]))
    width, height = CHART

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = (point[0] - left) / (right - left) if right > left else 0.5
        return round(x * width, 1), round((1 - min(max(point[1] / high, 0), 1)) * height, 1)

    lines = [
        {"name": name, "color": color, "points": [place(p) for p in line], "last": line[-1][1]}
        for name, color, line in series
        if line
    ]
    ticks = [(round((1 - i / TICKS) * height, 1), f"{high * i / TICKS:.3g}") for i in range(TICKS + 1)]
    return {"lines": lines, "ticks": ticks, "left": f"{left:g}", "right": f"{right:g}", "size": CHART}


def charts(page: Page) -> list[dict[str, Any]]:
    """Lay out the curves of the training: loss, means, and classes."""

    def line(column: str, factor: float = 1.0) -> list[tuple[float, float]]:
        found = []
        for row in page.history:
            try:
                found.append((float(row["epoch"]), factor * float(row.get(column) or "nan")))
            except ValueError:
                continue
        return [(x, y) for x, y in found if math.isfinite(y)]

    out = []
    means = [(name, None, line(name, 100)) for name in ("mIoU", "mAcc", "allAcc")]
    classes = [
        (entry["name"], colour(color), line(f"IoU {entry['name']}", 100))
        for entry, color in zip(page.metrics["classes"], page.colors, strict=False)  # without void
    ]
    for title, series, top in (
        ("Validation, %", means, 100.0),
        ("Training loss", [("loss", None, line("loss"))], None),
        ("IoU of the classes in the validation, %", classes, 100.0),
    ):
        if any(points for _, _, points in series):
            out.append({"title": title, "legend": len(series) <= LARGEST_LEGEND, **chart(series, top)})
    return out


def histogram(values: np.ndarray, bins: int = 20) -> list[dict[str, Any]]:
    """Count the images by their mIoU."""
    counts, edges = np.histogram(values[~np.isnan(values)], bins, (0, 1))
    return [
        {"count": int(count), "share": float(count / max(counts.max(), 1)), "from": float(low), "to": float(high)}
        for count, low, high in zip(counts, edges, edges[1:], strict=False)
    ]


def image_rows(page: Page) -> list[dict[str, Any]]:
    """Give the lines of the table of images, the worst first."""
    if page.counts is None or page.measured is None:
        return []
    hits, labelled, _ = page.counts.sums()
    rows: list[dict[str, Any]] = [
        {
            "name": score.name,
            "mIoU": float(iou),
            "allAcc": float(right / pixels) if pixels else math.nan,
            "boundary_f": score.boundary_f,
            "boundary_iou": score.boundary_iou,
        }
        for score, iou, right, pixels in zip(
            page.measured.scores, page.counts.mean_iou(), hits.sum(1), labelled.sum(1), strict=True
        )
    ]
    rows.sort(key=lambda row: (math.isnan(row["mIoU"]), row["mIoU"]))
    return rows[:MOST_IMAGES]


def shown_images(page: Page) -> list[dict[str, Any]]:
    """Give the images of the report with their pictures as data URIs.

    rank: 1 for the best of all images; None where these were not measured.
    """
    if page.measured is None:
        return []
    scores = None if page.counts is None else page.counts.mean_iou()
    return [
        {
            "name": shown.name,
            "mIoU": shown.mean_iou,
            "rank": None if scores is None else 1 + int((scores > shown.mean_iou + 1e-12).sum()),
            "pictures": {title: data_uri(mime, data) for title, (mime, data) in shown.pictures.items()},
        }
        for shown in page.measured.shown
    ]


def facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say how the number was obtained: protocol, speed, checkpoint, commit, command, versions."""

    def text(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, dict):
            return text([f"{key} {text(each)}" for key, each in value.items()])
        if isinstance(value, list):
            return ", ".join(map(text, value)) or "–"
        return "–" if value is None else str(value)

    protocol = metrics["protocol"] or {}
    rows = [(f"protocol: {key}", text(value)) for key, value in protocol.items()]
    rows.append(("images", str(metrics["num_images"])))
    seconds = metrics["seconds_per_image"]
    rows.append(
        ("seconds per image", "–" if seconds is None else f"{seconds:.4f} ({1 / max(seconds, 1e-9):.1f} a second)")
    )
    if metrics["checkpoint"]:
        rows += [(f"checkpoint: {key}", text(value)) for key, value in metrics["checkpoint"].items()]
    for key in ("experiment", "network", "backbone", "seed", "command", "commit", "dirty"):
        if key in metrics:
            shown = "files differ from the commit" if key == "dirty" else key
            rows.append((shown, shlex.join(metrics[key]) if key == "command" else text(metrics[key])))
    return rows + [(f"version: {key}", value) for key, value in metrics["versions"].items()]
