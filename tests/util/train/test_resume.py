"""What a continued run is, beside the weights: the log, the best score, the data it may continue with."""

import random

import numpy as np
import pytest
import torch

import model
from tests.conftest import make_data, make_experiment
from tests.faults.runs import TOY, final, same
from tests.faults.toy import Toy
from tool import train
from util import checkpoint
from util.config.check import AUGMENT, LOADER
from util.config.load import load
from util.train import random_state, resume


class Killed(BaseException):
    """Ends a run in this process where a kill would."""


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")


def run(experiment, folder, *overrides) -> dict:
    assert train.main(["--config", str(experiment), "--exp", str(folder), *overrides]) == 0
    return final(folder)


def killed(monkeypatch, name, count, experiment, folder, *overrides):
    """A run that ends at the `count`-th call of `tool.train.<name>`, before it does anything."""
    original, left = getattr(train, name), count

    def counted(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, name, counted)
        run(experiment, folder, *overrides)


def without_dropout(num_classes, backbone=None, dropout=0.0):
    return Toy(num_classes, dropout=0.0)


SETTINGS = {
    "plain": {},
    "uniform": {"loader": {"uniform": 0.5}},
    "ema, accumulate": {"train": {"ema": 0.9, "accumulate": 2}},
    "fp16": {"train": {"amp": "fp16"}},
    "adamw": {"optim": {"name": "adamw", "lr": 0.001, "warmup_iters": 3, "clip_grad": 1.0}},
}


def small(folder, data, /, **sections):
    rest = {"epochs": 3, "save_steps": 3, "log_every": 4} | sections.pop("train", {})
    return make_experiment(folder, data, model=TOY, train=rest, **sections)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_killed_inside_an_epoch_ends_in_the_same_state(tmp_path, data, monkeypatch, name):
    experiment = small(tmp_path, data, **SETTINGS[name])
    whole = run(experiment, tmp_path / "whole")
    killed(monkeypatch, "save", 4, experiment, tmp_path / "run")  # saves after steps 3, 4 (the epoch), 6
    assert final(tmp_path / "run")["step"] == 6
    assert same(run(experiment, tmp_path / "run"), whole)


def test_the_log_lines_of_a_continued_run_are_those_of_an_uninterrupted_one(tmp_path, data, monkeypatch):
    """The mean since the last line counts steps before and after the kill."""
    experiment = small(tmp_path, data, train={"save_steps": 5, "log_every": 8, "val_every": 0, "epochs": 4})

    def lines(folder):
        return [
            line.split(" lr ")[0].split(" ", 1)[1]
            for line in (folder / "train.log").read_text().splitlines()
            if " step 8/" in line
        ]

    run(experiment, tmp_path / "whole")
    killed(monkeypatch, "end_epoch", 2, experiment, tmp_path / "run")  # after step 8, of which 5 are saved
    run(experiment, tmp_path / "run")
    assert lines(tmp_path / "run") == 2 * lines(tmp_path / "whole") != []


@pytest.mark.parametrize("point, count", [("validate", 2), ("save", 5)], ids=["before", "after"])
def test_a_kill_around_a_validation_neither_loses_nor_repeats_its_effect(tmp_path, data, monkeypatch, point, count):
    """Before: save_steps has saved the epoch's last step, only the validation is done again. After: the score was
    never saved, and is found again."""
    experiment = small(tmp_path, data, train={"save_steps": 4})
    whole = run(experiment, tmp_path / "whole")
    killed(monkeypatch, point, count, experiment, tmp_path / "run")
    assert same(run(experiment, tmp_path / "run"), whole)
    best = [checkpoint.load(tmp_path / name / "model" / "best.pth") for name in ("run", "whole")]
    assert same(best[0]["model"], best[1]["model"]) and best[0]["step"] == best[1]["step"]
    histories = [(tmp_path / name / "history.csv").read_text() for name in ("run", "whole")]
    assert histories[0] == histories[1] and len(histories[0].splitlines()) == 1 + whole["epoch"]


def test_the_random_streams_are_continued():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    device = torch.device("cpu")
    random_state.seed(3)
    np.random.randn()  # leaves half a pair of normal numbers behind
    draw()
    state = random_state.state(device)
    expected = [draw(), float(np.random.randn())]
    random_state.seed(4)
    random_state.restore(state, device)
    assert [draw(), float(np.random.randn())] == expected


def test_a_random_state_can_be_saved_and_read_without_executing_anything(tmp_path):
    state = random_state.state(torch.device("cpu"))
    checkpoint.save(tmp_path / "state.pth", {"random": state})
    assert same(checkpoint.load(tmp_path / "state.pth")["random"], state)


CHANGES = {
    "a picture less": (lambda data: cut_list(data / "train.txt"), "train list 16 -> 15 pictures"),
    "another order": (lambda data: turn_list(data / "train.txt"), "train list: other pictures or another order"),
    "another validation": (lambda data: cut_list(data / "val.txt"), "val list 5 -> 4 pictures"),
}


def cut_list(path):
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def turn_list(path):
    path.write_text("\n".join(path.read_text().splitlines()[::-1]) + "\n")


@pytest.mark.parametrize("name", CHANGES)
def test_other_data_is_refused_by_what_changed_unless_forced(tmp_path, name):
    data = make_data(tmp_path / "data")
    experiment = small(tmp_path, data)
    run(experiment, tmp_path / "run")
    change, told = CHANGES[name]
    change(data)
    with pytest.raises(ValueError, match="train.resume=force") as error:
        run(experiment, tmp_path / "run", "train.epochs=4")
    assert told in str(error.value)
    assert run(experiment, tmp_path / "run", "train.epochs=4", "train.resume=force")["epoch"] == 4


