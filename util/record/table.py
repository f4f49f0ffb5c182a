"""Tables as columns of text and as CSV.

A spreadsheet opens the CSV without running what stands in it.
"""

import csv
import io
import unicodedata
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
    widths = [max(columns(row[i]) for row in rows) for i in range(len(rows[0]))]

    def placed(text: str, width: int, left: bool) -> str:
        space = " " * (width - columns(text))
        return text + space if left else space + text

    return [
        "  ".join(placed(text, width, i == 0) for i, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]


def columns(text: str) -> int:
    """Count the columns that a text takes in a terminal.

    East Asian characters take two, marks that join the letter before them none.
    """
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.category(letter) in ("Mn", "Me") for letter in text)
