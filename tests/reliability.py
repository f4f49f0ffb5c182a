"""What the fault tests found: rows of a JSON file, and the table of them in docs/reliability.md.

python -m pytest -m faults --reliability docs/reliability.json
python -m tests.reliability                 # writes the table into docs/reliability.md
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.paths import ROOT

DOCS = ROOT / "docs"
BEGIN, END = "<!-- table: python -m tests.reliability -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Row:
    """One kind of fault: how often it was tried, and what came of it every time."""

    fault: str
    repetitions: int
    outcome: str


def write(file: Path, rows: list[Row]) -> None:
    """Puts `rows` into the JSON file; those of other faults that are there stay."""
    there = {row.fault: row for row in read(file)} if file.is_file() else {}
    there |= {row.fault: row for row in rows}
    file.write_text(json.dumps([asdict(row) for row in there.values()], indent=1) + "\n", encoding="utf-8")


def read(file: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def table(rows: list[Row]) -> str:
    lines = ["| fault | times | outcome, every time |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {row.fault} | {row.repetitions} | {row.outcome} |" for row in rows)])


def page(text: str, rows: list[Row]) -> str:
    """The page with the table of `rows` between its two marks."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}"


if __name__ == "__main__":
    target = DOCS / "reliability.md"
    target.write_text(page(target.read_text(encoding="utf-8"), read(DOCS / "reliability.json")), encoding="utf-8")
