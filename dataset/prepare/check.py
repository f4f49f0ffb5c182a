"""Checks a data set before the first step.

Reads every label once, compares sizes, names every mistake's file.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from pydantic import TypeAdapter, ValidationError

from dataset.base import SegDataset
from dataset.read import DataError
from dataset.read.files import read_bytes, replacing
from dataset.read.header import Header, read_facts
from dataset.read.identity import fingerprint
from dataset.read.image import apply_rotation, check_bands, read_bands, read_image, read_stored
from dataset.read.labelmap import IGNORE, Key, LabelMap
from dataset.read.source import check_sizes

SHOWN_ERRORS = 5
MAX_UNKNOWN = 256  # colours of one label, above which it is no label
MAX_DECODED = 16  # deep pictures that are decoded to see which values they use
MAX_STAMP_BYTES = 1 << 20
# Up to this size float32, in which OpenCV counts, holds every whole number.
_EXACT_COUNT = 1 << 24


@dataclass(frozen=True)
class Report:
    """Findings of the check in one list.

    pixels: labelled pixels of each class. around: pixels of all labels that hold it. ignored: ignored pixels.
    smallest, largest: (height, width) of the pictures of the fewest and the most pixels. warnings: what is allowed but
    looks wrong. palette: the colours (index, red, green, blue) of the ids that were read from palettes. cached: read
    from the stamp.
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
    cached: bool = False


_REPORT = TypeAdapter(Report)


@dataclass(frozen=True)
class _Finding:
    """One sample.

    size: of the picture. header: of its file. raw: the values of its label on disk and their pixels (None: no label, or
    one of colours). mapped: pixels of each training id (None: no label). unknown: pixels of the values that the map
    does not know. palette: the colours of the ids that were taken from a palette.
    """

    size: tuple[int, int]
    header: Header
    raw: tuple[np.ndarray, np.ndarray] | None = None
    mapped: np.ndarray | None = None
    unknown: dict[Key, int] = field(default_factory=dict)
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)


def check_dataset(dataset: SegDataset, workers: int = 4, stamp: str | Path | None = None) -> Report:
    """Check all labels and image headers; report pixels by class.

    Args:
        dataset: its files are read.
        workers: threads.
        stamp: a JSON file that remembers the result; as long as the list, the label map, and the size and time of
            every file are unchanged, the next call returns the remembered report without reading a file.

    Raises:
        DataError: names the first offending files and how many there are: a value that is not in the label map, a
            label of another size than its image, a file that cannot be read.
    """
    key = fingerprint(dataset) if stamp is not None else ""
    remembered = _read_stamp(stamp, key)
    if remembered is not None and len(remembered.pixels) == len(remembered.around) == len(dataset.classes):
        return remembered

    def inspect(index: int) -> _Finding | Exception:
        try:
            return _inspect(dataset, index)
        except (ValueError, OSError) as error:
            return error  # so that one bad file does not hide the next

    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(inspect, range(len(dataset))))
    findings = [result for result in results if isinstance(result, _Finding)]
    errors = [str(error) for error in results if isinstance(error, Exception)]
    unknown = _unknown_values(dataset, results)
    if errors or unknown:
        bad = sum(not isinstance(result, _Finding) or bool(result.unknown) for result in results)
        raise DataError(_summary(dataset, bad, errors, unknown))
    report = _report(dataset, findings)
    if stamp is not None:
        _write_stamp(Path(stamp), key, report)
    return report


