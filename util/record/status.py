"""status.json: the state of a run.

For people and programs that watch it. Rank 0 writes it at every log line and, from a thread, every few seconds, so that
a heartbeat that is old means that the process is gone and not that a step is slow. The file is at every moment whole:
it is replaced, never rewritten.
"""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from util import UserError, dist
from util.record.files import read_text, replacing
from util.record.log import log

NAME = "status.json"
EVERY = 10.0  # seconds between heartbeats
STATES = ("starting", "running", "validating", "saving", "finished", "stopped", "failed")
ENDED = ("finished", "stopped", "failed")
LARGEST = 2**20
NUMBER, NUMBER_OR_NONE = (int, float), (int, float, type(None))
# What `read` relies on; a number where another program wrote text would end a list of runs.
KINDS: dict[str, Any] = {"heartbeat": NUMBER, "pid": int, "step": int, "checkpoint": (dict, type(None))}
KINDS |= dict.fromkeys(("total", "loss", "best", "speed"), NUMBER_OR_NONE)


class Status:
    """Values of one run, and the thread that refreshes the file."""

    def __init__(self, folder: Path, every: float = EVERY):
        self.file = folder / NAME
        self.values: dict = {
            "state": "starting",
            "step": 0,
            "total": None,
            "epoch": None,
            "epochs": None,
            "loss": None,
            "speed": None,
            "wait": None,
            "skipped": 0,
            "checkpoint": None,
            "best": None,
            "error": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "processes": dist.world_size(),
            "command": sys.argv,
            "restarts": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
            "started": time.time(),
        }
        self._every, self._ended, self._lock = every, threading.Event(), threading.Lock()
        self._warned = False
        self.update()
        threading.Thread(target=self._beat, name="status", daemon=True).start()

    def update(self, **values: Any) -> None:
        """Change values and write the file.

        A disk that is full stops the record, not the run.
        """
        unknown = values.keys() - self.values.keys()
        assert not unknown and values.get("state", "running") in STATES, (unknown, values)
        with self._lock:
            self.values |= {**values, "progress": time.time()}
            self._write()

    def end(self, state: str, error: str | None = None) -> None:
        self._ended.set()
        self.update(state=state, error=" ".join(error.split()) if error else None)

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            with self._lock:
                if not self._ended.is_set():
                    self._write()

    def _write(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as part:
                part.write_text(json.dumps(self.values | {"heartbeat": time.time()}, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written: %s", self.file, error.strerror)
            self._warned = True


class _Process:
    """The record of this process's run, if it has one."""

    status: Status | None = None


def start(folder: Path) -> None:
    """Record this process's run in `folder` from now on.

    Only rank 0 does.
    """
    _Process.status = Status(folder) if dist.is_main() else None


def note(**values: Any) -> None:
    """Change values of the record, if there is one; see `Status`."""
    if _Process.status is not None:
        _Process.status.update(**values)


def saved(path: Path, step: int) -> None:
    """Note the newest checkpoint."""
    note(checkpoint={"path": str(path), "step": step, "time": path.stat().st_mtime})


def end(state: str, error: str | None = None) -> None:
    """Note that the run has ended.

    state: "finished", "stopped" or "failed"; error: in one line.
    """
    if _Process.status is not None:
        _Process.status.end(state, error)
    _Process.status = None


def read(file: Path, now: float | None = None) -> dict:
    """Read a status file; return its values.

    `state` may turn out to be "lost" or "stale". That is where the run says that it goes on, but does not.

    Raises:
        UserError: the file is damaged; names it.
    """
    now = time.time() if now is None else now
    text = read_text(file, LARGEST)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error})") from None
    if not isinstance(values, dict) or values.get("state") not in STATES:
        raise UserError(f"{file}: damaged (no state of a run)")
    for key, kind in KINDS.items():
        if not isinstance(values.get(key), kind):
            raise UserError(f"{file}: damaged ({key} is {values.get(key)!r})")
    if values["checkpoint"] is not None and not {"step", "time"} <= values["checkpoint"].keys():
        raise UserError(f"{file}: damaged (checkpoint is {values['checkpoint']!r})")
    if values["state"] not in ENDED:
        if values.get("host") == socket.gethostname() and not _alive(values["pid"]):
            values["state"] = "lost"
        elif now - values["heartbeat"] > 6 * EVERY:
            values["state"] = "stale"
    return values


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True  # somebody else's
    return True