def test_another_label_map_is_refused(tmp_path, data):
    experiment = small(tmp_path, data)
    run(experiment, tmp_path / "run")
    changed = "data.label_map={0: 1, 1: 0, 2: 2}"
    with pytest.raises(ValueError, match=r"data\.label_map .*label map of the train list"):
        run(experiment, tmp_path / "run", changed)


def test_moved_data_is_the_same_data(tmp_path):
    data = make_data(tmp_path / "data")
    experiment = small(tmp_path, data)
    run(experiment, tmp_path / "run")
    data.rename(tmp_path / "moved")
    assert run(experiment, tmp_path / "run", f"data.root={tmp_path}/moved", "train.epochs=4")["epoch"] == 4


def test_a_run_of_the_version_before_the_section_augment_is_the_same_run(tmp_path, data):
    config = load(small(tmp_path, data)).config
    earlier = config.model_dump(mode="json")
    sections = earlier.pop("augment") | earlier.pop("loader")
    earlier["data"] |= {key: sections[key] for key in (*AUGMENT, *LOADER)}  # the keys that there were
    state = {"model": {}, "spec": {}, "config": earlier, "classes": ["a"], "data": {}, "ranks": []}
    resume.refuse_changes(state, config, "last.pth", resume.Data(("a",), [], {}))
    earlier["data"]["crop"] = [8, 8]
    with pytest.raises(ValueError, match=r"augment.crop \[8, 8\] -> \[48, 64\]"):
        resume.refuse_changes(state, config, "last.pth", resume.Data(("a",), [], {}))


def test_a_forced_change_of_the_rate_takes_effect(tmp_path, data, monkeypatch):
    experiment = small(tmp_path, data)
    killed(monkeypatch, "save", 3, experiment, tmp_path / "run")
    run(experiment, tmp_path / "run", "optim.lr=0.5", "train.resume=force")
    text = (tmp_path / "run" / "train.log").read_text()
    assert "continuing all the same with optim.lr 0.01 -> 0.5" in text
    rates = [float(line.split(" lr ")[1].split()[0]) for line in text.splitlines() if " step 8/12" in line]
    assert rates == [pytest.approx(0.5 * (1 - 8 / 12) ** 0.9, rel=0.01)]


@pytest.mark.parametrize("settings", [{}, {"name": "adamw"}], ids=["sgd", "adamw"])
@pytest.mark.parametrize("before", [True, False])
def test_a_change_of_the_memory_format_changes_rounding_alone(tmp_path, data, monkeypatch, before, settings):
    """Momentum is that of the same weights as before, though both lie in another order."""
    optim = {"optim": {"lr": 0.001} | settings}
    experiment = small(tmp_path, data, train={"channels_last": before}, **optim)
    # Dropout would be drawn in the order of the memory.
    monkeypatch.setitem(model.MODELS, "toy", "tests.util.train.test_resume.without_dropout")
    whole = run(experiment, tmp_path / "whole")
    killed(monkeypatch, "save", 4, experiment, tmp_path / "run")
    resumed = run(experiment, tmp_path / "run", f"train.channels_last={not before}")
    weights = {name: value for name, value in whole["model"].items() if value.ndim == 4}
    for name, value in weights.items():  # the gradient of a bias before a norm is nothing but rounding
        assert torch.allclose(resumed["model"][name], value, atol=1e-4), name


def test_only_deterministic_operations_where_that_is_asked_for(tmp_path, data):
    experiment = small(tmp_path, data)
    plain = run(experiment, tmp_path / "plain")
    assert same(run(experiment, tmp_path / "run", "train.deterministic=true"), plain)
    assert torch.are_deterministic_algorithms_enabled()
    run(experiment, tmp_path / "run")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
def test_on_a_gpu_a_continued_run_has_the_same_streams_and_close_weights(tmp_path, data, monkeypatch):
    experiment = small(tmp_path, data, optim={"lr": 1e-4})  # steps that do not multiply what sums in any order round
    whole = run(experiment, tmp_path / "whole")
    killed(monkeypatch, "save", 4, experiment, tmp_path / "run")
    resumed = run(experiment, tmp_path / "run")
    for key in ("step", "epoch", "schedule", "scaler"):
        assert resumed[key] == whole[key]
    assert same(resumed["ranks"][0]["random"], whole["ranks"][0]["random"])
    for name, value in whole["model"].items():
        assert torch.allclose(resumed["model"][name].float(), value.float(), atol=1e-3), name


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"},
        {"step": 10**18},
        {"epoch": -1},
        {"epoch": 99},
        {"best": float("nan")},
        {"best": "x"},
        {"optimizer": {"state": 5}},
        {"ranks": 5},
        {"ranks": [{"random": 5, "window": []}]},
        {"losses": 5},
        {"data": [1]},
        {"data": {"train": 5}},
        {"classes": None},
        {"config": {"data": [1]}},
    ],
    ids=str,
)
def test_a_checkpoint_without_manifest_that_contradicts_itself_is_refused_by_name(stopped, tmp_path, change):
    """Its own checksums are right: somebody has written it so."""
    experiment, state = stopped
    file = tmp_path / "run" / "model" / "last.pth"
    file.parent.mkdir(parents=True)
    torch.save(state | change, file)
    with pytest.raises(ValueError, match=str(file)):
        run(experiment, tmp_path / "run")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data):
    """An experiment, and the state after the first of its two epochs."""
    folder = tmp_path_factory.mktemp("stopped")
    experiment = make_experiment(folder, data, model=TOY, train={"val_every": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
        run(experiment, folder / "run", "train.epochs=1")
    return experiment, checkpoint.load(folder / "run" / "model" / "last.pth")
