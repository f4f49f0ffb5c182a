"""Checks all samples of a list, and remembers the result.

A check that was killed continues from its record.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from dataset.base import SegDataset
from dataset.prepare.check.report import Report, report_of, summary
from dataset.prepare.check.sample import inspected
from dataset.prepare.check.tally import Tally
from dataset.read import DataError
from dataset.read.files import read_bytes, replacing
from dataset.read.identity import fingerprint

MAX_STAMP_BYTES = 1 << 24
SAVE_SECONDS = 20.0  # from one record of a check to the next
SAMPLE_STREAM = 5  # of the samples that are drawn

_REPORT = TypeAdapter(Report)
_TALLY = TypeAdapter(Tally)


def check_dataset(
    dataset: SegDataset,
    workers: int | None = None,
    stamp: str | Path | None = None,
    sample: int | None = None,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Report:
    """Check all labels and image headers; report pixels by class.

    Args:
        dataset: its files are read.
        workers: threads, or processes for a long list; None: 4 threads, 16 where files come over a network,
            or a process for each core.
        stamp: a JSON file that remembers the result; as long as the list, the label map, and the size and time of
            the files (see `fingerprint`) are unchanged, the next call returns the remembered report. A check that was
            cut continues from its record, STAMP.part.
        sample: only so many samples are read, drawn at random, always the same.
        progress: called with the samples that are done and their number, at the begin and with every record.

    Raises:
        DataError: names the first offending files and how many there are: a value that is not in the label map, a
            label of another size than its image, a file that cannot be read.
    """
    indices: Sequence[int] = range(len(dataset))
    if sample is not None and sample < len(dataset):
        rng = np.random.default_rng([SAMPLE_STREAM])
        indices = np.sort(rng.choice(len(dataset), sample, replace=False)).tolist()
    count = len(indices)
    key, part = "", None
    if stamp is not None:
        key = f"{fingerprint(dataset)} {count}"
        part = Path(f"{stamp}.part")
        report = _remembered(Path(stamp), key, "report", _REPORT)
        if report is not None and len(report.pixels) == len(report.around) == len(dataset.classes):
            return replace(report, cached=True)
    tally = _begun(part, key, count, len(dataset))
    progress(tally.done, count)

    saved = time.monotonic()
    for index, found in inspected(dataset, indices[tally.done :], workers):
        if isinstance(found, (DataError, FileNotFoundError)):
            found = dataset.samples.missing(index) or found
        tally.add(dataset, index, found)
        if part is not None and time.monotonic() - saved > SAVE_SECONDS:
            _remember(part, key, "tally", tally)
            progress(tally.done, count)
            saved = time.monotonic()
    if part is not None:
        part.unlink(missing_ok=True)
    if tally.bad:
        raise DataError(summary(dataset, tally))
    report = report_of(dataset, tally)
    if stamp is not None:
        _remember(Path(stamp), key, "report", report)
    return report


def _begun(part: Path | None, key: str, count: int, samples: int) -> Tally:
    """Return the record of a check that was cut, or an empty one.

    It must fit `count` samples, of a list of `samples`.
    """
    tally = (_remembered(part, key, "tally", _TALLY) if part is not None else None) or Tally()
    places = [*tally.chosen, *(each.first for each in tally.values.values())]
    fits = 0 <= tally.done <= count and tally.stride > 0 and max(places, default=0) < samples
    return tally if fits else Tally()


def _remembered(file: Path, expected: str, name: str, kind: TypeAdapter) -> Any:
    """Read what was remembered for a fingerprint; None where there is nothing."""
    if not file.is_file():
        return None
    try:
        content = json.loads(read_bytes(file, MAX_STAMP_BYTES, "stamp"))
    except (ValueError, RecursionError):
        return None  # cut short by a crash, or no stamp; it is written anew
    if not isinstance(content, dict) or content.get("fingerprint") != expected:
        return None
    try:
        return kind.validate_python(content.get(name))
    except ValidationError:
        return None


def _remember(file: Path, key: str, name: str, value: Report | Tally) -> None:
    with replacing(file) as out:
        out.write(json.dumps({"fingerprint": key, name: asdict(value)}, indent=1).encode())