def compare_splits(train: SegDataset, train_report: Report, val: SegDataset, val_report: Report) -> list[str]:
    """List warnings about two lists that are used together.

    Classes that only the second holds, images that both hold.

    Raises:
        DataError: the palettes of their labels give one index different colours.
    """
    known = {index: (r, g, b) for index, r, g, b in train_report.palette}
    for index, r, g, b in val_report.palette:
        if (first := known.get(index, (r, g, b))) != (r, g, b):
            where, other = f"the labels of {train.list_file}", str(val.list_file)
            raise DataError(palettes_differ(index, first, where, (r, g, b), other))
    warnings = []
    counts = zip(train.classes, train_report.pixels, val_report.pixels, strict=True)
    absent = [name for name, seen, wanted in counts if wanted and not seen]
    if absent:
        warnings.append(
            f"classes of {val.list_file} that never occur in {train.list_file}, so no network "
            f"can learn them: {_names(absent)}"
        )
    seen_paths = {os.path.realpath(image) for image, _ in train.samples}
    shared = [image for image, _ in val.samples if os.path.realpath(image) in seen_paths]
    if shared:
        warnings.append(
            f"{len(shared)} pictures are in {train.list_file} and in {val.list_file} (first: "
            f"{shared[0]}); a score on pictures of the training is no score"
        )
    return warnings


def _inspect(dataset: SegDataset, index: int) -> _Finding:
    image_path, label_path = dataset.samples[index]
    header = read_facts(image_path)
    check_bands(image_path, header, dataset.channels, dataset.limits)
    header = header._replace(palette=None)  # what is left is kept for every sample
    size = header.size
    if label_path is None:
        return _Finding(header.upright, header)
    stored = read_stored(label_path)
    map_ = dataset.map_for(label_path)
    raw = map_.raw_values(stored, label_path)
    if apply_rotation(size, header.orientation, raw.shape[:2]):
        size = header.upright
    check_sizes(image_path, size, label_path, raw.shape[:2])
    if raw.ndim == 3:
        unknown = map_.unknown_values(raw, label_path)
        if len(unknown) > MAX_UNKNOWN:
            hint = "a picture, or a label whose edges were smoothed or compressed with loss"
            raise DataError(f"{label_path}: {len(unknown):,} colours are not in the label map of {map_.owner}: {hint}")
        return _Finding(size, header, None, None if unknown else _histogram(map_.apply(raw, label_path)), unknown)
    counts = _histogram(raw)
    unknown = {}
    if (counts[map_.unknown[: len(counts)] > 0] > 0).any() or not map_.has_ids:
        unknown = map_.unknown_values(raw, label_path)
    mapped = np.bincount(map_.table[: len(counts)], weights=counts, minlength=256).astype(np.int64)
    values = np.flatnonzero(counts)
    palette = {}
    if stored.palette is not None and raw is stored.values:
        palette = {int(i): tuple(stored.palette[i].tolist()) for i in values if i < len(stored.palette)}
    return _Finding(size, header, (values, counts[values]), mapped, unknown, palette)


def _unknown_values(dataset: SegDataset, results: list[_Finding | Exception]) -> list[str]:
    """Tell where each unknown value stands, and which map would ignore it."""
    found: dict[tuple[int, Key], list[str]] = {}
    maps: dict[int, LabelMap] = {}
    for result, (_, label_path) in zip(results, dataset.samples, strict=True):
        if isinstance(result, _Finding) and label_path is not None:
            for value in result.unknown:
                map_ = dataset.map_for(label_path)
                maps[id(map_)] = map_
                found.setdefault((id(map_), value), []).append(label_path)
    lines = []
    for key, map_ in maps.items():
        values = sorted((value for owner, value in found if owner == key), key=str)
        by_files: dict[tuple[str, ...], list[Key]] = {}
        for value in values:
            by_files.setdefault(tuple(found[key, value]), []).append(value)
        for paths, group in list(by_files.items())[:SHOWN_ERRORS]:
            where = "" if len(paths) == 1 else f"; the same in {_names(list(paths[1:]), SHOWN_ERRORS - 1)}"
            lines.append(map_.message(paths[0], group) + where)
        rest = [value for group in list(by_files.values())[SHOWN_ERRORS:] for value in group]
        if rest:
            lines.append(f"and the values {_names([str(value) for value in rest])}")
        lines.append(f"to ignore these values, paste into the section data: {map_.to_paste(values[:64])}")
    return lines


