"""Inverted residual blocks as one operation give what their three convolutions give in double precision."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import build_model
from model.backbone.mobilenet import InvertedResidual
from model.inference.cpu import inverted, split
from model.inference.cpu.inverted import FusedInvertedResidual, use_fused_blocks
from model.inference.cpu.split import amx_is_there
from model.inference.fold import fold_norms
from model.inference.optimize import optimize_for_inference
from tests.conftest import in_layouts_and_threads

pytestmark = pytest.mark.skipif(not amx_is_there(), reason="needs a processor with AMX")
# How much of itself a product lacks at most: of split numbers, of numbers rounded to bfloat16, in a sum of ten float32.
SPLIT, ROUNDED, PLAIN = 2.0**-15, 2.0**-7 * 1.01, 2.0**-20


def block_of(channels: int, out: int, expansion: int = 6, stride: int = 1, dilation: int = 1) -> InvertedResidual:
    """Its norms are folded; its activations cut off at both ends, and its border is not zero."""
    torch.manual_seed(0)
    block = InvertedResidual(channels, out, expansion, stride, dilation).eval().requires_grad_(False)
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.uniform_(1, 5)
            norm.bias.uniform_(-1, 5)
    assert fold_norms(block, torch.randn(1, channels, 9, 9)) == (3 if expansion > 1 else 2)
    return block


def in_double(block: InvertedResidual, x: torch.Tensor, product: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What the block gives, and how wrong each number may be if a product of a 1x1 lacks that much of itself."""
    convs = [copy.deepcopy(layer).double() for layer in block.conv if isinstance(layer, nn.Conv2d)]
    y = F.pad(x.double(), [block.border] * 4)
    wrong = torch.zeros_like(y)
    for conv in convs:
        weight, geometry = conv.weight.abs(), (conv.stride, 0, conv.dilation, conv.groups)
        lacks = product if conv.kernel_size == (1, 1) else PLAIN
        wrong = F.conv2d(wrong, weight, None, *geometry) + lacks * F.conv2d(
            y.abs() + wrong, weight, conv.bias.abs(), *geometry
        )
        y = conv(y) if conv is convs[-1] else conv(y).clamp(0, 6)
    return (x + y if block.residual else y), wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (9, 100), (40, 33)])
@pytest.mark.parametrize(("channels", "out"), [(24, 24), (9, 40), (48, 17)])
@pytest.mark.parametrize("expansion", [1, 6])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_same_as_three_convolutions(dtype, size, channels, out, expansion, stride, dilation):
    block, x = block_of(channels, out, expansion, stride, dilation), torch.randn(2, channels, *size).to(dtype)
    found = FusedInvertedResidual(block, dtype)(x)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    expected, wrong = in_double(block, x, SPLIT if dtype == torch.float32 else ROUNDED)
    wrong += (expected.abs() + wrong) * (PLAIN if dtype == torch.float32 else 2.0**-8)  # the result itself is rounded
    assert found.shape == expected.shape and ((found - expected).abs() <= wrong).all()


def test_bfloat16_is_rounded_less_than_by_three_operations():
    block, x = block_of(32, 32), torch.randn(1, 32, 40, 64).bfloat16()
    expected, _ = in_double(block, x, 0)
    with torch.autocast("cpu", torch.bfloat16):
        operations = block(x)
    one = FusedInvertedResidual(block, torch.bfloat16)(x)
    assert (one - expected).square().mean() < (operations - expected).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_memory_layout_and_number_of_threads(dtype):
    block, x = block_of(24, 24), torch.randn(3, 48, 70, 90).to(dtype)[:, ::2]
    found = in_layouts_and_threads(FusedInvertedResidual(block, dtype), x)
    assert all(torch.equal(result, found[0]) for result in found)
    one = in_layouts_and_threads(FusedInvertedResidual(block, dtype), x[:1])  # here threads share a picture
    assert all(torch.equal(result, found[0][:1]) for result in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_stays_none(dtype):
    x = torch.randn(1, 24, 20, 20).to(dtype)
    x[0, 3, 10, 10] = torch.nan
    found = FusedInvertedResidual(block_of(24, 40), dtype)(x)
    assert found[..., 9:12, 9:12].isnan().all() and int(found.isnan().sum()) == 9 * 40


def test_no_picture_gives_no_picture():
    layer = FusedInvertedResidual(block_of(24, 32, stride=2), torch.float32)
    assert layer(torch.randn(0, 24, 9, 8)).shape == (0, 32, 5, 4)


def test_only_blocks_with_folded_norms_are_replaced():
    network = nn.Sequential(block_of(16, 16), InvertedResidual(16, 16, 6, 1, 1), nn.Conv2d(16, 16, 1))
    assert use_fused_blocks(network, torch.float32) == 1
    assert [type(layer) for layer in network] == [FusedInvertedResidual, InvertedResidual, nn.Conv2d]


def test_the_summary_says_it():
    network = build_model("sketchfill", 5, "mobilenet_v2").eval()
    assert optimize_for_inference(network).summary == (
        "75 batch norms folded, 17 blocks as one operation each, 25 convolutions on AMX, numbers in halves"
    )
    assert optimize_for_inference(network, torch.bfloat16).summary == (
        "75 batch norms folded, 17 blocks as one operation each, convolutions in bfloat16"
    )


@pytest.mark.parametrize("module", [split, inverted])
def test_another_processor_is_told(monkeypatch, module):
    monkeypatch.setattr(split, "amx_is_there", lambda: False)
    with pytest.raises(ValueError, match="made ready for processors with AMX"):
        module.kernel.__wrapped__()
