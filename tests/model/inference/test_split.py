"""Convolutions on AMX give the direct sum to 16 bits, and stand only where they can."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import build_model
from model.inference.cpu.split import SplitConv2d, amx_is_there, pack, use_split
from model.inference.optimize import optimize_for_inference
from tests.conftest import in_layouts_and_threads

pytestmark = pytest.mark.skipif(not amx_is_there(), reason="needs a processor with AMX")


def conv2d(inside: int, out: int, size=3, **kwargs) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inside, out, size, **kwargs)


def direct(conv: nn.Conv2d, x: torch.Tensor, of=lambda numbers: numbers) -> torch.Tensor:
    """In double precision."""
    bias = None if conv.bias is None else of(conv.bias.detach().double())
    weight = of(conv.weight.detach().double())
    return F.conv2d(of(x.double()), weight, bias, conv.stride, conv.padding, conv.dilation)


def assert_close(found: torch.Tensor, conv: nn.Conv2d, x: torch.Tensor, *limits: float) -> None:
    """A half is wrong by 2^-8 at most, both by 2^-17: a product lacks 2^-16 for the lower halves and twice 2^-17."""
    expected = direct(conv, x).clamp(*limits) if limits else direct(conv, x)
    assert ((found - expected).abs() <= 2.0**-15 * direct(conv, x, torch.abs)).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 33), (61, 127)])
@pytest.mark.parametrize("channels", [(16, 16), (24, 40), (33, 19), (48, 17), (64, 48)])
@pytest.mark.parametrize(
    "geometry",
    [
        {"size": 1},
        {"size": 1, "stride": 2},
        {"size": 1, "padding": 2},
        {"padding": 1},
        {"padding": 1, "stride": 2},
        {"padding": 3, "dilation": 3},
        {"padding": 36, "dilation": 36},
        {"padding": (0, 2)},
        {"size": (1, 5), "padding": 2},
        {"size": 4, "stride": 3, "padding": 2, "dilation": 2},
        {"padding": 1, "bias": False},
    ],
)
def test_same_as_the_direct_sum_in_double_precision(size, channels, geometry):
    conv, x = conv2d(*channels, **geometry), torch.randn(2, channels[0], *size)
    reach = [step * (side - 1) + 1 for step, side in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(length + 2 * border < least for length, border, least in zip(size, conv.padding, reach, strict=True)):
        pytest.skip("the kernel is larger than the map")
    plain = SplitConv2d(conv)(x)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    assert_close(plain, conv, x)
    assert_close(SplitConv2d(conv, [-0.25, 0.5])(x), conv, x, -0.25, 0.5)


@pytest.mark.parametrize(
    ("channels", "size", "dilation"),
    [
        ((512, 32), (40, 70), 1),  # narrow parts of the map
        ((16, 16), (300, 600), 1),  # several parts in both directions
        ((320, 48), (32, 64), 24),  # each tap has its own rows
    ],
)
def test_parts_of_a_map_fit_together(channels, size, dilation):
    conv, x = conv2d(*channels, padding=dilation, dilation=dilation), torch.randn(1, channels[0], *size)
    assert_close(SplitConv2d(conv)(x), conv, x)


def test_any_memory_layout_and_number_of_threads():
    conv, x = conv2d(24, 24, padding=1), torch.randn(3, 48, 70, 90)[:, ::2]
    found = in_layouts_and_threads(SplitConv2d(conv), x)
    assert all(torch.equal(result, found[0]) for result in found)
    assert_close(found[0], conv, x)


def test_what_is_no_number_stays_none():
    conv, x = conv2d(24, 24, padding=1), torch.randn(1, 24, 20, 20)
    x[0, 3, 10, 10] = torch.nan
    found = SplitConv2d(conv, [0, 6])(x)
    assert found[..., 9:12, 9:12].isnan().all() and int(found.isnan().sum()) == 9 * 24


def test_no_picture_gives_no_picture():
    assert SplitConv2d(conv2d(24, 32))(torch.randn(0, 24, 8, 8)).shape == (0, 32, 6, 6)


def test_two_halves_are_the_number_to_16_bits():
    weight = torch.randn(40, 50, 3, 5) * torch.logspace(-20, 20, 40).view(-1, 1, 1, 1)
    strips, height, width, blocks, halves, pairs, outputs, two = (tiles := pack(weight)).shape
    assert (strips, height, width, blocks, halves, pairs, outputs, two) == (3, 3, 5, 2, 2, 16, 16, 2)
    whole = tiles.double().sum(4).permute(0, 5, 3, 4, 6, 1, 2).reshape(48, 64, 3, 5)
    assert not whole[40:].any() and not whole[:, 50:].any()
    assert ((whole[:40, :50] - weight).abs() <= 2.0**-17 * weight.abs()).all()


def test_other_users_of_the_tiles_are_not_disturbed():
    a, b = torch.randn(70, 300).bfloat16(), torch.randn(300, 50).bfloat16()
    conv, x = SplitConv2d(conv2d(24, 24)), torch.randn(1, 24, 20, 20)
    expected = a @ b
    for _ in range(3):
        conv(x)
        assert torch.equal(a @ b, expected)


@pytest.mark.parametrize(
    "conv",
    [
        conv2d(32, 32, groups=2),
        conv2d(32, 32, padding=1, padding_mode="reflect"),
        conv2d(8, 32),
        conv2d(32, 8),
        conv2d(32, 32).double(),
        conv2d(32, 32, stride=(1, 2)),
        conv2d(32, 32, dilation=(1, 2)),
        conv2d(32, 32, padding="same"),
        nn.ConvTranspose2d(32, 32, 3),
    ],
)
def test_other_convolutions_stay(conv):
    assert use_split(nn.Sequential(conv)) == 0


def test_only_the_activation_that_receives_the_output_is_joined():
    network = nn.Sequential(conv2d(16, 16), nn.Identity(), nn.ReLU6(), conv2d(16, 16), nn.Sigmoid(), nn.ReLU())
    x = torch.randn(1, 16, 9, 9)
    expected = network(x)
    assert use_split(network) == 2
    assert [m.limits for m in network if isinstance(m, SplitConv2d)] == [[0, 6], []]
    assert type(network[2]) is nn.Identity and type(network[5]) is nn.ReLU
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-4)


def test_the_summary_says_it():
    network = build_model("semanticflow", 5, "resnet18").eval()
    assert optimize_for_inference(network).summary == "35 batch norms folded, 40 convolutions on AMX, numbers in halves"
