"""util/score/metric.py against sklearn, torchmetrics and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from util.score import metric
from util.score.metric import ConfusionMatrix

pytestmark = pytest.mark.fast


def random_maps(classes, seed=0, size=(37, 53)):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, size)
    prediction = np.where(rng.random(size) < 0.6, label, rng.integers(0, classes, size))
    label[rng.random(size) < 0.15] = 255
    return prediction.astype(np.uint8), label.astype(np.uint8)


def filled(classes, *pairs):
    confusion = ConfusionMatrix(classes)
    for prediction, label in pairs:
        confusion.update(torch.as_tensor(prediction), torch.as_tensor(label))
    return confusion


@pytest.mark.parametrize("classes", [2, 19, 150, 255])
def test_counts_of_several_pictures_equal_sklearn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    pairs = [random_maps(classes, seed) for seed in range(3)]
    prediction = np.concatenate([prediction.ravel() for prediction, _ in pairs])
    label = np.concatenate([label.ravel() for _, label in pairs])
    valid = label != 255
    expected = metrics.confusion_matrix(label[valid], prediction[valid], labels=range(classes))
    confusion = filled(classes, *pairs)
    assert confusion.matrix.dtype == torch.int64
    assert np.array_equal(confusion.matrix.numpy(), expected)


@pytest.mark.parametrize("size", [(0, 5), (37, 53)])
def test_pictures_beyond_floats_whole_numbers_are_counted_alike(size, monkeypatch):
    pair = random_maps(19, size=size)
    expected = filled(19, pair).matrix
    monkeypatch.setattr(metric, "EXACT_IN_FLOAT", 0)
    assert torch.equal(filled(19, pair).matrix, expected) and expected.sum() == (pair[1] != 255).sum()


def test_counts_and_iou_equal_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    prediction, label = (torch.from_numpy(values) for values in random_maps(19))
    confusion = filled(19, (prediction, label))
    oracle = torchmetrics.MulticlassConfusionMatrix(19, ignore_index=255)
    assert torch.equal(confusion.matrix, oracle(prediction.long(), label.long()))
    jaccard = torchmetrics.MulticlassJaccardIndex(19, average="none", ignore_index=255)
    expected = jaccard(prediction.long(), label.long())
    assert confusion.result().iou == pytest.approx(expected.tolist(), abs=1e-6)


def test_scores_by_hand():
    label = [[0, 0, 0, 1], [1, 1, 2, 255]]
    prediction = [[0, 0, 1, 1], [1, 2, 2, 2]]
    scores = filled(3, (prediction, label)).result()
    assert scores.iou == pytest.approx((2 / 3, 2 / 4, 1 / 2))
    assert scores.acc == pytest.approx((2 / 3, 2 / 3, 1))
    assert scores.mIoU == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert scores.mAcc == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert scores.allAcc == pytest.approx(5 / 7)
    assert scores.pixels == (3, 3, 1)
    assert scores.absent == ()


def test_absent_class_is_left_out_and_a_merely_predicted_class_counts_as_zero():
    # class 2 is only predicted, class 3 occurs nowhere, class 4 only under ignored pixels
    label = [[0, 0, 1, 1, 255]]
    prediction = [[0, 2, 1, 1, 4]]
    scores = filled(5, (prediction, label)).result()
    assert scores.iou[:3] == pytest.approx((1 / 2, 1, 0))
    assert scores.mIoU == pytest.approx(1.5 / 3)
    assert math.isnan(scores.acc[2])
    assert scores.mAcc == pytest.approx((1 / 2 + 1) / 2)
    assert scores.absent == (3, 4)
    assert math.isnan(scores.iou[3])
    assert math.isnan(scores.iou[4])


def test_mean_is_over_the_data_set_not_over_pictures():
    first, second = ([[0, 0, 0, 1]], [[0, 0, 0, 1]]), ([[0, 1, 1, 1]], [[0, 0, 0, 0]])
    scores = filled(2, first, second).result()
    assert scores.iou == pytest.approx((4 / 7, 1 / 4))


def test_nothing_labelled_gives_undefined_scores():
    scores = filled(3, ([[0, 1]], [[255, 255]])).result()
    assert math.isnan(scores.mIoU)
    assert math.isnan(scores.mAcc)
    assert math.isnan(scores.allAcc)
    assert scores.absent == (0, 1, 2)


def test_integer_types_agree_and_inputs_stay_as_they_are():
    prediction, label = (torch.from_numpy(values) for values in random_maps(7))
    expected = filled(7, (prediction, label)).matrix
    for dtype in (torch.int16, torch.int32, torch.int64):
        wide = prediction.to(dtype), label.to(dtype)
        assert torch.equal(filled(7, wide).matrix, expected)
        assert torch.equal(wide[0], prediction.to(dtype))
        assert torch.equal(wide[1], label.to(dtype))


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        ([[0, 3]], [[0, 1]], r"prediction values \[3\]"),
        ([[0, 3]], [[0, 255]], r"prediction values \[3\]"),
        ([[0, 255]], [[0, 1]], r"prediction values \[255\]"),
        ([[0, -1]], [[0, 1]], "prediction values from -1"),
        ([[0, 1]], [[0, 300]], "label values from 0 to 300"),
        ([[0, 1]], [[7, 33]], r"label values \[7, 33\] are no class: expected 0..2"),
        ([[0, 1]], [[0, 1, 2]], r"\(1, 2\), label of shape \(1, 3\)"),
        ([[0.0, 1.0]], [[0, 1]], "must be integers"),
    ],
)
def test_values_that_are_no_class_are_refused_and_not_counted(prediction, label, message):
    confusion = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        confusion.update(torch.tensor(prediction), torch.tensor(label))
    assert not confusion.matrix.any()


def test_a_class_cannot_be_ignored():
    with pytest.raises(ValueError, match="ignore_label 1 "):
        ConfusionMatrix(3, ignore_label=1)
    with pytest.raises(ValueError, match="num_classes"):
        ConfusionMatrix(256)


def test_reduce_on_one_process_changes_nothing_and_happens_once():
    confusion = filled(3, ([[0, 1]], [[0, 2]]))
    before = confusion.matrix.clone()
    confusion.reduce()
    assert torch.equal(confusion.matrix, before)
    with pytest.raises(AssertionError):
        confusion.reduce()
    with pytest.raises(AssertionError):
        confusion.update(torch.zeros(1, 1, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.uint8))


@pytest.mark.gpu
def test_counts_on_a_gpu_equal_those_on_the_cpu():
    prediction, label = (torch.from_numpy(values) for values in random_maps(19))
    confusion = ConfusionMatrix(19, device="cuda")
    confusion.update(prediction, label)
    assert torch.equal(confusion.matrix.cpu(), filled(19, (prediction, label)).matrix)
