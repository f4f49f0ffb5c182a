"""Checks a data set before the first step: reads every label once, compares sizes, names every mistake's file."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from pydantic import TypeAdapter, ValidationError

from dataset.base import SegDataset
from dataset.read import DataError
from dataset.read.files import read_bytes, replacing
from dataset.read.identity import fingerprint
from dataset.read.image import apply_rotation, read_header, read_label, upright_size
from dataset.read.labelmap import IGNORE, LabelMap
from dataset.read.source import check_sizes

SHOWN_ERRORS = 5
MAX_STAMP_BYTES = 1 << 20
# Up to this size float32, in which OpenCV counts, holds every whole number.
_EXACT_COUNT = 1 << 24


@dataclass(frozen=True)
class Report:
    """What the check found in one list.

    pixels: labelled pixels of each class. ignored: ignored pixels. smallest, largest: (height, width) of the
    pictures of the fewest and the most pixels. warnings: what is allowed but looks wrong. cached: read from the stamp.
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
    cached: bool = False


_REPORT = TypeAdapter(Report)


@dataclass(frozen=True)
class _Finding:
    """One sample: size of the picture, the values of its label on disk and their pixels (None: no label, or
    one of colours), pixels of each training id (None: no label)."""

    size: tuple[int, int]
    raw: tuple[np.ndarray, np.ndarray] | None
    mapped: np.ndarray | None


def check_dataset(dataset: SegDataset, workers: int = 4, stamp: str | Path | None = None) -> Report:
    """Read every label and every image's header of a data set, and report the pixels of each class.

    Args:
        dataset: its files are read.
        workers: threads.
        stamp: a JSON file that remembers the result; as long as the list, the label map, and the size and time of
            every file are unchanged, the next call returns the remembered report without reading a file.

    Raises:
        ValueError: names the first offending files and how many there are: a value that is not in the label map, a
            label of another size than its image, a file that cannot be read.
    """
    key = fingerprint(dataset) if stamp is not None else ""
    remembered = _read_stamp(stamp, key)
    if remembered is not None and len(remembered.pixels) == len(dataset.classes):
        return remembered

    def inspect(index: int) -> _Finding | Exception:
        try:
            return _inspect(dataset, index)
        except (ValueError, OSError) as error:
            return error  # so that one bad file does not hide the next

    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = list(pool.map(inspect, range(len(dataset))))
    findings = [result for result in results if isinstance(result, _Finding)]
    if len(findings) < len(results):
        raise DataError(_summary([str(error) for error in results if isinstance(error, Exception)], dataset))
    report = _report(dataset, findings)
    if stamp is not None:
        _write_stamp(Path(stamp), key, report)
    return report


def compare_splits(train: SegDataset, train_report: Report, val: SegDataset, val_report: Report) -> list[str]:
    """Give warnings about two lists used together: classes that only the second holds, images that both hold."""
    warnings = []
    counts = zip(train.classes, train_report.pixels, val_report.pixels, strict=True)
    absent = [name for name, seen, wanted in counts if wanted and not seen]
    if absent:
        warnings.append(
            f"classes of {val.list_file} that never occur in {train.list_file}, so no network "
            f"can learn them: {_names(absent)}"
        )
    known = {os.path.realpath(image) for image, _ in train.samples}
    shared = [image for image, _ in val.samples if os.path.realpath(image) in known]
    if shared:
        warnings.append(
            f"{len(shared)} pictures are in {train.list_file} and in {val.list_file} (first: "
            f"{shared[0]}); a score on pictures of the training is no score"
        )
    return warnings


