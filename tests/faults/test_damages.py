"""Runs whose newest checkpoint was damaged while they lay killed end in the weights of the uninterrupted run."""

import shutil
import signal

import pytest

from tests.faults.damages import DAMAGES
from tests.faults.kills import Scenario, newest_files
from tests.faults.runs import final, same

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def scenario(tmp_path_factory, data):
    return Scenario(tmp_path_factory.mktemp("scenario"), data, train={"log_every": 1, "ema": 0.9})


@pytest.fixture(scope="module")
def stopped(scenario):
    """The folder of a run that was stopped after several checkpoints."""
    folder = scenario.folder / "stopped"
    run = scenario.start(folder)
    run.until(lambda: "step 7/12" in run.output())
    run.signal(signal.SIGTERM)
    assert run.wait() == [75], run.output()
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_costs_a_few_steps_and_nothing_else(scenario, stopped, record_fault, name):
    folder = scenario.folder / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stopped, folder)
    path, notes = newest_files(folder)
    (folder / "model" / "last.pth").unlink()
    (folder / "model" / "last.pth").hardlink_to(path)  # as the run left it; the copy made two files
    DAMAGES[name](path, notes)
    run = scenario.start(folder)
    assert run.wait() == [0], run.output()
    assert path.stem in run.output(), "the damage is told by the file's name"
    assert same(final(folder), scenario.final)
    record_fault(f"newest checkpoint: {name}", 1, "named, the one before continued, final state bitwise equal")
