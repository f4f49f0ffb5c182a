"""Measuring contenders against one another on a machine that others use too.

The contenders take turns, so that a neighbour's load meets all of them alike, and a ratio is the median of the
ratios within the rounds: only ratios mean something on a shared machine, and only within one run.
"""

import mmap
import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import median, quantiles

import torch

from util.record.machine import peak_resident

CLOCKS = ("cpu", "wall", "cuda")


@dataclass(frozen=True)
class Row:
    """One contender: seconds per unit and speed, with quartiles."""

    name: str
    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warmup: int = 1,
    clock: str = "cpu",
    settle: Callable[[Callable[[], object]], object] | None = None,
) -> dict[str, list[float]]:
    """Return each contender's seconds in each round.

    Each round runs all of them, in turn. clock: "cpu" counts the processor seconds of this process, all its threads
    together, which neighbours disturb least; "wall" is what a clock shows; "cuda" the same, waiting for the GPU before
    and after. warmup: rounds that are run and not counted. settle: called with the contender before each of its runs,
    not timed.
    """
    assert clock in CLOCKS and rounds >= 1 and contenders
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(warmup + rounds):
        for name, run in contenders.items():
            if settle is not None:
                settle(run)
            begin = now(clock)
            run()
            spent = now(clock) - begin
            if number >= warmup:
                seconds[name].append(spent)
    return seconds


def now(clock: str) -> float:
    """Return the seconds of one of the clocks of `alternate`."""
    if clock == "cpu":
        return time.process_time()
    if clock == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def summarise(seconds: Mapping[str, list[float]], units: float = 1) -> list[Row]:
    """Return medians and quartiles per unit of work.

    Of `alternate`'s seconds; the first contender is the reference. units: what one run does, in pictures say.
    """
    reference = next(iter(seconds.values()))
    rows = []
    for name, spent in seconds.items():
        low, middle, high = _quartiles([value / units for value in spent])
        ratios = [base / value for base, value in zip(reference, spent, strict=True)]
        ratio_low, ratio, ratio_high = _quartiles(ratios)
        rows.append(Row(name, middle, low, high, ratio, ratio_low, ratio_high))
    return rows


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, median(values), high


def peak_memory_added(function: Callable[[], object]) -> float:
    """Return the MiB that `function` adds at its peak, see `memory_added`."""
    return memory_added(function)[0]


def memory_added(function: Callable[[], object]) -> tuple[float, float]:
    """Return the MiB that `function` adds, at its peak and afterwards.

    Resident memory, measured in a forked process of its own.

    Raises:
        RuntimeError: the function failed there.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_memory, args=(function, sender))
    child.start()
    sender.close()
    added = None
    with suppress(EOFError):
        added = receiver.recv()
    child.join()
    if added is None or child.exitcode:
        raise RuntimeError(f"the measured function failed in its process (exit status {child.exitcode})")
    return added


def _send_memory(function: Callable[[], object], sender: Connection) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    before = _resident()
    result = function()
    sender.send((max(peak_resident() / 2**20 - before, 0.0), max(_resident() - before, 0.0)))
    del result
    sender.close()


def _resident() -> float:
    """MiB resident now; where the system does not tell, the most so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE / 2**20
    except FileNotFoundError:
        return peak_resident() / 2**20
