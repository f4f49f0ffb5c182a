"""Speed and time left, by a clock that is set by hand."""

import pytest

from util.train import progress

pytestmark = pytest.mark.fast


def test_time_left_comes_from_recent_steps_without_what_lies_between(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    run = progress.Progress(0, 1000, 4)

    def line(seconds_per_step: float) -> progress.Pace:
        for _ in range(10):
            run.step()
        now[0] += 10 * seconds_per_step
        return run.line(0.0)

    assert line(60.0).left == "16:30:00", "the first steps, which are slow: 990 times a minute"
    for _ in range(progress.RECENT):
        pace = line(2.0)
    now[0] += 3600  # a validation
    run.pause()
    assert pace.speed == 2.0 and line(2.0).left == "26:00", "780 steps of 2 seconds"
