"""status.json: what a run says of itself, and the list of all runs."""

import json
import os
import shutil
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


def test_a_process_is_looked_for_only_where_it_can_be_seen(tmp_path):
    here = status._machine()
    write(tmp_path / "container", machine=f"{here}x", pid=2**22 + 1)
    write(tmp_path / "quiet container", machine=f"{here}x", pid=os.getpid(), heartbeat=time.time() - 600)
    write(tmp_path / "another of its number", machine=here, born=1)
    write(tmp_path / "itself", machine=here, born=status._born(os.getpid()))
    runs, damaged = listing.collect(tmp_path)
    assert not damaged
    assert {run["run"].rpartition("/")[2]: run["state"] for run in runs} == {
        "container": "running",
        "quiet container": "stale",
        "another of its number": "lost",
        "itself": "running",
    }


def test_a_clock_that_is_ahead_does_not_keep_a_run_alive(tmp_path, capsys):
    write(tmp_path / "now", host="another-host", heartbeat=time.time() + 1e6)
    write(tmp_path / "long ago", host="another-host", heartbeat=time.time() + 1e6)
    os.utime(tmp_path / "long ago" / "status.json", (time.time() - 600,) * 2)
    assert [run["state"] for run in listing.collect(tmp_path)[0]] == ["stale", "running"]
    assert listing.main([str(tmp_path)]) == 0 and capsys.readouterr().out.count("clock ahead") == 2


@pytest.mark.parametrize("ending", [("finished", None), ("failed", "another experiment")])
def test_a_finished_run_that_is_started_again_stays_finished_with_its_numbers(tmp_path, ending):
    """There was nothing to do, or the start was refused."""
    status.start(tmp_path)
    (tmp_path / "last.pth").touch()
    status.saved(tmp_path / "last.pth", 12)
    status.note(state="running", step=12, total=12, epoch=3, loss=0.5, best=0.75)
    status.end("finished")
    before = values(tmp_path)
    status.start(tmp_path)
    status.note(step=12, total=12)
    status.end(*ending)
    assert values(tmp_path) == before


def test_an_evaluation_begins_anew_and_counts_without_writing(tmp_path):
    status.start(tmp_path, "test")
    status.note(state="running", step=5, total=5)
    status.note(mIoU=0.5)
    status.end("finished")
    before = values(tmp_path)
    assert (before["kind"], before["mIoU"]) == ("test", 0.5)
    status.start(tmp_path, "test")
    assert values(tmp_path) == before, "nothing is lost where the checkpoint is refused"
    status.note(state="running", total=5)
    status.count(3)
    assert [values(tmp_path)[key] for key in ("state", "step", "mIoU")] == ["running", 0, None]
    status.note()
    assert values(tmp_path)["step"] == 3
    status.start(tmp_path / "next", "test")  # by a program that calls the command twice
    assert values(tmp_path)["state"] == "running"


def test_evaluations_stand_in_the_line_of_their_run(tmp_path, capsys):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    run, here = tmp_path / "run", status._machine()
    write(run, state="finished")
    write(run / "result" / "val-whole", kind="test", state="finished", mIoU=0.625, started=1)
    write(run / "result" / "val-whole" / "part-0-1", kind="test", state="running", step=1, total=2, started=2)
    write(run / "result" / "val-semseg", kind="test", step=3, total=5, pid=gone.pid, machine=here, started=3)
    write(tmp_path / "file.result", kind="test", state="finished", mIoU=0.5, best=None, loss=None)
    write(tmp_path / "file.result" / "val-semseg", kind="test", machine=f"{here}x", pid=2**22 + 1, step=4, total=5)
    write(tmp_path / "other", state="failed", error="no data")
    write(tmp_path / "other" / "result" / "val-whole", kind="test", heartbeat=time.time() + 1e6, state="finished")
    write(run / "ablation")  # a run of its own
    assert listing.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4
    assert "val-semseg lost 3/5 (60%)" in next(line for line in lines if line.startswith(f"{run} "))
    assert "val-semseg running 4/5 (80%)" in next(line for line in lines if "file.result" in line)
    assert "val-whole finished 6/12 (50%)  no data" in next(line for line in lines if "other" in line)
    assert "none" in next(line for line in lines if "ablation" in line)
    listed = {row["run"]: row for row in listing.collect(tmp_path)[0]}
    assert [row["state"] for row in listed[str(run)]["evaluations"]] == ["finished", "running", "lost"]


def test_a_run_that_goes_on_tells_the_values_of_before_until_it_has_new_ones(tmp_path):
    status.start(tmp_path)
    status.note(state="running", step=12, total=12, loss=0.5, best=0.75)
    status.end("finished")
    status.start(tmp_path)
    status.note(state="running", total=24)
    now = values(tmp_path)
    assert (now["state"], now["step"], now["total"], now["best"], now["error"]) == ("running", 12, 24, 0.75, None)
    status.end("stopped")
    assert values(tmp_path)["state"] == "stopped"


def test_text_of_a_status_file_moves_no_cursor_and_makes_no_second_line(tmp_path, capsys):
    write(tmp_path / "a\x1b[2J\nb", state="failed", error="x\x1b]0;owned\x07\ny")
    assert listing.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and printed.count("\n") == 2 and "\\x1b]0;owned\\x07 y" in printed


@pytest.mark.parametrize(
    "content",
    [
        '{"state": "failed", "pid": 1, "heartbeat": NaN, "step": 2}',
        '{"state": "failed", "pid": 1, "heartbeat": 1e300, "step": 2}',
        '{"state": "failed", "pid": 1, "heartbeat": 1, "step": 2, "error": [1]}',
        '{"state": "failed", "pid": 1, "heartbeat": 1, "step": 2, "checkpoint": {"step": "x", "time": 1}}',
        '{"state": "failed", "pid": 1, "heartbeat": 1, "step": 2, "checkpoint": {"step": 1, "time": -Infinity}}',
        "",
        "{",
        "[]",
        '{"state": "flying"}',
        '{"state": "finished", "kind": ["test"], "pid": 1, "heartbeat": 1, "step": 2}',
        '{"state": "finished", "kind": "test", "pid": 1, "heartbeat": 1, "step": 2, "mIoU": "x"}',
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


def test_a_folder_that_is_removed_does_not_come_back(tmp_path, caplog):
    run = status.Status(tmp_path / "run", every=0.01)
    shutil.rmtree(tmp_path / "run")
    run.update(step=1)
    run.end("failed")
    assert not (tmp_path / "run").exists()
