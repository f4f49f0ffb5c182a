"""Numbers that must not depend on how the work is shared out, and steps that must not be lost in silence."""

import json
import re

import pytest
import torch

import model
from tests.conftest import make_experiment
from tests.faults.runs import TOY
from tests.util.dist.test_dist import run_processes
from tool import train
from tool.shared import network
from util import checkpoint

SCORE = """
import json, sys
import model
model.MODELS["toy"] = "tests.faults.toy.Toy"
from tool import test
from util import dist
counts = []
conclude = test.conclude
def record(config, run, data, indices, confusion, *rest):
    counts.append(confusion.matrix.tolist())
    conclude(config, run, data, indices, confusion, *rest)
test.conclude = record
for step in (0, 2):
    test.main([*sys.argv[1:], f"test.index_step={step}"])
dist.close()
print(json.dumps(counts))
"""


def test_one_two_and_three_processes_count_the_same_matrix(tmp_path, data, monkeypatch):
    """Five pictures, which neither two nor three divide, and two pictures, fewer than three processes."""
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    experiment = make_experiment(tmp_path, data, model=TOY, train={"epochs": 1})
    arguments = ["--config", str(experiment), "--exp", str(tmp_path / "run")]
    assert train.main(arguments) == 0
    found = []
    for count in (1, 2, 3):
        found.append(json.loads(run_processes(count, SCORE, *arguments)[0]))
        files = sorted((tmp_path / "run" / "result").rglob("metrics.json"))
        for file, pictures, matrix in zip(files, (5, 2), found[-1], strict=True):
            metrics = json.loads(file.read_text())
            assert metrics["num_images"] == pictures and sum(map(sum, matrix)) == pictures * 64 * 94
            assert sum(c["pixels"] for c in metrics["classes"]) == pictures * 64 * 94
            file.unlink()
    assert found[0] == found[1] == found[2]


EMPTY = """
import inspect, json
import torch
from torch import nn
from util import dist
from util.loss import LOSSES, SegLoss
device = dist.init()
found = {}
for name in LOSSES:
    for labelled in (True, False):
        torch.manual_seed(0)
        net = dist.wrap(nn.Conv2d(3, 4, 3, padding=1), device)
        criterion = SegLoss({"out": 1.0}, 4, name=name)
        images, labels = torch.randn(4, 3, 8, 9), torch.randint(0, 4, (4, 8, 9))
        labels[2:] = 255
        if not labelled:
            labels[:] = 255
        world, rank = dist.world_size(), dist.rank()
        mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
        normaliser = dist.all_reduce_sum_(criterion.normaliser(labels[mine])) / world
        loss, _ = criterion({"out": net(images[mine])}, labels[mine], normaliser)
        loss.backward()
        whole = float(dist.all_reduce_sum_(loss.detach().clone())) / world
        gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
        pixelwise = "normaliser" in inspect.signature(LOSSES[name]).parameters
        found[f"{name} {labelled}"] = [whole, gradient.tolist(), pixelwise]
print(json.dumps(found))
dist.close()
"""


def test_a_process_without_a_labelled_pixel_adds_nothing_with_every_loss():
    one = json.loads(run_processes(1, EMPTY)[0])
    two = [json.loads(line) for line in run_processes(2, EMPTY)]
    assert len(one) >= 10 and any(each[2] for each in one.values())
    for key, (value, gradient, pixelwise) in one.items():
        values, gradients = [each[key][0] for each in two], [torch.tensor(each[key][1]) for each in two]
        assert values[0] == values[1] and torch.equal(*gradients), key
        if key.endswith("False"):
            assert value == values[0] == 0 and not any(gradient) and not gradients[0].any(), key
        else:
            assert torch.isfinite(gradients[0]).all() and gradients[0].any(), key
        if pixelwise:
            assert values[0] == pytest.approx(value, abs=1e-6), key
            assert torch.allclose(gradients[0], torch.tensor(gradient), atol=1e-6), key


def test_steps_whose_gradients_overflow_are_counted(tmp_path, data, monkeypatch):
    """A scale so large that the first steps overflow; the optimiser's own calls are the truth."""
    monkeypatch.setitem(model.MODELS, "toy", "tests.faults.toy.Toy")
    scaler, build, taken = torch.amp.GradScaler, network.build_optimizer, []

    def counted(*args):
        optimizer = build(*args)
        optimizer.register_step_post_hook(lambda *_: taken.append(1))
        return optimizer

    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **k, init_scale=2.0**22))
    monkeypatch.setattr(network, "build_optimizer", counted)
    experiment = make_experiment(
        tmp_path, data, model=TOY, train={"amp": "fp16", "epochs": 3, "log_every": 3}, optim={"name": "adamw"}
    )
    assert train.main(["--config", str(experiment), "--exp", str(tmp_path / "run")]) == 0
    state = checkpoint.load(tmp_path / "run" / "model" / "last.pth")
    skipped = round(22 - torch.tensor(state["scaler"]["scale"]).log2().item())
    assert 0 < skipped < 12
    if len(taken) != 12:  # an optimiser that leaves the step out by itself is called all the same
        assert len(taken) == 12 - skipped
    logged = re.findall(r"overflows (\d+)", (tmp_path / "run" / "train.log").read_text())
    assert sum(map(int, logged)) == skipped
    assert json.loads((tmp_path / "run" / "status.json").read_text())["skipped"] == skipped
    assert state["schedule"]["last_epoch"] == 12, "the schedule goes by the step's number"