def _inspect(dataset: SegDataset, index: int) -> _Finding:
    image_path, label_path = dataset.samples[index]
    size, orientation = read_header(image_path)
    if label_path is None:
        return _Finding(upright_size(size, orientation), None, None)
    raw = read_label(label_path)
    map_ = dataset.map_for(label_path)
    if apply_rotation(size, orientation, raw.shape[:2]):
        size = upright_size(size, orientation)
    check_sizes(image_path, size, label_path, raw.shape[:2])
    if raw.ndim == 3:
        return _Finding(size, None, _histogram(map_.apply(raw, label_path)))
    counts = _histogram(raw)
    if (counts[map_.unknown[: len(counts)] > 0] > 0).any() or not map_.has_ids:
        map_.apply(raw, label_path)  # raises, naming the values
    mapped = np.bincount(map_.table[: len(counts)], weights=counts, minlength=256).astype(np.int64)
    values = np.flatnonzero(counts)
    return _Finding(size, (values, counts[values]), mapped)


def _histogram(label: np.ndarray) -> np.ndarray:
    """Count the pixels of each value, int64 (256,) or, for 16 bit labels, (65536,)."""
    if label.dtype == np.uint8 and label.size <= _EXACT_COUNT:
        # OpenCV lets the other threads run meanwhile, NumPy's bincount does not.
        return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(label.ravel(), minlength=256 if label.dtype == np.uint8 else 65536)


def _report(dataset: SegDataset, findings: list[_Finding]) -> Report:
    labels = [finding.mapped for finding in findings if finding.mapped is not None]
    mapped = np.sum(labels, axis=0) if labels else np.zeros(256, np.int64)
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
        warnings=(),
    )
    if not labels:
        return report
    warnings = _class_warnings(dataset, report) + _map_warnings(dataset, findings)
    return replace(report, warnings=tuple(warnings))


def _class_warnings(dataset: SegDataset, report: Report) -> list[str]:
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


def _map_warnings(dataset: SegDataset, findings: list[_Finding]) -> list[str]:
    """Give what the raw values of the label files, pooled for each label map, tell about the map."""
    pooled: dict[int, tuple[LabelMap, np.ndarray]] = {}
    for finding, (_, label_path) in zip(findings, dataset.samples, strict=True):
        if finding.raw is not None and label_path is not None:
            map_ = dataset.map_for(label_path)
            _, counts = pooled.setdefault(id(map_), (map_, np.zeros(65536, np.int64)))
            values, pixels = finding.raw
            counts[values] += pixels
    warnings = []
    for map_, counts in pooled.values():
        if looks_mapped(map_, counts, len(dataset.classes)):
            warnings.append(
                f"the labels of {dataset.list_file} look as if they held training ids already, "
                f"and label_map ({map_}) would map them a second time; if so, give the identity "
                "as label_map"
            )
        seen = np.flatnonzero(counts)
        if len(dataset.classes) == 2 and seen.tolist() == [0, IGNORE] and map_.table[IGNORE] == IGNORE:
            warnings.append(
                f"the labels of {dataset.list_file} hold only 0 and 255, and 255 is ignored; if "
                "it marks the second class, give label_map {0: 0, 255: 1}"
            )
    return warnings


def looks_mapped(map_: LabelMap, counts: np.ndarray, classes: int) -> bool:
    """Tell whether pooled raw values `counts` (65536,) look like training ids although `map_` expects other ids.

    They do when nothing but 0..classes-1 and 255 occurs while the map knows higher ids, the map would change
    some of them, and it would ignore half of the pixels or 255 (which the files of such a data set do not
    hold) occurs.
    """
    seen = np.flatnonzero(counts)
    inside = seen[seen < classes]
    if len(inside) == 0 or len(inside) + (counts[IGNORE] > 0) < len(seen):
        return False
    higher = [key for key in map_.ids if classes <= key != IGNORE]
    changed = bool((map_.table[inside] != inside).any())
    ignored = counts[inside][map_.table[inside] == IGNORE].sum()
    return bool(higher) and changed and bool(counts[IGNORE] > 0 or ignored > counts[inside].sum() / 2)


def _summary(errors: list[str], dataset: SegDataset) -> str:
    shown = "".join(f"\n  {error}" for error in errors[:SHOWN_ERRORS])
    rest = f"\n  and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
    return f"{dataset.list_file}: {len(errors)} of {len(dataset)} samples cannot be used:{shown}{rest}"


def _names(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


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
