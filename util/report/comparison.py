"""A comparison as text, CSV and page; `compare` gives its content."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from util.record.files import write_named
from util.record.log import printable
from util.record.table import aligned, csv_bytes
from util.report.disagreement import FIRST, NEITHER, OTHER
from util.report.html import filled, percent

SHOWN = 10  # images in the terminal
LONGEST = 40  # letters of a key's value there


def signed(value: float | None) -> str:
    """Write a difference of fractions in percentage points."""
    return "-" if value is None else f"{100 * value:+.2f}"


def bounds(interval: Sequence[float] | None, form: Any = percent) -> str:
    """Write an interval."""
    return "-" if interval is None else f"{form(interval[0])} .. {form(interval[1])}"


def text(comparison: Mapping[str, Any]) -> str:
    """Return a comparison for the terminal; scores in percent."""
    runs = comparison["runs"]
    differences = {entry["name"]: entry for entry in comparison["differences"]}
    rows = [["result", "mIoU", "95 %", "to the first", "95 %", "mAcc", "allAcc", "images", "seed"]]
    for run in runs:
        other = differences.get(run["name"], {})
        mark = " *" if other.get("apart") else ""
        row = [run["name"], percent(run["mIoU"]), bounds(run["interval"])]
        row += [signed(other.get("mIoU")) + mark, bounds(other.get("interval"), signed)]
        row += [percent(run["mAcc"]), percent(run["allAcc"]), str(run["num_images"]), str(run["seed"])]
        rows.append(row)
    lines = aligned(rows)
    if any(run["interval"] for run in runs):
        mark = "; * 0 lies outside" if comparison["differences"] else ""
        lines.append(f"95 %: {comparison['resamples']} resamples of the images, the same for all{mark}")
    lines += [printable(note) for note in comparison["notes"]]
    numbers = [str(index + 1) for index in range(len(runs))]
    if len(runs) > 1:
        lines += [
            "",
            *aligned([["class", *numbers, *(f"{number}-1" for number in numbers[1:])], *_classes(comparison)]),
        ]
    if comparison["keys"]:
        keys = [[row["key"], *map(_shortened, row["values"])] for row in comparison["keys"]]
        lines += ["", *aligned([["key", *numbers], *keys])]
    if comparison["seeds"]:
        rows = [["over seeds", "mean mIoU", "deviation (n - 1)", "runs"]]
        for group in comparison["seeds"]:
            rows.append([", ".join(group["runs"]), percent(group["mean"]), percent(group["deviation"]), _count(group)])
        lines += ["", *aligned(rows)]
    if comparison["images"]:
        images = [[row["name"], *map(percent, row["mIoU"])] for row in comparison["images"][:SHOWN]]
        lines += ["", *aligned([["images that differ most", *numbers], *images])]
    return "\n".join(lines)


def _classes(comparison: Mapping[str, Any]) -> list[list[str]]:
    marked = any(any(row["apart"]) for row in comparison["classes"])
    rows = []
    for row in comparison["classes"]:
        marks = [(" *" if apart else "  ") if marked else "" for apart in row["apart"]]
        changes = [signed(value) + mark for value, mark in zip(row["difference"], marks, strict=True)]
        rows.append([row["name"], *map(percent, row["iou"]), *changes])
    return rows


def _shortened(value: Any) -> str:
    shown = "-" if value is None else str(value)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def _count(group: Mapping[str, Any]) -> str:
    return str(len(group["seeds"]))


def write_csv(file: Path, comparison: Mapping[str, Any]) -> None:
    """Write a line for each result, with a column for each class."""
    differences = {entry["name"]: entry for entry in comparison["differences"]}
    header = ["result", "seed", "images", "mIoU", "low", "high", "mAcc", "allAcc"]
    header += ["difference", "difference low", "difference high"]
    rows = []
    for index, run in enumerate(comparison["runs"]):
        other = differences.get(run["name"], {})
        row = [run["name"], run["seed"], run["num_images"], run["mIoU"], *(run["interval"] or (None, None))]
        row += [run["mAcc"], run["allAcc"], other.get("mIoU"), *(other.get("interval") or (None, None))]
        rows.append([*row, *(entry["iou"][index] for entry in comparison["classes"])])
    write_named(file, csv_bytes(header + [f"IoU {entry['name']}" for entry in comparison["classes"]], rows))


def write_page(
    file: Path,
    comparison: Mapping[str, Any],
    pictures: Mapping[str, Mapping[str, str]] | None = None,
    problem: str = "",
    classes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a comparison as one page without network access.

    Args:
        pictures: data URIs by image and title, of `util.report.disagreement`.
        problem: why there are none, or not all.
        classes: name and color of each class of the pictures.
    """
    spans = [bound for entry in comparison["differences"] for bound in entry["interval"] or ()]
    reach = max([abs(bound) for bound in spans] + [1e-6])  # of the axis on which intervals are drawn
    legend = {"the first is right": FIRST, "another is right": OTHER, "they differ, none is right": NEITHER}
    content = {"comparison": comparison, "signed": signed, "bounds": bounds, "reach": reach, "spanned": bool(spans)}
    content |= {"pictures": pictures or {}, "problem": problem, "legend": legend, "classes": classes}
    write_named(file, filled("compare.html", content))
