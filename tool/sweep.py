"""Trains an experiment with every combination of some values.

    python -m tool.sweep camvid fcn18 optim.lr=0.01,0.02 seed=0,1,2
    python -m tool.sweep camvid fcn18 optim.lr=0.01,0.02 train.epochs=20 --exp exp/camvid/rates

A key with several values, parted by commas, is tried with each; one with a single value is the same for all. Each run
has its folder in exp/DATASET/EXPERIMENT-sweep, or in what --exp says. The same command continues after a kill: runs
that are done are not done again, the others go on from their checkpoints; more values can be added, and the keys be in
another order. Where there are several GPUs each run has one of them, else one run follows the other.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tool.shared import cli
from tool.shared.experiment import find_experiment
from tool.shared.plugins import load
from util import UserError, flat
from util.config.schema import Config
from util.dist import seconds, signals
from util.record import lock, status
from util.record.files import read_text, write_bytes, write_text
from util.record.log import open_log, printable
from util.record.table import aligned, csv_bytes
from util.report.compare import Result, read_result
from util.report.html import percent

MARK = "sweep.json"  # in a run's folder: what it is, and its result once it is done
LARGEST = 2**20
LAUNCH = (sys.executable, "-m", "tool.launch")


# Keys, or their beginnings, that move no score: a run that is done stays so when they change.
NO_MATTER = (
    "loader.workers",
    "loader.packed",
    "loader.cache",
    "data.check",
    "train.save_",
    "train.keep_",
    "train.val_",
    "train.log_every",
    "train.trackers",
    "train.resume",
    "plugins",
)


@dataclass(frozen=True)
class Run:
    """One combination: its folder, all its overrides, and those that are tried."""

    folder: Path
    overrides: tuple[str, ...]
    tried: tuple[str, ...]

    def result(self, experiment: Sequence[str], config: dict[str, Any] | None = None) -> Path | None:
        """Give the result of this run; None where it is not done.

        Args:
            config: `scored` of what it would be trained with today.

        Raises:
            UserError: its folder holds a run with other overrides, or of an experiment that is another one by now.
        """
        file = self.folder / MARK
        if not file.is_file():
            return None
        try:
            mark = json.loads(read_text(file, LARGEST))
            before, result = mark["run"], mark["result"] and self.folder / mark["result"]
            known = (mark.get("config") or config or {}) | {}  # earlier versions do not say it
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{file}: damaged; delete it, and the run is continued") from None
        words = [str(word) for word in before] if isinstance(before, list) else [str(before)]
        if words[:2] != [*experiment] or sorted(words[2:]) != sorted(self.overrides):
            raise UserError(f"{self.folder} holds another run ({' '.join(words)}); name another folder with --exp")
        if result is None or config is None or known == config:
            return result
        other = [f"{key} {known.get(key)} -> {config[key]}" for key in config if known.get(key) != config[key]]
        raise UserError(
            f"{self.folder} was trained before the experiment changed: {'; '.join(other) or 'keys are gone'}. Delete "
            "it to train it anew, or name another folder with --exp"
        )

    def mark(self, experiment: Sequence[str], config: dict[str, Any], done: bool) -> None:
        """Note what the run is, and its result once done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = (self.folder / "result").rglob("metrics.json") if done else ()
        newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
        result = newest and newest.parent.relative_to(self.folder).as_posix()
        mark = {"run": [*experiment, *self.overrides], "result": result, "config": config}
        write_text(self.folder / MARK, json.dumps(mark) + "\n")


def main(argv: list[str] | None = None) -> int:
    example = "python -m tool.sweep camvid fcn18 optim.lr=0.01,0.02 seed=0,1,2"
    parser = cli.Parser(prog="python -m tool.sweep", description=__doc__, example=example)
    parser.add_argument("dataset")
    parser.add_argument("experiment")
    parser.add_argument("--exp", metavar="DIR", help="folder of the runs (default: exp/DATASET/EXPERIMENT-sweep)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value[,value...]")
    args = parser.parse_intermixed_args(argv)
    open_log(None)
    folder = Path(args.exp or Path("exp") / args.dataset / f"{args.experiment}-sweep")
    runs = combinations(args.overrides, folder)
    experiment = [args.dataset, args.experiment]
    # Every mistake is told before the first run starts.
    path = find_experiment(*experiment)
    configs = {run.folder: scored(load(path, run.overrides, run.folder).config) for run in runs}
    for one, other in itertools.combinations(runs, 2):
        if configs[one.folder] == configs[other.folder]:
            raise UserError(f"{' '.join(one.tried)} and {' '.join(other.tried)} are one experiment; leave one out")
    waiting = [run for run in runs if run.result(experiment, configs[run.folder]) is None]
    lock.take(folder, "sweep")
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them done: {folder}", flush=True)
    failed, code = train(waiting, experiment, configs)
    if code:
        return code
    print(table(runs, failed, experiment, folder / "sweep.csv"))
    return 1 if failed else 0


def scored(config: Config) -> dict[str, Any]:
    """Give section.key -> value of what a score depends on."""
    keys = flat(json.loads(config.model_dump_json()))
    return {key: value for key, value in keys.items() if not key.startswith(NO_MATTER)}


