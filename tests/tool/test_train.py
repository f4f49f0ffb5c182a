"""Training on a small data set: it learns, it repeats, it continues, and it stops when it should."""

import json
import math

import pytest
import torch

import model
from tests.conftest import failure, make_experiment
from tests.faults.runs import TOY, same
from tool import test, train
from tool.bench.infer import trained_network
from tool.shared.network import load_initial_weights, network_of, rebuild
from util import checkpoint
from util.config.load import load
from util.record.files import sha256
from util.train import loop


def run(experiment, folder, *overrides):
    assert train.main(["--config", str(experiment), "--exp", str(folder), *overrides]) == 0
    return checkpoint.load(folder / "model" / "last.pth")


def run_to_first_checkpoint(experiment, folder):
    """A run that is killed right after it has written its first checkpoint."""

    class Killed(Exception):
        pass

    def save_then_die(*args, **options):
        original(*args, **options)
        raise Killed

    original, train.save = train.save, save_then_die
    try:
        with pytest.raises(Killed):
            run(experiment, folder)
    finally:
        train.save = original


def logged_losses(folder):
    lines = (folder / "train.log").read_text().splitlines()
    return [float(line.split(" loss ")[1].split()[0]) for line in lines if " loss " in line]


def test_a_small_run_learns_and_is_scored(tmp_path, data):
    experiment = make_experiment(tmp_path, data, train={"epochs": 12}, optim={"name": "adamw", "lr": 0.002})
    folder = tmp_path / "run"
    state = run(experiment, folder)
    losses = logged_losses(folder)
    assert losses[-1] < 0.5 * losses[0]
    assert test.main(["--config", str(experiment), "--exp", str(folder)]) == 0
    metrics = json.loads((folder / "result" / "val-whole" / "metrics.json").read_text())
    assert metrics["mIoU"] > 0.6
    assert metrics["checkpoint"]["sha256"] == sha256(folder / "model" / "last.pth")
    assert state["classes"] == ["sky", "grass", "ball"] and state["epoch"] == 12
    for name in ("config.yaml", "env.json", "train.log", "model/best.pth", "result/val-whole/confusion.png"):
        assert (folder / name).is_file(), name
    assert len(list((folder / "result" / "val-whole" / "gray").iterdir())) == 5
    assert len(list((folder / "result" / "val-whole" / "pictures").iterdir())) == 2


@pytest.mark.parametrize("extra", [{}, {"ema": 0.9, "accumulate": 2}, {"amp": "bf16"}], ids=["plain", "ema", "bf16"])
def test_a_continued_run_has_the_weights_of_an_uninterrupted_one(tmp_path, data, extra):
    experiment = make_experiment(tmp_path, data, train={"epochs": 3, **extra}, model={"options": {"dropout": 0.1}})
    whole = run(experiment, tmp_path / "whole")

    run_to_first_checkpoint(experiment, tmp_path / "halves")
    assert checkpoint.load(tmp_path / "halves" / "model" / "last.pth")["step"] == 4
    halves = run(experiment, tmp_path / "halves", "loader.workers=2")
    assert halves["step"] == whole["step"] == 12
    assert same(halves["model"], whole["model"]) and same(halves["optimizer"], whole["optimizer"])
    assert ("train_model" in whole) == ("ema" in extra)


def test_the_averaged_weights_are_the_running_mean_of_the_trained(tmp_path, data, monkeypatch):
    experiment = make_experiment(tmp_path, data, train={"ema": 0.75, "val_every": 0})
    trained = []
    original = loop.update_average

    def record(average, model, decay):
        trained.append(
            model.classifier[4].weight.detach().clone()
            if hasattr(model, "classifier")
            else next(model.parameters()).detach().clone()
        )
        original(average, model, decay)

    monkeypatch.setattr(loop, "update_average", record)
    state = run(experiment, tmp_path / "run")
    expected = trained[0]
    for weight in trained[1:]:
        expected = 0.75 * expected + 0.25 * weight
    name = next(
        k for k, v in state["model"].items() if v.shape == expected.shape and torch.allclose(v, expected, atol=1e-6)
    )
    assert torch.equal(state["train_model"][name], trained[-1])


def test_the_same_seed_gives_the_same_losses_and_another_does_not(tmp_path, experiment):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    run(experiment, one)
    run(experiment, two)
    run(experiment, other, "seed=1")
    assert logged_losses(one) == logged_losses(two) != logged_losses(other)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path, data, monkeypatch):
    """With batch norm out of the way (eval), two parts of two pictures step like one batch of four."""
    experiment = make_experiment(tmp_path, data, train={"epochs": 1, "val_every": 0}, optim={"momentum": 0.0})
    original = train.build_training

    def frozen_norms(*args):
        training = original(*args)
        training.net.train = lambda mode=True: (
            torch.nn.Module.train(training.net, mode)
            and [m.eval() for m in training.net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        )
        return training

    monkeypatch.setattr(train, "build_training", frozen_norms)
    whole = run(experiment, tmp_path / "whole")["model"]
    parts = run(experiment, tmp_path / "parts", "train.accumulate=2")["model"]
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=1e-5), name


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, data):
    diverging = {"lr": 1e3, "head_factor": 1e3, "weight_decay": 1e3}
    experiment = make_experiment(tmp_path, data, optim=diverging)
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+: .*out .*samples: train_0"):
        run(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "model" / "last.pth").exists()


