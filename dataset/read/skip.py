"""Training goes on without samples that cannot be read (`loader.on_error: skip`), up to a limit, and says which.

Such a sample keeps its place in the batch as a void one: the mean colour everywhere, and every pixel ignored. So the
order, the shapes and the augmentation of all others stay as they are, for any number of workers and after a restart,
and it adds nothing to the loss, which is a mean over the pixels that count. Skipped is what a file itself is guilty
of: it is missing, may not be read, or is refused. A fault of the machine (input and output, memory) always stops.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dataset.read.labelmap import IGNORE

BAD_FILE = (ValueError, FileNotFoundError, PermissionError)
SHOWN = 10


class Skips:
    """The samples that were skipped: each is reported once and listed in a file; more than `limit` are an error.

    list_file: names the data set in the error. limit: different samples. file: the list, kept over restarts.
    report: gets one line for each. Every process counts the samples that it has met itself.
    """

    def __init__(self, list_file: str | Path, limit: int, file: Path, report: Callable[[str], None]):
        self.list_file, self.limit, self.file, self.report = list_file, limit, file, report
        self.found: dict[int, str] = {}

    def add(self, index: int, reason: str) -> None:
        """Takes note of sample `index`. Raises ValueError, listing them, beyond the limit."""
        if index in self.found:
            return
        self.found[index] = reason
        line = " ".join(reason.split())
        self.report(f"skipped ({len(self.found)} of at most {self.limit}): {line}")
        if not self.file.is_file() or line not in self.file.read_text(encoding="utf-8").splitlines():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        if len(self.found) > self.limit:
            raise ValueError(beyond(self.list_file, list(self.found.values()), self.limit))


def beyond(list_file: str | Path, reasons: list[str], limit: int) -> str:
    """The error of a data set with more unreadable samples than `loader.max_errors`."""
    shown = "".join(f"\n  {reason}" for reason in reasons[:SHOWN])
    rest = f"\n  and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return f"{list_file}: {len(reasons)} samples cannot be used, and loader.max_errors is {limit}:{shown}{rest}"


def void(size: tuple[int, int], color, out: tuple[np.ndarray, np.ndarray] | None):
    """A picture of one colour and a label of ignored pixels, uint8 (h,w,3) and (h,w); written to `out` if given."""
    image, label = out or (np.empty((*size, 3), np.uint8), np.empty(size, np.uint8))
    image[:] = np.round(color).astype(np.uint8)
    label[:] = IGNORE
    return image, label
