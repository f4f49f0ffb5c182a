"""The record of a run: console, train.log, config.yaml, env.json, TensorBoard scalars, progress."""

import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from tqdm import tqdm

from util import dist

PACKAGES = ("torch", "torchvision", "numpy", "pydantic", "timm", "opencv-python-headless", "opencv-python")
log = logging.getLogger("segmentation")


def versions() -> dict[str, str]:
    """Python's version and that of every package that can move a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(device: torch.device) -> dict:
    """Where a number comes from: versions, hardware, commit, command."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    return {
        "versions": versions(),
        "device": hardware,
        "processes": dist.world_size(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "commit": commit.stdout.strip() or None,
        "command": sys.argv,
    }


def open_log(file: str | Path | None) -> logging.Logger:
    """Console and `file` on rank 0; warnings with the rank's number elsewhere."""
    for handler in [*log.handlers]:
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    log.setLevel(logging.INFO if dist.is_main() else logging.WARNING)
    prefix = "" if dist.is_main() else f"[rank {dist.rank()}] "
    form = logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S")
    handlers: list[logging.Handler] = [_TqdmHandler()]
    if file is not None and dist.is_main():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(form)
        log.addHandler(handler)
    return log


class _TqdmHandler(logging.Handler):
    """Console lines that do not tear a progress bar."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def write_json(path: str | Path, value: dict) -> None:
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def peak_memory(device: torch.device) -> str:
    """Peak memory of this process: of the GPU where there is one, else resident."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB GPU"
    return f"{peak_resident() / 2**30:.1f} GiB"


def peak_resident() -> int:
    """The most bytes that this process had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Progress:
    """Speed and time left of a run, and a bar where the output is a terminal.

    Args:
        first, total: optimiser steps done before, and in all.
        batch_size: pictures per optimiser step.
    """

    def __init__(self, first: int, total: int, batch_size: int):
        self.total, self.batch_size = total, batch_size
        self.start = self.mark = time.perf_counter()
        self.first = self.done = self.marked = first
        show = dist.is_main() and sys.stdout.isatty()
        self.bar = tqdm(total=total, initial=first, unit="step", dynamic_ncols=True) if show else None

    def step(self) -> None:
        """Counts one optimiser step."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()

    def line(self, waited: float) -> dict[str, float | str]:
        """Pictures per second, share of time waiting for data, and time left, since the last call.

        waited: seconds since then that the device waited for pictures.
        """
        now = time.perf_counter()
        span, steps = max(now - self.mark, 1e-9), self.done - self.marked
        per_step = (now - self.start) / max(self.done - self.first, 1)
        values = {
            "pictures/s": steps * self.batch_size / span,
            "wait": waited / span,
            "left": duration(per_step * (self.total - self.done)),
        }
        self.mark, self.marked = now, self.done
        return values

    def show(self, text: str) -> None:
        """What the bar says beside the count."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)

    def pause(self) -> None:
        """Leaves out what happened since the last line (a validation, say) from the speed."""
        now = time.perf_counter()
        self.start += now - self.mark
        self.mark = now

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
