"""Semantic flow: the warp against a slow one, and what its two networks promise."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import build_model
from model.backbone import build_backbone
from model.backbone.stdc import STDCBlock
from model.layer.basic import resize
from model.layer.flow import DualFlowAlign, FlowAlign, warp
from model.semanticflow import PyramidContext

CLASSES = 5
NETWORKS = ("semanticflow", "semanticflow_lite")
SIZES = ((65, 97), (33, 64), (40, 31))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def slow_warp(x: np.ndarray, flow: np.ndarray, align_corners: bool) -> np.ndarray:
    """The warp pixel by pixel: x (C,h,w), flow (2,H,W) -> (C,H,W)."""
    _, h, w = x.shape
    height, width = flow.shape[1:]
    output = np.zeros((len(x), height, width))
    for i in range(height):
        for j in range(width):
            gx = -1 + 2 * j / (width - 1) + flow[0, i, j] / width
            gy = -1 + 2 * i / (height - 1) + flow[1, i, j] / height
            column = (gx + 1) / 2 * (w - 1) if align_corners else ((gx + 1) * w - 1) / 2
            row = (gy + 1) / 2 * (h - 1) if align_corners else ((gy + 1) * h - 1) / 2
            for r in range(max(int(np.floor(row)), 0), min(int(np.floor(row)) + 2, h)):
                for c in range(max(int(np.floor(column)), 0), min(int(np.floor(column)) + 2, w)):
                    output[:, i, j] += (1 - abs(row - r)) * (1 - abs(column - c)) * x[:, r, c]
    return output


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(8, 10), (7, 11), (4, 5), (3, 2)])
def test_warp_is_the_slow_one(align_corners, size):
    x, flow = torch.randn(2, 3, 4, 5, dtype=torch.float64), 6 * torch.randn(2, 2, *size, dtype=torch.float64)
    warped = warp(x, flow, align_corners)
    for n in range(2):
        expected = slow_warp(x[n].numpy(), flow[n].numpy(), align_corners)
        np.testing.assert_allclose(warped[n].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 10), (9, 13), (4, 5), (1, 1)])
def test_no_flow_is_the_plain_resize(size):
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(warp(x, torch.zeros(2, 2, *size)), resize(x, size), rtol=1e-5, atol=1e-5)


def test_flow_is_in_halves_of_a_pixel_of_the_full_size_x_first():
    x = torch.arange(9.0).expand(1, 1, 3, 9)
    flow = torch.zeros(1, 2, 6, 18)
    flow[:, 0] = 4.5
    moved = warp(x, flow)[..., :12] - warp(x, torch.zeros_like(flow))[..., :12]
    torch.testing.assert_close(moved, torch.full_like(moved, 4.5 * (9 - 1) / (2 * 18)))
    flow = flow.flip(1)
    torch.testing.assert_close(warp(x, flow)[..., :3, :], warp(x, torch.zeros_like(flow))[..., :3, :])


def test_positions_are_not_rounded_to_half_precision():
    x = torch.rand(1, 2, 4, 256).bfloat16()
    flow = torch.zeros(1, 2, 8, 512, dtype=torch.bfloat16)
    warped = warp(x, flow)
    assert warped.dtype == torch.bfloat16
    torch.testing.assert_close(warped.float(), resize(x.float(), (8, 512)), rtol=2**-8, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        warped = warp(x.float(), flow)
    torch.testing.assert_close(warped, resize(x.float(), (8, 512)), rtol=0, atol=1e-4)


def test_alignment_warps_the_coarse_map_as_it_came():
    align = FlowAlign(6).eval()
    fine, coarse = torch.randn(1, 6, 8, 10), torch.randn(1, 6, 4, 5)
    with torch.no_grad():
        warped, flow = align(fine, coarse)
        assert flow.shape == (1, 2, 8, 10)
        assert torch.equal(warped, warp(coarse, flow))
        reduced = torch.cat([resize(align.reduce_coarse(coarse), (8, 10)), align.reduce_fine(fine)], 1)
        assert torch.equal(flow, align.flow(reduced))


def test_gate_mixes_both_warped_maps():
    fine, coarse = torch.randn(1, 6, 8, 10), torch.randn(1, 6, 4, 5)
    for gate_input in ("pooled", "features"):
        align = DualFlowAlign(6, gate_input=gate_input)
        nn.init.zeros_(align.gate.weight)
        mixed, flows = align(fine, coarse)
        torch.testing.assert_close(mixed, (warp(coarse, flows[0]) + warp(fine, flows[1])) / 2)
    added, flows = DualFlowAlign(6, gate=False)(fine, coarse)
    assert [tuple(flow.shape) for flow in flows] == [(1, 2, 8, 10)] * 2
    torch.testing.assert_close(added, warp(coarse, flows[0]) + warp(fine, flows[1]))


def test_pooled_gate_sees_mean_and_maximum_of_both_maps():
    align = DualFlowAlign(6)
    fine, coarse = torch.randn(1, 6, 8, 10), torch.randn(1, 6, 4, 5)
    nn.init.zeros_(align.flow.weight)
    reduced = resize(align.reduce_coarse(coarse), (8, 10))
    pooled = [reduced.mean(1), fine.mean(1), reduced.max(1).values, fine.max(1).values]
    gate = torch.sigmoid(F.conv2d(torch.stack(pooled, 1), align.gate.weight, padding=1))
    expected = gate * resize(coarse, (8, 10)) + (1 - gate) * fine
    torch.testing.assert_close(align(fine, coarse)[0], expected, rtol=1e-4, atol=1e-5)


def test_pyramid_context_has_no_activation_in_its_stages():
    x = torch.randn(2, 8, 7, 11)
    for context, bins in (("ppm", (1, 2, 3, 6)), ("sppm", (1, 2, 4))):
        pyramid = PyramidContext(8, 4, context).eval()
        maps = [
            resize(stage[1:](F.adaptive_avg_pool2d(x, size)), (7, 11))
            for size, stage in zip(bins, pyramid.stages, strict=True)
        ]
        assert all((one < 0).any() for one in maps)
        gathered = torch.cat([*maps, x], 1) if context == "ppm" else pyramid.down(x) + torch.stack(maps).sum(0)
        torch.testing.assert_close(pyramid(x), pyramid.bottleneck(gathered))


@pytest.mark.parametrize("kind", ["stdc1", "dfnet_v1", "mobilenet_v2", "torchvision/resnet18", "timm/test_vit"])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_on_any_backbone_of_three_levels(name, kind):
    network = build_model(name, CLASSES, kind, width=8).eval()
    for size in SIZES:
        with torch.no_grad():
            logits = network(torch.randn(1, 3, *size))
        assert list(logits) == ["out"]
        assert logits["out"].shape == (1, CLASSES, *size)
        assert torch.isfinite(logits["out"]).all()


def test_levels_finer_than_stride_4_are_left_out():
    network = build_model("semanticflow", CLASSES, "timm/mobilenetv3_small_050", width=8)
    assert network.backbone.strides == [2, 4, 8, 16, 32]
    assert network.levels == (1, 2, 3, 4)
    lite = build_model("semanticflow_lite", CLASSES, "timm/mobilenetv3_small_050", width=8)
    assert lite.levels == (1, 3, 4)


@pytest.mark.parametrize(("kind", "width"), [("resnet18", 128), ("resnet50", 256), ("dfnet_v2", 64), ("stdc2", 64)])
def test_decoder_has_the_published_width(kind, width):
    with torch.device("meta"):
        network = build_model("semanticflow", CLASSES, kind)
        assert build_model("semanticflow_lite", CLASSES, kind).classifier[0].out_channels == 128
    assert network.classifier[0].out_channels == width
    if kind.startswith("resnet"):
        assert network.backbone.strides[-1] == 32
        assert network.backbone.layer4[1].conv2.dilation == (4, 4)


class Forbidden(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("called in evaluation")


@pytest.mark.parametrize(
    ("name", "kind", "outputs"),
    [
        ("semanticflow", "stdc1", ["out", "dsn0", "dsn1", "dsn2"]),
        ("semanticflow", "dfnet_v1", ["out", "dsn0", "dsn1"]),
        ("semanticflow_lite", "stdc1", ["out", "dsn0"]),
    ],
)
def test_deep_supervision_is_for_training_alone(name, kind, outputs):
    network = build_model(name, CLASSES, kind, width=8, deep_supervision=True).train()
    x = torch.randn(2, 3, *SIZES[0])
    logits = network(x)
    assert list(logits) == outputs
    assert all(one.shape == (2, CLASSES, *SIZES[0]) for one in logits.values())
    network.dsn = nn.ModuleList(Forbidden() for _ in outputs[1:]) if name == "semanticflow" else Forbidden()
    assert list(network.eval()(x)) == ["out"]


def test_deep_supervision_goes_from_coarse_to_fine():
    network = build_model("semanticflow", CLASSES, "stdc1", width=8, deep_supervision=True).train()
    with torch.no_grad():
        logits = network.decode(network.backbone(torch.randn(2, 3, 64, 96)))
    assert {name: tuple(one.shape[-2:]) for name, one in logits.items()} == {
        "out": (16, 24),
        "dsn0": (4, 6),
        "dsn1": (8, 12),
        "dsn2": (16, 24),
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("semanticflow", {}),
        ("semanticflow", {"context": "sppm", "flow_align_corners": False}),
        ("semanticflow_lite", {}),
        ("semanticflow_lite", {"context": "sppm", "gate_input": "features"}),
        ("semanticflow_lite", {"gate": False}),
    ],
)
def test_every_parameter_gets_a_gradient(name, options):
    network = build_model(name, CLASSES, "stdc1", width=8, deep_supervision=True, **options).train()
    outputs = network(torch.randn(2, 3, *SIZES[0]))
    label = torch.randint(CLASSES, (2, *SIZES[0]))
    sum(F.cross_entropy(logits, label) for logits in outputs.values()).backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", NETWORKS)
def test_flow_fields_are_those_of_the_forward_pass(name):
    network = build_model(name, CLASSES, "stdc1", width=8).eval()
    seen, x = [], torch.randn(1, 3, *SIZES[0])
    for module in network.modules():
        if isinstance(module, FlowAlign | DualFlowAlign):
            module.flow.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        network(x)
        flows = network.flow_fields(x)
    sizes = [(5, 7), (9, 13), (17, 25)] if name == "semanticflow" else [(17, 25)] * 2
    assert [tuple(flow.shape) for flow in flows] == [(1, 2, *size) for size in sizes]
    expected = seen[:3] if name == "semanticflow" else seen[0].split(2, 1)
    assert all(torch.equal(flow, one) for flow, one in zip(flows, expected, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_option_of_the_grid_reaches_the_warp(name):
    x = torch.randn(1, 3, *SIZES[0])
    outputs = []
    for align_corners in (True, False):
        torch.manual_seed(0)
        network = build_model(name, CLASSES, "stdc1", width=8, flow_align_corners=align_corners).eval()
        with torch.no_grad():
            outputs.append(network(x)["out"])
    assert not torch.allclose(*outputs, rtol=0.01)


def test_stdc_block_concatenates_its_convolutions():
    x = torch.randn(2, 16, 9, 12)
    block = STDCBlock(16, 32, 1).eval()
    parts = [x]
    for conv in block.convs:
        parts.append(conv(parts[-1]))
    assert [part.shape[1] for part in parts[1:]] == [16, 8, 4, 4]
    assert torch.equal(block(x), torch.cat(parts[1:], 1))
    block = STDCBlock(16, 32, 2).eval()
    first = block.convs[0](x)
    assert torch.equal(block(x)[:, :16], F.avg_pool2d(first, 3, 2, 1, count_include_pad=True))
    second = block.convs[1](block.downsample(first))
    assert torch.equal(block(x)[:, 16:24], second)


@pytest.mark.parametrize(
    ("name", "channels", "strides", "blocks"),
    [("dfnet_v1", [128, 256, 512], [16, 32, 32], 10), ("dfnet_v2", [128, 256, 512], [8, 16, 32], 20)],
)
def test_dfnet_has_the_features_of_semantic_flow(name, channels, strides, blocks):
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert backbone.channels == channels
    assert backbone.strides == strides
    assert sum(len(stage) for stage in backbone.stages) == blocks


def test_exported_alignment_takes_any_size():
    align = FlowAlign(6).eval()
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    inputs = torch.randn(2, 6, 8, 10), torch.randn(2, 6, 4, 5)
    exported = torch.export.export(align, inputs, dynamic_shapes=(sizes, sizes)).module()
    others = torch.randn(3, 6, 13, 17), torch.randn(3, 6, 7, 9)
    torch.testing.assert_close(exported(*others), align(*others))
