"""Losses against slow, obvious versions."""

import math

import pytest
import torch

from util.loss import SegLoss, cross_entropy


def slow_cross_entropy(logits, label, weights=None, smoothing=0.0):
    """Pixel by pixel, in Python floats."""
    total = norm = 0.0
    n, c, h, w = logits.shape
    for i in range(n):
        for y in range(h):
            for x in range(w):
                target = int(label[i, y, x])
                if target == 255:
                    continue
                z = [float(v) for v in logits[i, :, y, x]]
                top = max(z)
                log_sum = top + math.log(sum(math.exp(v - top) for v in z))
                weight = weights or [1.0] * c
                term = (1 - smoothing) * weight[target] * (log_sum - z[target])
                term += smoothing / c * sum(weight[k] * (log_sum - z[k]) for k in range(c))
                total += term
                norm += weight[target]
    return total / norm


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    label = torch.randint(0, 4, (2, 5, 6), generator=generator).to(torch.uint8)
    label[0, :2] = 255
    return logits, label


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 0.1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_over_valid_pixels(batch, weights, smoothing):
    logits, label = batch
    table = None if weights is None else torch.tensor(weights)
    got = cross_entropy(logits, label, 255, table, smoothing)
    assert float(got) == pytest.approx(slow_cross_entropy(logits, label, weights, smoothing), rel=1e-5)


def test_no_valid_pixel_gives_zero_and_a_zero_gradient(batch):
    logits, label = batch
    logits.requires_grad_()
    loss = cross_entropy(logits, torch.full_like(label, 255))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_parts_of_a_batch_add_up_to_the_whole(batch):
    logits, label = batch
    criterion = SegLoss({"out": 1.0, "aux": 0.4}, 4, 255, (0.5, 2.0, 1.0, 0.1))
    whole, _ = criterion({"out": logits, "aux": logits * 0.3}, label)
    normaliser = criterion.normaliser(label)
    parts = [
        criterion({"out": logits[i : i + 1], "aux": logits[i : i + 1] * 0.3}, label[i : i + 1], normaliser)[0]
        for i in range(2)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_total_is_the_weighted_sum_and_terms_are_unweighted(batch):
    logits, label = batch
    total, terms = SegLoss({"out": 1.0, "aux": 0.4}, 4)({"out": logits, "aux": -logits}, label)
    assert float(terms["aux"]) == pytest.approx(slow_cross_entropy(-logits, label), rel=1e-5)
    assert float(total) == pytest.approx(float(terms["out"] + 0.4 * terms["aux"]), rel=1e-6)


def test_an_output_without_a_weight_is_an_error(batch):
    logits, label = batch
    with pytest.raises(ValueError, match="dsn0"):
        SegLoss({"out": 1.0}, 4)({"out": logits, "dsn0": logits}, label)


def test_class_weights_must_match_the_classes():
    with pytest.raises(ValueError, match="2 weights for 4 classes"):
        SegLoss({"out": 1.0}, 4, class_weights=(1.0, 2.0))
