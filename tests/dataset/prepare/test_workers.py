"""The pool of worker processes: order, few tasks at a time, errors, and no process left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset.prepare import workers
from dataset.prepare.workers import AHEAD, map_ordered
from tests.paths import ROOT


def test_results_come_in_order_and_tasks_are_drawn_as_they_leave():
    drawn = []
    tasks = (drawn.append(i) or -i for i in range(60))
    for position, result in enumerate(map_ordered(abs, tasks, 2)):
        assert result == position and len(drawn) <= position + 1 + 2 * AHEAD
    assert len(drawn) == 60


def test_an_error_of_a_task_is_raised_as_it_is():
    with pytest.raises(ValueError, match="invalid literal"):
        list(map_ordered(int, ["1", "x"], 2))


def test_a_worker_that_is_stopped_is_told_and_ended(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 2.0)
    others = multiprocessing.active_children()
    with pytest.raises(OSError, match="gave nothing for 2 s: it was stopped"):
        list(map_ordered(stop_itself, [1], 2))
    assert [child for child in multiprocessing.active_children() if child not in others] == []


def stop_itself(_):
    os.kill(os.getpid(), signal.SIGSTOP)


PROGRAM = """
from dataset.prepare.workers import map_ordered
if __name__ == "__main__":
    for result in map_ordered(eval, ["__import__('os').getpid()", "__import__('time').sleep(100)"], 2):
        print(result, flush=True)
"""


def test_workers_end_with_their_parent(tmp_path):
    """The parent is killed while a worker is at work."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(program)], env=environment, stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and is_running(worker):
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
