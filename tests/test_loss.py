"""Losses against slow, obvious versions."""

import itertools
import math
from typing import get_args

import pytest
import torch

from util.config import ConfigError, LossConfig, check_config
from util.loss import LOSSES, SegLoss, cross_entropy
from util.losses.pixel import nearby_classes, ohem_cross_entropy, relaxed_cross_entropy
from util.losses.region import dice, lovasz_softmax, presence

WEIGHTS = (0.5, 2.0, 1.0, 0.1)


def pixels(logits, label):
    """(picture, row, column, class, probabilities) of each valid pixel, in Python floats."""
    n, _, h, w = logits.shape
    for i, y, x in itertools.product(range(n), range(h), range(w)):
        target = int(label[i, y, x])
        if target == 255:
            continue
        z = [math.exp(float(v)) for v in logits[i, :, y, x]]
        yield i, y, x, target, [v / sum(z) for v in z]


def slow_cross_entropy(logits, label, weights=None, smoothing=0.0, keep=lambda p: True):
    """Pixel by pixel; also the sum that is divided, and by what."""
    total = norm = 0.0
    weight = weights or [1.0] * logits.shape[1]
    for _, _, _, target, p in pixels(logits, label):
        if not keep(p[target]):
            continue
        total -= (1 - smoothing) * weight[target] * math.log(p[target])
        total -= smoothing / len(p) * sum(weight[k] * math.log(p[k]) for k in range(len(p)))
        norm += weight[target]
    return total / norm, total


def table(weights):
    return None if weights is None else torch.tensor(weights)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 5, 6, generator=generator)
    label = torch.randint(0, 4, (2, 5, 6), generator=generator).to(torch.uint8)
    label[0, :2] = 255
    return logits, label


@pytest.fixture
def regions():
    """Labels of regions with an ignored strip; class 3 nowhere, class 2 in the second picture alone."""
    logits = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(8))
    label = torch.zeros(2, 7, 8, dtype=torch.uint8)
    label[:, 3:] = 1
    label[1, 1:4, 5:] = 2
    label[:, 2:4, :2] = 255
    return logits, label


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


CASES = [
    *((loss, {}) for loss in LOSSES.values()), (ohem_cross_entropy, {"average": "all", "min_kept": 0}),
    (dice, {"per_picture": True, "smooth": 0}), (lovasz_softmax, {"per_picture": True}),
]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("loss, options", CASES)
def test_no_valid_pixel_gives_zero_and_a_zero_gradient(batch, loss, options, weights):
    logits, label = batch
    logits.requires_grad_()
    value = loss(logits, torch.full_like(label, 255), class_weights=table(weights), **options)
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
        value = loss(x, label, **options)
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
    value = loss(x, label.to(label_dtype), **options)
    value.backward()
    assert value.dtype == torch.float32 and x.grad.dtype == dtype
    assert float(value.detach()) == float(loss(x.detach().float(), label, **options))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cross_entropy_and_its_gradient_are_those_of_pytorch(weights, layout):
    generator = torch.Generator().manual_seed(5)
    logits = (8 * torch.randn(2, 4, 9, 7, generator=generator)).contiguous(memory_format=layout).requires_grad_()
    logits.data[0, 0, 5] = 500.0  # the probability of another class is zero in float32, its logarithm is not
    label = torch.randint(0, 4, (2, 9, 7), generator=generator)
    label[:, 2] = 255
    expected = torch.nn.functional.cross_entropy(logits, label, table(weights), ignore_index=255)
    gradient, = torch.autograd.grad(expected, logits)
    value = cross_entropy(logits, label, class_weights=table(weights))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], gradient, rtol=1e-5, atol=1e-7)


def test_one_map_of_probabilities_is_kept_for_backward(batch):
    logits, label = batch
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cross_entropy(logits.requires_grad_(), label)
    assert sum(t.numel() for t in kept if t.is_floating_point()) <= logits.numel() + 2 * label.numel()


@pytest.mark.parametrize("loss, options", CASES)
def test_what_is_not_a_number_is_not_hidden(batch, loss, options):
    logits, label = batch
    logits[1, 2, 3, 3] = math.nan
    assert math.isnan(float(loss(logits, label, **options)))


@pytest.mark.parametrize("loss, options", CASES)
def test_a_step_down_the_gradient_lowers_the_loss(regions, loss, options):
    logits, label = regions
    logits.requires_grad_()
    value = loss(logits, label, **options)
    value.backward()
    after = loss(logits.detach() - 0.1 * logits.grad / logits.grad.norm(), label, **options)
    assert float(after) < float(value.detach())


def in_parts(criterion, outputs, label):
    normaliser = sum(criterion.normaliser(label[i : i + 1]) for i in range(len(label)))
    each = [({k: v[i : i + 1] for k, v in outputs.items()}, label[i : i + 1]) for i in range(len(label))]
    return sum(criterion(part, own, normaliser)[0] for part, own in each)


@pytest.mark.parametrize("name", ["cross_entropy", "relaxed"])
def test_parts_of_a_batch_add_up_to_the_whole(batch, name):
    logits, label = batch
    criterion = SegLoss({"out": 1.0, "aux": 0.4}, 4, 255, WEIGHTS, name=name)
    outputs = {"out": logits, "aux": logits * 0.3}
    whole, _ = criterion(outputs, label)
    assert float(in_parts(criterion, outputs, label)) == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("name", ["ohem", "dice", "lovasz"])
def test_other_losses_are_the_mean_over_the_parts(regions, name):
    logits, label = regions
    criterion = SegLoss({"out": 1.0}, 4, name=name)
    each = [float(LOSSES[name](logits[i : i + 1], label[i : i + 1])) for i in range(2)]
    assert float(in_parts(criterion, {"out": logits}, label)) == pytest.approx(sum(each) / 2, rel=1e-6)


