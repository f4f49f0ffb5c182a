"""Light networks: their layers against obvious versions, and published logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import build_model
from model.cgnet import ContextGuidedBlock
from model.enet import Bottleneck
from model.espnet import ESP
from model.espnetv2 import EESP
from model.layer.light import SeparableConv, pad_to_multiple, set_norm_eps, shrink
from model.lednet import SplitShuffle
from tests.published_logits import eval_norms, published_case


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Reference logits -> our names of the outputs that stand beside them.
GOLDENS = {"fast_scnn_aux": {"aux": "aux"}}


@pytest.mark.parametrize("file", GOLDENS)
def test_logits_are_those_of_the_published_code(file):
    fill, golden, network, x = published_case(file)
    with torch.no_grad():
        fill.compare(golden, "logits", network(x)["out"])
        trained = eval_norms(network.train())(x)
    for theirs, ours in GOLDENS[file].items():
        fill.compare(golden, theirs, trained[ours])


def test_maps_shrink_by_an_average_that_counts_the_border():
    x = torch.arange(9.0).view(1, 1, 3, 3)
    # The window around the corner holds 0, 1, 3, 4 and five zeros of the border.
    assert shrink(x)[0, 0, 0, 0].item() == pytest.approx(8 / 9)
    assert shrink(torch.zeros(1, 2, 13, 22), 2).shape == (1, 2, 4, 6)


def test_images_are_extended_below_and_on_the_right():
    x = torch.ones(1, 1, 9, 16)
    padded = pad_to_multiple(x, 8)
    assert padded.shape == (1, 1, 16, 16)
    assert torch.equal(padded[:, :, :9], x)
    assert not padded[:, :, 9:].any()


def test_eps_reaches_every_norm():
    module = SeparableConv(4, 6)
    set_norm_eps(module, 0.25)
    assert [part.eps for part in module.modules() if isinstance(part, nn.BatchNorm2d)] == [0.25, 0.25]
    assert build_model("espnet", 3).stage2[0].norm[0].eps == 1e-3


@pytest.mark.parametrize("channels", [3, 5, 14])
def test_esp_adds_each_branch_to_the_one_before(channels):
    block = ESP(channels, channels).eval()
    x = torch.randn(1, channels, 19, 23)
    with torch.no_grad():
        reduced = block.reduce(x)
        branches = [F.conv2d(reduced, b.weight, padding=b.dilation, dilation=b.dilation) for b in block.branches]
        assert [b.dilation[0] for b in block.branches] == [1, 2, 4, 8, 16][:channels]
        sums = [branches[0], *(sum(branches[1 : i + 1]) for i in range(1, len(branches)))]
        torch.testing.assert_close(block(x), block.norm(torch.cat(sums, 1) + x))
    assert sum(branch.shape[1] for branch in branches) == channels


def test_eesp_adds_the_first_branch_too():
    block = EESP(16, 16, 1, (1, 1, 2, 3)).eval()
    x = torch.randn(1, 16, 9, 11)
    with torch.no_grad():
        branches = [branch(block.reduce(x)) for branch in block.branches]
        sums = [sum(branches[: i + 1]) for i in range(4)]
        expected = block.activation(block.expand(block.norm(torch.cat(sums, 1))) + x)
        torch.testing.assert_close(block(x), expected)


def test_context_guided_block_weights_channels_by_the_mean_of_the_map():
    block = ContextGuidedBlock(16, 16, 2, 8).eval()
    with torch.no_grad():
        nn.init.zeros_(block.gate[2].weight)
        block.gate[2].bias.fill_(-100.0)  # a closed gate leaves the input
        x = torch.randn(2, 16, 7, 9)
        torch.testing.assert_close(block(x), x)
        block.gate[2].bias.fill_(0.0)  # sigmoid(0) = 1/2
        y = block.conv(x)
        joined = block.join(torch.cat([block.local(y), block.surround(y)], 1))
        torch.testing.assert_close(block(x), x + joined / 2)


def test_enet_puts_values_back_where_the_maximum_was():
    down = Bottleneck(1, 1, 1, "down", 1, 0.0).eval()
    x = torch.tensor([[[[1.0, 9.0, 2.0, 3.0], [4.0, 5.0, 8.0, 7.0]]]])
    with torch.no_grad():
        _, places = down(x)
        up = Bottleneck(1, 1, 1, "up", 1, 0.0).eval()
        for part in (up.branch, up.shortcut):
            nn.init.zeros_(part[-2][1].weight if part is up.branch else part[1].weight)
        nn.init.ones_(up.shortcut[1].bias)  # the shortcut gives ones, the branch nothing
        y, _ = up(torch.zeros(1, 1, 1, 2), places)
    assert y.tolist() == [[[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]]]


def test_lednet_mixes_the_halves():
    block = SplitShuffle(8, 2).eval()
    with torch.no_grad():
        for half in block.halves:
            nn.init.zeros_(half[-2].weight)  # the branches give nothing, so the input is rectified and shuffled
        x = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 3, 3)
        assert block(x)[0, :, 0, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("name", ["espnet", "enet"])
def test_learned_enlarging_cuts_what_was_extended(name):
    network = build_model(name, 3).eval()
    x = torch.randn(1, 3, 37, 42)
    with torch.no_grad():
        whole = network(F.pad(x, (0, 6, 0, 3)))["out"]
        assert torch.equal(network(x)["out"], whole[:, :, :37, :42])


def test_encoder_alone_gives_logits_at_stride_8():
    network = build_model("espnet", 3, decoder=False).eval()
    with torch.no_grad():
        assert network.decode(network.forward_features(torch.randn(1, 3, 33, 50)))["out"].shape == (1, 3, 5, 7)


def test_width_of_espnetv2_follows_its_scale():
    for scale, last in ((0.5, 128), (1.0, 256), (1.5, 384)):
        with torch.device("meta"):
            network = build_model("espnetv2", 3, scale=scale)
        assert network.project4[0].in_channels == last
    with pytest.raises(ValueError, match="scale is from 0.5 to 2, not 3.0"):
        build_model("espnetv2", 3, scale=3.0)


def test_the_blocks_of_the_paper_are_an_option_of_enet():
    with torch.device("meta"):
        assert len(build_model("enet", 3).stage2) == 15
        assert len(build_model("enet", 3, all_blocks=True).stage2) == 16
