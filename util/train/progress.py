"""The progress of a training: bar, speed, time left."""

import sys
import time
from collections import deque
from typing import NamedTuple

from tqdm import tqdm

from util import dist

RECENT = 20  # log lines whose pace tells the time left


class Pace(NamedTuple):
    """Images per second, share of waiting, and time left."""

    speed: float
    wait: float
    left: str


def duration(seconds: float) -> str:
    """Write seconds as 1:02:03 or 2:03."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Progress:
    """Speed and time left of a run, and a bar.

    The bar is for a terminal.

    Args:
        first, total: optimiser steps done before, and in all.
        batch_size: pictures per optimiser step.
    """

    def __init__(self, first: int, total: int, batch_size: int):
        self.total, self.batch_size = total, batch_size
        self.mark = time.perf_counter()
        self.done = self.marked = first
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)  # seconds and steps of each line
        show = dist.is_main() and sys.stdout.isatty()
        self.bar = tqdm(total=total, initial=first, unit="step", dynamic_ncols=True) if show else None

    def step(self) -> None:
        """Count one optimiser step."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()

    def line(self, waited: float) -> Pace:
        """Return the pace since the last call; `waited`: seconds without pictures."""
        now = time.perf_counter()
        span, steps = max(now - self.mark, 1e-9), self.done - self.marked
        self._recent.append((span, steps))
        per_step = sum(seconds for seconds, _ in self._recent) / max(sum(count for _, count in self._recent), 1)
        self.mark, self.marked = now, self.done
        return Pace(steps * self.batch_size / span, waited / span, duration(per_step * (self.total - self.done)))

    def show(self, text: str) -> None:
        """Show `text` beside the bar's count."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)

    def pause(self) -> None:
        """Leave a validation since the last line out of the speed."""
        self.mark = time.perf_counter()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
