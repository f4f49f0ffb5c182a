"""Lists the runs below a folder: state, progress, scores, errors.

    python -m tool.status
    python -m tool.status exp/cityscapes --json

A run or evaluation that says that it goes on is "lost" where its process is gone, and "stale" where nothing was heard
of it for a minute (on another machine, say, or stopped). Evaluations stand in the line of their run, those of a
checkpoint outside of a run in one of their own.
"""

import json
import sys
import time
from pathlib import Path

from tool.shared import cli
from util.record import status
from util.record.log import printable
from util.train.progress import duration

HEAD = ("run", "state", "step", "loss", "best", "pictures/s", "checkpoint", "heard of", "evaluation", "error")


def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(
        prog="python -m tool.status", description=__doc__, example="python -m tool.status exp/cityscapes"
    )
    parser.add_argument("folder", nargs="?", default="exp", help="where the runs are (default: exp)")
    parser.add_argument("--json", action="store_true", help="a list of objects, one a run")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of runs")
    runs, damaged = collect(folder)
    for message in damaged:
        print(f"error: {_one_line(message)}", file=sys.stderr)
    if args.json:
        print(json.dumps(runs, indent=1))
    elif runs:
        print(table(runs, time.time()))
    else:
        print(f"no runs in {folder}")
    return 1 if damaged else 0


def collect(folder: Path) -> tuple[list[dict], list[str]]:
    """Return the statuses of all runs below `folder`, and damaged files.

    `evaluations` of a run are the statuses of those whose results lie below it, the newest last; an evaluation that
    lies in no run is listed as one.
    """
    found: dict[Path, dict] = {}
    damaged = []
    for file in sorted(folder.rglob(status.NAME), key=lambda file: (len(file.parts), file)):
        try:
            found[file.parent] = {"run": str(file.parent), **status.read(file)}
        except (ValueError, OSError) as error:
            damaged.append(str(error))
    rows: dict[Path, dict] = {}
    for place, values in found.items():
        above = next((parent for parent in place.parents if parent in rows), None)
        if values.get("kind") == "test" and above is not None:
            rows[above]["evaluations"].append(values)
        else:
            rows[place] = values | {"evaluations": []}
    for run in rows.values():
        run["evaluations"].sort(key=lambda values: values.get("started") or values["heartbeat"])
    return [rows[place] for place in sorted(rows)], damaged


def table(runs: list[dict], now: float) -> str:
    """Write the runs as aligned columns."""
    rows = [HEAD, *(_row(run, now) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def _row(run: dict, now: float) -> tuple[str, ...]:
    saved, silence = run.get("checkpoint"), now - run["heartbeat"]
    kept = f"step {saved['step']}, {duration(max(now - saved['time'], 0))} ago" if saved else "none"
    evaluations = [*([run] if run.get("kind") == "test" else []), *run["evaluations"]]
    newest = evaluations[-1] if evaluations else {}
    return (
        _one_line(run["run"]),
        run["state"],
        _progress(run),
        _number(run.get("loss"), "{:.4f}"),
        _number(run.get("best"), "{:.4f}"),
        _number(run.get("speed"), "{:.1f}"),
        kept,
        "clock ahead" if silence < -status.SILENT else f"{duration(max(silence, 0))} ago",
        _evaluation(newest, run) if newest else "none",
        _one_line(run.get("error") or newest.get("error") or ""),
    )


def _progress(run: dict) -> str:
    total = run.get("total")
    share = f" ({run['step'] / total:.0%})" if total else ""
    return f"{run['step']}/{total or '?'}{share}"


def _evaluation(values: dict, run: dict) -> str:
    """Tell an evaluation by its folder: its score once it has finished, else how far it is."""
    below = str(Path(values["run"]).relative_to(run["run"])).removeprefix("result/")
    name = [] if values is run else [_one_line(below)]
    score = values.get("mIoU") if values["state"] == "finished" else None
    return " ".join([*name, f"mIoU {score:.4f}" if score is not None else f"{values['state']} {_progress(values)}"])


def _one_line(text: str) -> str:
    """Return a text of outside as one line without control characters."""
    return printable(" ".join(text.split()))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


if __name__ == "__main__":
    cli.command(main)
