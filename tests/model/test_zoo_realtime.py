"""Real-time networks: published logits, and their parts against obvious versions of themselves."""

import pytest
import torch
from torch.nn import functional as F

from model import build_model
from model.layer.branch import DAPPM, PAPPM, BasicBlock, basic_stage
from model.pidnet import LightBoundaryFusion, PixelAttention
from model.published import load_published, recognise_family
from tests.published_keys import PARITY, key_list, numbered
from tests.published_logits import eval_norms, fill_module

# Reference logits -> our names of the maps that stand beside them, as `decode` gives them.
GOLDENS = {
    "pidnet_s": {"main_lowres": "out", "aux0": "aux", "aux1": "boundary"},
    "mmseg_pidnet-s": {"main_lowres": "out"},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("file", GOLDENS)
def test_logits_are_those_of_the_published_code(file):
    fill = fill_module()
    golden = fill.load_golden(PARITY / f"{file}.npz")
    checkpoint = fill.state_dict_for(golden)
    found = recognise_family(checkpoint)
    network = build_model(found.model, found.num_classes, found.backbone, **found.options).eval()
    load_published(network, checkpoint)
    x = fill.make_input(*golden["input_hw"])
    with torch.no_grad():
        fill.compare(golden, "logits", network(x)["out"])
        eval_norms(network.train())
        coarse, full = network.decode(network.forward_features(x)), network(x)
    for theirs, ours in GOLDENS[file].items():
        same_size = list(coarse[ours].shape) == golden["outputs"][theirs]["shape"]
        fill.compare(golden, theirs, (coarse if same_size else full)[ours])


def test_biases_of_the_stem_are_folded_into_its_norms():
    checkpoint = numbered(key_list("pidnet_s"))
    checkpoint["conv1.0.bias"] = torch.arange(32.0)
    network = build_model("pidnet", 19)
    load_published(network, {f"model.{key}": value for key, value in checkpoint.items()})
    stem = network.stem[0]
    assert torch.equal(stem[1].running_mean, checkpoint["conv1.1.running_mean"] - torch.arange(32.0))
    assert stem[0].bias is None


def test_a_stage_ends_without_relu():
    stage = basic_stage(4, 8, 3, 2)
    assert [block.closing for block in stage] == [True, True, False]
    assert stage(torch.randn(2, 4, 9, 11)).min() < 0
    block = BasicBlock(4, 4, closing=True).eval()
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), F.relu(block.conv2(block.conv1(x)) + x))


@pytest.mark.parametrize("kind", [DAPPM, PAPPM])
def test_pyramids_add_averages_to_finer_ones(kind):
    pyramid = kind(6, 4, 5).eval()
    x = torch.randn(1, 6, 9, 13)
    with torch.no_grad():
        maps = [F.avg_pool2d(x, 5, 2, 2), F.avg_pool2d(x, 9, 4, 4), F.avg_pool2d(x, 17, 8, 8), x.mean((2, 3), True)]
        first = pyramid.scales[0](x)
        maps = [F.interpolate(s(m), (9, 13), mode="bilinear") for s, m in zip(pyramid.scales[1:], maps, strict=True)]
        if kind is DAPPM:
            results = [first]
            for process, one in zip(pyramid.process, maps, strict=True):
                results.append(process(one + results[-1]))
        else:
            results = [first, pyramid.process(torch.cat([one + first for one in maps], 1))]
        expected = pyramid.compress(torch.cat(results, 1)) + pyramid.shortcut(x)
        torch.testing.assert_close(pyramid(x), expected)


def test_details_and_context_mix_by_their_likeness():
    attend = PixelAttention(3, 2).eval()
    detail, context = torch.randn(1, 3, 6, 8), torch.randn(1, 3, 3, 4)
    with torch.no_grad():
        enlarged = F.interpolate(context, (6, 8), mode="bilinear")
        for part in (attend.detail, attend.context):
            torch.nn.init.zeros_(part[1].weight)
            torch.nn.init.constant_(part[1].bias, 5.0)  # embeddings alike everywhere: sigmoid(50) = 1
        torch.testing.assert_close(attend(detail, context), enlarged)
        torch.nn.init.constant_(attend.detail[1].bias, 0.0)  # unrelated: half of each
        torch.testing.assert_close(attend(detail, context), (detail + enlarged) / 2)


def test_details_count_on_boundaries():
    fuse = LightBoundaryFusion(2).eval()
    detail, context = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        on, off = (fuse(detail, context, torch.full_like(detail, value)) for value in (50.0, -50.0))
        torch.testing.assert_close(on, fuse.detail(detail) + fuse.context(context + detail))
        torch.testing.assert_close(off, fuse.detail(context + detail) + fuse.context(context))


@pytest.mark.parametrize(
    ("name", "size", "million"),
    [
        ("pidnet", "s", 7.63),
        ("pidnet", "m", 28.54),
        ("pidnet", "l", 36.94),
        ("ddrnet", "23_slim", 5.70),
        ("ddrnet", "23", 20.15),
    ],
)
def test_sizes_have_the_published_numbers_of_parameters(name, size, million):
    with torch.device("meta"):
        network = build_model(name, 19, size=size, auxiliary=False)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(million, abs=0.006)


@pytest.mark.parametrize("name", ["pidnet", "ddrnet"])
def test_an_unknown_size_is_named(name):
    with pytest.raises(ValueError, match=rf"unknown size of {name} 'xl'.*Known: "):
        build_model(name, 19, size="xl")
