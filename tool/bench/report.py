"""A measurement as text, JSON and Markdown.

    python -m tool.bench page > docs/performance.md

writes the page of the measurements that `python -m tool.bench ... --json docs/performance/NAME.json` left there.
"""

import argparse
import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from tool.bench.timing import Row
from util.record.log import write_json
from util.record.machine import cores, versions
from util.record.table import aligned

FOLDER = Path("docs/performance")
ORDER = ("data", "lists", "eval", "infer", "train")
HEAD = """# Performance, measured side by side

Made by `python -m tool.bench page` from the files in `docs/performance/`. Every table is one run in which the
contenders took turns; its first row is what the others are compared with. **Only ratios count**: the machine was
shared with other work. A figure is a median with its quartiles in brackets."""


@dataclass(frozen=True)
class Table:
    """Contenders of one run; the first row is the reference.

    unit: of the rows' figures, such as "ms a picture"; per_unit: units in a second of the rows (1000 for ms).
    facts: further columns, by the row's name.
    """

    title: str
    rows: list[Row]
    unit: str
    per_unit: float = 1.0
    facts: dict[str, dict[str, object]] = field(default_factory=dict)

    def cells(self) -> list[list[str]]:
        """List head and rows: name, median, ratio, facts."""
        names = list(dict.fromkeys(name for facts in self.facts.values() for name in facts))
        lines = [[self.title, self.unit, "ratio", *names]]
        for row in self.rows:
            middle, low, high = (number(value * self.per_unit) for value in (row.median, row.low, row.high))
            facts = self.facts.get(row.name, {})
            ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
            cells = [row.name, f"{middle} ({low} to {high})", ratio]
            lines.append([*cells, *(shown(facts.get(name, "")) for name in names)])
        return lines


@dataclass(frozen=True)
class Report:
    """What a reader needs to judge or repeat a figure.

    method: how it was measured. included: what the measured time holds, and what not. figures: tables of numbers
    that are no contenders. notes: what to keep in mind.
    """

    command: str
    experiment: str
    method: str
    included: str
    precision: str
    tables: list[Table]
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def cells(self) -> list[list[list[str]]]:
        """List the cells of all tables, those of `figures` last."""
        figures = [
            [[title, ""], *([name, shown(value)] for name, value in part.items())]
            for title, part in self.figures.items()
        ]
        return [*(table.cells() for table in self.tables), *figures]

    def conditions(self, where: dict) -> dict[str, str]:
        """Name how, on what (`where`) and with which versions it was measured."""
        used = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        return {
            "Method": self.method,
            "Included": self.included,
            "Precision": self.precision,
            "Hardware": f"{where['gpu'] or where['cpu']}, {where['cores']} cores. Versions: {used}.",
        }

    def text(self) -> str:
        """Return the report as it stands on the screen."""
        conditions = [f"{name:<9}  {text}" for name, text in self.conditions(environment()).items()]
        head = [f"{self.command} {self.experiment}", *conditions, *(f"{'Note':<9}  {note}" for note in self.notes)]
        return "\n\n".join(["\n".join(head), *("\n".join(aligned(cells)) for cells in self.cells())])

    def markdown(self, where: dict) -> str:
        """Return a section of the page; `where`: an `environment()`."""
        conditions = [f"- {name}: {text}" for name, text in self.conditions(where).items()]
        blocks = [
            f"## {self.command} {self.experiment}",
            f"```sh\n{shlex.join(where['command'])}\n```",
            "\n".join([*conditions, *(f"- {note}" for note in self.notes)]),
            *(_markdown_table(cells) for cells in self.cells()),
        ]
        return "\n\n".join(blocks)

    def show(self, file: str | None) -> None:
        """Print the tables and write the JSON, if asked for."""
        print(self.text(), flush=True)
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {**asdict(self), "environment": environment()})


def read_report(file: str | Path) -> tuple[Report, dict]:
    """Read a report as `show` wrote it, and its environment."""
    value = json.loads(Path(file).read_text(encoding="utf-8"))
    where = value.pop("environment")
    tables = [Table(**{**table, "rows": [Row(**row) for row in table["rows"]]}) for table in value.pop("tables")]
    return Report(**{**value, "tables": tables, "notes": tuple(value["notes"])}), where


def add(commands) -> None:
    text = "the page docs/performance.md, from the measurements in docs/performance/"
    commands.add_parser("page", help=text, description=text).set_defaults(run=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    """Print the page."""
    print(page())
    return 0


def page(folder: Path = FOLDER) -> str:
    """Return the page of all measurements in `folder`, one section each."""
    files = sorted(folder.glob("*.json"), key=lambda file: (ORDER.index(file.stem.split("_")[0]), file.name))
    return "\n\n".join([HEAD, *(report.markdown(where) for report, where in map(read_report, files))])


def environment() -> dict[str, object]:
    """Name hardware, versions and command line."""
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


def _markdown_table(lines: list[list[str]]) -> str:
    head, *rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])


def number(value: float) -> str:
    """Write about three significant digits."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}" if value >= 1 else f"{value:.3g}"


def shown(value: object) -> str:
    """Write a cell: nothing for None, four significant digits of a float."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
