"""history.csv: the scores of each validation, by epoch and class."""

import csv
import io
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from util.record.files import read_text, write_bytes
from util.record.log import log
from util.record.table import cell, csv_bytes

NAME = "history.csv"
LARGEST = 2**27


def add(folder: Path, epoch: int, values: Mapping[str, float | None]) -> None:
    """Write the line of an epoch; drop lines of later ones.

    A run that continues from before its last validation validates again, and a run that begins anew has none behind it.
    Lines of other columns (another data set) go too.

    Args:
        epoch: epochs done, from 1 on.
        values: column -> number; None for one that is undefined.
    """
    file = folder / NAME
    header = ["epoch", *map(cell, values)]
    line = [epoch, *(None if value is None or math.isnan(value) else round(value, 6) for value in values.values())]
    try:
        kept = [[_number(row[name]) for name in header] for row in read(file, header) if int(row["epoch"]) < epoch]
        write_bytes(file, csv_bytes(header, [*kept, line]))
    except OSError as error:  # a disk that is full stops the record, not the run
        log.warning("%s cannot be written: %s", file, error.strerror)


def _number(text: str) -> float | str:
    """Give a number as such: one below zero would be written as text, which is no formula."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def read(file: Path, header: list[str] | None = None) -> list[dict[str, str]]:
    """Read the lines of a history, a dict each.

    None if there is no file, or it is of other columns than `header`.
    """
    if not file.is_file():
        return []
    reader = csv.DictReader(io.StringIO(read_text(file, LARGEST)))
    columns = list(reader.fieldnames or [])
    if columns[:1] != ["epoch"] or (header is not None and columns != header):
        return []
    return [row for row in reader if (row["epoch"] or "").isdecimal() and None not in row.values()]
