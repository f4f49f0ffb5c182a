"""The loss of a network: several outputs, parts of a batch, and mistakes in the experiment."""

import pytest

from tests.slow_loss import WEIGHTS, slow_cross_entropy
from util.config import ConfigError, check_config
from util.config.schema import LossConfig
from util.loss import LOSSES, SegLoss
from util.loss.pixel import ohem_cross_entropy
from util.loss.region import dice, lovasz_softmax, presence

pytestmark = pytest.mark.fast


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


def test_an_output_can_have_a_loss_of_its_own(regions):
    logits, label = regions
    loss = SegLoss({"out": 1.0, "aux": 0.5}, 4, name="dice", options={"smooth": 0.5}, outputs={"aux": "lovasz"})
    total, terms = loss({"out": logits, "aux": -logits}, label)
    expected = dice(logits, label, smooth=0.5) + 0.5 * lovasz_softmax(-logits, label)
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(ValueError, match=r"outputs.aux: unknown loss 'lovas'; did you mean 'lovasz'"):
        SegLoss({"out": 1.0}, 4, outputs={"aux": "lovas"})


def test_the_output_se_has_the_presence_loss(regions):
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
    raw = {
        "data": {"name": "camvid", "root": "x"},
        "model": {"name": "fcn"},
        "loss": section,
        "train": {"epochs": 1, "batch_size": 1},
    }
    with pytest.raises(ConfigError, match=r"^x\.yaml: loss\.") as error:
        check_config(raw, "x.yaml")
    assert part in str(error.value)


@pytest.mark.parametrize("section, part", MISTAKES[:-1], ids=lambda v: str(v)[:40])
def test_the_same_mistakes_are_told_without_an_experiment(section, part):
    with pytest.raises(ValueError) as error:
        SegLoss({"out": 1.0}, 4, **section)
    assert part.removeprefix("loss.") in str(error.value)


def test_the_experiment_knows_every_loss():
    for name in LOSSES:
        assert LossConfig(name=name).options == {}
    assert LossConfig(name="dice", label_smoothing=0.1, extra={"cross_entropy": 1.0}).extra
