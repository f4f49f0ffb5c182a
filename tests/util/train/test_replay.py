"""`tool.replay`: a loss that was not finite comes up again, and where it did is told."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

import model
from dataset.load.sampler import epoch_order
from tests.conftest import make_data, make_experiment
from tests.faults.runs import TOY
from tool import replay, train
from util import loss


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")


def failed(folder, data, **sections):
    """A run that stops; its message, and the record it left."""
    experiment = make_experiment(folder, data, model=TOY, **sections)
    with pytest.raises(FloatingPointError, match="not finite at step") as error:
        train.main(["--config", str(experiment), "--exp", str(folder / "run")])
    return str(error.value), re.search(r"tool.replay (\S+)", str(error.value)).group(1)


def replayed(file) -> str:
    with pytest.raises(FloatingPointError, match="reproduced") as error:
        replay.main([file])
    return str(error.value)


def step_of(text: str) -> int:
    return int(re.search(r"step (\d+)", text).group(1))


def test_from_the_initial_weights(tmp_path, data):
    """The first update throws the weights out; the second step computes with them. The log line comes later."""
    told, file = failed(tmp_path, data, optim={"lr": 1e38, "momentum": 0.0}, train={"log_every": 8})
    assert json.loads(Path(file).read_text())["checkpoint"] is None
    text = replayed(file)
    assert step_of(text) == step_of(told)
    names = re.search(r"samples: (.*?)\. ", told).group(1).split(", ")
    assert all(f"{name}: values " in text and "classes [" in text for name in names)
    assert re.search(r"first in rank 0: (backbone|head)\.\d \(\w+\): its input lies within", text)
    log = (tmp_path / "run" / "replay.log").read_text()
    assert "replaying steps 0 to" in log


def test_from_the_checkpoint_before_it(tmp_path, data):
    """An epoch at a sane rate is saved; what comes after it, at another, begins from there."""
    sections = {"model": TOY, "train": {"epochs": 3, "log_every": 3}}
    experiment = make_experiment(tmp_path, data, **sections)
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run"), "train.epochs=1"]) == 0
    told, file = failed(
        tmp_path, data, optim={"lr": 1e38, "momentum": 0.0}, train={"epochs": 3, "log_every": 3, "resume": "force"}
    )
    assert json.loads(Path(file).read_text())["checkpoint"] == "step_00000005.pth"
    assert step_of(replayed(file)) == step_of(told) == 5
    assert "replaying steps 4 to 5" in (tmp_path / "run" / "replay.log").read_text()


def test_a_label_that_the_loss_cannot_bear(tmp_path, monkeypatch):
    """It is that of the epoch's last picture; the checkpoint of the step before is where the replay begins."""
    data = make_data(tmp_path / "data")
    name = f"train_{epoch_order(0, 0, 16)[-1]:03}"
    cv2.imwrite(str(data / "label" / f"{name}.png"), np.full((64, 96), 2, np.uint8))
    original = loss.LOSSES["cross_entropy"]

    def fragile(logits, label, ignore_label=255, class_weights=None, label_smoothing=0.0, normaliser=None):
        value = original(logits, label, ignore_label, class_weights, label_smoothing, normaliser)
        return value * float("inf") if any(bool((one[one != ignore_label] == 2).all()) for one in label) else value

    monkeypatch.setitem(loss.LOSSES, "cross_entropy", fragile)
    told, file = failed(tmp_path, data, train={"save_steps": 1, "log_every": 4})
    assert step_of(told) == 3 and name in told
    assert json.loads(Path(file).read_text())["checkpoint"] == "step_00000003.pth"
    text = replayed(file)
    assert step_of(text) == 3 and "it came up in the loss itself" in text
    assert re.search(rf"{name}: values .*, classes \[2(, 255)?\]", text)
    monkeypatch.setitem(loss.LOSSES, "cross_entropy", original)
    assert replay.main([file]) == 0


def test_what_is_not_reproduced_is_said(tmp_path, data, capsys):
    _, file = failed(tmp_path, data, optim={"lr": 1e38, "momentum": 0.0})
    assert replay.main([file, "optim.lr=0.001"]) == 0
    assert "not reproduced" in (tmp_path / "run" / "replay.log").read_text()


def test_other_data_and_damaged_records_are_named(tmp_path):
    data = make_data(tmp_path / "data")
    _, file = failed(tmp_path, data, optim={"lr": 1e38, "momentum": 0.0})
    lines = (data / "train.txt").read_text().splitlines()
    (data / "train.txt").write_text("\n".join(lines[::-1]) + "\n")
    with pytest.raises(ValueError, match="the list file was changed"):
        replay.main([file])
    for content in ("", "[]", '{"step": 1}', '{"step": 1e400}', "[" * 100000):
        Path(file).write_text(content)
        with pytest.raises(ValueError, match=re.escape(file)):
            replay.main([file])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        replay.main(["nowhere.json"])
