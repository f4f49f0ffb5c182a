"""Kills a run again and again, continues it by the same command, and compares the end with the uninterrupted run."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.conftest import make_experiment
from tests.faults.runs import TOY, Run, final, same
from tool import pack
from util import dist

# What a run may end with when it gets the signal, 0: it was done. A signal before the handlers are there kills it.
ENDS = {
    signal.SIGKILL: {-signal.SIGKILL, 0},
    signal.SIGTERM: {75, -signal.SIGTERM, 0},
    signal.SIGUSR1: {75, -signal.SIGUSR1, 0},
    signal.SIGINT: {130, 1, -signal.SIGINT, 0},
}
OTHERS = {1, -signal.SIGKILL, dist.PEER_LOST}  # a process that lost the one with the signal
SYSTEM_CALLS = ("fsync", "replace", "link", "unlink")  # of a save


class Scenario:
    """An experiment and its uninterrupted run."""

    def __init__(self, folder: Path, data: Path, /, *, world: int = 1, **sections):
        train = {"epochs": 3, "log_every": 3, "save_steps": 3, "val_every": 2} | sections.pop("train", {})
        own = sections.pop("model", {})
        model = own if "name" in own else TOY | own
        self.experiment = make_experiment(folder, data, train=train, model=model, **sections)
        self.folder, self.world = folder, world
        if "packed" in sections.get("loader", {}):
            pack.main(["--config", str(self.experiment), "--split", "train", "val"])
        for name in ("whole", "again"):  # the second one's time is without that of the imports
            began = time.monotonic()
            run = self.start(folder / name)
            assert run.wait() == [0] * world, run.output()
            self.seconds = time.monotonic() - began
        self.final = final(folder / "whole")
        assert same(final(folder / "again"), self.final), "two uninterrupted runs differ"

    def start(self, folder: Path, before: Callable | None = None) -> Run:
        return Run(self.experiment, folder, world=self.world, before=before)

    def survive(self, kills: int, rng: random.Random, end: Callable[["Scenario", Path, random.Random], bool]) -> None:
        """Ends runs by `end`, which tells whether the run was still under way, until `kills` of them were."""
        folder, done = self.folder / "killed", 0
        while done < kills:
            shutil.rmtree(folder, ignore_errors=True)
            while done < kills and end(self, folder, rng):
                done += 1
            run = self.start(folder)
            assert run.wait() == [0] * self.world, run.output()
            assert same(final(folder), self.final), run.output()
            assert not list((folder / "model").glob(".*")), "temporary files are left"


def by_signal(number: int, scenario: Scenario, folder: Path, rng: random.Random) -> bool:
    """The signal at a random moment, to a random process; SIGKILL to one ends the others as a launcher does."""
    run = scenario.start(folder)
    time.sleep(rng.uniform(0, scenario.seconds))
    run.signal(number, ranks=(rng.randrange(scenario.world),))
    if number == signal.SIGKILL:
        time.sleep(0.05)
        run.signal(number)
    status = set(run.wait())
    assert status <= ENDS[number] | (OTHERS if scenario.world > 1 else set()), run.output()
    return status != {0}


def in_a_save(scenario: Scenario, folder: Path, rng: random.Random) -> bool:
    """SIGKILL just before or after a system call of a save."""
    call, count, after = rng.choice(SYSTEM_CALLS), rng.randint(1, 12), rng.random() < 0.5
    run = scenario.start(folder, partial(die_at, call, count, after))
    return set(run.wait()) != {0}


def die_at(call: str, count: int, after: bool, rank: int) -> None:
    """Has the process kill itself at the `count`-th call of `os.<call>` that concerns its checkpoints."""
    original, left = getattr(os, call), count

    def counted(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if rank == 0:
        setattr(os, call, counted)


def newest_files(folder: Path) -> tuple[Path, Path]:
    """The newest checkpoint of a run and its manifest."""
    path = max((folder / "model").glob("*_*.pth"), key=lambda p: p.stat().st_mtime_ns)
    return path, path.with_suffix(".json")
