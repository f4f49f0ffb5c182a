"""Blocks computed in strips of rows give what the whole ones give."""

import copy

import pytest
import torch

from model import build_model
from model.backbone.mobilenet import InvertedResidual
from model.inference import optimize
from model.inference.cpu import strips
from model.inference.cpu.strips import InStrips, use_strips
from model.inference.optimize import optimize_for_inference


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (16, 12), (33, 47)])
@pytest.mark.parametrize(("channels", "stride", "dilation"), [((8, 8), 1, 1), ((8, 16), 2, 1), ((8, 8), 1, 4)])
@pytest.mark.parametrize("expansion", [1, 6])
@pytest.mark.parametrize("number", [1, 3, 1000])
@pytest.mark.parametrize("join_zeros", [False, True])
def test_same_as_the_whole_block(monkeypatch, size, channels, stride, dilation, expansion, number, join_zeros):
    torch.manual_seed(0)
    block = InvertedResidual(*channels, expansion, stride, dilation).eval().requires_grad_(False)
    x = torch.randn(2, 8, *size)
    monkeypatch.setattr(strips, "STRIP_BYTES", -(-4 * 2 * 8 * expansion * size[0] * size[1] // number))
    expected, calls = block(x), []
    block.conv.register_forward_hook(lambda *_: calls.append(1))
    found = InStrips(block, join_zeros)(x)
    rows = -(-size[0] // stride)
    assert len(calls) == 1 if number == 1 else min(number, rows) >= len(calls) >= min(2, rows)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_networks_in_strips_give_the_same_logits(monkeypatch):
    monkeypatch.setattr(strips, "STRIP_BYTES", 1 << 14)
    torch.manual_seed(0)
    network, x = build_model("sketchfill", 5, "mobilenet_v2").eval(), torch.randn(2, 3, 65, 97)
    cut = copy.deepcopy(network)
    assert use_strips(cut, True) == 17 and use_strips(build_model("fcn", 5, "resnet18"), True) == 0
    with torch.no_grad():
        expected = network(x)["out"]
        torch.testing.assert_close(cut(x)["out"], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    monkeypatch.setattr(optimize, "amx_is_there", lambda: False)
    assert optimize_for_inference(network).summary.split(", ")[1] == "17 blocks in strips"
