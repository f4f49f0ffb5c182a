"""How the cost of a training step grows: with pictures, classes and batch, with processes, and on paper with GPUs."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from tool.bench.report import Table
from tool.bench.timing import summarise

GPUS = (8, 64, 512)
STEP_SECONDS = (0.1, 0.25, 0.5, 1.0)
ASSUMED = (
    "data parallel, one picture share a GPU as in the measured step; ring all-reduce of float32 gradients, each GPU "
    "sending and receiving 2 (n - 1) / n times their bytes; it overlaps the backward pass, whose share of the step is "
    "that measured here; latency, sync batch norm and checkpoints are left out; every GPU reads all its pictures from "
    "shared storage in each epoch"
)


def growth(task, options: dict, build: Callable, rounds: int, alternated: Callable) -> list[Table]:
    """One contender at other picture sizes, class counts and batches; each table's first row is the smallest.

    alternated: (steps by name, rounds, warmup) -> seconds of a step by name.
    """
    sizes = [tuple(max(side * quarters // 4, 64) for side in task.size) for quarters in (2, 3, 4)]
    cases = {
        "picture size": {f"{h} x {w}": replace(task, size=(h, w)) for h, w in sizes},
        "classes": {str(n): replace(task, classes=n, config=_unweighted(task.config)) for n in (2, 19, 150)},
        "batch": {str(n): replace(task, batch=n) for n in (2, 4, 8)},
    }
    tables = []
    for title, tasks in cases.items():
        steps = {name: build(each, options)[1] for name, each in tasks.items()}
        seconds = alternated(steps, rounds, 1)
        shares = {name: [value / tasks[name].batch for value in spent] for name, spent in seconds.items()}
        facts = {
            name: {"ns a pixel": 1e9 * sorted(spent)[len(spent) // 2] / (tasks[name].size[0] * tasks[name].size[1])}
            for name, spent in shares.items()
        }
        tables.append(Table(f"growth: {title}", summarise(shares), "ms a picture", 1000.0, facts))
    return tables


def _unweighted(config):
    return config.model_copy(update={"loss": config.loss.model_copy(update={"class_weights": None})})


def processes(arguments: list[str], rounds: int, device: str, steps: int = 3) -> Table:
    """One and two processes, the same batch a process; wall seconds a picture, and the efficiency.

    On a CPU with one thread each; else on a GPU each.
    """
    seconds: dict[str, list[float]] = {"1 process": [], "2 processes": []}
    for _ in range(rounds):
        for count, spent in enumerate(seconds.values(), start=1):
            spent.append(_run_processes(count, arguments, steps, device))
    rows = summarise(seconds)
    facts = {row.name: {"efficiency": row.ratio / count} for count, row in enumerate(rows, start=1)}
    kind = "gloo, CPU, one thread each" if device == "cpu" else "NCCL, a GPU each"
    return Table(f"processes ({kind}; wall clock)", rows, "ms a picture", 1000.0, facts)


def _run_processes(count: int, arguments: list[str], steps: int, device: str) -> float:
    """Seconds a picture of `count` processes that train together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "NGPU": "0" if device == "cpu" else str(count),
    }
    command = [sys.executable, "-m", "tool.bench.train_worker", str(steps), *arguments]
    running = [
        subprocess.Popen(command, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE)
        for r in range(count)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a process of the measurement failed")
    return json.loads(outputs[0].splitlines()[-1])


def time_steps(step: Callable[[], object], steps: int, barrier: Callable[[], None]) -> float:
    """Wall seconds of a step, after one that is not counted; `barrier` waits for all processes and their GPUs."""
    step()
    barrier()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    barrier()
    return (time.perf_counter() - begin) / steps


def all_reduce_bytes(gpus: int, gradient_bytes: int) -> float:
    """What each GPU sends (and receives) in a ring all-reduce: 2 (n - 1) / n times the gradients' bytes."""
    return 2 * (gpus - 1) / gpus * gradient_bytes


def cluster(task, stages: Mapping[str, float], parameters: list[torch.Tensor], batch: list[torch.Tensor]) -> dict:
    """The bandwidths that 8, 64 and 512 GPUs need, for step times that the reader may expect of them.

    Args:
        stages: measured seconds of the stages of a step, of which the share of the backward pass is taken.
        parameters: those that are trained. batch: what goes to the device in a step.
    """
    gradient = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    wire = sum(t.numel() * t.element_size() for t in batch) // task.batch
    share = stages["backward"] / sum(stages.values())
    files, packed = bytes_on_disk(task.config)
    rows = []
    for seconds in STEP_SECONDS:
        for gpus in GPUS:
            pictures = gpus * task.batch / seconds
            rows.append(
                {
                    "seconds a step": seconds,
                    "GPUs": gpus,
                    "network, GB/s a GPU": all_reduce_bytes(gpus, gradient) / (share * seconds) / 1e9,
                    "host to device, GB/s a GPU": wire * task.batch / seconds / 1e9,
                    "storage, GB/s in all, files": None if files is None else files * pictures / 1e9,
                    "storage, GB/s in all, packed": None if packed is None else packed * pictures / 1e9,
                }
            )
    return {
        "assumptions": ASSUMED,
        "gradient bytes": gradient,
        "backward share of a step": share,
        "pictures a GPU and step": task.batch,
        "bytes a picture, host to device": wire,
        "bytes a picture, files": files,
        "bytes a picture, packed": packed,
        "rows": rows,
    }


def bytes_on_disk(config) -> tuple[float | None, float | None]:
    """Mean bytes of a training picture with its label: as files, and as uint8 arrays; None without the data."""
    from tool.shared.data import dataset_of

    if not Path(config.data.root).is_dir():
        return None, None
    data = dataset_of(config, "train")
    some = list(data.samples)[:: max(len(data) // 50, 1)]
    files = sum(Path(path).stat().st_size for pair in some for path in pair)
    height, width = data[0]["label"].shape
    return files / len(some), 4.0 * height * width
