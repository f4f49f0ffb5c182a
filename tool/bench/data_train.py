"""Whether a training step waits for its pictures.

The real loop, fed by each of the loaders.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

from tool.bench.report import Table
from tool.bench.timing import summarise
from tool.bench.train import FakeSet
from tool.shared.network import build_training, make_deterministic
from util.config.schema import Config
from util.train.loop import Training, optimizer_step, to_device
from util.train.prefetch import MOVED, Prefetch

WARM_STEPS = 5
IN_PLACE = "a batch that is there already"


def feed_table(
    config: Config, classes: tuple[str, ...], loaders: dict[str, Callable], steps: int, rounds: int, batch: int
) -> Table:
    """Measure a picture's wall clock in the training loop.

    The first row does without a loader. loaders: name -> a new loader of batches of `batch` pictures, as `build_loader`
    makes it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = build(config, classes, batch, device)
    ready = next(iter(next(iter(loaders.values()))()))
    if device.type == "cuda":
        ready |= {name: ready[name].pin_memory() for name in MOVED}
    seconds: dict[str, list[float]] = {}
    waits: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, make in {IN_PLACE: None, **loaders}.items():
            batches = itertools.repeat(ready)
            if make is not None:
                batches = iter(make())
            spent, waited = feed(training, batches, steps)
            batches = None
            seconds.setdefault(name, []).append(spent / (steps * batch))
            waits.setdefault(name, []).append(waited / spent)
    rows = summarise(seconds)
    facts = {
        row.name: {"pictures/s": round(1 / row.median, 1), "waiting, %": round(100 * median(waits[row.name]), 2)}
        for row in rows
    }
    where = "the GPU" if device.type == "cuda" else "the CPU, which the loaders use as well"
    title = f"Fed to the training step on {where}, batch {batch}, {steps} steps"
    return Table(title, rows, "ms a picture", 1000.0, facts)


def build(config: Config, classes: tuple[str, ...], batch: int, device: torch.device) -> Training:
    """Build a training of the experiment's network, from random weights."""
    model = config.model.model_copy(update={"weights": "none", "init": None})
    train = config.train.model_copy(update={"batch_size": batch, "accumulate": 1})
    config = config.model_copy(update={"model": model, "train": train})
    make_deterministic(config)  # or not: then cuDNN tries out its kernels, as in a run
    training = build_training(config, FakeSet(classes, 1000 * batch), device)
    training.net.train()
    return training


def feed(training: Training, batches: Iterator[dict], steps: int) -> tuple[float, float]:
    """Return the seconds of `steps` steps, and those without pictures."""
    batches = Prefetch(batches, training.device)
    for number in range(WARM_STEPS + steps):
        if number == WARM_STEPS:
            _finish(training.device)
            batches.waits.take()
            begin = time.perf_counter()
        parts = [to_device(part, training) for part in next(batches)]
        optimizer_step(training, parts)
        del parts
        training.step += 1
        batches.stage()
    _finish(training.device)
    return time.perf_counter() - begin, batches.waits.take()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
