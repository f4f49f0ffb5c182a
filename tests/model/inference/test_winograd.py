"""Convolutions by Winograd's method give the direct sum, and stand only where they can."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import build_model
from model.inference import optimize
from model.inference.cpu import native, split, winograd
from model.inference.cpu.winograd import WinogradConv2d, use_winograd
from model.inference.optimize import optimize_for_inference
from tests.conftest import in_layouts_and_threads

SIZES = [(1, 1), (4, 4), (5, 7), (8, 33), (61, 127)]


def conv3x3(inside: int, out: int, dilation: int = 1, **kwargs) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inside, out, 3, padding=dilation, dilation=dilation, **kwargs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [(24, 40), (32, 16), (48, 64)])
def test_same_as_the_direct_sum_in_double_precision(size, dilation, channels):
    conv, x = conv3x3(*channels, dilation), torch.randn(2, channels[0], *size)
    weight, bias = conv.weight.double(), conv.bias.double()
    expected = F.conv2d(x.double(), weight, bias, padding=dilation, dilation=dilation)
    plain, joined = WinogradConv2d(conv)(x), WinogradConv2d(conv, [0.0])(x)
    tolerance = 2e-5 * expected.abs().max().item()
    torch.testing.assert_close(plain.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(joined.double(), expected.relu(), rtol=0, atol=tolerance)
    assert plain.is_contiguous(memory_format=torch.channels_last)


def test_any_memory_layout_and_number_of_threads():
    conv, x = conv3x3(24, 24, bias=False), torch.randn(3, 48, 70, 90)[:, ::2]
    found = in_layouts_and_threads(WinogradConv2d(conv), x)
    for result in found:
        torch.testing.assert_close(result, conv(x), rtol=0, atol=1e-4)


def test_what_is_no_number_stays_none():
    conv, x = conv3x3(24, 24), torch.randn(1, 24, 20, 20)
    x[0, 3, 10, 10] = torch.nan
    found = WinogradConv2d(conv, [0.0])(x)
    assert found[..., 9:12, 9:12].isnan().all() and not found[..., :4, :4].isnan().any()


def test_no_picture_gives_no_picture():
    assert WinogradConv2d(conv3x3(24, 32))(torch.randn(0, 24, 8, 8)).shape == (0, 32, 8, 8)


@pytest.mark.parametrize(
    "conv",
    [
        conv3x3(24, 24, stride=2),
        conv3x3(24, 24, groups=2),
        conv3x3(24, 24, padding_mode="reflect"),
        conv3x3(24, 20),
        conv3x3(20, 24),
        conv3x3(16, 16),
        conv3x3(24, 24, 18),
        conv3x3(24, 24).double(),
        nn.Conv2d(24, 24, 3),
        nn.Conv2d(24, 24, 1),
        nn.Conv2d(24, 24, 3, padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(24, 24, (3, 5), padding=1),
        nn.ConvTranspose2d(24, 24, 3, padding=1),
        nn.Conv2d(24, 24, 3, padding="same"),
    ],
)
def test_other_convolutions_stay(conv):
    assert use_winograd(nn.Sequential(conv)) == 0


def test_only_the_activation_that_receives_the_output_is_joined():
    def rest(*modules):
        network = nn.Sequential(conv3x3(24, 24), *modules)
        assert use_winograd(network) == 1
        return network

    def limits(*modules):
        return rest(*modules).get_submodule("0").limits

    assert limits(nn.Identity(), nn.ReLU()) == [0]
    assert limits(nn.ReLU6()) == [0, 6]
    assert limits(nn.Identity()) == limits(nn.Dropout(), nn.ReLU()) == []

    class Parallel(nn.Sequential):
        def forward(self, x):
            return self[0](x) + self[1](x)

    network = Parallel(conv3x3(24, 24), nn.ReLU())
    x = torch.randn(1, 24, 9, 9)
    expected = network(x)
    assert use_winograd(network) == 1
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)


def test_the_summary_says_what_was_done_and_why_not(monkeypatch, tmp_path):
    monkeypatch.setattr(optimize, "amx_is_there", lambda: False)
    network, x = build_model("semanticflow", 5, "resnet18").eval(), torch.randn(1, 3, 64, 96)
    assert optimize_for_inference(network).summary == "35 batch norms folded, 19 convolutions by Winograd's method"
    assert optimize_for_inference(network, torch.bfloat16).summary.endswith("convolutions in bfloat16")
    broken = tmp_path / "winograd.cpp"
    broken.write_text("no C++\n")
    for variable, source, reason in (
        (None, broken, "g++ cannot compile winograd.cpp"),
        ("absent-compiler", winograd.SOURCE, "cannot run the compiler absent-compiler"),
    ):
        for cached in (winograd.kernel, native.compiled):
            cached.cache_clear()
        monkeypatch.setattr(winograd, "SOURCE", source)
        monkeypatch.delenv("CXX", raising=False)
        if variable:
            monkeypatch.setenv("CXX", variable)
        fast = optimize_for_inference(network)
        assert "convolutions as they are" in fast.summary and reason in fast.summary
        with torch.no_grad():
            torch.testing.assert_close(fast(x)["out"], network(x)["out"], rtol=1e-4, atol=1e-5)
    winograd.kernel.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch):
    kernels = native.compiled, split._library, split.kernel, winograd.kernel
    monkeypatch.setenv("CXX", "absent-compiler")
    for cached in kernels:
        cached.cache_clear()
    yield
    for cached in kernels:
        cached.cache_clear()


def test_without_a_compiler_blocks_are_in_strips_and_the_summary_says_why(no_compiler):
    network, reason = build_model("sketchfill", 5, "mobilenet_v2").eval(), "cannot run the compiler absent-compiler"
    plain = optimize_for_inference(network).summary
    assert "17 blocks in strips" in plain and "convolutions as they are" in plain and plain.count(reason) == 1
    half = optimize_for_inference(network, torch.bfloat16).summary
    assert "17 blocks in strips" in half and "no C++ of our own" in half and half.count(reason) == 1
