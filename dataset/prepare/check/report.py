"""The report of a list, its warnings, and its error."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dataset.base import SegDataset
from dataset.prepare.check.tally import SHOWN_ERRORS, Tally, Unknown, Values
from dataset.prepare.hints import misnamed, sharing, unknown_hint
from dataset.read import DataError
from dataset.read.image import read_bands, read_image
from dataset.read.labelmap import IGNORE, Key, LabelMap


@dataclass(frozen=True)
class Report:
    """Findings of the check in one list.

    images: those that were read. pixels: labelled pixels of each class. around: pixels of all labels that hold it.
    ignored: ignored pixels. smallest, largest: (height, width) of the pictures of the fewest and the most pixels.
    warnings: what is allowed but looks wrong. palette: the colours (index, red, green, blue) of the ids that were read
    from palettes. sizes: (height, width, pictures), the most frequent first, at most `MAX_SIZES`. cached: read from the
    stamp.
    """

    name: str
    split: str
    list_file: str
    images: int
    labelled: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    pixels: tuple[int, ...]
    ignored: int
    warnings: tuple[str, ...]
    palette: tuple[tuple[int, int, int, int], ...] = ()
    around: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int, int], ...] = ()
    cached: bool = False


def report_of(dataset: SegDataset, tally: Tally) -> Report:
    """Give the sums of a list without errors.

    Raises:
        DataError: palettes that differ, or masks of 0 and 255 where nobody has said what 255 is.
    """
    if tally.conflict:
        raise DataError(tally.conflict)
    numbers = range(len(dataset.classes))
    report = Report(
        name=dataset.name,
        split=dataset.split,
        list_file=str(dataset.list_file),
        images=tally.images,
        labelled=tally.labelled,
        smallest=tally.smallest,
        largest=tally.largest,
        pixels=tuple(tally.mapped.get(number, 0) for number in numbers),
        ignored=tally.mapped.get(IGNORE, 0),
        warnings=(),
        around=tuple(tally.around.get(number, 0) for number in numbers),
        palette=tuple((index, *color) for index, (color, _) in sorted(tally.palette.items())),
        sizes=tuple(sorted((_size(text, count) for text, count in tally.sizes.items()), key=lambda size: -size[2])),
    )
    warnings = _band_warnings(dataset, tally)
    if tally.images < len(dataset):
        warnings.append(
            f"{tally.images} of {len(dataset)} samples of {dataset.list_file} were read, drawn at random; the others "
            "are read for the first time when it is their turn (data.check: full reads all)"
        )
    else:
        warnings += _pair_warnings(dataset)
    if not tally.labelled:
        return replace(report, warnings=tuple(warnings))
    warnings += class_warnings(dataset, report)
    if tally.blank:
        warnings.append(
            f"{tally.blank} labels in which every pixel is ignored, so that nothing is learnt from them (first: "
            f"{tally.first_blank})"
        )
    for map_, each in _maps(dataset, tally):
        counts = np.zeros(65536, np.int64)
        counts[list(each.pixels)] = list(each.pixels.values())
        if looks_binary(map_, counts, len(dataset.classes)):
            raise DataError(binary_message(dataset))
        if looks_mapped(map_, counts, len(dataset.classes)):
            warnings.append(
                f"the labels of {dataset.list_file} look as if they held training ids already, "
                f"and label_map ({map_}) would map them a second time; if so, give the identity "
                "as label_map"
            )
    return replace(report, warnings=tuple(warnings))


def _size(text: str, count: int) -> tuple[int, int, int]:
    height, width = map(int, text.split("x"))
    return height, width, count


def class_warnings(dataset: SegDataset, report: Report) -> list[str]:
    """List warnings about classes and ignored pixels."""
    warnings = []
    absent = [name for name, count in zip(dataset.classes, report.pixels, strict=True) if not count]
    if absent:
        warnings.append(f"classes that never occur in {report.list_file}: {names_of(absent[:10], len(absent))}")
    total = sum(report.pixels) + report.ignored
    if report.ignored > 0.9 * total:
        warnings.append(
            f"{report.ignored / total:.1%} of the pixels of {report.list_file} are ignored; see "
            "whether label_map fits the labels"
        )
    return warnings


def _band_warnings(dataset: SegDataset, tally: Tally) -> list[str]:
    """Warn of transparency that is not read, and of lost depth.

    Depth is lost where little of it is left in 8 bits.
    """
    warnings = []
    if tally.clear:
        warnings.append(
            f"{tally.clear} pictures have a band of transparency, which is not read (first: "
            f"{tally.first_clear}); data.channels: 4 reads it, save RGB if it means nothing"
        )
    if not tally.chosen:
        return warnings
    paths = [dataset.samples[index][0] for index in tally.chosen]
    images = [read_image(path, None, dataset.channels, dataset.limits) for path in paths]
    used = max(int(image.max()) for image in images) - min(int(image.min()) for image in images)
    if used < 64:
        raw = [read_bands(path, dataset.channels, dataset.limits)[0] for path in paths]
        low, high = min(np.nanmin(each) for each in raw), max(np.nanmax(each) for each in raw)
        warnings.append(
            f"the {tally.deep} deep pictures of {dataset.list_file} use {used + 1} of the 256 levels that are read, "
            f"less than a quarter; their values go from {low:g} to {high:g}: give data.range: [{low:g}, {high:g}]"
        )
    return warnings


def _pair_warnings(dataset: SegDataset) -> list[str]:
    """Warn of labels that stand beside a wrong image, or beside several."""
    warnings = []
    wrong, several = misnamed(dataset), sharing(dataset)
    if len(wrong):
        image, label = dataset.samples[int(wrong[0])]
        warnings.append(
            f"{len(wrong)} labels bear the name of another image of {dataset.list_file} (first: {label} stands beside "
            f"{image}); see whether the lines are right"
        )
    if len(several):
        image, label = dataset.samples[int(several[0])]
        warnings.append(
            f"{len(several)} images of {dataset.list_file} share their label file with another one (first: {label} of "
            f"{image}); see whether that is meant"
        )
    return warnings


def looks_binary(map_: LabelMap, counts: np.ndarray, classes: int) -> bool:
    """Tell whether masks of two classes hold only 0 and 255.

    And nobody has said what 255 is. counts: pooled raw values (65536,).
    """
    said = map_.names_ignored or map_.table[IGNORE] != IGNORE
    return classes == 2 and not said and np.flatnonzero(counts).tolist() == [0, IGNORE]


def binary_message(dataset: SegDataset) -> str:
    """Say what masks of 0 and 255 need."""
    return (
        f"{dataset.list_file}: the labels hold only 0 and 255, and 255 is ignored unless it is mapped, so "
        f"nothing of {dataset.classes[1]!r} would be learnt. Paste into the section data: "
        "label_map: {0: 0, 255: 1}, or, if 255 is to be ignored, label_map: {0: 0, 1: 1, 255: 255}"
    )


def looks_mapped(map_: LabelMap, counts: np.ndarray, classes: int) -> bool:
    """Tell whether values look mapped although `map_` expects others.

    counts: pooled raw values (65536,). They do when nothing but 0..classes-1 and 255 occurs while the map knows higher
    ids, the map would change some of them, and it would ignore half of the pixels or 255 (which the files of such a
    data set do not hold) occurs.
    """
    seen = np.flatnonzero(counts)
    inside = seen[seen < classes]
    if len(inside) == 0 or len(inside) + (counts[IGNORE] > 0) < len(seen):
        return False
    higher = [key for key in map_.ids if classes <= key != IGNORE]
    changed = bool((map_.table[inside] != inside).any())
    ignored = counts[inside][map_.table[inside] == IGNORE].sum()
    return bool(higher) and changed and bool(counts[IGNORE] > 0 or ignored > counts[inside].sum() / 2)


def summary(dataset: SegDataset, tally: Tally) -> str:
    lines = [*_unknown_values(dataset, tally), *tally.errors]
    if tally.failed > len(tally.errors):
        lines.append(f"and {tally.failed - len(tally.errors)} more")
    which = "samples" if tally.done == len(dataset) else "samples that were read"
    shown = "".join(f"\n  {line}" for line in lines)
    return f"{dataset.list_file}: {tally.bad} of {tally.done} {which} cannot be used:{shown}"


def _unknown_values(dataset: SegDataset, tally: Tally) -> list[str]:
    """Tell where each unknown value stands, and which map would ignore it."""
    lines = []
    for map_, each in _maps(dataset, tally):
        values: dict[Key, Unknown] = {}
        for text, found in each.unknown.items():
            red, *others = map(int, text.split(","))
            values[(red, others[0], others[1]) if others else red] = found
        by_files: dict[tuple[int, int], list[Key]] = {}
        for value in sorted(values, key=str):
            by_files.setdefault((values[value].count, values[value].code), []).append(value)
        for group in list(by_files.values())[:SHOWN_ERRORS]:
            found = values[group[0]]
            same = f"; the same in {names_of(found.files[1:], found.count - 1)}" if found.count > 1 else ""
            lines.append(map_.message(found.files[0], group) + same)
        rest = [str(value) for group in list(by_files.values())[SHOWN_ERRORS:] for value in group]
        if rest:
            lines.append(f"and the values {names_of(rest[:10], len(rest))}")
        if values:
            counts = np.zeros(65536, np.int64)
            counts[list(each.pixels)] = list(each.pixels.values())
            hint = unknown_hint(map_, list(values), counts, len(dataset.classes))
            lines += [hint.removeprefix("; ")] if hint else []
            lines.append(
                f"to ignore these values, paste into the section data: {map_.to_paste(sorted(values, key=str)[:64])}"
            )
    return lines


def _maps(dataset: SegDataset, tally: Tally) -> Iterator[tuple[LabelMap, Values]]:
    """Give the label maps that were used, and what they have read."""
    for each in tally.values.values():
        yield dataset.map_for(str(dataset.samples[each.first][1])), each


def names_of(names: list[str], count: int) -> str:
    """Write the first of `count` names."""
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")
