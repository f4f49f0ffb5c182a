"""The process of a tracker: reads numbers and calls the package.

    python -m util.record.tracking wandb

Each line of its input is a JSON object, the first one {"start": ...}. The input ends without {"end": null} where the
training was killed. Projects, servers and keys are the packages' own business: WANDB_PROJECT, WANDB_MODE,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and others of their environment variables.
"""

import base64
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from util import flat

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # asked for before each use

LONGEST = 500  # of a parameter's value in MLflow
AT_ONCE = 100  # parameters in one call of MLflow


class Client(Protocol):
    """What a tracker does.

    name: of the run there, by which it is continued.
    """

    name: str

    def scalar(self, name: str, value: float, step: int) -> None: ...

    def image(self, name: str, picture: Image.Image, step: int) -> None: ...

    def end(self, whole: bool) -> None: ...


class WandB:
    """A run in Weights & Biases."""

    def __init__(self, start: dict[str, Any], known: str | None):
        import wandb

        self.wandb = wandb
        project = os.environ.get("WANDB_PROJECT") or start["project"]
        self.run = wandb.init(
            project=project,
            name=start["title"],
            dir=start["folder"],
            config=start["config"],
            id=known,
            resume="allow" if known else None,
        )
        self.name = self.run.id
        # By a step of our own: a run that continues from an earlier step may not go back in that of the package.
        self.run.define_metric("*", step_metric="step")

    def scalar(self, name: str, value: float, step: int) -> None:
        self.run.log({name: value, "step": step})

    def image(self, name: str, picture: Image.Image, step: int) -> None:
        self.run.log({name: self.wandb.Image(picture), "step": step})

    def end(self, whole: bool) -> None:
        self.run.finish(exit_code=0 if whole else 1)


class MLflow:
    """A run in MLflow."""

    def __init__(self, start: dict[str, Any], known: str | None):
        import mlflow

        self.mlflow = mlflow
        if not os.environ.get("MLFLOW_EXPERIMENT_NAME") and not os.environ.get("MLFLOW_EXPERIMENT_ID"):
            mlflow.set_experiment(start["project"])
        self.name = mlflow.start_run(run_id=known, run_name=None if known else start["title"]).info.run_id
        if known is None:
            pairs = [(key, str(value)[:LONGEST]) for key, value in flat(start["config"]).items()]
            for first in range(0, len(pairs), AT_ONCE):
                mlflow.log_params(dict(pairs[first : first + AT_ONCE]))

    def scalar(self, name: str, value: float, step: int) -> None:
        self.mlflow.log_metric(plain(name), value, step=step)

    def image(self, name: str, picture: Image.Image, step: int) -> None:
        self.mlflow.log_image(picture, f"{plain(name)}/{step:08}.png")

    def end(self, whole: bool) -> None:
        self.mlflow.end_run("FINISHED" if whole else "FAILED")


CLIENTS: dict[str, Callable[[dict[str, Any], str | None], Client]] = {"wandb": WandB, "mlflow": MLflow}


def plain(name: str) -> str:
    """Write a name in the letters that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)


def track(kind: str, lines: Iterable[str]) -> None:
    """Hand the lines of a training to a tracker, until they end."""
    lines = iter(lines)
    first = next(lines, None)
    if first is None:  # the training ended before it began
        return
    start = json.loads(first)["start"]
    file = Path(start["folder"], f"tracker_{kind}.json")
    lock = wait_for_another(file.with_suffix(".lock"))
    known = json.loads(file.read_text(encoding="utf-8"))["run"] if start["continued"] and file.is_file() else None
    client: Client = CLIENTS[kind](start, known)
    file.write_text(json.dumps({"run": client.name}) + "\n", encoding="utf-8")
    whole = False
    for line in lines:
        if not line.endswith("\n"):  # the training was killed while it sent this one
            break
        message = json.loads(line)
        if "scalar" in message:
            client.scalar(*message["scalar"])
        elif "image" in message:
            name, data, step = message["image"]
            client.image(name, Image.open(io.BytesIO(base64.b64decode(data))), step)
        else:
            whole = "end" in message
    client.end(whole)
    os.close(lock)


def wait_for_another(file: Path) -> int:
    """Wait until the run's earlier tracker has ended; return the lock.

    One whose training was killed may still be starting: its name of the run is not written yet.
    """
    number = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.lockf(number, fcntl.LOCK_EX)
    return number


if __name__ == "__main__":
    track(sys.argv[1], sys.stdin)
