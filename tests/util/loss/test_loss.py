"""Losses against slow, obvious versions."""

import itertools
import math

import pytest
import torch

from tests.slow_loss import WEIGHTS, pixels, slow_cross_entropy, table
from util.loss import cross_entropy
from util.loss.pixel import nearby_classes, ohem_cross_entropy, relaxed_cross_entropy
from util.loss.region import dice, lovasz_softmax, presence

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_over_valid_pixels(batch, weights, smoothing):
    logits, label = batch
    got = cross_entropy(logits, label, 255, table(weights), smoothing)
    assert float(got) == pytest.approx(slow_cross_entropy(logits, label, weights, smoothing)[0], rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("border", [1, 2])
def test_relaxed_accepts_every_class_in_the_window(regions, weights, border):
    logits, label = regions
    weight = weights or [1.0] * 4
    total = norm = 0.0
    for i, y, x, target, p in pixels(logits, label):
        window = label[i, max(y - border, 0) : y + border + 1, max(x - border, 0) : x + border + 1]
        near = {int(v) for v in window.flatten()} - {255}
        total -= weight[target] * math.log(sum(p[c] for c in near))
        norm += weight[target]
    got = relaxed_cross_entropy(logits, label, 255, table(weights), border)
    assert float(got) == pytest.approx(total / norm, rel=1e-5)


def test_relaxed_without_border_is_cross_entropy(regions):
    torch.testing.assert_close(relaxed_cross_entropy(*regions, border=0), cross_entropy(*regions))
    flat = torch.full_like(regions[1], 2)
    torch.testing.assert_close(relaxed_cross_entropy(regions[0], flat), cross_entropy(regions[0], flat))


def test_a_window_may_be_larger_than_the_picture(regions):
    near = nearby_classes(regions[1], 4, border=50)
    assert near[0, :2].all() and not near[0, 2:].any() and near[1, :3].all()


@pytest.mark.parametrize("weights, smoothing", [(None, 0.0), (WEIGHTS, 0.0), (WEIGHTS, 0.1)])
@pytest.mark.parametrize("min_kept", [0, 1, 7, 20, 10_000])
@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.7])
def test_ohem_averages_the_hard_pixels(batch, threshold, min_kept, weights, smoothing):
    logits, label = batch
    order = sorted(p[target] for _, _, _, target, p in pixels(logits, label))
    limit = max([threshold, *order[:min_kept]])
    got = float(ohem_cross_entropy(logits, label, 255, table(weights), smoothing, threshold, min_kept))
    expected, _ = slow_cross_entropy(logits, label, weights, smoothing, lambda p: p <= limit + 1e-7)
    assert got == pytest.approx(expected, rel=1e-5)


def test_ohem_can_count_by_picture_and_divide_by_all_pixels(batch):
    """The OHEM sampler of MMSegmentation: 8 pixels of 2 pictures, wherever they are, over all 60."""
    logits, label = batch
    order = sorted(p[target] for _, _, _, target, p in pixels(logits, label))
    kept = ohem_cross_entropy(logits, label, threshold=0.0, min_kept=4, per_picture=True)
    every = ohem_cross_entropy(logits, label, threshold=0.0, min_kept=4, per_picture=True, average="all")
    assert float(kept) == pytest.approx(-sum(math.log(p) for p in order[:8]) / 8, rel=1e-5)
    assert float(every) == pytest.approx(-sum(math.log(p) for p in order[:8]) / 60, rel=1e-5)


