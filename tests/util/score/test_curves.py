"""Cross-entropy and precision over recall of a validation, against PyTorch and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_score, recall_score
from torch.nn import functional as F

from util.score.curves import BINS, GRID, ProbabilityScores
from util.score.evaluate import evaluate
from util.score.metric import ConfusionMatrix
from util.score.predict import Predictor

pytestmark = pytest.mark.fast
CLASSES = 4


def pictures(number=3, size=(33, 50)):
    generator = torch.Generator().manual_seed(0)
    for _ in range(number):
        logits = 2 * torch.randn(CLASSES, *size, generator=generator)
        label = torch.randint(0, CLASSES - 1, size, generator=generator).to(torch.uint8)  # the last occurs nowhere
        label[torch.rand(size, generator=generator) < 0.2] = 255
        yield logits, label


def filled(**arguments):
    scores = ProbabilityScores(CLASSES)
    for logits, label in pictures(**arguments):
        scores.update(logits.softmax(0), label)
    scores.reduce()
    return scores


def test_the_loss_is_the_cross_entropy_over_all_labelled_pixels():
    logits, labels = (torch.stack(parts) for parts in zip(*pictures(), strict=True))
    expected = F.cross_entropy(logits, labels.long(), ignore_index=255)
    assert filled().cross_entropy == pytest.approx(float(expected), rel=1e-5)


def test_the_curve_is_that_of_the_pixels_on_the_grid():
    scores, seen, truth = filled(), [], []
    for logits, label in pictures():
        grid = np.s_[GRID // 2 :: GRID, GRID // 2 :: GRID]
        here = label[grid] != 255
        seen.append(logits.softmax(0)[(slice(None), *grid)][:, here].numpy())
        truth.append(label[grid][here].numpy())
    seen, truth = np.concatenate(seen, 1), np.concatenate(truth)
    for index in range(CLASSES - 1):
        right, wrong, spared, missed, precision, recall = scores.curve(index)
        for place in (0, 5, 40, 100):
            chosen = seen[index] >= place / (BINS - 1)
            assert (
                right[place] == (chosen & (truth == index)).sum() and wrong[place] == (chosen & (truth != index)).sum()
            )
            assert right[place] + missed[place] == (truth == index).sum()
            assert right[place] + wrong[place] + spared[place] + missed[place] == len(truth)
            assert precision[place] == precision_score(truth == index, chosen, zero_division=0)
            assert recall[place] == recall_score(truth == index, chosen)
    assert scores.curve(CLASSES - 1) is None


def test_without_a_labelled_pixel_there_is_neither():
    scores = ProbabilityScores(2)
    scores.update(torch.full((2, 2, 2), 0.5), torch.full((2, 2), 255, dtype=torch.uint8))  # and smaller than the grid
    assert np.isnan(scores.cross_entropy) and scores.curve(0) is None


def test_a_probability_of_nought_is_a_large_loss_not_an_infinite_one():
    scores = ProbabilityScores(2)
    scores.update(torch.tensor([1.0, 0.0])[:, None, None].expand(2, 8, 8), torch.ones(8, 8, dtype=torch.uint8))
    assert 80 < scores.cross_entropy < 90


def test_an_evaluation_that_hands_them_over_scores_the_same():
    class Net(torch.nn.Module):
        def forward(self, x):
            return {"out": torch.cat([x, x.mean(1, keepdim=True)], 1)}

    samples = [
        {"image": torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8), "label": label[:20, :30], "name": str(index)}
        for index, (_, label) in enumerate(pictures())
    ]
    matrices, got = [], []
    for taken in (None, lambda sample, probabilities: got.append((sample["name"], probabilities))):
        confusion = ConfusionMatrix(CLASSES)
        predictor = Predictor(Net(), CLASSES, (100, 100, 100), (50, 50, 50), scales=(1.0, 0.5), flip=True)
        evaluate(predictor, samples, confusion, on_probabilities=taken)
        matrices.append(confusion.matrix)
    assert torch.equal(*matrices)
    assert [name for name, _ in got] == ["0", "1", "2"]
    assert all(torch.allclose(each.sum(0), torch.ones(20, 30)) for _, each in got)
