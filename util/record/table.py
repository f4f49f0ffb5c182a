"""Tables as columns of text and as CSV.

A spreadsheet opens the CSV without running what stands in it.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from util.record.log import printable

FORMULA = ("=", "+", "-", "@")  # a cell that begins so is a formula to spreadsheets


def cell(value: Any) -> Any:
    """Make a value safe to write.

    Text has no control characters and is never a formula.
    """
    if not isinstance(value, str):
        return value
    text = "".join(letter if letter.isprintable() else " " for letter in value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Return a table as CSV in UTF-8; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(name) for name in header])
    writer.writerows([cell(value) for value in row] for row in rows)
    return text.getvalue().encode()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Write rows as columns, the first aligned left, others right."""
    rows = [[printable(" ".join(text.split())) for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
