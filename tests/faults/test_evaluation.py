"""An evaluation that is killed is listed as lost, and the same command scores what it would have scored."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import make_experiment, newest_metrics
from tests.paths import ROOT
from tool import status, train

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("FAULT_KILLS", 3))
SLOW = "test.scales=[0.5,1,1.5,2,3,4]"


def start(experiment, folder):
    command = [sys.executable, "-m", "tool.test", "--config", str(experiment), "--exp", str(folder), SLOW]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **quiet)


def evaluation(folder):
    (run,), damaged = status.collect(folder)
    assert not damaged
    return run["evaluations"][-1] if run["evaluations"] else None


def scores(folder):
    metrics = json.loads(newest_metrics(folder).read_text())
    return metrics["classes"], metrics["mIoU"], metrics["num_images"]


def test_a_killed_evaluation_is_lost_and_done_again(tmp_path, data, record_fault):
    experiment = make_experiment(tmp_path, data, train={"epochs": 1}, loader={"workers": 1})
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
    began = time.monotonic()
    assert start(experiment, tmp_path / "run").wait(300) == 0
    seconds, whole = time.monotonic() - began, scores(tmp_path / "run")
    assert evaluation(tmp_path / "run")["state"] == "finished"
    rng, killed = random.Random(0), 0
    for _ in range(100 * KILLS):
        process = start(experiment, tmp_path / "run")
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            continue
        # Killed before it ran, it has changed nothing.
        assert evaluation(tmp_path / "run")["state"] in ("lost", "finished")
        assert scores(tmp_path / "run") == whole, "a result is replaced file by file, each whole"
        killed += 1
        if killed == KILLS:
            break
    assert killed == KILLS
    assert start(experiment, tmp_path / "run").wait(300) == 0
    assert evaluation(tmp_path / "run")["state"] == "finished" and scores(tmp_path / "run") == whole
    record_fault("SIGKILL at a random moment of an evaluation", KILLS, "listed as lost; done again, the same scores")