@pytest.mark.parametrize(
    "override, part",
    [
        ("optim.lr=0.5", "optim.lr 0.01 -> 0.5"),
        ("train.batch_size=8", "train.batch_size 4 -> 8"),
        ("model.options={dropout: 0.5}", "model.options"),
    ],
)
def test_another_experiment_does_not_continue_a_run(tmp_path, experiment, override, part):
    run(experiment, tmp_path / "run")
    with pytest.raises(ValueError, match="train.resume=never") as error:
        run(experiment, tmp_path / "run", override)
    assert part in str(error.value)
    run(experiment, tmp_path / "run", override, "train.resume=never")


def test_more_epochs_may_be_added(tmp_path, experiment):
    assert run(experiment, tmp_path / "run")["epoch"] == 2
    assert run(experiment, tmp_path / "run", "train.epochs=3")["epoch"] == 3


@pytest.mark.parametrize(
    "overrides, part",
    [
        (["train.batch_size=1", "model.name=pspnet"], "at least 2"),
        (["train.batch_size=99"], "99"),
        (["model.name=fnc"], "fcn"),
        (["model.backbone=resnet19"], "resnet18"),
        (["model.options={output_strid: 8}"], "output_stride"),
        (["loss.class_weights=[1, 2, 3]", "loss.weights={out: 1}"], "aux"),
        (["data.label_map={0: 0, 1: 1}"], "label"),
        (["data.root=/nowhere"], "/nowhere"),
        (["data.train_list=/nowhere.txt"], "/nowhere.txt"),
        (["model.weights=initmodel/none.pth"], "model.weights=none"),
        (["model.backbone=dfnet_v1", "model.weights=imagenet"], "initmodel/README.md"),
        (["model.init=none.pth"], "none.pth"),
    ],
)
def test_a_mistake_is_told_before_the_first_step(tmp_path, experiment, overrides, part):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        run(experiment, tmp_path / "run", *overrides)
    assert part in str(error.value)


def test_a_checkpoint_alone_rebuilds_the_network(tmp_path, experiment):
    run(experiment, tmp_path / "run")
    file = tmp_path / "run" / "model" / "last.pth"
    assert type(rebuild(checkpoint.load(file), file)).__name__ == "FCN"
    config = load(experiment, ["model.name=pspnet"]).config
    with pytest.raises(ValueError, match="holds the network fcn on resnet18, the experiment says pspnet on resnet18"):
        trained_network(str(file), config)
    config = load(experiment, ["data.classes=[a, b]", "data.colors=null"]).config
    with pytest.raises(ValueError, match="trained for 3 classes, the experiment has 2"):
        trained_network(str(file), config)


def test_a_run_can_start_from_another_run(tmp_path, data):
    first = make_experiment(tmp_path, data)
    run(first, tmp_path / "first")
    start = str(tmp_path / "first" / "model" / "last.pth")
    config = load(first, [f"model.init={start}", "model.init_skip=[head]"]).config
    model = network_of(config, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_initial_weights(model, config)
    after, source = model.state_dict(), checkpoint.load(start)["model"]
    for name in after:
        expected = before[name] if name.startswith("head") else source[name]
        assert torch.equal(after[name], expected), name


def test_tensorboard_has_scalars_and_pictures(tmp_path, experiment):
    folder = tmp_path / "run"
    run(experiment, folder)
    files = list(folder.glob("events.out.tfevents*"))
    content = b"".join(f.read_bytes() for f in files)
    for tag in (b"train/loss", b"train/aux", b"lr/backbone", b"val/mIoU", b"val/val_000"):
        assert tag in content


def test_fp16_on_cpu_counts_down_its_scale_without_losing_the_run(tmp_path, data, monkeypatch):
    """On a tiny network: fp16 gradients of a larger one take minutes on many CPUs."""
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    state = run(make_experiment(tmp_path, data, model=TOY), tmp_path / "run", "train.amp=fp16")
    assert all(math.isfinite(float(v.float().abs().max())) for v in state["model"].values())
    assert state["scaler"]["scale"] > 0
    assert "bf16 may be" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.fast
def test_a_wrong_option_of_the_network_is_told_before_data_are_read(tmp_path, capsys):
    path = make_experiment(tmp_path, tmp_path / "nowhere", model={"options": {"dropuot": 0.1}})
    told = failure(capsys, train.main, ["--config", str(path), "--exp", str(tmp_path / "run")])
    assert "unknown option of model 'fcn': 'dropuot'; did you mean 'dropout'?" in told
