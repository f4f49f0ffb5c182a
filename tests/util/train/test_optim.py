"""Optimiser groups and the poly schedule."""

import pytest
import torch

from util.train.optim import build_optimizer, build_schedule, poly

pytestmark = pytest.mark.fast


def groups():
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    return {"backbone": list(backbone.parameters()), "head": list(torch.nn.Conv2d(4, 2, 1).parameters())}


def test_head_learns_faster_by_the_factor():
    optimizer = build_optimizer(groups(), lr=0.01, head_factor=10)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {"backbone": 0.01, "head": 0.1}


def test_decay_norm_false_spares_biases_and_norms():
    optimizer = build_optimizer(groups(), decay_norm=False, weight_decay=0.5)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 6


def test_poly_by_hand():
    assert poly(0, 100) == 1
    assert poly(50, 100, power=2.0) == pytest.approx(0.25)
    assert poly(100, 100) == 0
    assert poly(0, 100, warmup=4) == pytest.approx(0.25)
    assert poly(3, 100, power=1.0, warmup=4) == pytest.approx(0.97)


def test_schedule_moves_every_group_by_the_same_factor():
    optimizer = build_optimizer(groups(), lr=0.01, head_factor=10)
    schedule = build_schedule(optimizer, 10, power=0.9)
    for step in range(10):
        rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
        assert rates["backbone"] == pytest.approx(0.01 * (1 - step / 10) ** 0.9)
        assert rates["head"] == pytest.approx(10 * rates["backbone"])
        optimizer.step()
        schedule.step()


def test_weight_decay_acts_on_sgd_by_hand():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer({"backbone": [weight], "head": []}, lr=0.1, momentum=0.0, weight_decay=0.5)
    weight.grad = torch.tensor([1.0])
    optimizer.step()
    assert float(weight.detach()) == pytest.approx(2.0 - 0.1 * (1.0 + 0.5 * 2.0))
