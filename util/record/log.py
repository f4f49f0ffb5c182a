"""The record of a run as text: console and train.log.

A console or disk that takes no more text is told once and ends no run.
"""

import json
import logging
import os
import sys
import unicodedata
from pathlib import Path
from typing import TextIO, cast

from tqdm import tqdm

from util import dist
from util.record.files import open_plain, write_text

log = logging.getLogger("segmentation")


def open_log(file: str | Path | None) -> logging.Logger:
    """Open the log: rank 0's console and `file`, elsewhere only warnings."""
    for handler in [*log.handlers]:
        log.removeHandler(handler)
        handler.close()
    log.propagate = False
    log.setLevel(logging.INFO if dist.is_main() else logging.WARNING)
    prefix = "" if dist.is_main() else f"[rank {dist.rank()}] "
    form = _Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S")
    handlers: list[logging.Handler] = [_TqdmHandler()]
    if file is not None and dist.is_main():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(form)
        log.addHandler(handler)
    return log


# What turns the order of letters around (U+202A to U+202E, U+2066 to U+2069), and so the meaning of a line.
REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def printable(text: str) -> str:
    """Return `text` without what moves a terminal's cursor.

    Line ends and tabs stay. Names come from files of others: control characters, halves of surrogate pairs and marks
    that reorder letters are written as in a string literal of Python.
    """
    if text.isprintable():
        return text
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        and letter not in "\n\t"
        or ord(letter) in REORDERING
        else letter
        for letter in text
    )


class _Formatter(logging.Formatter):
    """Formats lines without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _TqdmHandler(logging.Handler):
    """Console lines that do not tear a progress bar."""

    silent = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
            self.silent = False
        except OSError as error:
            if not self.silent:
                self.silent = True  # first: the warning comes here as well
                log.warning("the console takes no more text (%s); the run goes on", error.strerror)


class _FileHandler(logging.FileHandler):
    """A log file that is no link or pipe; where it cannot be written the run goes on."""

    silent = False

    def _open(self) -> TextIO:  # type: ignore[override]  # its annotation names a private class
        number = open_plain(self.baseFilename, os.O_WRONLY | os.O_APPEND)
        return cast(TextIO, os.fdopen(number, "a", encoding=self.encoding))

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is not None:  # once closed it stays closed: its folder may be gone
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.silent:
            self.silent = True
            log.warning("%s cannot be written (%s); the run goes on", self.baseFilename, error.strerror)


def write_json(path: str | Path, value: dict) -> None:
    """Write `value`, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")
