"""A run's folder that others write too: links, pipes and folders in place of its files."""

import os
import shutil

import pytest

import model
from tests.conftest import make_experiment
from tests.faults.runs import TOY
from tool import test, train
from tool.shared import cli


@pytest.fixture
def run(tmp_path, data, monkeypatch):
    """run(*overrides): trains a toy in tmp_path/run; the exit status, and a file that nobody may touch."""
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    experiment = make_experiment(tmp_path, data, train={"epochs": 1, "val_every": 0}, model=TOY)
    (tmp_path / "precious").write_text("mine")

    def start(*overrides: str, command=train) -> int:
        arguments = ["--config", str(experiment), "--exp", str(tmp_path / "run"), *overrides]
        with pytest.raises(SystemExit) as ended:
            cli.command(lambda: command.main(arguments))
        return ended.value.code

    yield start
    assert (tmp_path / "precious").read_text() == "mine"


FILES = ("train.log", "run.lock", "status.json", "config.yaml", "env.json", "check_train.json", "model/last.pth")
STRANGE = {
    "a link": lambda path: path.symlink_to(path.parents[2 if path.parent.name == "model" else 1] / "precious"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
}


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize("name", FILES)
def test_what_stands_in_place_of_a_file_is_replaced_or_named(tmp_path, run, capsys, name, what):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    STRANGE[what](path)
    code = run()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    if code:
        assert code == 2 and printed.err.count("error: ") == 1 and path.name in printed.err
        assert os.path.lexists(path), "what is refused stays"
    else:
        assert (tmp_path / "run" / "model" / "last.pth").is_file()


@pytest.mark.parametrize("name", ["model", "replay"])
def test_a_link_in_place_of_a_folder_is_named_and_not_followed(tmp_path, run, capsys, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")  # what the user has named may be one
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    assert run() == 2 and f"run/{name}: a symbolic link" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "elsewhere")
    (tmp_path / "run" / name).unlink()
    assert run() == 0 and (tmp_path / "real" / "model" / "last.pth").is_file()


@pytest.mark.parametrize("name", ["result", "result/val-whole", "result/val-whole/gray", "result/val-whole/color/deep"])
def test_a_result_is_not_written_through_a_link(tmp_path, run, capsys, name):
    assert run() == 0
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    assert run(command=test) == 2 and f"{link}: a symbolic link" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "elsewhere")
    link.unlink()
    assert run(command=test) == 0


def test_the_result_of_a_named_checkpoint_is_not_written_through_a_link(tmp_path, run, data, capsys):
    assert run() == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file.result").symlink_to(tmp_path / "elsewhere")
    shutil.copy(tmp_path / "run" / "model" / "last.pth", tmp_path / "file.pth")
    with pytest.raises(SystemExit) as ended:
        cli.command(lambda: test.main(["--checkpoint", str(tmp_path / "file.pth")]))
    assert ended.value.code == 2 and "file.result: a symbolic link" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "elsewhere")


RESULTS = ("status.json", "test.lock", "metrics.json", "config.yaml", "gray/image/val_1000.png", "report.html")


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.parametrize("name", RESULTS)
def test_what_stands_in_place_of_a_file_of_a_result_is_replaced_or_named(tmp_path, run, capsys, name, what):
    assert run() == 0
    path = tmp_path / "run" / "result" / "val-whole" / name
    path.parent.mkdir(parents=True)
    if what == "a link":
        path.symlink_to(tmp_path / "precious")
    else:
        STRANGE[what](path)
    code = run(command=test)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert code == 0 or (code == 2 and printed.err.count("error: ") == 1 and path.name in printed.err)


def test_a_file_in_place_of_the_folder_of_checkpoints_is_named(tmp_path, run, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").write_text("x")
    assert run() == 2 and "run/model" in capsys.readouterr().err


def test_a_finished_run_that_is_started_again_keeps_its_numbers(tmp_path, run):
    assert run() == 0
    before = (tmp_path / "run" / "status.json").read_text()
    assert run() == 0 and (tmp_path / "run" / "status.json").read_text() == before
    assert run("train.batch_size=8") == 2, "another experiment is refused"
    assert (tmp_path / "run" / "status.json").read_text() == before
    assert run("train.epochs=2") == 0 and '"step": 8' in (tmp_path / "run" / "status.json").read_text()


def test_a_lone_checkpoint_of_another_machine_is_continued(tmp_path, run, capsys):
    assert run() == 0
    last = (tmp_path / "run" / "model" / "last.pth").read_bytes()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "last.pth").write_bytes(last)
    assert run("train.epochs=2") == 0
    assert "its own checksums are right" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "last.pth.kept").read_bytes() == last
