"""What commands share: arguments, and how mistakes end them.

A mistake of the user is one line.
"""

import argparse
import errno
import logging
import os
import re
import select
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

import cv2
import torch

from dataset.load.loader import WorkerLost
from dataset.read import DataError
from model.table import ModelError
from util import UserError, dist
from util.dist import signals
from util.record import status
from util.record.log import log, printable

# One message and status 2: mistakes of the user, what the system refuses, a loss that is not finite. Any other error is
# a defect of ours, and shows its traceback.
USER_ERRORS = (UserError, DataError, ModelError, OSError, FloatingPointError)

READER_GONE = 141  # as a shell reports SIGPIPE
OVERRIDES = "changes to the experiment, e.g. train.epochs=2 (docs/config.md lists the keys)"
SMALLER, AGAIN = "use smaller pictures, or fewer at once", "starts again"


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line that says what to type."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any):
        super().__init__(*args, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.example = example

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        words = sys.argv[1:] if args is None else [*args]
        for word, following in pairwise([*words, "VALUE"]):
            slip = re.fullmatch(r"--?(\w+\.\w+)(?:=(.*))?", word)
            if slip:
                value = following if slip[2] is None else slip[2]
                raise UserError(f"{word}: an override has no dashes; write {slip[1]}={value}")
        return super().parse_intermixed_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        example = f"; for example: {self.example}" if self.example else ""
        raise UserError(f"{message}{example} (--help lists the arguments)")


def parser(name: str, description: str, needs_config: bool = True) -> Parser:
    """Build the parser with --config, --exp and overrides.

    Args:
        name: the command's module, such as "tool.train".
        description: what --help says.
        needs_config: whether --config must be given.
    """
    prog = f"python -m {name}"
    example = f"{prog} --config config/street/street_fcn18.yaml train.epochs=2"
    out = Parser(prog=prog, description=description, example=example)
    out.add_argument("--config", required=needs_config, metavar="FILE", help="the experiment, a YAML file")
    out.add_argument("--exp", metavar="DIR", help="folder of the run (default: exp/DATASET/EXPERIMENT)")
    out.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help=OVERRIDES)
    return out


def open_streams() -> None:
    """Give a program that was started without standard streams silent ones.

    Else the next file that is opened has their number, and what a library prints goes into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", errors="backslashreplace"))


def command(main: Callable[[], int], on_memory: str = SMALLER, on_interrupt: str = AGAIN) -> None:
    """Run a command and exit with its status.

    A user's mistake is one message and status 2, without traceback. The loss of another process is one message too, and
    status `dist.PEER_LOST`.

    Args:
        on_memory: what to do where memory is short.
        on_interrupt: what the same command does after Ctrl-C.
    """
    code = 1
    open_streams()
    try:
        code = main()
        if code in signals.STATUS.values():
            signals.ignore()
        status.end("stopped" if code in signals.STATUS.values() else "finished")
    except BaseException as error:
        known = _status_of(error, on_memory, on_interrupt)
        if known is None:
            _unexpected(error)
            raise
        code = known
    finally:
        dist.close(_reasons[-1] if code and _reasons else dist.DONE)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk, or a reader that is gone; Python would try again, and end with status 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == dist.PEER_LOST:
        os._exit(code)  # a thread may be inside an operation that never returns
    sys.exit(code)


def _status_of(error: BaseException, on_memory: str, on_interrupt: str) -> int | None:
    """Say in one message what ended a command; return its exit status, None for a defect of ours."""
    stop = signals.cause(error)  # it may come up in the middle of other code, whose clean-up then fails
    if stop is not None:
        _report(f"stopped by {stop} before there was anything to save; the same command starts again", "stopped")
        return stop.status
    if isinstance(error, KeyboardInterrupt):
        _report(f"interrupted; the same command {on_interrupt}", "stopped")
        return signals.INTERRUPTED
    if is_out_of_memory(error):
        _report(f"out of memory: {(str(error) or 'no more is said').splitlines()[0].rstrip('.')}; {on_memory}")
        return 2
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return READER_GONE
    if isinstance(error, USER_ERRORS):
        if not dist.is_printed(error):
            _report(message(error))
        return 2
    if isinstance(error, RuntimeError):
        signals.ignore()  # of the launcher, which ends what is left: first say why
        reason = str(error) if isinstance(error, WorkerLost) else dist.lost_peer(error)
        if reason is not None:
            _report(reason)
            return dist.PEER_LOST
    return None


def _reader_is_gone() -> bool:
    """Tell whether nobody reads the output any more, as behind `| head`; it may be another pipe that broke."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a library could not get memory.

    Of a GPU, or of the host: by PyTorch, NumPy or OpenCV.
    """
    if isinstance(error, cv2.error):
        return error.code == cv2.Error.StsNoMem
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)


def lost(reason: str) -> None:
    """Tell, from a thread, that another process is lost."""
    _report(reason)
    sys.stderr.flush()


_reasons: list[str] = []  # what this process ends with, for the others


def _unexpected(error: BaseException) -> None:
    """Record a defect; its traceback goes to the console as well."""
    _log_file_only(traceback.format_exc())
    text = f"{type(error).__name__}: {(str(error).strip() or '(no message)').splitlines()[0]}"
    _reasons.append(text)
    status.end("failed", text)


def message(error: BaseException) -> str:
    """Return what is told of an error."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return error.strerror if ":" in error.strerror else "no space left on the disk"
    return str(error)


def _report(text: str, state: str = "failed") -> None:
    text = printable(text)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    prefix = f"error (rank {os.environ['RANK']} on {socket.gethostname()}): " if several else "error: "
    print(prefix + text, file=sys.stderr, flush=True)
    _log_file_only(prefix + text)
    _reasons.append(text)
    status.end(state, text)


def _log_file_only(text: str) -> None:
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(log.makeRecord(log.name, logging.ERROR, "", 0, text, (), None))
