"""status.json: the state of a training or an evaluation.

For people and programs that watch it. A training's is in the run's folder, an evaluation's in that of its result.

Rank 0 writes it at every log line and, from a thread, every few seconds, so that a heartbeat that is old means that
the process is gone and not that a step is slow. The file is at every moment whole: it is replaced, never rewritten.

A run that is started again has the values of before until it has new ones, but an evaluation, which begins anew. One
that had finished keeps its file as it is until it runs again: that there is nothing to do, or that a start is refused,
takes nothing from its numbers.
"""

import json
import math
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from util import UserError, dist
from util.record.files import read_text, replacing
from util.record.log import log, printable

NAME = "status.json"
EVERY = 10.0  # seconds between heartbeats
KINDS = ("train", "test")
STATES = ("starting", "running", "validating", "saving", "finished", "stopped", "failed")
ENDED = ("finished", "stopped", "failed")
LARGEST = 2**20
SILENT = 6 * EVERY  # seconds after which a run was not heard of
NUMBER, NUMBER_OR_NONE, TEXT_OR_NONE = (int, float), (int, float, type(None)), (str, type(None))
# What `read` relies on; a number where another program wrote text would end a list of runs.
TYPES: dict[str, Any] = {"heartbeat": NUMBER, "pid": int, "step": int, "checkpoint": (dict, type(None))}
TYPES |= dict.fromkeys(("total", "loss", "best", "speed", "mIoU", "started"), NUMBER_OR_NONE)
TYPES |= dict.fromkeys(("host", "error", "machine"), TEXT_OR_NONE)
NEEDED = ("heartbeat", "pid", "step")
CARRIED = ("step", "total", "epoch", "epochs", "loss", "best", "checkpoint")  # from before, where a run starts again


class Status:
    """Values of one run, and the thread that refreshes the file.

    kind: one of `KINDS`.
    """

    def __init__(self, folder: Path, every: float = EVERY, kind: str = "train"):
        self.file = folder / NAME
        self.values: dict = {
            "kind": kind,
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
            "mIoU": None,
            "error": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "machine": _machine(),
            "born": _born(os.getpid()),
            "processes": dist.world_size(),
            "command": sys.argv,
            "restarts": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
            "started": time.time(),
        }
        self._every, self._ended, self._lock = every, threading.Event(), threading.Lock()
        self._warned = False
        with suppress(OSError):  # of which the first write tells
            folder.mkdir(parents=True, exist_ok=True)
        try:
            before = read(self.file)
        except (UserError, OSError):
            before = {}
        if kind == "train":
            self.values |= {key: before[key] for key in CARRIED if key in before}
        self._kept = before.get("state") == "finished"
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
            self._kept = self._kept and values.get("state") in (None, "starting", *ENDED)
            self._write()

    def count(self, step: int) -> None:
        """Have the next heartbeat tell how far it is.

        Writing each time may cost more than the step.
        """
        with self._lock:
            self.values |= {"step": step, "progress": time.time()}

    def end(self, state: str, error: str | None = None) -> None:
        self._ended.set()
        self.update(state=state, error=printable(" ".join(error.split())) if error else None)

    def leave(self) -> None:
        with self._lock:  # nothing is being written then
            self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            with self._lock:
                if not self._ended.is_set():
                    self._write()

    def _write(self) -> None:
        if self._kept:
            return
        try:
            with replacing(self.file) as part:
                part.write_text(json.dumps(self.values | {"heartbeat": time.time()}, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written: %s", self.file, error.strerror)
            self._warned = True


class _Process:
    """The record of this process's run, if it has one."""

    status: Status | None = None


def start(folder: Path, kind: str = "train") -> None:
    """Record this process's run in `folder`, if it is rank 0.

    kind: one of `KINDS`.
    """
    leave()
    _Process.status = Status(folder, kind=kind) if dist.is_main() else None


def note(**values: Any) -> None:
    """Change values of the record, if there is one; see `Status`."""
    if _Process.status is not None:
        _Process.status.update(**values)


def count(step: int) -> None:
    """Note how far the run is; the next heartbeat tells it."""
    if _Process.status is not None:
        _Process.status.count(step)


def saved(path: Path, step: int) -> None:
    """Note the newest checkpoint."""
    note(checkpoint={"path": str(path), "step": step, "time": path.stat().st_mtime})


def leave() -> None:
    """Write no more of this process's run.

    Its folder may be another's by now.
    """
    if _Process.status is not None:
        _Process.status.leave()
    _Process.status = None


def end(state: str, error: str | None = None) -> None:
    """Note that the run has ended.

    state: "finished", "stopped" or "failed"; error: in one line.
    """
    if _Process.status is not None:
        _Process.status.end(state, error)
    _Process.status = None


def read(file: Path, now: float | None = None) -> dict:
    """Read a status file; return its values.

    `state` may turn out to be "lost" or "stale".

    That is where the run says that it goes on, but does not. Its process is looked for where it can be seen: on the
    same machine since its last start, and among the same process numbers. Elsewhere its heartbeat is what counts, or,
    where the clock of its machine is ahead, the time at which the file was written.

    Raises:
        UserError: the file is damaged; names it.
    """
    now = time.time() if now is None else now
    text = read_text(file, LARGEST)
    written = file.stat().st_mtime
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error})") from None
    if not isinstance(values, dict) or values.get("state") not in STATES or values.get("kind", "train") not in KINDS:
        raise UserError(f"{file}: damaged (no state of a run)")
    saved = values.get("checkpoint")
    numbers = [(key, values.get(key)) for key, kind in TYPES.items() if kind in (int, NUMBER, NUMBER_OR_NONE)]
    if isinstance(saved, dict):
        numbers += [(f"checkpoint.{key}", saved.get(key)) for key in ("step", "time")]
    wrong = [key for key, kind in TYPES.items() if not isinstance(values.get(key), kind)]
    wrong += [key for key in NEEDED if isinstance(values.get(key), bool)]
    wrong += [key for key, value in numbers if value is not None and not _is_number(value)]
    wrong += [key for key, value in numbers if value is None and key.startswith("checkpoint.")]
    if wrong:
        raise UserError(f"{file}: damaged ({wrong[0]} is {str(values.get(wrong[0].partition('.')[0]))[:100]!r})")
    if values["state"] not in ENDED:
        here = values.get("host") == socket.gethostname() and values.get("machine") in (None, _machine())
        ages = [now - values["heartbeat"], now - written]
        if here and not _alive(values["pid"], values.get("born")):
            values["state"] = "lost"
        elif next((age for age in ages if age > -SILENT), SILENT + 1) > SILENT:
            values["state"] = "stale"
    return values


def _is_number(value: object) -> bool:
    """Tell whether a value is a number that a run can have written."""
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e15


def _machine() -> str | None:
    """Name what gives process numbers their meaning: this start of the machine, and the namespace (Linux)."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{start} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _born(pid: int) -> int | None:
    """Return when a process began, in the kernel's ticks; its number may be used again later (Linux)."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(content.rpartition(")")[2].split()[19])  # field 22; the name before it may hold anything


def _alive(pid: int, born: object) -> bool:
    """Tell whether the process is there, and no later one of its number."""
    now = _born(pid)
    return is_there(pid) and (born is None or now is None or now == born)


def is_there(pid: int) -> bool:
    """Tell whether a process has this number, or may have it."""
    if os.name == "nt":
        return True  # asking would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # somebody else's
    return True