def test_total_is_the_weighted_sum_and_terms_are_unweighted(batch):
    logits, label = batch
    total, terms = SegLoss({"out": 1.0, "aux": 0.4}, 4)({"out": logits, "aux": -logits}, label)
    assert float(terms["aux"]) == pytest.approx(slow_cross_entropy(-logits, label)[0], rel=1e-5)
    assert float(total) == pytest.approx(float(terms["out"] + 0.4 * terms["aux"]), rel=1e-6)


def test_deep_supervision_has_the_same_loss_and_its_own_weights(batch):
    logits, label = batch
    weights = {"out": 1.0, "dsn0": 0.3, "dsn1": 0.2}
    criterion = SegLoss(weights, 4, name="ohem", options={"min_kept": 6, "threshold": 0.2})
    outputs = {name: logits * factor for name, factor in (("out", 1), ("dsn0", 0.5), ("dsn1", -1))}
    total, terms = criterion(outputs, label)
    for name, value in outputs.items():
        expected = ohem_cross_entropy(value, label, min_kept=6, threshold=0.2)
        assert float(terms[name]) == pytest.approx(float(expected), rel=1e-6)
    assert float(total) == pytest.approx(sum(weights[n] * float(v) for n, v in terms.items()), rel=1e-6)


def test_further_losses_are_added_for_the_main_output(regions):
    logits, label = regions
    criterion = SegLoss({"out": 1.0, "aux": 0.4}, 4, extra={"dice": 0.5, "lovasz": 2.0})
    outputs = {"out": logits, "aux": -logits}
    total, terms = criterion(outputs, label)
    assert float(terms["dice"]) == pytest.approx(float(dice(logits, label)))
    expected = terms["out"] + 0.4 * terms["aux"] + 0.5 * terms["dice"] + 2 * lovasz_softmax(logits, label)
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    parts = [criterion({k: v[i : i + 1] for k, v in outputs.items()}, label[i : i + 1])[1] for i in range(2)]
    normaliser = criterion.normaliser(label[:1]) + criterion.normaliser(label[1:])
    shared = criterion({"out": logits[:1], "aux": logits[:1]}, label[:1], normaliser)[1]
    assert float(shared["dice"]) == pytest.approx(float(parts[0]["dice"]) / 2, rel=1e-6)


def test_an_output_with_one_value_for_each_class_has_the_presence_loss(regions):
    logits, label = regions
    se = logits[:, :, 0, 0]
    total, terms = SegLoss({"out": 1.0, "se": 0.2}, 4)({"out": logits, "se": se}, label)
    assert float(terms["se"]) == pytest.approx(float(presence(se, label)))
    assert float(total) == pytest.approx(float(terms["out"] + 0.2 * terms["se"]), rel=1e-6)


def test_an_output_without_a_weight_is_an_error(batch):
    logits, label = batch
    with pytest.raises(ValueError, match="dsn0"):
        SegLoss({"out": 1.0}, 4)({"out": logits, "dsn0": logits}, label)


def test_class_weights_must_match_the_classes():
    with pytest.raises(ValueError, match="2 weights for 4 classes"):
        SegLoss({"out": 1.0}, 4, class_weights=(1.0, 2.0))


MISTAKES = [
    ({"name": "ohme"}, "ohem"),
    ({"name": "ohem", "options": {"treshold": 0.6}}, "did you mean 'threshold'?"),
    ({"name": "dice", "options": {"threshold": 0.6}}, "smooth, squared, per_picture"),
    ({"options": {"anything": 1}}, "Known: none"),
    ({"name": "ohem", "options": {"min_kept": 0.5}}, "min_kept of loss 'ohem' must be int, not 0.5"),
    ({"name": "ohem", "options": {"min_kept": True}}, "must be int, not True"),
    ({"name": "ohem", "options": {"threshold": 2}}, "threshold 2 is no probability"),
    ({"name": "ohem", "options": {"min_kept": -1}}, "min_kept -1 is negative"),
    ({"name": "ohem", "options": {"average": "batch"}}, "'kept' or 'all'"),
    ({"name": "relaxed", "options": {"border": -1}}, "border -1 is negative"),
    ({"name": "dice", "options": {"smooth": -1}}, "smooth -1 is negative"),
    ({"options": {"class_weights": [1, 2]}}, "see the keys of the section loss"),
    ({"name": "lovasz", "label_smoothing": 0.1}, "loss.label_smoothing: loss 'lovasz' has none"),
    ({"extra": {"dcie": 1.0}}, "dice"),
    ({"extra": {"dice": -1.0}}, "loss.extra"),
]


@pytest.mark.parametrize("section, part", MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_in_the_experiment_is_told_at_once(section, part):
    raw = {"data": {"name": "camvid", "root": "x"}, "model": {"name": "fcn"}, "loss": section,
           "train": {"epochs": 1, "batch_size": 1}}
    with pytest.raises(ConfigError, match=r"^x\.yaml: loss\.") as error:
        check_config(raw, "x.yaml")
    assert part in str(error.value)


@pytest.mark.parametrize("section, part", MISTAKES[:-1], ids=lambda v: str(v)[:40])
def test_the_same_mistakes_are_told_without_an_experiment(section, part):
    with pytest.raises(ValueError) as error:
        SegLoss({"out": 1.0}, 4, **section)
    assert part.removeprefix("loss.") in str(error.value)


def test_the_experiment_knows_every_loss():
    assert set(get_args(LossConfig.model_fields["name"].annotation)) == set(LOSSES)
    for name in LOSSES:
        assert LossConfig(name=name).options == {}
    assert LossConfig(name="dice", label_smoothing=0.1, extra={"cross_entropy": 1.0}).extra
