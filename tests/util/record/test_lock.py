"""Two trainings cannot write into one folder; one that was killed is continued at once."""

import errno
import os
import shutil
import signal
import socket
import time

import psutil
import pytest

import model
from tests.conftest import make_experiment
from tests.faults.runs import CONTEXT, TOY, Run
from tool import test, train
from util.dist import signals
from util.record import lock

NAME = lock.NAMES["training"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")


def impatient(rank):
    lock.HERE = 0.3


def content(folder):
    """Every file of a run but what a test of it leaves."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != "test.log" and "result" not in path.parts}


def test_a_second_training_in_a_folder_is_refused_and_the_first_goes_on(tmp_path, data):
    """The first one stands still meanwhile, and its checkpoint may be scored."""
    experiment, folder = make_experiment(tmp_path, data, train={"epochs": 99}, model=TOY), tmp_path / "run"
    first = Run(experiment, folder)
    first.until((folder / "model" / "last.pth").exists)
    first.signal(signal.SIGSTOP)
    first.until(lambda: psutil.Process(first.processes[0].pid).status() == psutil.STATUS_STOPPED)
    before = content(folder)
    (tmp_path / "same").symlink_to(folder)
    second = Run(experiment, tmp_path / "same", world=2, before=impatient)
    try:
        assert test.main(["--config", str(experiment), "--exp", str(folder)]) == 0
        assert second.wait() == [2, 2] and second.output().count("another training is under way") == 1, second.output()
        assert content(folder) == before
    finally:
        first.signal(signal.SIGTERM)
        first.signal(signal.SIGCONT)
        ended = first.wait()
    assert ended == [signals.PREEMPTED], first.output()


def hold(folder, pipe):
    """Takes the folder, forks a process as a loader does, tells both numbers, and waits to be killed."""
    lock.take(folder)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    pipe.send((os.getpid(), child))
    time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder tmp_path, and one that it has forked: their numbers."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    numbers = ours.recv()
    yield numbers
    process.kill()
    process.join()
    os.kill(numbers[1], signal.SIGKILL)


def test_the_message_names_the_folder_and_who_has_it_and_what_to_do(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "HERE", 0.3)
    with pytest.raises(ValueError, match="--exp OTHER_FOLDER") as error:
        lock.take(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert f"process {holder[0]} on {socket.gethostname()}, since 20" in str(error.value)


def test_the_folder_is_free_once_its_holder_is_killed_whatever_it_has_forked(tmp_path, holder):
    os.kill(holder[0], signal.SIGKILL)
    assert lock.take(tmp_path) is None
    os.kill(holder[1], 0)  # is still there
    assert f"process {os.getpid()} " in (tmp_path / NAME).read_text()


def test_an_evaluation_in_a_folder_that_another_has_is_refused(tmp_path, monkeypatch):
    first = CONTEXT.Process(target=hold_result, args=(tmp_path, ready := CONTEXT.Event()))
    first.start()
    assert ready.wait(60)
    monkeypatch.setattr(lock, "HERE", 0.3)
    try:
        with pytest.raises(ValueError, match="another evaluation is under way .* --exp OTHER_FOLDER"):
            lock.take(tmp_path, "evaluation")
        assert lock.take(tmp_path) is None  # a training of the folder is another thing
    finally:
        first.kill()
        first.join()
    assert lock.take(tmp_path, "evaluation") is None


def hold_result(folder, ready):
    lock.take(folder, "evaluation")
    ready.set()
    time.sleep(60)


def test_a_holder_on_another_machine_is_waited_for_longer(tmp_path, holder, monkeypatch):
    """A file server keeps the locks of a machine that is lost for a while."""
    (tmp_path / NAME).write_text("process 7 on another-host, since 2026-01-01 00:00:00 UTC\n")
    tries, locked = [], lock._locked
    monkeypatch.setattr(lock, "_locked", lambda number: tries.append(number) or locked(number))
    monkeypatch.setattr(lock, "HERE", 0.0)
    monkeypatch.setattr(lock, "ELSEWHERE", 0.3)
    with pytest.raises(ValueError, match="process 7 on another-host"):
        lock.take(tmp_path)
    assert len(tries) > 1


def test_a_file_system_without_locks_is_told_once_and_the_run_goes_on(tmp_path, data, monkeypatch):
    def refuse(number, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    experiment = make_experiment(tmp_path, data, train={"epochs": 1}, model=TOY)
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "train.log").read_text().count("its file system has no locks") == 1


def test_another_error_of_the_system_is_raised(tmp_path, monkeypatch):
    def fail(number, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock.fcntl, "lockf", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        lock.take(tmp_path)


def test_a_process_may_take_its_folder_again_and_another_one(tmp_path):
    assert lock.take(tmp_path / "one") is lock.take(tmp_path / "one") is lock.take(tmp_path / "two") is None


@pytest.mark.parametrize("how", ["removed", "replaced", "folder removed"])
def test_who_has_a_lock_that_is_no_longer_the_folders_ends_and_says_so(tmp_path, how):
    """Else two trainings delete each other's checkpoints."""
    folder = tmp_path / "run"
    first, second = lock.FolderLock(), lock.FolderLock()
    first.take(folder)
    first.check()
    if how == "folder removed":
        shutil.rmtree(folder)
    else:
        (folder / NAME).unlink()
    if how == "replaced":
        assert second.take(folder) is None
        second.check()
    with pytest.raises(ValueError, match="run.lock was removed or replaced under this training"):
        first.check()


def test_a_lock_that_is_replaced_while_it_is_waited_for_is_taken_anew(tmp_path, monkeypatch):
    wait, again = lock._wait, []

    def replaced(number, folder, what):
        wait(number, folder, what)
        if not again:
            again.append((folder / NAME).unlink())

    monkeypatch.setattr(lock, "_wait", replaced)
    mine = lock.FolderLock()
    assert mine.take(tmp_path) is None and again
    mine.check()


def test_no_lock_is_taken_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="run.lock: not a file"):
        lock.take(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_training_whose_lock_is_removed_saves_nothing_more(tmp_path, data):
    experiment = make_experiment(tmp_path, data, train={"epochs": 99}, model=TOY)
    first = Run(experiment, tmp_path / "run")
    first.until((tmp_path / "run" / "model" / "epoch_0001.json").exists)
    (tmp_path / "run" / NAME).unlink()
    assert first.wait() == [2] and first.output().count("was removed or replaced") == 1, first.output()
