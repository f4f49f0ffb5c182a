"""A disk that is full ends no run but by one message, hangs none, and costs nothing once there is room."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import make_experiment
from tests.faults.runs import TOY, Run, final, same

pytestmark = pytest.mark.faults
SIZE = 4 << 20  # of the disk: room for the checkpoints of a toy


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, which a test fills."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(place)]
    if os.name != "posix" or os.geteuid() or shutil.which("mount") is None or subprocess.run(mount).returncode:
        pytest.skip("needs a system that lets its root mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk):
    try:
        with open(disk / "fill", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return


@pytest.mark.parametrize("world", [1, 2])
def test_a_full_disk_is_one_message_and_the_same_command_continues(tmp_path, data, disk, record_fault, world):
    experiment = make_experiment(tmp_path, data, train={"epochs": 6, "log_every": 1, "val_every": 2}, model=TOY)
    whole = Run(experiment, tmp_path / "whole", world=world)
    assert whole.wait() == [0] * world
    run = Run(experiment, disk, world=world)
    run.until((disk / "model" / "epoch_0002.json").exists)
    fill(disk)
    status = run.wait()
    assert status[0] == 2, run.output()
    (disk / "fill").unlink()
    assert "Traceback" not in run.output() and run.output().count("no space left for the checkpoint") == 1
    again = Run(experiment, disk, world=world)
    assert again.wait() == [0] * world, again.output()
    assert same(final(disk), final(tmp_path / "whole"))
    fault = f"the disk of a run is full; {'one process' if world == 1 else 'two processes'}"
    record_fault(fault, 1, "one message, status 2; continued once there is room, final state bitwise equal")
