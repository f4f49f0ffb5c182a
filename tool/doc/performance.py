"""Writes docs/performance.md from the measurements in docs/performance/.

    python -m tool.doc.performance > docs/performance.md

The measurements are what `python -m tool.bench ... --json docs/performance/NAME.json` left there.
"""

import shlex
from pathlib import Path

from tool.bench.report import Report, Table, number, read_report, shown

FOLDER = Path("docs/performance")
ORDER = ("data", "eval", "infer", "train")
HEAD = """# Performance, measured side by side

Made by `python -m tool.doc.performance` from the files in `docs/performance/`. Every table is one run in which the
contenders took turns; its first row is what the others are compared with. **Only ratios count**: the machine was
shared with other work. A figure is a median with its quartiles in brackets."""


def page(folder: Path = FOLDER) -> str:
    """The whole page, one section a measurement."""
    files = sorted(folder.glob("*.json"), key=lambda file: (_place(file), file.name))
    return "\n\n".join([HEAD, *(section(file) for file in files)])


def _place(file: Path) -> int:
    words = file.stem.split("_")
    return ORDER.index(words[0]) if words[0] in ORDER else len(ORDER)


def section(file: Path) -> str:
    """One measurement: conditions, tables, notes."""
    report, where = read_report(file)
    used = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    hardware = f"{where['gpu'] or where['cpu']}, {where['cores']} cores"
    conditions = [
        f"- Method: {report.method}",
        f"- Included: {report.included}",
        f"- Precision: {report.precision}",
        f"- Hardware: {hardware}. Versions: {used}.",
        *(f"- {note}" for note in report.notes),
    ]
    command = f"```sh\n{_command(where['command'])}\n```"
    return "\n\n".join(
        [
            f"## {report.command} {report.experiment}",
            command,
            "\n".join(conditions),
            *(table_text(table) for table in report.tables),
            *_figures(report),
        ]
    )


def _command(words: list[str]) -> str:
    return shlex.join(words)


def table_text(table: Table) -> str:
    """A table of the report in Markdown."""
    names = list(dict.fromkeys(name for facts in table.facts.values() for name in facts))
    lines = [f"| {table.title} | {table.unit} | ratio |" + "".join(f" {name} |" for name in names)]
    lines.append("|---|---|---|" + "---|" * len(names))
    for row in table.rows:
        middle, low, high = (number(value * table.per_unit) for value in (row.median, row.low, row.high))
        facts = table.facts.get(row.name, {})
        cells = [
            row.name,
            f"{middle} ({low} to {high})",
            f"**{row.ratio:.2f}** ({row.ratio_low:.2f} to {row.ratio_high:.2f})",
        ]
        lines.append("| " + " | ".join([*cells, *(shown(facts.get(name, "")) for name in names)]) + " |")
    return "\n".join(lines)


def _figures(report: Report) -> list[str]:
    """Figures that are no contenders: single ones in one table, and a table for each that has parts."""
    single = {name: value for name, value in report.figures.items() if not isinstance(value, (dict, list))}
    blocks = [_pairs("figure", single)] if single else []
    for name, value in report.figures.items():
        if name not in single:
            blocks += _parts(name, value)
    return blocks


def _parts(name: str, value: dict | list) -> list[str]:
    """A dict of numbers as pairs; rows, or a dict of dicts, as a table with a column for each of their keys."""
    if isinstance(value, list):
        return [_rows(name, [("", row) for row in value])]
    if value and all(isinstance(part, dict) for part in value.values()):
        return [_rows(name, list(value.items()))]
    nested = {key: part for key, part in value.items() if isinstance(part, (dict, list))}
    pairs = {key: part for key, part in value.items() if key not in nested and part is not None}
    blocks = [_pairs(name, pairs)] if pairs else []
    for key, part in nested.items():
        blocks += _parts(f"{name}: {key}", part)
    return blocks


def _pairs(title: str, values: dict) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| {name} | {shown(v)} |" for name, v in values.items())])


def _rows(title: str, rows: list[tuple[str, dict]]) -> str:
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    lines = [f"| {title} |" + "".join(f" {name} |" for name in names), "|---|" + "---|" * len(names)]
    lines += [f"| {first} |" + "".join(f" {shown(row.get(name, ''))} |" for name in names) for first, row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