def _histogram(label: np.ndarray) -> np.ndarray:
    """Count the pixels of each value, int64 (256,) or, for 16 bit labels, (65536,)."""
    if label.dtype == np.uint8 and label.size <= _EXACT_COUNT:
        # OpenCV lets the other threads run meanwhile, NumPy's bincount does not.
        return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(label.ravel(), minlength=256 if label.dtype == np.uint8 else 65536)


def _report(dataset: SegDataset, findings: list[_Finding]) -> Report:
    labels = [finding.mapped for finding in findings if finding.mapped is not None]
    mapped = np.sum(labels, axis=0) if labels else np.zeros(256, np.int64)
    around = np.sum([(each > 0) * each.sum() for each in labels], axis=0) if labels else np.zeros(256, np.int64)
    sizes = sorted((finding.size for finding in findings), key=lambda size: size[0] * size[1])
    report = Report(
        name=dataset.name,
        split=dataset.split,
        list_file=str(dataset.list_file),
        images=len(findings),
        labelled=len(labels),
        smallest=sizes[0],
        largest=sizes[-1],
        pixels=tuple(mapped[: len(dataset.classes)].tolist()),
        ignored=int(mapped[IGNORE]),
        warnings=tuple(_band_warnings(dataset, findings)),
        around=tuple(around[: len(dataset.classes)].tolist()),
        palette=_common_palette(dataset, findings),
    )
    if not labels:
        return report
    _refuse_binary(dataset, findings)
    warnings = class_warnings(dataset, report) + _map_warnings(dataset, findings)
    return replace(report, warnings=(*report.warnings, *warnings))


