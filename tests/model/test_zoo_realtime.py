"""Real-time networks: published logits, and their parts against obvious versions of themselves."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import build_model
from model.bisenetv2 import GuidedAggregation
from model.icnet import CascadeFusion
from model.layer.bilateral import AttentionRefinement, ContextPath, FeatureFusion
from model.layer.branch import DAPPM, PAPPM, BasicBlock, basic_stage
from model.layer.shapes import shapes_only
from model.pidnet import LightBoundaryFusion, PixelAttention
from model.published import layout_of, load_published, recognise_family
from tests.published_keys import key_list, meta, numbered
from tests.published_logits import eval_norms, published_case

# Reference logits -> our names of the maps that stand beside them, as `decode` gives them.
GOLDENS = {
    "pidnet_s": {"main_lowres": "out", "aux0": "aux", "aux1": "boundary"},
    "mmseg_pidnet-s": {"main_lowres": "out"},
    "bisenet_resnet18": {"aux0": "aux1", "aux1": "aux0"},
    "coincheung_bisenetv2": {f"aux{i}": f"aux{i}" for i in range(4)},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("file", GOLDENS)
def test_logits_are_those_of_the_published_code(file):
    fill, golden, network, x = published_case(file)
    with torch.no_grad():
        fill.compare(golden, "logits", network(x)["out"])
        eval_norms(network.train())
        coarse, full = network.decode(network.forward_features(x)), network(x)
    for theirs, ours in GOLDENS[file].items():
        same_size = list(coarse[ours].shape) == golden["outputs"][theirs]["shape"]
        fill.compare(golden, theirs, (coarse if same_size else full)[ours])


@pytest.mark.parametrize(
    ("file", "heads"),
    [
        ("pidnet_s", r"seghead_"),
        ("mmseg_pidnet-s", r"decode_head\.[pd]_"),
        ("ddrnet_23_slim", r"seghead_extra"),
        ("bisenet_resnet18", r"auxlayer"),
        ("mmseg_bisenetv1_r18", r"auxiliary_head"),
        ("coincheung_bisenetv2", r"aux\d"),
        ("stdc1_seg", r"conv_out(16|32|_sp8)"),
        ("icnet_resnet50", r"head\.cff_\d\d\.conv_low_cls"),
        ("mmseg_icnet_r50", r"auxiliary_head"),
    ],
)
def test_auxiliary_heads_may_be_absent_on_either_side(file, heads):
    checkpoint = meta(key_list(file))
    without = {key: value for key, value in checkpoint.items() if not re.match(heads, key)}
    found = recognise_family(without)
    assert found.options["auxiliary"] is False and found.options.get("detail", False) is False
    with shapes_only():
        network = build_model(found.model, found.num_classes, found.backbone, **found.options)
    load_published(network, without)
    report = load_published(network, checkpoint)
    assert set(checkpoint) - set(without) <= set(report.dropped)


def test_biases_of_the_stem_are_folded_into_its_norms():
    checkpoint = numbered(key_list("pidnet_s"))
    checkpoint["conv1.0.bias"] = torch.arange(32.0)
    network = build_model("pidnet", 19)
    load_published(network, {f"model.{key}": value for key, value in checkpoint.items()})
    stem = network.stem[0]
    assert torch.equal(stem[1].running_mean, checkpoint["conv1.1.running_mean"] - torch.arange(32.0))
    assert stem[0].bias is None


@pytest.mark.fast
def test_a_stage_ends_without_relu():
    stage = basic_stage(4, 8, 3, 2)
    assert [block.closing for block in stage] == [True, True, False]
    assert stage(torch.randn(2, 4, 9, 11)).min() < 0
    block = BasicBlock(4, 4, closing=True).eval()
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(block(x), F.relu(block.conv2(block.conv1(x)) + x))


@pytest.mark.fast
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


@pytest.mark.fast
def test_details_and_context_mix_by_their_likeness():
    attend = PixelAttention(3, 2).eval()
    detail, context = torch.randn(1, 3, 6, 8), torch.randn(1, 3, 3, 4)
    with torch.no_grad():
        enlarged = F.interpolate(context, (6, 8), mode="bilinear")
        for part in (attend.detail, attend.context):
            nn.init.zeros_(part[1].weight)
            nn.init.constant_(part[1].bias, 5.0)  # embeddings alike everywhere: sigmoid(50) = 1
        torch.testing.assert_close(attend(detail, context), enlarged)
        nn.init.constant_(attend.detail[1].bias, 0.0)  # unrelated: half of each
        torch.testing.assert_close(attend(detail, context), (detail + enlarged) / 2)


@pytest.mark.fast
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


@pytest.mark.fast
def test_refinement_weights_channels_by_the_mean_of_the_map():
    refine = AttentionRefinement(4, 3).eval()
    x = torch.randn(2, 4, 5, 7)
    with torch.no_grad():
        y = refine.conv(x)
        assert (refine(x) <= y).all()
        nn.init.zeros_(refine.gate[1].weight)
        torch.testing.assert_close(refine(x), y / 2)  # sigmoid(0)
        nn.init.constant_(refine.gate[1].bias, 50.0)
        torch.testing.assert_close(refine(x), y)


@pytest.mark.fast
@pytest.mark.parametrize("nearest", [True, False])
def test_context_is_refined_from_coarse_to_fine(nearest):
    path = ContextPath((4, 6), 5, nearest).eval()
    fine, coarse = torch.randn(1, 4, 6, 8), torch.randn(1, 6, 3, 4)

    def enlarge(x, size):
        return F.interpolate(x, size) if nearest else F.interpolate(x, size, mode="bilinear", align_corners=True)

    with torch.no_grad():
        first = path.refine[0](enlarge(path.attend[0](coarse) + path.mean(coarse.mean((2, 3), True)), (6, 8)))
        second = path.refine[1](enlarge(path.attend[1](fine) + first, (12, 16)))
        for found, expected in zip(path([fine, coarse], (12, 16)), (second, first), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.fast
def test_fusion_adds_the_weighted_map():
    fuse = FeatureFusion(7, 6, nn.Conv2d(6, 6, 1)).eval()
    detail, context = torch.randn(1, 3, 5, 5), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        nn.init.zeros_(fuse.gate.weight)
        nn.init.zeros_(fuse.gate.bias)
        torch.testing.assert_close(fuse(detail, context), 1.5 * fuse.project(torch.cat([detail, context], 1)))


@pytest.mark.fast
@pytest.mark.parametrize("nearest", [True, False])
def test_each_branch_is_weighted_by_the_other(nearest):
    layer = GuidedAggregation(4, nearest).eval()
    detail, semantic = torch.randn(1, 4, 16, 24), torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        for gate in (layer.semantic_up[1], layer.semantic_keep[0][1]):  # no meaning: half of the details
            nn.init.zeros_(gate.weight)
        nn.init.zeros_(layer.semantic_keep[1].bias)
        coarse = layer.enlarge(layer.detail_down(detail) / 2, (16, 24))
        torch.testing.assert_close(layer(detail, semantic), layer.join(layer.detail_keep(detail) / 2 + coarse))


@pytest.mark.fast
@pytest.mark.parametrize("rectified", [True, False])
def test_cascade_fusion_adds_enlarged_context(rectified):
    fuse = CascadeFusion(3, 2, 4, align_corners=True, rectified=rectified).eval()
    coarse, fine = torch.randn(1, 3, 3, 4), torch.randn(1, 2, 6, 8)
    with torch.no_grad():
        joined, low = fuse(coarse, fine)
        enlarged = F.interpolate(coarse, (6, 8), mode="bilinear", align_corners=True)
        conv, norm, *_ = fuse.low
        expected = norm(F.conv2d(enlarged, conv.weight, padding=2, dilation=2))
        torch.testing.assert_close(low, expected.relu() if rectified else expected)
        torch.testing.assert_close(joined, F.relu(low + fuse.high(fine)))


def test_icnet_sees_the_image_at_three_sizes():
    network = build_model("icnet", 4, "resnet18_v1s").eval()
    seen = []
    network.backbone.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-2:]))
    with torch.no_grad():
        features = network.forward_features(torch.randn(1, 3, 128, 96))
    assert seen == [(64, 48), (32, 24)]
    assert [tuple(x.shape[-2:]) for x in features] == [(16, 12), (8, 6), (4, 3)]


def test_icnet_in_one_pass_needs_a_backbone_in_parts():
    with pytest.raises(ValueError, match="icnet_ppm runs its backbone in two parts, which 'vgg16' lacks"):
        build_model("icnet_ppm", 4, "vgg16")


@pytest.mark.parametrize("file", ["stdc1_seg", "stdc1_seg_negative"])
def test_scales_of_in_place_norms_are_absolute(file):
    checkpoint = numbered(key_list(file))
    key, kept = "cp.arm16.bn_atten.weight", "cp.backbone.features.0.bn.weight"
    checkpoint[key] = torch.linspace(-1, 1, 128)
    checkpoint[kept] = torch.linspace(-1, 1, 32)
    checkpoint["cp.backbone.x2.0.0.bn.weight"] = checkpoint[kept]
    network = build_model("stdc", 19)
    report = load_published(network, checkpoint)
    torch.testing.assert_close(network.context.attend[1].gate[1].weight.detach(), checkpoint[key].abs() + 1e-5)
    assert torch.equal(network.backbone.features[0][1].weight, checkpoint[kept])
    assert not network.classifier[4].bias.any() and "classifier.4.bias" in report.zeroed


@pytest.mark.parametrize(("classes", "data", "mean"), [(19, "cityscapes", 0.3257), (150, "ade20k", 0.4934323)])
def test_preprocessing_of_bisenet_is_that_of_its_data(classes, data, mean):
    golden = key_list("coincheung_bisenetv2")
    checkpoint = meta(golden)
    for key, value in checkpoint.items():
        if "conv_out.1." in key and value.shape[0] == 19:
            checkpoint[key] = torch.empty(classes, *value.shape[1:], device="meta")
    found = recognise_family(checkpoint)
    assert (found.num_classes, found.family) == (classes, f"BiSeNet V2, {data} (CoinCheung/BiSeNet)")
    assert layout_of(found.family).preprocessing.mean[0] == pytest.approx(255 * mean)
    assert layout_of(found.family).datasets[classes] == data


def test_wider_bisenets_are_built_for_their_files():
    with torch.device("meta"):
        network = build_model("bisenet", 19, "torchvision/resnet50", width=512, head_width=1024, fusion_width=None)
    assert [conv[0].out_channels for conv in network.spatial] == [256, 256, 256, 512]
    assert network.fuse.project[0].out_channels == 1024
