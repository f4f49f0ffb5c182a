"""Processes of a run: none outlives its parent, and one that the system ends is named and costs a few steps."""

import os
import re
import signal

import psutil
import pytest

from tests.conftest import make_experiment
from tests.faults.runs import TOY, Run, final, same
from util import dist


def workers_of(run: Run) -> list[psutil.Process]:
    """The loader's workers, once a step was done."""
    run.until(lambda: "step 2/" in run.output())
    return psutil.Process(run.processes[0].pid).children()


@pytest.mark.faults
def test_a_killed_loader_worker_is_one_message_and_the_same_command_continues(tmp_path, data, record_fault):
    experiment = make_experiment(tmp_path, data, train={"epochs": 6, "log_every": 1}, loader={"workers": 1}, model=TOY)
    whole = Run(experiment, tmp_path / "whole")
    run = Run(experiment, tmp_path / "run")
    os.kill(workers_of(run)[0].pid, signal.SIGKILL)
    assert run.wait() == [dist.PEER_LOST], run.output()
    assert "Traceback" not in run.output() and len(re.findall("error: DataLoader worker", run.output())) == 1
    assert whole.wait() == [0] and Run(experiment, tmp_path / "run").wait() == [0]
    assert same(final(tmp_path / "run"), final(tmp_path / "whole"))
    record_fault("a loader worker is killed", 1, "one message, status 69; continued, final state bitwise equal")


def impatient(rank):
    os.environ["LOADER_TIMEOUT"] = "6"


@pytest.mark.faults
def test_a_stopped_loader_worker_is_one_message_and_the_same_command_continues(tmp_path, data, record_fault):
    experiment = make_experiment(tmp_path, data, train={"epochs": 6, "log_every": 1}, loader={"workers": 2}, model=TOY)
    whole = Run(experiment, tmp_path / "whole")
    run = Run(experiment, tmp_path / "run", before=impatient)
    workers = workers_of(run)
    workers[1].suspend()
    assert run.wait() == [dist.PEER_LOST], run.output()
    assert "Traceback" not in run.output() and len(re.findall(r"was stopped \(SIGSTOP\)", run.output())) == 1
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert whole.wait() == [0] and Run(experiment, tmp_path / "run").wait() == [0]
    assert same(final(tmp_path / "run"), final(tmp_path / "whole"))
    record_fault("a loader worker is stopped", 1, "one message, status 69; continued, final state bitwise equal")


@pytest.mark.faults
def test_loader_workers_end_with_a_process_that_is_killed(tmp_path, data, record_fault):
    experiment = make_experiment(tmp_path, data, train={"epochs": 99, "log_every": 1}, loader={"workers": 2}, model=TOY)
    run = Run(experiment, tmp_path / "run")
    workers = workers_of(run)
    assert len(workers) == 2
    workers[0].suspend()  # one that cannot look for its parent; the signals to it wait
    run.signal(signal.SIGKILL)
    run.wait()
    workers[0].resume()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    record_fault("a process with loader workers is killed", 1, "no worker outlives it")


def test_accumulation_on_two_processes_has_the_losses_of_one(tmp_path, data):
    """Batch norm over all processes, no dropout: every micro-batch has the pictures that it has on one process."""
    model = TOY | {"options": {"dropout": 0.0}, "sync_bn": True}
    train = {"epochs": 1, "log_every": 1, "val_every": 0, "accumulate": 2}
    experiment = make_experiment(tmp_path, data, train=train, model=model)
    losses = []
    for world in (1, 2):
        run = Run(experiment, tmp_path / str(world), world=world)
        assert run.wait() == [0] * world, run.output()
        losses.append([float(loss) for loss in re.findall(r"step \d+/4 loss (\S+)", run.output())])
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], abs=2e-4)
