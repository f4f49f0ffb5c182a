"""Sends a run to W&B or MLflow, from processes of their own.

These are `util/record/tracking.py`. So whatever happens there, a network that hangs or an error of the package, cannot
stop a training: what cannot be sent waits in memory, then is left out, and one warning says so.
"""

import base64
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from util import UserError
from util.record.files import open_plain
from util.record.log import log

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # then an AttributeError, which is suppressed

ROOT = Path(__file__).resolve().parents[2]
PIPE = 2**18  # bytes that the pipe to it holds; the package may need half a minute to start
WAITING = 2**25  # bytes that may wait for a tracker
ENDING = 5.0  # seconds that one which reads no more has to end, while a training waits
PATIENCE = 60.0  # seconds that the end of a run waits for a tracker to have sent everything
WIDTH = 1024  # of a picture, pixels
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}


class Writer(Protocol):
    """What a training records to."""

    def add_scalar(self, name: str, value: float, step: int) -> None: ...

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None: ...

    def add_curve(self, name: str, curve: np.ndarray, step: int) -> None: ...

    def close(self) -> None: ...


class Writers:
    """Several writers as one."""

    def __init__(self, *writers: Writer):
        self.writers = writers

    def add_scalar(self, name: str, value: float, step: int) -> None:
        for writer in self.writers:
            writer.add_scalar(name, value, step)

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        for writer in self.writers:
            writer.add_image(name, picture, step)

    def add_curve(self, name: str, curve: np.ndarray, step: int) -> None:
        for writer in self.writers:
            writer.add_curve(name, curve, step)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def check_installed(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        UserError: says what to install.
    """
    for name in names:
        spec = importlib.util.find_spec(PACKAGES[name])
        if spec is None or spec.origin is None:  # a mere folder of that name, such as wandb leaves, is no package
            raise UserError(
                f"train.trackers: {name} is not installed: python -m pip install {PACKAGES[name]}, or -e '.[trackers]'"
            )


class Tracker:
    """Hands scalars and pictures to the process of a tracker.

    Args:
        name: "wandb" or "mlflow".
        folder: of the run; tracker_NAME.log there has what the package says, tracker_NAME.json its own name of the run.
        about: `project` and `title` of the run and its `config`, in plain types.
        continued: whether the run there is continued, if there is one.
    """

    def __init__(self, name: str, folder: Path, about: dict[str, Any], continued: bool = False):
        self.name, self.log = name, folder / f"tracker_{name}.log"
        self._lock = threading.Lock()  # pictures come from the threads that take predictions
        self._waiting = bytearray()
        self._gaps = False
        self._process: subprocess.Popen[bytes] | None = None
        place = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        try:
            number = open_plain(self.log, os.O_WRONLY | os.O_TRUNC)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "util.record.tracking", name],
                    stdin=subprocess.PIPE,
                    stdout=number,
                    stderr=number,
                    env=os.environ | {"PYTHONPATH": place},
                    start_new_session=True,  # Ctrl-C and a scheduler's signals are for the training; this one then ends
                )
            finally:
                os.close(number)
        except (OSError, UserError) as error:
            log.warning("train.trackers: %s cannot be started (%s); the run goes on without it", name, error)
            return
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        with suppress(OSError, AttributeError):  # Linux: what is in the pipe arrives even if the training is killed
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, PIPE)
        self._send({"start": about | {"folder": str(folder.absolute()), "continued": continued}})

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._send({"scalar": [name, float(value), step]})

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Add a picture, uint8 (h, w, 3), as a small JPEG."""
        height, width = picture.shape[:2]
        if width > WIDTH:
            size = WIDTH, max(round(height * WIDTH / width), 1)
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        assert done
        self._send({"image": [name, base64.b64encode(data.tobytes()).decode(), step]})

    def add_curve(self, name: str, curve: np.ndarray, step: int) -> None:
        """Leave a curve out: neither tracker draws one of counts."""

    def close(self) -> None:
        """End the run there; wait until everything is sent."""
        if self._process is None:
            return
        self._send({"end": None})
        until = time.monotonic() + PATIENCE
        while self._process is not None and self._waiting and time.monotonic() < until:
            select.select([], [self._pipe], [], 1)
            self._flush()
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        process.stdin.close()
        try:
            if process.wait(max(until - time.monotonic(), 1)):
                self._warn_of_end(process.returncode)
        except subprocess.TimeoutExpired:
            log.warning("train.trackers: %s is still sending, and goes on by itself: %s", self.name, self.log)

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, default=str).encode() + b"\n"
        with self._lock:
            if self._process is None:
                return
            if len(self._waiting) + len(line) > WAITING:
                if not self._gaps:
                    log.warning("train.trackers: %s does not take what it is sent; its record has gaps", self.name)
                self._gaps = True
                return
            self._waiting += line
            self._flush()

    def _flush(self) -> None:
        """Write what the pipe takes at once."""
        assert self._process is not None
        try:
            while self._waiting:
                del self._waiting[: os.write(self._pipe, self._waiting[: 2**16])]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more
            process, self._process = self._process, None
            assert process.stdin is not None
            process.stdin.close()
            try:
                self._warn_of_end(process.wait(ENDING))
            except subprocess.TimeoutExpired:  # it reads no more, and does not end either
                process.kill()
                self._warn_of_end(process.wait())

    def _warn_of_end(self, status: int) -> None:
        lines = self.log.read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), f"status {status}")
        log.warning("train.trackers: %s ended (%s); the run goes on without it: %s", self.name, said[:300], self.log)
