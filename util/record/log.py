"""The record of a run: console, train.log, config.yaml, env.json, TensorBoard scalars, progress."""

import json
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from util import dist

log = logging.getLogger("segmentation")


def open_log(file: str | Path | None) -> logging.Logger:
    """Open the log: console and `file` on rank 0.

    Elsewhere warnings with the rank's number.
    """
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

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def write_json(path: str | Path, value: dict) -> None:
    """Write `value`, indented."""
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
