"""What a launcher starts again, and what not: real launchers of a program of a few lines."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from util.dist import agent, signals
from util.dist.group import PEER_LOST

LAUNCH = (
    "import sys; from util.dist.agent import launch; "
    "sys.exit(launch(1, 'program', sys.argv[2:], int(sys.argv[1]), '.'))"
)


def start(folder: Path, program: str, restarts: int, *arguments: str, **environment: str) -> subprocess.Popen:
    """A launcher of one process that runs `program`."""
    (folder / "program.py").write_text(program)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, str(restarts), *arguments],
        cwd=folder,
        env=env,
        text=True,
        stderr=subprocess.PIPE,
    )


STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(120)
"""


def test_a_process_that_does_not_heed_a_signal_is_killed_in_time(tmp_path):
    ready = tmp_path / "ready"
    launcher = start(tmp_path, STUBBORN, 0, str(ready), STOP_TIMEOUT="1")
    while not ready.exists():
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.terminate()
    told = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == signals.PREEMPTED and "not ended 1 s after SIGTERM: killed" in told


ENDS_ITSELF = """
import os, pathlib, sys
with open("starts", "a") as file:
    file.write(os.environ["TORCHELASTIC_RESTART_COUNT"])
status = int(sys.argv[1])
if status > 0:
    sys.exit(status)
from util.record import lock
lock.take(pathlib.Path())
os.kill(os.getpid(), -status)
"""


@pytest.mark.parametrize(
    "status, starts, expected",
    [(-signal.SIGKILL, "01", 128 + signal.SIGKILL), (2, "0", 2), (signals.PREEMPTED, "0", signals.PREEMPTED)],
)
def test_what_is_started_again_and_how_often(tmp_path, status, starts, expected):
    """Killed by the system: as often as is allowed, in the folder that it had; a mistake or a stop: not once."""
    launcher = start(tmp_path, ENDS_ITSELF, 1, str(status))
    told = launcher.communicate(timeout=120)[1]
    assert ((tmp_path / "starts").read_text(), launcher.returncode) == (starts, expected), told
    assert told.count("start again from the last checkpoint") == len(starts) - 1


@pytest.mark.parametrize(
    "status, starts, expected",
    [
        (-signal.SIGKILL, "01", 128 + signal.SIGKILL),
        (PEER_LOST, "01", PEER_LOST),
        (2, "0", 2),
        (1, "0", 1),
        (signals.PREEMPTED, "0", signals.PREEMPTED),
    ],
)
def test_one_process_that_the_system_ended_is_started_again(tmp_path, monkeypatch, capfd, status, starts, expected):
    """It, or a loader worker of it, of which it ends with status 69; a mistake, a defect or a stop: not once."""
    (tmp_path / "program.py").write_text(ENDS_ITSELF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("LAUNCHER_PID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "")  # put back at the end
    assert agent.watch_one([sys.executable, "program.py", str(status)], 1) == expected
    assert (tmp_path / "starts").read_text() == starts
    assert capfd.readouterr().err.count("starts again from the last checkpoint") == len(starts) - 1


def test_one_process_that_does_not_heed_a_signal_is_killed_in_time(tmp_path, monkeypatch, capfd):
    (tmp_path / "program.py").write_text(STUBBORN)
    monkeypatch.setenv("STOP_TIMEOUT", "1")
    for name in ("LAUNCHER_PID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "")
    ready = tmp_path / "ready"

    def stop():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    command = [sys.executable, str(tmp_path / "program.py"), str(ready)]
    assert agent.watch_one(command, 3) == signals.PREEMPTED
    assert "not ended 1 s after SIGTERM: killed" in capfd.readouterr().err
