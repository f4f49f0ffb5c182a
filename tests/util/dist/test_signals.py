"""A run that is asked to end saves at the next step border and says so by its status."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import make_experiment
from tests.faults.runs import TOY, Run, final, same
from tests.paths import ROOT
from tool.shared import cli
from util.dist import signals


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """An experiment, and the folder of its uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    experiment = make_experiment(folder, data, train={"epochs": 3, "log_every": 1, "ema": 0.9}, model=TOY)
    assert Run(experiment, folder / "run").wait() == [0]
    return experiment, folder / "run"


@pytest.mark.parametrize(
    "number, status, workers", [(signal.SIGTERM, 75, 2), (signal.SIGUSR1, 75, 0), (signal.SIGINT, 130, 2)]
)
def test_a_signal_saves_at_the_next_step_and_the_same_command_continues(tmp_path, whole, number, status, workers):
    experiment, uninterrupted = whole
    command = (experiment, tmp_path / "run", f"loader.workers={workers}")
    run = Run(*command)
    run.until(lambda: "step 2/12" in run.output())
    run.signal_group(number)
    assert run.wait() == [status], run.output()
    assert final(tmp_path / "run")["step"] % 4, "inside an epoch"
    assert "stopped by a signal" in run.output()
    assert Run(*command).wait() == [0]
    assert same(final(tmp_path / "run"), final(uninterrupted))


def test_two_processes_stop_at_the_same_step_where_one_is_asked(tmp_path, data):
    experiment = make_experiment(tmp_path, data, train={"epochs": 3, "log_every": 1}, model=TOY)
    assert Run(experiment, tmp_path / "whole", world=2).wait() == [0, 0]
    run = Run(experiment, tmp_path / "run", world=2)
    run.until(lambda: "step 2/12" in run.output())
    run.signal(signal.SIGTERM, ranks=(1,))
    assert run.wait() == [signals.PREEMPTED] * 2, run.output()
    assert Run(experiment, tmp_path / "run", world=2).wait() == [0, 0]
    assert same(final(tmp_path / "run"), final(tmp_path / "whole"))


def test_two_processes_score_the_network_that_is_saved(tmp_path, data):
    """Each process has its own running means of batch norm; a validation that is done again finds those of rank 0."""
    experiment = make_experiment(tmp_path, data, train={"epochs": 1, "save_steps": 4, "ema": 0.5}, model=TOY)
    assert Run(experiment, tmp_path / "run", world=2).wait() == [0, 0]
    state = final(tmp_path / "run")
    for path in (tmp_path / "run" / "model").iterdir():
        if not path.name.startswith("step_"):
            path.unlink()
    again = Run(experiment, tmp_path / "run", world=2)
    assert again.wait() == [0, 0] and "after epoch 0, step 4" in again.output()
    assert same(final(tmp_path / "run"), state)


def test_a_signal_before_the_first_step_ends_the_process_at_once():
    with pytest.raises(signals.Stopped, match="SIGUSR1") as stopped, signals.Stop():
        signal.raise_signal(signal.SIGUSR1)
    assert stopped.value.status == 75


def test_a_stop_restores_what_was_there():
    before = [signal.getsignal(number) for number in signals.STATUS]
    with signals.Stop() as stop:
        stop.hold()
        assert stop.poll() == 0
    assert [signal.getsignal(number) for number in signals.STATUS] == before


def test_a_signal_in_the_middle_of_other_code_is_still_a_signal(capsys):
    """What cleans up after it may fail in its own way."""

    def main():
        try:
            raise signals.Stopped(signal.SIGTERM)
        finally:
            [].pop()

    with pytest.raises(SystemExit) as end:
        cli.command(main)
    assert end.value.code == signals.PREEMPTED and "stopped by SIGTERM" in capsys.readouterr().err


HANGS = """
import signal, sys, time
from util.dist import signals
with signals.Stop() as stop:
    stop.hold()
    signal.raise_signal(signal.SIGTERM)
    time.sleep(60)
"""


def test_a_wait_that_does_not_come_back_ends_in_time_after_a_signal():
    """A disk that hangs, a loader worker that stands still."""
    env = {**os.environ, "STOP_TIMEOUT": "0.5"}
    ended = subprocess.run(
        [sys.executable, "-c", HANGS], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == signals.PREEMPTED and "not ended 0.5 s after SIGTERM: unsaved" in ended.stderr


def test_a_signal_to_a_forked_process_does_not_count_as_one_to_its_parent(monkeypatch):
    monkeypatch.setenv("STOP_TIMEOUT", "0.2")
    with signals.Stop() as stop:
        stop.hold()
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(1)  # else this process would have ended by now
        assert stop.noted is None


# A mutex that its own thread holds already: no signal interrupts that, so that no handler of Python's runs.
BLOCKED = """
import ctypes, os, sys, threading, time
from util.dist import signals
c = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
with signals.Stop() as stop:
    if sys.argv[1] == "held":
        stop.hold()
    c.pthread_mutex_lock(mutex)
    threading.Timer(0.5, os.kill, (os.getpid(), int(sys.argv[2]))).start()
    c.pthread_mutex_lock(mutex)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="takes its mutex from glibc")
@pytest.mark.parametrize("held", ["held", "before the first step"])
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_library_that_does_not_come_back_ends_in_time_after_a_signal(held, number, status):
    env = {**os.environ, "STOP_TIMEOUT": "0.5"}
    command = [sys.executable, "-c", BLOCKED, held, str(int(number))]
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert ended.returncode == status and f"not ended 0.5 s after {number.name}: unsaved" in ended.stderr


def test_a_closed_terminal_stops_a_run_but_not_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in signals.caught()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(signals.Stopped) as stopped, signals.Stop():
            signal.raise_signal(signal.SIGHUP)
        assert stopped.value.status == 75
    finally:
        signal.signal(signal.SIGHUP, before)
