"""The result of a measurement: tables on the screen, the same as JSON, and under which conditions."""

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from tool.bench.timing import Row
from util.record.log import write_json
from util.record.machine import cores, versions


@dataclass(frozen=True)
class Table:
    """Contenders that were measured in one run; the first row is what the others are compared with.

    unit: of the rows' figures, such as "ms a picture"; per_unit: units in a second of the rows (1000 for ms).
    facts: further columns, by the row's name.
    """

    title: str
    rows: list[Row]
    unit: str
    per_unit: float = 1.0
    facts: dict[str, dict[str, object]] = field(default_factory=dict)

    def text(self) -> str:
        """Name, median, quartiles, ratio to the first row and its quartiles, facts."""
        names = list(dict.fromkeys(name for facts in self.facts.values() for name in facts))
        lines = [["", self.unit, "quartiles", "ratio", "quartiles", *names]]
        for row in self.rows:
            middle, low, high = (number(value * self.per_unit) for value in (row.median, row.low, row.high))
            facts = self.facts.get(row.name, {})
            lines.append(
                [
                    row.name,
                    middle,
                    f"{low}..{high}",
                    f"{row.ratio:.2f}",
                    f"{row.ratio_low:.2f}..{row.ratio_high:.2f}",
                    *(shown(facts.get(name, "")) for name in names),
                ]
            )
        return "\n".join([self.title, *aligned(lines)])


@dataclass(frozen=True)
class Report:
    """Everything that a reader needs to judge a figure, or to measure it again.

    method: how it was measured. included: what the measured time holds, and what not. figures: numbers that are
    no contenders (parameters, a model of the costs). notes: what to keep in mind.
    """

    command: str
    experiment: str
    method: str
    included: str
    precision: str
    tables: list[Table]
    figures: dict[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        where = environment()
        used = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        head = [
            f"{self.command} {self.experiment}",
            f"on        {where['gpu'] or where['cpu']}, {where['cores']} cores",
            f"with      {used}",
            f"method    {self.method}",
            f"included  {self.included}",
            f"precision {self.precision}",
        ]
        notes = [f"note      {note}" for note in self.notes]
        return "\n\n".join(["\n".join(head + notes), *(table.text() for table in self.tables)])

    def show(self, file: str | None) -> None:
        """Prints the tables and writes the JSON, if asked for."""
        print(self.text(), flush=True)
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {**asdict(self), "environment": environment()})


def read_report(file: str | Path) -> tuple[Report, dict]:
    """A report as `show` wrote it, and its environment."""
    value = json.loads(Path(file).read_text(encoding="utf-8"))
    where = value.pop("environment")
    tables = [Table(**{**table, "rows": [Row(**row) for row in table["rows"]]}) for table in value.pop("tables")]
    return Report(**{**value, "tables": tables, "notes": tuple(value["notes"])}), where


def environment() -> dict[str, object]:
    """Hardware, versions and command line."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "command": ["python", "-m", "tool.bench", *sys.argv[1:]],
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except FileNotFoundError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def aligned(lines: list[list[str]]) -> list[str]:
    """Columns of equal width: the first to the left, the others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    ]


def number(value: float) -> str:
    """About three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}" if value >= 1 else f"{value:.3g}"


def shown(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