def test_ohem_sends_no_gradient_to_easy_pixels(batch):
    logits, label = batch
    logits.requires_grad_()
    ohem_cross_entropy(logits, label, threshold=0.0, min_kept=5).backward()
    assert int((logits.grad.abs().sum(1) > 0).sum()) == 5


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("per_picture", [False, True])
def test_dice_is_the_mean_over_the_classes_that_occur(regions, weights, squared, per_picture):
    def one(logits, label):
        found, parts = sorted({int(v) for v in label.flatten()} - {255}), list(pixels(logits, label))
        top = bottom = 0.0
        for c in found:
            p, g = [q[c] for *_, q in parts], [float(target == c) for *_, target, _ in parts]
            overlap = sum(a * b for a, b in zip(p, g, strict=True))
            value = 1 - (2 * overlap + 0.5) / (sum(a * a if squared else a for a in p) + sum(g) + 0.5)
            top, bottom = top + (weights or [1] * 4)[c] * value, bottom + (weights or [1] * 4)[c]
        return top / bottom

    logits, label = regions
    each = [one(logits[i : i + 1], label[i : i + 1]) for i in range(2)]
    got = float(dice(logits, label, 255, table(weights), 0.5, squared, per_picture))
    assert got == pytest.approx(sum(each) / 2 if per_picture else one(logits, label), rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("per_picture", [False, True])
def test_lovasz_is_the_lovasz_extension_of_the_jaccard_loss(regions, weights, per_picture):
    def one(logits, label):
        parts, top, bottom = list(pixels(logits, label)), 0.0, 0.0
        for c in sorted({int(v) for v in label.flatten()} - {255}):
            truth = {k for k, (*_, target, _) in enumerate(parts) if target == c}
            error = [abs((k in truth) - p[c]) for k, (*_, p) in enumerate(parts)]
            wrong, before, value = set(), 0.0, 0.0
            for k in sorted(range(len(parts)), key=lambda k: -error[k]):
                wrong.add(k)
                jaccard = len(wrong) / len(truth | wrong)
                value += error[k] * (jaccard - before)
                before = jaccard
            top, bottom = top + (weights or [1] * 4)[c] * value, bottom + (weights or [1] * 4)[c]
        return top / bottom

    logits, label = regions
    each = [one(logits[i : i + 1], label[i : i + 1]) for i in range(2)]
    got = float(lovasz_softmax(logits, label, 255, table(weights), per_picture))
    assert got == pytest.approx(sum(each) / 2 if per_picture else one(logits, label), rel=1e-5)


@pytest.mark.parametrize("loss", [dice, lovasz_softmax])
def test_region_losses_are_one_minus_the_score_of_a_certain_prediction(regions, loss):
    """With probabilities 0 and 1: the Jaccard or Dice index, counted by hand."""
    label = regions[1][:1]
    said = torch.where(label == 255, 0, label.long())
    said[0, 3, 4:] = 0  # 4 of the 30 pixels of class 1 taken for class 0
    logits = torch.nn.functional.one_hot(said, 4).permute(0, 3, 1, 2) * 100.0
    right, ones, zeros = 26 + 4, 30, 22
    assert [int((label == c).sum()) for c in (0, 1)] == [zeros, ones] and right == ones
    jaccard = (22 / 26 + 26 / 30) / 2
    dices = (44 / 48 + 52 / 56) / 2
    got = loss(logits, label) if loss is lovasz_softmax else loss(logits, label, smooth=0.0)
    assert float(got) == pytest.approx(1 - (jaccard if loss is lovasz_softmax else dices), rel=1e-5)


def test_presence_asks_for_each_class_of_each_picture(regions):
    _, label = regions
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for i, c in itertools.product(range(2), range(4)):
        p = 1 / (1 + math.exp(-float(logits[i, c])))
        total -= math.log(p if (label[i] == c).any() else 1 - p)
    assert float(presence(logits, label)) == pytest.approx(total / 8, rel=1e-5)
    half = torch.stack([label[0], torch.full_like(label[1], 255)])
    first = float(presence(logits[:1], label[:1]))
    assert float(presence(logits, half)) == pytest.approx(first / 2, rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cross_entropy_and_its_gradient_are_those_of_pytorch(weights, layout):
    generator = torch.Generator().manual_seed(5)
    logits = (8 * torch.randn(2, 4, 9, 7, generator=generator)).contiguous(memory_format=layout).requires_grad_()
    logits.data[0, 0, 5] = 500.0  # the probability of another class is zero in float32, its logarithm is not
    label = torch.randint(0, 4, (2, 9, 7), generator=generator)
    label[:, 2] = 255
    expected = torch.nn.functional.cross_entropy(logits, label, table(weights), ignore_index=255)
    (gradient,) = torch.autograd.grad(expected, logits)
    value = cross_entropy(logits, label, class_weights=table(weights))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], gradient, rtol=1e-5, atol=1e-7)


def test_one_map_of_probabilities_is_kept_for_backward(batch):
    logits, label = batch
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cross_entropy(logits.requires_grad_(), label)
    assert sum(t.numel() for t in kept if t.is_floating_point()) <= logits.numel() + 2 * label.numel()
