"""Training runs as real processes, to be killed by real signals. A fork server imports the packages once for all."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from tests.conftest import free_port
from util import checkpoint

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tool.train", "tests.faults.toy", "torch._inductor", "PIL.Image"])
LIMIT = 120.0  # seconds after which a run counts as hanging
FOLLOW = 8.0  # seconds in which the other processes end once one has failed, before they are killed
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MASTER_ADDR": "127.0.0.1", "NGPU": "0"}

TOY = {"name": "toy", "backbone": None, "options": {"dropout": 0.2}}


class Run:
    """`python -m tool.train` on an experiment, in one or several processes; each has a session of its own."""

    def __init__(self, experiment: Path, folder: Path, *overrides: str, world: int = 1, before: Callable | None = None):
        port = str(free_port()) if world > 1 else "0"
        self.folder = folder
        self.outputs = [folder.with_name(f"{folder.name}.{rank}.txt") for rank in range(world)]
        arguments = ["--config", str(experiment), "--exp", str(folder), *overrides]
        self.processes = [
            CONTEXT.Process(target=_train, args=(arguments, rank, world, port, str(self.outputs[rank]), before))
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def signal(self, number: int, ranks: tuple[int, ...] = ()) -> None:
        """Sends a signal to the processes `ranks`, all if none is named; one that has ended gets none."""
        for rank in ranks or range(len(self.processes)):
            if self.processes[rank].is_alive():
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(self.processes[rank].pid, number)

    def signal_group(self, number: int) -> None:
        """Sends a signal to all processes and their loaders' workers, as a terminal or a scheduler does."""
        for process in self.processes:
            if process.is_alive():
                os.killpg(process.pid, number)

    def wait(self) -> list[int]:
        """The exit status of each process, negative for a signal.

        As a launcher does, it ends the others when one has failed and they have not followed by themselves.
        """
        end, failed = time.monotonic() + LIMIT, None
        while any(process.is_alive() for process in self.processes):
            now = time.monotonic()
            if failed is None and any(process.exitcode for process in self.processes):
                failed = now
            if failed is not None and now - failed > FOLLOW:
                self.signal(signal.SIGKILL)
            if now > end:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"the run hangs\n{self.output()}")
            time.sleep(0.01)
        return [process.exitcode for process in self.processes]

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition()` holds, or the run has ended."""
        end = time.monotonic() + LIMIT
        while not condition() and any(p.is_alive() for p in self.processes):
            assert time.monotonic() < end, self.output()
            time.sleep(0.005)

    def output(self) -> str:
        return "\n".join(path.read_text() for path in self.outputs if path.is_file())


def _train(arguments: list[str], rank: int, world: int, port: str, output: str, before: Callable | None) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a run of its own
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
    os.environ.update(
        ENVIRONMENT,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_PORT=port,
    )
    torch.set_num_threads(1)
    import model
    from tool import train
    from tool.shared import cli

    model.MODELS["toy"] = "tests.faults.toy.Toy"
    if before is not None:
        before(rank)
    cli.command(lambda: train.main(arguments))


def final(folder: Path) -> dict:
    """What must agree bit for bit between an uninterrupted run and one that was killed."""
    state = checkpoint.load(folder / "model" / "last.pth")
    return {
        key: state.get(key)
        for key in (
            "model",
            "train_model",
            "optimizer",
            "schedule",
            "scaler",
            "step",
            "epoch",
            "best",
            "averaged",
            "ranks",
        )
    }


def same(a, b) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
