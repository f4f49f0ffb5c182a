"""TensorBoard's event file of a run.

It is written by the thread that asks for it: a writer's own thread may die unseen, of a full disk for example, and then
the queue before it fills and blocks the training. The format is that of TFRecord: the length of an event and the event,
each with a masked CRC-32C.
"""

import errno
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from util.record.files import open_plain
from util.record.log import log


class Events:
    """Writes scalars and pictures for TensorBoard.

    What cannot be written is left out, which one warning tells; it ends no run.

    Args:
        folder: of the run; None writes nothing.
        purge_step: what was recorded from this step on, before, is not shown.
    """

    def __init__(self, folder: Path | None, purge_step: int | None = None):
        self._number: int | None = None
        self._size = 0
        self._warned = False
        if folder is None:
            return
        self._file = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        try:
            self._number = open_plain(self._file, os.O_WRONLY | os.O_EXCL)
        except OSError as error:
            self._warn(error)
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._write(Event(step=step, summary=summary.scalar(name, value)))

    def add_image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Add a picture, uint8 (h, w, 3)."""
        self._write(Event(step=step, summary=summary.image(name, picture, dataformats="HWC")))

    def add_curve(self, name: str, curve: np.ndarray, step: int) -> None:
        """Add a curve of precision over recall, as `util.score.curves` gives it."""
        self._write(Event(step=step, summary=summary.pr_curve_raw(name, *curve, num_thresholds=curve.shape[1])))

    def close(self) -> None:
        if self._number is not None:
            os.close(self._number)
        self._number = None

    def _write(self, event: Event) -> None:
        if self._number is None:
            return
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        crcs = [struct.pack("<I", masked_crc32c(each)) for each in (length, content)]
        record = length + crcs[0] + content + crcs[1]
        try:
            if os.write(self._number, record) < len(record):
                os.ftruncate(self._number, self._size)  # half a record would end what TensorBoard reads
                os.lseek(self._number, self._size, os.SEEK_SET)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += len(record)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning("%s: TensorBoard's record has gaps (%s); the run goes on", self._file, error.strerror)
        self._warned = True
