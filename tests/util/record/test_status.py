"""status.json: what a run says of itself, and the list of all runs."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from tool import status as listing
from util.record import status


@pytest.fixture(autouse=True)
def no_run():
    yield
    status.end("finished")


def values(folder):
    return json.loads((folder / "status.json").read_text())


def test_a_run_from_start_to_end(tmp_path):
    status.start(tmp_path / "run")
    assert values(tmp_path / "run")["state"] == "starting"
    status.note(state="running", step=3, total=12, loss=0.5)
    (tmp_path / "last.pth").touch()
    status.saved(tmp_path / "last.pth", 3)
    now = values(tmp_path / "run")
    assert (now["state"], now["step"], now["total"], now["loss"]) == ("running", 3, 12, 0.5)
    assert now["checkpoint"]["step"] == 3 and now["pid"] == os.getpid() and now["host"] == socket.gethostname()
    status.end("failed", "the disk is full")
    ended = values(tmp_path / "run")
    assert (ended["state"], ended["error"], ended["step"]) == ("failed", "the disk is full", 3)
    status.note(state="running")
    assert values(tmp_path / "run") == ended, "nothing is written after the end"


def test_an_error_of_several_lines_is_one_line_of_the_list(tmp_path, capsys):
    status.start(tmp_path / "run")
    status.end("failed", "train.txt: 2 samples cannot be used:\n  a.png: empty\n  b.png: empty")
    assert listing.main([str(tmp_path)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert row.endswith("2 samples cannot be used: a.png: empty b.png: empty")


def test_the_heart_beats_while_a_step_is_slow(tmp_path):
    run = status.Status(tmp_path, every=0.02)
    first = values(tmp_path)
    end = time.monotonic() + 20
    while values(tmp_path)["heartbeat"] <= first["heartbeat"]:
        assert time.monotonic() < end
    assert values(tmp_path)["progress"] == first["progress"]
    run.end("finished")


def test_a_reader_never_sees_half_a_file(tmp_path):
    run = status.Status(tmp_path, every=0.001)
    for step in range(300):
        run.update(step=step, error="x" * 5000)
        assert values(tmp_path)["step"] == step
    run.end("finished")
    assert os.listdir(tmp_path) == ["status.json"]


def test_a_disk_that_cannot_be_written_does_not_end_the_run(tmp_path, monkeypatch):
    run = status.Status(tmp_path)

    def full(*_):
        raise OSError(28, "no space left")

    monkeypatch.setattr(status.os, "replace", full)
    run.update(step=5)
    monkeypatch.undo()
    run.end("finished")
    assert values(tmp_path)["state"] == "finished"


def write(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    base = {
        "state": "running",
        "step": 6,
        "total": 12,
        "loss": 0.25,
        "best": 0.5,
        "speed": 8.0,
        "checkpoint": None,
        "error": None,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "heartbeat": time.time(),
    }
    (folder / "status.json").write_text(json.dumps(base | changes))


def test_who_is_running_and_who_only_says_so(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write(tmp_path / "alive")
    write(tmp_path / "killed", pid=gone.pid)
    write(tmp_path / "elsewhere", host="another-host", pid=gone.pid)
    write(tmp_path / "silent", host="another-host", heartbeat=time.time() - 600)
    write(tmp_path / "ended", state="failed", pid=gone.pid, heartbeat=0, error="the loss is not finite")
    runs, damaged = listing.collect(tmp_path)
    assert not damaged
    assert {run["run"].rpartition("/")[2]: run["state"] for run in runs} == {
        "alive": "running",
        "killed": "lost",
        "elsewhere": "running",
        "silent": "stale",
        "ended": "failed",
    }


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"state": "flying"}',
        '{"state": "running"}',
        "\x00\xff",
        '{"state": "running", "pid": "x", "heartbeat": 1, "step": 2}',
        '{"state": "failed", "pid": 1, "heartbeat": 1, "step": 2, "checkpoint": 7}',
        '{"state": "failed", "pid": 1, "heartbeat": 1, "step": 2, "loss": "x"}',
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_listed(tmp_path, capsys, content):
    write(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "status.json").write_text(content)
    assert listing.main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert str(tmp_path / "bad" / "status.json") in printed.err and "damaged" in printed.err
    assert "6/12 (50%)" in printed.out and "0.2500" in printed.out


def test_the_list_as_json(tmp_path, capsys):
    write(tmp_path / "run")
    assert listing.main([str(tmp_path), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run["run"] == str(tmp_path / "run") and run["state"] == "running"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        listing.main([str(tmp_path / "nowhere")])
