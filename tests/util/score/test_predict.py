"""util/score/predict.py against a slow prediction written out pixel by pixel in float64."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from tests.slow_predict import CASES, CLASSES, MEAN, STD, SmallNet, random_picture, slow_probabilities, slow_starts
from util.score import window as arithmetic
from util.score.predict import Predictor

pytestmark = pytest.mark.fast


class PerPixel(nn.Module):
    """Knows nothing of a pixel's neighbours: class c is as likely as the pixel is near to colours[c]."""

    def __init__(self, colors):
        super().__init__()
        normalised = (torch.as_tensor(colors).float() - torch.tensor(MEAN)) / torch.tensor(STD)
        self.register_buffer("colors", normalised[:, :, None, None])

    def forward(self, x):
        return {"out": -((x[:, None] - self.colors) ** 2).sum(2)}


class Constant(nn.Module):
    def __init__(self, value, classes=CLASSES):
        super().__init__()
        self.value, self.classes = value, classes

    def forward(self, x):
        return {"out": x.new_full((len(x), self.classes, *x.shape[2:]), self.value)}


@cache
def slow_case(name, size):
    return slow_probabilities(SmallNet(), random_picture(*size), **CASES[name])


@pytest.mark.parametrize("cached", [None, 250])
@pytest.mark.parametrize("size", [(30, 41), (9, 60)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_probabilities_equal_the_slow_prediction(name, size, cached, monkeypatch):
    if cached:  # floats in a block: of one row, and of a few
        monkeypatch.setattr(arithmetic, "CACHED_NUMBERS", cached)
    net, image = SmallNet(), random_picture(*size)
    expected = slow_case(name, size)
    predictor = Predictor(net, CLASSES, MEAN, STD, window_batch=3, **CASES[name])
    probabilities = predictor.probabilities(image)
    assert probabilities.dtype == torch.float32
    assert np.abs(probabilities.numpy() - expected).max() < 2e-5
    prediction = predictor(image)
    assert prediction.dtype == torch.uint8
    ordered = np.sort(expected, 0)
    decided = ordered[-1] - ordered[-2] > 1e-4
    assert decided.mean() > 0.99
    assert np.array_equal(prediction.numpy()[decided], expected.argmax(0)[decided])


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_gpu_equals_cpu(name):
    net, image = SmallNet(), random_picture(37, 52)
    expected = Predictor(net, CLASSES, MEAN, STD, **CASES[name]).probabilities(image)
    found = Predictor(net, CLASSES, MEAN, STD, device="cuda", **CASES[name]).probabilities(image)
    assert torch.allclose(found.cpu(), expected, atol=2e-3)  # convolutions may run in TF32


def test_window_of_the_picture_size_is_the_whole_picture():
    net, image = SmallNet(), random_picture(30, 41)
    whole = Predictor(net, CLASSES, MEAN, STD, flip=True)
    window = Predictor(net, CLASSES, MEAN, STD, flip=True, window=(30, 41))
    assert torch.equal(whole.probabilities(image), window.probabilities(image))


@pytest.mark.parametrize("settings", [{}, {"window": (16, 24)}, {"window": (64, 64)}, {"window": (16, 16)}])
@pytest.mark.parametrize("flip", [False, True])
def test_network_without_neighbourhood_is_exact_however_it_is_cut(settings, flip):
    rng = np.random.default_rng(1)
    colors = rng.permutation(np.stack(np.meshgrid(*[[30, 220]] * 3), -1).reshape(8, 3)).astype(np.uint8)
    label = rng.integers(0, 8, (37, 52), dtype=np.uint8)
    image = torch.from_numpy(colors[label]).permute(2, 0, 1)
    predictor = Predictor(PerPixel(colors), 8, MEAN, STD, flip=flip, **settings)
    assert np.array_equal(predictor(image).numpy(), label)


def test_mirrored_picture_gives_mirrored_probabilities():
    net, image = SmallNet(), random_picture(30, 41)
    predictor = Predictor(net, CLASSES, MEAN, STD, flip=True, scales=(0.7, 1.0))
    mirrored = predictor.probabilities(image.flip(2)).flip(2)
    assert torch.allclose(mirrored, predictor.probabilities(image), atol=1e-5)
    plain = Predictor(net, CLASSES, MEAN, STD)
    mirrored = plain.probabilities(image.flip(2)).flip(2)
    assert not torch.allclose(mirrored, plain.probabilities(image), atol=1e-3)


def test_windows_end_at_the_edge_and_leave_no_gap():
    for window in (5, 7, 16):
        for rate in (1 / 2, 2 / 3, 1.0):
            for length in range(window, 60):
                starts = arithmetic.window_starts(length, window, rate)
                assert starts == slow_starts(length, window, rate)
                assert (starts[0], starts[-1]) == (0, length - window)
                assert all(0 < after - before <= window for before, after in pairwise(starts))


def test_windows_of_a_batch_do_not_depend_on_its_size():
    net, image = SmallNet(), random_picture(50, 70)
    settings = {"window": (16, 16), "flip": True}
    one = Predictor(net, CLASSES, MEAN, STD, window_batch=1, **settings).probabilities(image)
    many = Predictor(net, CLASSES, MEAN, STD, window_batch=100, **settings).probabilities(image)
    assert torch.allclose(one, many, atol=1e-6)


def test_probabilities_sum_to_one_everywhere():
    predictor = Predictor(SmallNet(), CLASSES, MEAN, STD, flip=True, window=(16, 16), scales=(0.5, 1.0, 1.5))
    total = predictor.probabilities(random_picture(30, 41)).sum(0)
    assert torch.allclose(total, torch.ones(30, 41), atol=1e-5)


def test_channels_last_and_bfloat16_stay_near():
    net, image = SmallNet(), random_picture(30, 41)
    expected = Predictor(net, CLASSES, MEAN, STD).probabilities(image)
    channels_last = Predictor(net, CLASSES, MEAN, STD, channels_last=True).probabilities(image)
    assert torch.allclose(channels_last, expected, atol=1e-5)
    half = Predictor(net, CLASSES, MEAN, STD, amp=torch.bfloat16).probabilities(image)
    assert half.dtype == torch.float32
    assert torch.allclose(half, expected, atol=0.05)


def test_pictures_do_not_leak_into_one_another():
    net = SmallNet()
    large, small = random_picture(50, 70, seed=1), random_picture(20, 30, seed=2)
    settings = {"window": (16, 16), "flip": True, "scales": (0.5, 1.0)}
    predictor = Predictor(net, CLASSES, MEAN, STD, **settings)
    first = predictor.probabilities(large)
    kept = first.clone()
    second = predictor.probabilities(small)
    assert torch.equal(first, kept)
    assert torch.equal(second, Predictor(net, CLASSES, MEAN, STD, **settings).probabilities(small))


def test_results_are_ordinary_tensors_and_the_model_is_left_in_eval_mode():
    net = SmallNet().train()
    predictor = Predictor(net, CLASSES, MEAN, STD)
    predictor(random_picture(8, 8)).fill_(1)
    predictor.probabilities(random_picture(8, 8)).fill_(1)
    assert not net.training
    assert not net.first.training


def test_first_of_equal_classes_wins():
    image = random_picture(20, 30)
    assert not Predictor(Constant(0.0), CLASSES, MEAN, STD, flip=True, window=(8, 8))(image).any()


def test_many_classes_and_several_scales():
    # OpenCV 5 resizes no picture of more than 128 channels
    net, image = SmallNet(200), random_picture(20, 30)
    predictor = Predictor(net, 200, MEAN, STD, scales=(0.5, 1.0))
    assert np.array_equal(predictor(image).numpy(), predictor.probabilities(image).numpy().argmax(0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_network_that_is_not_finite_is_reported(value):
    with pytest.raises(ValueError, match="not finite"):
        Predictor(Constant(value), CLASSES, MEAN, STD)(random_picture(8, 8))


def test_wrong_pictures_and_wrong_networks_are_reported():
    predictor = Predictor(SmallNet(), CLASSES, MEAN, STD)
    with pytest.raises(ValueError, match="float32"):
        predictor(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match=r"\(8, 8, 3\)"):
        predictor(torch.zeros(8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"is \(1, 5, 8, 8\), expected \(1, 6, 8, 8\)"):
        Predictor(SmallNet(), 6, MEAN, STD)(random_picture(8, 8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
        ({"window": (16,)}, "window"),
        ({"window": (0, 16)}, "window"),
        ({"stride_rate": 0.0}, "stride_rate"),
        ({"stride_rate": 1.5}, "stride_rate"),
        ({"base_size": 0}, "base_size"),
        ({"window_batch": 0}, "window_batch"),
        ({"amp": torch.float64}, "amp"),
    ],
)
def test_wrong_settings_are_reported(settings, message):
    with pytest.raises(ValueError, match=message):
        Predictor(SmallNet(), CLASSES, MEAN, STD, **settings)


def test_description_is_plain():
    settings = {"scales": (0.5, 1.0), "flip": True, "window": (16, 17), "base_size": 64}
    predictor = Predictor(SmallNet(), CLASSES, MEAN, STD, amp=torch.bfloat16, **settings)
    assert predictor.describe() == {
        "windows": "exact",
        "scales": [0.5, 1.0],
        "flip": True,
        "window": [16, 17],
        "stride_rate": 2 / 3,
        "base_size": 64,
        "amp": "bfloat16",
    }
    assert str(predictor) == (
        "scales 0.5, 1, of a long side of 64, mirrored too, windows 16x17, 0.667 of one apart, bfloat16"
    )
    assert str(Predictor(SmallNet(), CLASSES, MEAN, STD)) == "scale 1, whole pictures"
    whole = Predictor(SmallNet(), CLASSES, MEAN, STD).describe()
    assert (whole["window"], whole["stride_rate"], whole["amp"]) == (None, None, None)
