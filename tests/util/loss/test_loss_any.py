"""What holds for every loss: pixels that are ignored, types of numbers, gradients."""

import inspect
import math

import pytest
import torch

from tests.slow_loss import WEIGHTS, table
from util.loss import LOSSES
from util.loss.pixel import ohem_cross_entropy
from util.loss.region import dice, lovasz_softmax, presence

pytestmark = pytest.mark.fast

CASES = [
    *((loss, {}) for loss in LOSSES.values()),
    (ohem_cross_entropy, {"average": "all", "min_kept": 0}),
    (dice, {"per_picture": True, "smooth": 0}),
    (lovasz_softmax, {"per_picture": True}),
]


def call(loss, logits, label, weights=None, **options):
    """As a training calls it: class weights only where the loss takes them."""
    if "class_weights" in inspect.signature(loss).parameters:
        options["class_weights"] = weights
    return loss(logits, label, 255, **options)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("loss, options", CASES)
def test_no_valid_pixel_gives_zero_and_a_zero_gradient(batch, loss, options, weights):
    logits, label = batch
    logits.requires_grad_()
    value = call(loss, logits, torch.full_like(label, 255), table(weights), **options)
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_no_valid_pixel_is_zero_for_presence():
    logits = torch.randn(2, 3, requires_grad=True)
    value = presence(logits, torch.full((2, 4, 4), 255))
    value.backward()
    assert float(value.detach()) == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss, options", CASES)
def test_a_picture_without_valid_pixels_leaves_the_others(batch, loss, options):
    """And ignored pixels, whatever the network says there, change neither value nor gradient."""
    logits, label = batch
    label = label.clone()
    label[1] = 255
    values = []
    for shift in (0.0, 9.0):
        x = (logits + shift * (label == 255)[:, None] * torch.randn(1, 4, 1, 1)).requires_grad_()
        value = call(loss, x, label, **options)
        value.backward()
        assert torch.isfinite(x.grad).all() and not x.grad.permute(0, 2, 3, 1)[label == 255].any()
        assert x.grad.any()
        values.append(float(value.detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-6) and values[0] > 0


@pytest.mark.parametrize("loss, options", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int64])
def test_any_float_type_is_computed_in_float32(batch, loss, options, dtype, label_dtype):
    logits, label = batch
    x = logits.to(dtype).requires_grad_()
    value = call(loss, x, label.to(label_dtype), **options)
    value.backward()
    assert value.dtype == torch.float32 and x.grad.dtype == dtype
    assert float(value.detach()) == float(call(loss, x.detach().float(), label, **options))


@pytest.mark.parametrize("loss, options", CASES)
def test_what_is_not_a_number_is_not_hidden(batch, loss, options):
    logits, label = batch
    logits[1, 2, 3, 3] = math.nan
    assert math.isnan(float(call(loss, logits, label, **options)))


@pytest.mark.parametrize("loss, options", CASES)
def test_a_step_down_the_gradient_lowers_the_loss(regions, loss, options):
    logits, label = regions
    logits.requires_grad_()
    value = call(loss, logits, label, **options)
    value.backward()
    after = call(loss, logits.detach() - 0.1 * logits.grad / logits.grad.norm(), label, **options)
    assert float(after) < float(value.detach())
