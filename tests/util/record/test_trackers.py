"""Trackers: what a run sends arrives, and whatever happens to a tracker the run goes on."""

import importlib.util
import json
import os
import signal
import struct
import sys
import time

import numpy as np
import pytest

from tests.conftest import failure, make_experiment
from tool import train
from util import UserError
from util.record import trackers
from util.record.trackers import Tracker, check_installed

ABOUT = {"project": "segmentation", "title": "camvid_fcn18", "config": {"seed": 3, "optim": {"lr": 0.5}}}
PICTURE = np.full((30, 2100, 3), (250, 120, 10), np.uint8)
# A package in the place of MLflow, which notes what it is asked for in a file.
STAND_IN = """
import json, os, sys, time
def note(*what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(what, default=str) + "\\n")
class Run:
    class info:
        run_id = "abc"
def set_experiment(name): note("experiment", name)
def start_run(run_id, run_name):
    note("start", run_id, run_name, os.getpid())
    return Run
def log_params(values): note("params", values)
def log_metric(name, value, step):
    note("metric", name, value, step)
    {body}
def log_image(picture, file): note("image", file, picture.size, picture.getpixel((5, 5)))
def end_run(status): note("end", status)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Writes the package, with what it does when a number comes; gives its notes."""

    def write(body="pass"):
        (tmp_path / "packages" / "mlflow").mkdir(parents=True)
        (tmp_path / "packages" / "mlflow" / "__init__.py").write_text(STAND_IN.replace("{body}", body))
        monkeypatch.syspath_prepend(str(tmp_path / "packages"))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
        monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
        for name in ("mlflow", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
            monkeypatch.delitem(sys.modules, name, raising=False)
            monkeypatch.delenv(name, raising=False)

        def notes():
            return [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]

        return notes

    return write


@pytest.fixture
def warnings(monkeypatch, caplog):
    monkeypatch.setattr(trackers.log, "propagate", True)
    # Those of a tracker: a training of an earlier test in this process may still miss its folder.
    said = "train.trackers: "
    return lambda: [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and said in r.getMessage()]


def test_what_is_sent_arrives_in_order(tmp_path, stand_in, warnings):
    notes = stand_in()
    tracker = Tracker("mlflow", tmp_path, ABOUT)
    tracker.add_scalar("IoU/a & b", 0.25, 7)
    tracker.add_image("val/x", PICTURE, 8)
    tracker.close()
    assert warnings() == []
    first, start, params, metric, image, end = notes()
    assert first == ["experiment", "segmentation"] and start[:3] == ["start", None, "camvid_fcn18"]
    assert params == ["params", {"seed": "3", "optim.lr": "0.5"}]
    assert metric == ["metric", "IoU/a _ b", 0.25, 7] and end == ["end", "FINISHED"]
    assert image[:3] == ["image", "val/x/00000008.png", [1024, 15]]
    assert np.abs(np.subtract(image[3], PICTURE[0, 0])).max() < 8  # R, G, B, as JPEG keeps them
    assert start[3] != os.getpid()


def test_a_continued_run_is_the_same_there(tmp_path, stand_in):
    notes = stand_in()
    for continued in (False, True, False):
        Tracker("mlflow", tmp_path, ABOUT, continued).close()
    assert [note[1] for note in notes() if note[0] == "start"] == [None, "abc", None]
    assert [note[0] for note in notes()].count("params") == 2


def test_a_killed_training_has_failed_there(tmp_path, stand_in):
    notes = stand_in()
    tracker = Tracker("mlflow", tmp_path, ABOUT)
    tracker.add_scalar("loss", 1.0, 1)
    os.close(os.dup2(tracker._pipe, os.dup(tracker._pipe)))  # the training's end of the pipe goes with it
    tracker._process.stdin.close()
    tracker._process.wait()
    assert notes()[-1] == ["end", "FAILED"]


def test_a_training_killed_within_a_line_has_failed_there(tmp_path, stand_in):
    notes = stand_in()
    tracker = Tracker("mlflow", tmp_path, ABOUT)
    tracker.add_scalar("loss", 1.0, 1)
    os.write(tracker._pipe, b'{"image": ["val/x", "/9j/4AAQ')
    tracker._process.stdin.close()
    assert tracker._process.wait() == 0
    assert [note[0] for note in notes()][-2:] == ["metric", "end"] and notes()[-1] == ["end", "FAILED"]


def test_a_run_continued_while_its_tracker_still_starts_is_the_same_there(tmp_path, stand_in):
    notes = stand_in()
    slow = tmp_path / "packages" / "mlflow" / "__init__.py"
    text = slow.read_text()
    slow.write_text(f"import time\ntime.sleep(2)\n{text}")
    first = Tracker("mlflow", tmp_path, ABOUT)
    first._process.stdin.close()  # killed
    while first._process.poll() is None and not (tmp_path / "tracker_mlflow.lock").exists():
        time.sleep(0.01)
    slow.write_text(text)
    Tracker("mlflow", tmp_path, ABOUT, continued=True).close()
    assert [note[1] for note in notes() if note[0] == "start"] == [None, "abc"]


@pytest.mark.parametrize("body", ["raise RuntimeError('no such server')", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_tracker_that_fails_is_one_warning(tmp_path, stand_in, warnings, body):
    stand_in(body)
    tracker = Tracker("mlflow", tmp_path, ABOUT)
    for step in range(200):
        tracker.add_scalar("loss", 1.0, step)
        time.sleep(0.02 if tracker._process else 0)
    tracker.close()
    (told,) = warnings()
    assert told.startswith("train.trackers: mlflow ended (") and "goes on without it" in told
    assert ("RuntimeError: no such server" in told) == ("raise" in body)


def test_a_tracker_that_reads_no_more_and_stays_is_ended(tmp_path, stand_in, warnings, monkeypatch):
    stand_in("os.close(0); time.sleep(600)")
    monkeypatch.setattr(trackers, "ENDING", 0.2)
    tracker = Tracker("mlflow", tmp_path, ABOUT)
    while tracker._process:
        tracker.add_scalar("loss", 1.0, 0)
        time.sleep(0.02)
    tracker.close()
    (told,) = warnings()
    assert told.startswith("train.trackers: mlflow ended (") and "goes on without it" in told


def test_a_tracker_that_hangs_holds_up_nothing(tmp_path, stand_in, warnings, monkeypatch):
    """What waits is bounded, one warning tells of gaps, and the end waits only so long."""
    notes = stand_in("time.sleep(1000)")
    monkeypatch.setattr(trackers, "WAITING", 10_000)
    monkeypatch.setattr(trackers, "PATIENCE", 0.5)
    tracker = Tracker("mlflow", tmp_path, ABOUT)
    for step in range(20_000):
        tracker.add_scalar("loss", 1.0, step)
        assert len(tracker._waiting) <= 10_000
    process = tracker._process
    tracker.close()
    gaps, sending = warnings()
    assert "gaps" in gaps and "still sending" in sending
    while not any(note[0] == "metric" for note in notes()):
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.fast
def test_an_absent_package_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed: python -m pip install wandb"):
        check_installed(["wandb"])
    check_installed([])


@pytest.mark.fast
def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    """wandb leaves one where it was called."""
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match="mlflow is not installed"):
        check_installed(["mlflow"])


def test_a_training_says_so_before_its_first_step(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    experiment = make_experiment(tmp_path, data, train={"trackers": ["mlflow"]})
    told = failure(capsys, train.main, ["--config", str(experiment), "--exp", str(tmp_path / "run")])
    assert "mlflow is not installed" in told and not (tmp_path / "run" / "train.log").exists()


def test_a_training_sends_losses_scores_and_pictures(tmp_path, data, stand_in):
    notes = stand_in()
    experiment = make_experiment(tmp_path, data, train={"trackers": ["mlflow"]})
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
    found = notes()
    names = {note[1] for note in found if note[0] == "metric"}
    assert {"train/loss", "val/mIoU", "val/loss", "IoU/sky"} <= names
    assert [note for note in found if note[0] == "image"] and found[-1] == ["end", "FINISHED"]


def wandb_records(content: bytes) -> list[bytes]:
    """The records of a .wandb file: LevelDB's log format behind 7 bytes, in blocks of 32 KiB."""
    found, place, part = [], 7, b""
    while place + 7 <= len(content):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        part += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole one, or the last part
            found, part = [*found, part], b""
    return found


def test_wandb_itself_offline(tmp_path, monkeypatch, warnings):
    """The file that it leaves for `wandb sync`."""
    pytest.importorskip("wandb", reason="python -m pip install -e .[trackers]")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    tracker = Tracker("wandb", tmp_path, ABOUT)
    tracker.add_scalar("val/mIoU", 0.25, 7)
    tracker.add_image("val/x", PICTURE, 8)
    tracker.close()
    assert warnings() == []
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = [wandb_internal_pb2.Record.FromString(record) for record in wandb_records(file.read_bytes())]
    (run,) = (record.run for record in records if record.HasField("run") and record.run.display_name)
    assert (run.project, run.display_name) == ("segmentation", "camvid_fcn18")
    assert run.run_id == json.loads((tmp_path / "tracker_wandb.json").read_text())["run"]
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert any(row.get("val/mIoU") == 0.25 and row["step"] == 7 for row in rows)
    assert any(row["step"] == 8 and any(name.startswith("val/x") for name in row) for row in rows)
    assert next(record.exit.exit_code for record in records if record.HasField("exit")) == 0


def test_mlflow_itself_in_a_folder(tmp_path, monkeypatch, warnings):
    pytest.importorskip("mlflow", reason="python -m pip install -e .[trackers]")
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path / 'runs.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.chdir(tmp_path)
    for continued in (False, True):
        tracker = Tracker("mlflow", tmp_path, ABOUT, continued)
        tracker.add_scalar("val/mIoU", 0.25, 7)
        tracker.add_image("val/x", PICTURE, 8)
        tracker.close()
    assert warnings() == []
    client = MlflowClient(address)
    (experiment,) = (each for each in client.search_experiments() if each.name == "segmentation")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"val/mIoU": 0.25} and run.data.params["optim.lr"] == "0.5"
    assert run.info.status == "FINISHED" and run.info.run_name == "camvid_fcn18"
    assert client.get_metric_history(run.info.run_id, "val/mIoU")[0].step == 7
    assert [file.path for file in client.list_artifacts(run.info.run_id, "val/x")] == ["val/x/00000008.png"]
