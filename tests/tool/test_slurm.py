"""The SLURM script with stand-ins for srun and scontrol: what it starts where, and when it asks for the queue again."""

import os
import signal
import subprocess
import time

import pytest

from tests.paths import ROOT

SCRIPT = ROOT / "tool" / "slurm.sh"
SCONTROL = """#!/bin/sh
case "$1" in
show) [ "$3" = "host[1-2]" ] && printf 'host1\\nhost2\\n' ;;
requeue) echo "$2" > requeued ;;
esac
"""
# Two tasks, as srun starts them; a signal to it reaches all of them, and the highest status is its own.
SRUN = """#!/bin/sh
[ "$1" = --kill-on-bad-exit=0 ] && shift
SLURM_NODEID=0 "$@" & one=$!
SLURM_NODEID=1 "$@" & two=$!
trap 'kill -USR1 $one $two' USR1
worst=0
for task in $one $two; do
    wait $task; status=$?
    while kill -0 $task 2>/dev/null; do wait $task; status=$?; done
    [ $status -gt $worst ] && worst=$status
done
exit $worst
"""
TRAIN = """echo "$NODE_RANK of $NNODES at $RDZV_ENDPOINT id $RDZV_ID: $*" > started.$NODE_RANK
trap 'echo saved > saved.$NODE_RANK; exit 75' USR1
case "$2" in
quick) exit 0 ;;
wrong) exit 2 ;;
esac
i=0; while [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as SLURM does, in a folder of stand-ins."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tool").mkdir()
    for path, text in (("bin/scontrol", SCONTROL), ("bin/srun", SRUN), ("tool/train.sh", TRAIN)):
        (tmp_path / path).write_text(text)
        (tmp_path / path).chmod(0o755)
    env = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "host[1-2]",
        "SLURM_JOB_ID": "71234",
    }
    return lambda *arguments: subprocess.Popen(["sh", str(SCRIPT), *arguments], env=env)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_every_machine_gets_its_number_and_the_meeting_place(tmp_path, job):
    assert job("street", "quick", "train.epochs=2").wait(30) == 0
    for rank in (0, 1):
        expected = f"{rank} of 2 at host1:29634 id 71234-0: street quick train.epochs=2\n"
        assert (tmp_path / f"started.{rank}").read_text() == expected
    assert not (tmp_path / "requeued").exists()


def test_an_error_is_not_queued_again(tmp_path, job):
    assert job("street", "wrong").wait(30) == 2
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_signal_before_the_end_saves_everywhere_and_queues_again(tmp_path, job, number):
    script = job("street", "long")
    until(lambda: all((tmp_path / f"started.{rank}").exists() for rank in (0, 1)))
    time.sleep(0.2)
    script.send_signal(number)
    assert script.wait(30) == 75
    assert all((tmp_path / f"saved.{rank}").exists() for rank in (0, 1))
    assert (tmp_path / "requeued").read_text() == "71234\n"