def split_values(text: str) -> list[str]:
    """Part values at commas outside of brackets and quotes."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "[{(") - (letter in "]})") if not quote else 0
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    return values


def combinations(overrides: Sequence[str], folder: Path) -> list[Run]:
    """Give a run for each combination of values.

    The values of the last key change fastest.

    Raises:
        UserError: no key has several values, a value is missing or stands twice.
    """
    choices = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"'{override}': expected section.key=value,value, for example optim.lr=0.01,0.02")
        values = split_values(text)
        if len(values) > 1 and (not all(map(str.strip, values)) or len(set(values)) < len(values)):
            raise UserError(f"'{override}': a value is missing or stands twice")
        choices.append([f"{key}={value.strip()}" for value in values])
    keys = [choice[0].partition("=")[0] for choice in choices]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise UserError(f"{twice} is named twice; write {twice}=VALUE,VALUE")
    if all(len(choice) == 1 for choice in choices):
        raise UserError("no key has several values; write, for example, optim.lr=0.01,0.02 or seed=0,1,2")
    runs = []
    for combination in itertools.product(*choices):
        tried = tuple(each for each, choice in zip(combination, choices, strict=True) if len(choice) > 1)
        name = ",".join(sorted(re.sub(r"[^\w.=+-]", "_", each) for each in tried))
        runs.append(Run(folder / name, combination, tried))
    names = [run.folder.name for run in runs]
    if len(set(names)) < len(names):
        raise UserError("two values give one folder's name; write them with letters and digits that differ")
    return runs


def slots() -> list[dict[str, str]]:
    """Give the environment of each run that goes on at once.

    There is one for each GPU, or a single one.
    """
    count = torch.cuda.device_count()
    if count < 2:
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(index) for index in range(count)]
    return [{"CUDA_VISIBLE_DEVICES": device.strip(), "NGPU": "1"} for device in devices[:count]]


def train(
    runs: Sequence[Run], experiment: Sequence[str], configs: Mapping[Path, dict[str, Any]]
) -> tuple[dict[str, int], int]:
    """Train and score the runs.

    Args:
        configs: folder of a run -> `scored` of its experiment.

    Returns:
        folder -> exit status of those that failed; and 0, or the exit status after a signal.
    """
    free, waiting, failed = slots(), list(runs), {}
    going: list[tuple[subprocess.Popen, Run, dict[str, str]]] = []
    ended = 0
    try:
        while (waiting and not ended) or going:
            while waiting and free and not ended:
                run, slot = waiting.pop(0), free.pop(0)
                run.mark(experiment, configs[run.folder], done=False)
                words = ["train", *experiment, *run.overrides, "--exp", str(run.folder)]
                # It ends with this process, however this one ends (see util/dist/group.py).
                environment = {**os.environ, **slot, "LAUNCHER_PID": str(os.getpid())}
                child = subprocess.Popen([*LAUNCH, *words], env=environment)
                print(f"started: {run.folder}", flush=True)
                going.append((child, run, slot))
            time.sleep(0.2)
            for entry in [entry for entry in going if entry[0].poll() is not None]:
                going.remove(entry)
                child, run, slot = entry
                free.append(slot)
                if child.returncode == 0:
                    run.mark(experiment, configs[run.folder], done=True)
                elif child.returncode in signals.STATUS.values():
                    ended = child.returncode
                else:
                    failed[str(run.folder)] = child.returncode
    except signals.Stopped as stopped:
        ended = stopped.status
        stop([child for child, _, _ in going])
        print(f"stopped by {stopped}: the same command goes on where the runs are", flush=True)
    finally:
        stop([child for child, _, _ in going])
    return failed, ended


def stop(children: Sequence[subprocess.Popen]) -> None:
    """Have the trainings that still go on save and end."""
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(seconds("STOP_TIMEOUT", 300) + 30)
        except subprocess.TimeoutExpired:
            child.kill()


def table(runs: Sequence[Run], failed: dict[str, int], experiment: Sequence[str], file: Path) -> str:
    """Return mean and deviation over seeds, best first.

    A line of each run is written as CSV.
    """
    groups: dict[tuple[str, ...], list[tuple[Run, Result]]] = {}
    for run in runs:
        place = None if str(run.folder) in failed else run.result(experiment)
        if place is not None:
            key = tuple(each for each in run.tried if not each.startswith("seed="))
            groups.setdefault(key, []).append((run, read_result(place)))
    rows, lines = [], []
    for key, members in groups.items():
        scores = [result.metrics["mIoU"] for _, result in members if result.metrics["mIoU"] is not None]
        mean = float(np.mean(scores)) if scores else None
        deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
        rows.append((mean, deviation, len(scores), key))
        lines += [[*map(value_of, run.tried), str(run.folder), r.metrics["mIoU"]] for run, r in members]
    rows.sort(key=lambda row: -1.0 if row[0] is None else -row[0])
    text = [["values", "mIoU", "deviation", "runs"]]
    text += [[" ".join(key) or "all", percent(mean), percent(deviation), str(n)] for mean, deviation, n, key in rows]
    out = [*aligned(text), f"each run: {file}"] if rows else []
    for place, code in failed.items():
        out.append(printable(f"failed with status {code}, see train.log there: {place}{reason_of(Path(place))}"))
    keys = [each.partition("=")[0] for each in runs[0].tried]
    write_bytes(file, csv_bytes([*keys, "run", "mIoU"], lines))
    return "\n".join(out)


def value_of(override: str) -> int | float | str:
    """Give the value of an override; numbers as such.

    No spreadsheet takes them for a formula.
    """
    text = override.partition("=")[2]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def reason_of(folder: Path) -> str:
    """Return ": REASON" of a training that failed, or nothing."""
    try:
        return f": {json.loads(read_text(folder / status.NAME, LARGEST))['error'].splitlines()[0]}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return ""


if __name__ == "__main__":
    with signals.Stop():
        cli.command(main, on_interrupt="continues with what is left")