def _band_warnings(dataset: SegDataset, findings: list[_Finding]) -> list[str]:
    """Warn of transparency that is not read, and of lost depth.

    Depth is lost where little of it is left in 8 bits.
    """
    warnings = []
    clear = [
        i for i, finding in enumerate(findings) if finding.header.alpha and finding.header.bands > dataset.channels
    ]
    if clear:
        warnings.append(
            f"{len(clear)} pictures have a band of transparency, which is not read (first: "
            f"{dataset.samples[clear[0]][0]}); data.channels: 4 reads it, save RGB if it means nothing"
        )
    deep = [i for i, finding in enumerate(findings) if finding.header.dtype not in ("bool", "uint8")]
    sampled = deep[:: max(1, len(deep) // MAX_DECODED)]
    if not sampled:
        return warnings
    paths = [dataset.samples[i][0] for i in sampled]
    images = [read_image(path, None, dataset.channels, dataset.limits) for path in paths]
    used = max(int(image.max()) for image in images) - min(int(image.min()) for image in images)
    if used < 64:
        raw = [read_bands(path, dataset.channels, dataset.limits)[0] for path in paths]
        low, high = min(np.nanmin(each) for each in raw), max(np.nanmax(each) for each in raw)
        warnings.append(
            f"the {len(deep)} deep pictures of {dataset.list_file} use {used + 1} of the 256 levels that are read, "
            f"less than a quarter; their values go from {low:g} to {high:g}: give data.range: [{low:g}, {high:g}]"
        )
    return warnings


def class_warnings(dataset: SegDataset, report: Report) -> list[str]:
    """List warnings about classes and ignored pixels."""
    warnings = []
    absent = [name for name, count in zip(dataset.classes, report.pixels, strict=True) if not count]
    if absent:
        warnings.append(f"classes that never occur in {report.list_file}: {_names(absent)}")
    total = sum(report.pixels) + report.ignored
    if report.ignored > 0.9 * total:
        warnings.append(
            f"{report.ignored / total:.1%} of the pixels of {report.list_file} are ignored; see "
            "whether label_map fits the labels"
        )
    return warnings


def _pooled(dataset: SegDataset, findings: list[_Finding]) -> list[tuple[LabelMap, np.ndarray]]:
    """Add up the pixels of the raw values by label map.

    Of all its label files, (65536,).
    """
    pooled: dict[int, tuple[LabelMap, np.ndarray]] = {}
    for finding, (_, label_path) in zip(findings, dataset.samples, strict=True):
        if finding.raw is not None and label_path is not None:
            map_ = dataset.map_for(label_path)
            _, counts = pooled.setdefault(id(map_), (map_, np.zeros(65536, np.int64)))
            values, pixels = finding.raw
            counts[values] += pixels
    return list(pooled.values())


def _map_warnings(dataset: SegDataset, findings: list[_Finding]) -> list[str]:
    """Give what the raw values of the label files, pooled for each label map, tell about the map."""
    return [
        f"the labels of {dataset.list_file} look as if they held training ids already, "
        f"and label_map ({map_}) would map them a second time; if so, give the identity "
        "as label_map"
        for map_, counts in _pooled(dataset, findings)
        if looks_mapped(map_, counts, len(dataset.classes))
    ]


def _refuse_binary(dataset: SegDataset, findings: list[_Finding]) -> None:
    """Refuse masks of 0 and 255 for two classes, where nobody has said what 255 is.

    Raises:
        DataError: with the map to paste.
    """
    for map_, counts in _pooled(dataset, findings):
        if looks_binary(map_, counts, len(dataset.classes)):
            raise DataError(binary_message(dataset))


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


def _common_palette(dataset: SegDataset, findings: list[_Finding]) -> tuple[tuple[int, int, int, int], ...]:
    """Give the colours of all ids that were read from palettes.

    Raises:
        DataError: two palettes give one id different colours, so that their indices are no ids.
    """
    common: dict[int, tuple[tuple[int, int, int], str]] = {}
    for finding, (_, label_path) in zip(findings, dataset.samples, strict=True):
        for index, color in finding.palette.items():
            known, path = common.setdefault(index, (color, str(label_path)))
            if known != color:
                raise DataError(palettes_differ(index, known, path, color, str(label_path)))
    return tuple((index, *color) for index, (color, _) in sorted(common.items()))


def palettes_differ(
    index: int, known: tuple[int, int, int], where: str, color: tuple[int, int, int], other: str
) -> str:
    """Say that two palettes give one index different colours."""
    keys = ", ".join('"{},{},{}": CLASS'.format(*each) for each in (known, color))
    return (
        f"{other}: its palette gives index {index} the colour {color}, that of {where} {known}; so the indices are no "
        f"class ids. Read the labels by their colours: label_map: {{{keys}, ...}}"
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


def _summary(dataset: SegDataset, bad: int, errors: list[str], unknown: list[str]) -> str:
    rest = [f"and {len(errors) - SHOWN_ERRORS} more"] if len(errors) > SHOWN_ERRORS else []
    shown = "".join(f"\n  {line}" for line in [*unknown, *errors[:SHOWN_ERRORS], *rest])
    return f"{dataset.list_file}: {bad} of {len(dataset)} samples cannot be used:{shown}"


def _names(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _read_stamp(stamp: str | Path | None, expected: str) -> Report | None:
    """Read the remembered report; None where there is none for this fingerprint."""
    if stamp is None or not Path(stamp).is_file():
        return None
    try:
        content = json.loads(read_bytes(stamp, MAX_STAMP_BYTES, "stamp"))
    except (ValueError, RecursionError):
        return None  # cut short by a crash, or no stamp; it is written anew
    if not isinstance(content, dict) or content.get("fingerprint") != expected:
        return None
    try:
        return replace(_REPORT.validate_python(content.get("report")), cached=True)
    except ValidationError:
        return None


def _write_stamp(stamp: Path, key: str, report: Report) -> None:
    content = {"fingerprint": key, "report": asdict(report)}
    with replacing(stamp) as file:
        file.write(json.dumps(content, indent=1).encode())
