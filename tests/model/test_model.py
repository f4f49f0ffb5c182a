"""The contract of every network and backbone, and the layers against obvious versions of themselves."""

import functools
import inspect
import json
import re

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet50
from torchvision.ops import StochasticDepth

from model import MODELS, build_model, table
from model.backbone import BACKBONES, build_backbone, output_strides
from model.base import SegModel
from model.inference import export
from model.layer.basic import ConvBNReLU, FCNHead, resize
from model.layer.context import ASPP, PPM
from model.sketchfill import CFABlock
from tests.published_logits import eval_norms

CLASSES = 5
BACKBONE_SAMPLE = ("resnet18", "mobilenet_v2", "timm/mobilenetv3_small_050")
SIZES = ((33, 47), (65, 49))
# Options that make a small instance of a network, which has the backbone of tests/model/tiny.py where it takes one.
SMALL = {"psanet": {"cells": 5 * 6}, "segformer": {"width": 16}}
BACKBONE = {"icnet_ppm": "resnet18_v1c"}  # of a network that cannot have that of tests/model/tiny.py
# Networks that take pictures of one size alone: that of the small instance is SIZES[0], this that of the default one.
ONE_SIZE = {"psanet": (480, 480)}
# The deeper ResNets differ in the number of blocks alone.
ONE_OF_EACH = tuple(
    name
    for name in BACKBONES
    if not re.search(r"resnet(34|101|152)|mit_b[2-5]|net(161|169|201)|hrnet_w\d+$|(xt|swin)_(small|base|large)", name)
)
ROUNDS_DOWN = ("vgg16", "densenet121", "convnext_tiny")  # backbones that round odd sizes down

every_network = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", "tests.model.tiny.Tiny")
    torch.manual_seed(0)


def small(name: str, **options) -> SegModel:
    """A small instance of a network."""
    takes_backbone = "backbone" in inspect.signature(table.load(MODELS[name])).parameters
    return build_model(
        name, CLASSES, BACKBONE.get(name, "tiny") if takes_backbone else None, **SMALL.get(name, {}), **options
    )


@functools.cache
def shared(name: str) -> SegModel:
    """A small instance that several tests read; they may change its mode and its running statistics alone."""
    torch.manual_seed(0)
    return small(name)


def sizes(name: str) -> tuple[tuple[int, int], ...]:
    return SIZES[:1] if name in ONE_SIZE else SIZES


def check_outputs(network: SegModel, outputs: dict[str, torch.Tensor], batch: int, size: tuple[int, int]) -> None:
    """Every output that is a map of logits has the size of the picture; nothing is infinite."""
    for name, output in outputs.items():
        if name not in network.raw_outputs:
            assert output.shape == (batch, CLASSES, *size)
        assert output.is_meta or torch.isfinite(output).all()


@every_network
def test_any_size_gives_full_size_logits(name):
    network = shared(name)
    for size in sizes(name):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            evaluated, trained = network.eval()(x), network.train()(x)
        assert list(evaluated) == ["out"]
        assert "out" in trained
        check_outputs(network, evaluated, 2, size)
        check_outputs(network, trained, 2, size)


@pytest.fixture(scope="module")
def process_group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@every_network
def test_every_parameter_gets_a_gradient(name, process_group):
    """Over one process, too: its second step fails where a parameter had no part in the first."""
    network = small(name)
    check_gradients(network, DistributedDataParallel(network))


@pytest.mark.parametrize("name", ["fcn", "sketchfill"])
@pytest.mark.parametrize("backbone", BACKBONE_SAMPLE)
def test_every_parameter_gets_a_gradient_on_other_backbones(name, backbone):
    network = build_model(name, CLASSES, backbone)
    check_gradients(network, network)


def check_gradients(network: SegModel, call: nn.Module) -> None:
    """Every parameter gets a gradient, with the norms' statistics of the batch or with their running ones.

    With the batch's, a bias in front of a further norm has none but that of rounding. With the running ones, all
    channels in front of a ReLU can be negative.
    """
    for parameter in network.parameters():
        if not parameter.any():  # what starts at zero holds back the gradient of what comes before it
            torch.nn.init.normal_(parameter, std=0.1)
    for prepare in (nn.Module.train, eval_norms):
        prepare(network)
        outputs = call(torch.randn(2, 3, *SIZES[0]))
        sum((output * torch.randn_like(output)).sum() for output in outputs.values()).backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@every_network
def test_eval_is_deterministic_and_pictures_are_independent(name):
    network = shared(name).eval()
    x = torch.randn(2, 3, *SIZES[0])
    with torch.no_grad():
        first, second = network(x)["out"], network(x)["out"]
        alone = torch.cat([network(picture[None])["out"] for picture in x])
    assert torch.equal(first, second)
    scale = max(1.0, float(first.std()))  # before training, residual sums without their norm can be large
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=3e-5 * scale)


@every_network
def test_spec_and_state_dict_rebuild_the_network(name):
    network = shared(name).eval()
    spec = json.loads(json.dumps(network.spec))
    assert spec == network.spec
    twin = build_model(spec["name"], spec["num_classes"], spec["backbone"], **spec["options"]).eval()
    assert twin.spec == network.spec
    twin.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, *SIZES[0])
    with torch.no_grad():
        assert torch.equal(network(x)["out"], twin(x)["out"])


@every_network
def test_parameter_groups_cover_each_parameter_once(name):
    network = shared(name)
    groups = network.parameter_groups()
    assert list(groups) == ["backbone", "head"]
    found = [id(p) for group in groups.values() for p in group]
    assert sorted(found) == sorted(id(p) for p in network.parameters())
    inside = {id(p) for key, p in network.named_parameters() if key.startswith("backbone.")}
    assert {id(p) for p in groups["backbone"]} == inside


@every_network
def test_smallest_train_batch_is_what_training_needs(name):
    with torch.device("meta"):
        network = small(name).train()
        enough = network.smallest_train_batch
        network(torch.empty(enough, 3, *SIZES[0]))
        if enough > 1:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                network(torch.empty(enough - 1, 3, *SIZES[0]))


@every_network
def test_auxiliary_outputs_can_be_left_out(name):
    options = inspect.signature(table.load(MODELS[name])).parameters
    heads = ("auxiliary", "semantic_encoding", "deep_supervision", "detail")
    left_out = {option: False for option in heads if option in options}
    if not left_out:
        pytest.skip(f"{name} has no such option")
    with torch.device("meta"):
        network = small(name, **left_out).train()
        assert list(network(torch.empty(2, 3, *SIZES[0]))) == ["out"]


@every_network
def test_compiles_as_one_graph_and_exports(name):
    network, x = shared(name), torch.randn(2, 3, *SIZES[0])
    torch.compiler.reset()
    with torch.no_grad():
        trained = torch.compile(network.train(), fullgraph=True, backend="eager")(x)
        check_outputs(network, trained, 2, SIZES[0])
        exported = torch.export.export(network.eval(), (x,)).module()
        torch.testing.assert_close(exported(x)["out"], network(x)["out"])


@pytest.mark.slow
@pytest.mark.skipif(export.missing("onnx", "onnxruntime") is not None, reason="needs the extra export")
@every_network
def test_onnx_runtime_gives_the_logits(name):
    network, x = shared(name).eval(), torch.randn(2, 3, *SIZES[0])
    with torch.no_grad():
        expected = network(x)["out"]
    found = export.onnx_engine(network, SIZES[0], 2)(x)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@every_network
def test_forward_needs_no_value_on_the_host(name):
    # A tensor on the meta device has no values: reading one, which is what synchronises a GPU, raises.
    size = ONE_SIZE.get(name, SIZES[1])
    with torch.device("meta"):
        network = build_model(name, CLASSES).train()
        check_outputs(network, network(torch.empty(2, 3, *size)), 2, size)


@every_network
def test_pictures_may_have_other_channels_than_three(name):
    with torch.device("meta"):
        network = small(name, in_channels=4).eval()
        assert network(torch.empty(1, 4, *SIZES[0]))["out"].shape == (1, CLASSES, *SIZES[0])


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "timm/resnet18"])
def test_backbone_takes_other_channels_than_three(name):
    with torch.device("meta"):
        backbone = build_backbone(name, in_channels=1)
        assert [f.shape[1] for f in backbone(torch.empty(1, 1, 64, 64))] == backbone.channels


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_of_a_backbone_gets_a_gradient(name):
    backbone = build_backbone(name).train()
    for parameter in backbone.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    for module in backbone.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    sum((feature * torch.randn_like(feature)).sum() for feature in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_backbone_compiles_as_one_graph_and_exports(name):
    backbone, x = build_backbone(name), torch.randn(2, 3, 64, 64)
    torch.compiler.reset()
    with torch.no_grad():
        assert len(torch.compile(backbone.train(), fullgraph=True, backend="eager")(x)) == len(backbone.channels)
        exported = torch.export.export(backbone.eval(), (x,)).module()
        for found, expected in zip(exported(x), backbone(x), strict=True):
            torch.testing.assert_close(found, expected)


@every_network
def test_half_precision_ends_in_float32_logits(name):
    network = small(name).eval()
    x = torch.randn(1, 3, *SIZES[0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(x)["out"].dtype == torch.float32
    with torch.no_grad():
        assert network.double()(x.double())["out"].dtype == torch.float64


@pytest.mark.parametrize("stride, dilation", [(2, 1), (1, 2)])
def test_grouped_convolutions_have_the_gradients_of_float32(stride, dilation):
    torch.manual_seed(0)
    conv = ConvBNReLU(16, 16, 3, stride, dilation, groups=16, activation=None)[0]
    exact = torch.nn.Conv2d(16, 16, 3, stride, dilation, dilation, groups=16, bias=False).double()
    # Numbers that bfloat16 holds exactly, so that only the arithmetic of the convolution can differ.
    x = torch.randn(2, 16, 23, 30).bfloat16().float().contiguous(memory_format=torch.channels_last)
    conv.weight.data.copy_(conv.weight.bfloat16())
    exact.load_state_dict(conv.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x.requires_grad_())
    gradient = torch.randn_like(y)
    wide = x.detach().double().requires_grad_()
    torch.testing.assert_close(y.double(), exact(wide), rtol=1e-2, atol=1e-2)
    found = torch.autograd.grad(y, (x, conv.weight), gradient)
    expected = torch.autograd.grad(exact(wide), (wide, exact.weight), gradient.double())
    for value, truth, precision in zip(found, expected, (2**-8, 1e-5), strict=True):  # that of x is rounded once
        torch.testing.assert_close(value.double(), truth, rtol=precision, atol=precision * float(truth.abs().max()))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", [*ONE_OF_EACH, "timm/resnet18", "timm/convnext_atto", "timm/mobilenetv2_050"])
def test_backbone_says_its_channels_and_strides(name, output_stride):
    if output_stride not in output_strides(name):
        with pytest.raises(ValueError, match=f"output stride 32, not {output_stride}"):
            build_backbone(name, output_stride)
        return
    with torch.device("meta"):
        backbone = build_backbone(name, output_stride)
        assert backbone.strides[-1] == output_stride
        assert len(backbone.channels) == len(backbone.strides)
        features = backbone(torch.empty(1, 3, 65, 97))
    for feature, channels, stride in zip(features, backbone.channels, backbone.strides, strict=True):
        assert feature.shape[:2] == (1, channels)
        for size, side in zip((65, 97), feature.shape[-2:], strict=True):
            assert side == -(-size // stride) or (name in ROUNDS_DOWN and side == size // stride)


@pytest.mark.parametrize("name", ["timm/swin_tiny_patch4_window7_224", "timm/test_vit", "timm/dla34"])
def test_timm_networks_of_one_size_take_any(name):
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 65, 97))
    for feature, channels, stride in zip(features, backbone.channels, backbone.strides, strict=True):
        assert feature.shape == (1, channels, -(-65 // stride), -(-97 // stride))


def dilations_of(module: nn.Module) -> set[int]:
    return {conv.dilation[0] for conv in module.modules() if getattr(conv, "kernel_size", 0) == (3, 3)}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize(("output_stride", "expected"), [(32, (1, 1)), (16, (1, 2)), (8, (2, 4))])
def test_every_3x3_of_a_dilated_stage_has_the_full_dilation(name, output_stride, expected):
    with torch.device("meta"):
        backbone = build_backbone(name, output_stride)
    assert dilations_of(backbone.layer2) == {1}
    assert dilations_of(backbone.layer3) == {expected[0]}
    assert dilations_of(backbone.layer4) == {expected[1]}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50_v1s", [[1] + 5 * [2], [2, 4, 4]]),
        ("resnet50_v1c", [[1] + 5 * [2], [2, 4, 4]]),
        ("resnet18_v1s", [[1, 2, 2, 2], [2, 4, 4, 4]]),
        ("resnet18_v1c", [[1, 1, 2, 1], [2, 1, 4, 1]]),
    ],
)
def test_a_dilated_stage_begins_with_the_dilation_before_it(name, expected):
    with torch.device("meta"):
        backbone = build_backbone(name, 8)
    found = [
        [conv.dilation[0] for conv in stage.modules() if getattr(conv, "kernel_size", 0) == (3, 3)]
        for stage in (backbone.layer3, backbone.layer4)
    ]
    assert found == expected
    assert backbone.stem[6].out_channels == (128 if name.endswith("s") else 64)


def test_resnet_dilates_conv2_alone_when_told():
    with torch.device("meta"):
        backbone = build_backbone("resnet18", dilations=(1, 1, 2, 4))
        shapes = [feature.shape[-1] for feature in backbone(torch.empty(1, 3, 64, 64))]
    assert backbone.strides == [4, 8, 16, 32]
    assert shapes == [16, 8, 4, 2]
    for stage, dilation in ((backbone.layer3, 2), (backbone.layer4, 4)):
        assert {block.conv1.dilation[0] for block in stage} == {1}
        assert {block.conv2.dilation[0] for block in stage} == {dilation}
        assert stage[0].conv1.stride == (2, 2)


@pytest.mark.parametrize(("output_stride", "expected"), [(32, [1, 1, 1, 1]), (16, [1, 1, 1, 2]), (8, [1, 2, 2, 4])])
def test_mobilenet_dilates_its_last_groups_as_published(output_stride, expected):
    with torch.device("meta"):
        backbone = build_backbone("mobilenet_v2", output_stride)
    groups = (range(7, 11), range(11, 14), range(14, 17), range(17, 18))
    found = [dilations_of(nn.ModuleList(backbone.features[i] for i in group)) for group in groups]
    assert found == [{dilation} for dilation in expected]


def test_torchvision_backbone_dilates_as_torchvision():
    reference = resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    backbone = build_backbone("torchvision/resnet50", 8).eval()
    backbone.load_state_dict(reference.state_dict(), strict=False)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        features = backbone(x)
        expected = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        for feature, stage in zip(features, ("layer1", "layer2", "layer3", "layer4"), strict=True):
            expected = getattr(reference, stage)(expected)
            assert torch.equal(feature, expected)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: build_model("sketchfil", 5), ["'sketchfil'", "did you mean 'sketchfill'", "pspnet"]),
        (lambda: build_model("fcn", 5, "resnet51"), ["'resnet51'", "did you mean 'resnet", "mobilenet_v2"]),
        (lambda: build_model("fcn", 5, "timm/resnet5d"), ["'resnet5d'", "did you mean 'resnet50d'"]),
        (lambda: build_model("fcn", 5, outputstride=8), ["'outputstride'", "did you mean 'output_stride'"]),
        (lambda: build_backbone("resnet18", dilation=1), ["'dilation'", "did you mean 'dilations'"]),
        (lambda: build_model("fcn", 5, auxiliary="no"), ["auxiliary must be bool", "'no'"]),
        (lambda: build_model("fcn", 5, output_stride=True), ["output_stride must be int", "True"]),
        (lambda: build_model("fcn", 5, output_stride=4), ["8, 16 or 32", "4"]),
        (lambda: build_model("fcn", 5, "mobilenet_v2", output_stride=4), ["8, 16 or 32", "4"]),
        (lambda: build_model("fcn", 5, "torchvision/resnet18", output_stride=4), ["8, 16 or 32", "4"]),
        (lambda: build_model("fcn", 5, "timm/densenet121", output_stride=8), ["timm/densenet121", "stride 8", "32"]),
        (lambda: build_model("fcn", 5, "timm/test_coatnet"), ["timm/test_coatnet", "160x160 alone"]),
        (lambda: build_model("fcn", 1), ["num_classes", "at least 2", "1"]),
        (lambda: build_backbone("resnet18", dilations=(2, 4)), ["four", "(2, 4)"]),
        (lambda: build_model("sketchfill", 5, "resnet18", fine_conv=False), ["fine_conv=True", "64"]),
        (lambda: build_model("sketchfill", 5, "timm/efficientvit_m0", output_stride=32), ["strides 4, 8", "16"]),
        (lambda: build_model("semanticflow", 5, width="64"), ["width must be int or None", "'64'"]),
        (lambda: build_model("semanticflow", 5, width=65), ["even", "65"]),
        (lambda: build_model("semanticflow", 5, context="aspp"), ["ppm, sppm", "'aspp'"]),
        (lambda: build_model("semanticflow_lite", 5, gate_input="mean"), ["pooled, features", "'mean'"]),
        (lambda: build_model("pspnet", 5, "stdc1", output_stride=8), ["output stride 32, not 8"]),
    ],
)
def test_a_mistake_is_a_value_error_that_says_what_to_do(call, parts):
    with pytest.raises(ValueError) as error:
        call()
    for part in parts:
        assert part in str(error.value)


def test_resize_keeps_the_corners():
    x = torch.tensor([[[[0.0, 3.0]]]])
    assert resize(x, (1, 4)).flatten().tolist() == pytest.approx([0, 1, 2, 3])
    halves = [0, 0.75, 2.25, 3]
    assert resize(x, (1, 4), align_corners=False).flatten().tolist() == pytest.approx(halves)
    y = torch.randn(1, 2, 5, 7)
    for align_corners in (True, False):
        assert torch.equal(resize(y, (5, 7), align_corners), y)


@pytest.mark.parametrize("dilation", [1, 2, 6])
def test_dilation_keeps_the_size(dilation):
    assert ConvBNReLU(3, 4, 3, dilation=dilation)(torch.randn(2, 3, 9, 11)).shape == (2, 4, 9, 11)


def test_convolutions_start_with_the_fan_out_variance():
    conv = ConvBNReLU(64, 128, 3)[0]
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    depthwise = ConvBNReLU(256, 256, 3, groups=256)[0]
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)


def test_head_starts_near_the_uniform_prediction():
    logits = FCNHead(64, 32, 10)(torch.randn(2, 64, 16, 16))
    assert logits.abs().max() < 0.5


def test_pyramid_pooling_averages_cells():
    ppm = PPM(3, 2, bins=(1, 2, 6)).eval()
    x = torch.randn(2, 3, 7, 11)
    parts = [x]
    for size, stage in zip((1, 2, 6), ppm.stages, strict=True):
        cells = torch.empty(2, 3, size, size)
        for row in range(size):
            for column in range(size):
                top, bottom = row * 7 // size, -(-(row + 1) * 7 // size)
                left, right = column * 11 // size, -(-(column + 1) * 11 // size)
                cells[:, :, row, column] = x[:, :, top:bottom, left:right].mean((2, 3))
        parts.append(F.interpolate(stage[1:](cells), size=(7, 11), mode="bilinear", align_corners=True))
    torch.testing.assert_close(ppm(x), torch.cat(parts, 1))
    assert PPM(3, 2, bins=(2, 6)).smallest_train_batch == 1
    assert ppm.smallest_train_batch == 2


def test_aspp_sees_the_whole_map():
    aspp = ASPP(3, 4, rates=(2, 4, 6)).eval()
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    aspp(x)[0, :, 0, 0].sum().backward()
    assert x.grad[0, :, 8, 8].any()
    assert [branch[0].dilation[0] for branch in aspp.branches] == [1, 2, 4, 6]


def test_gates_and_sketch_are_those_of_the_forward_pass():
    network = build_model("sketchfill", CLASSES, "mobilenet_v2").eval()
    x, seen = torch.randn(1, 3, 65, 97), []
    for block in (network.gate3, network.gate2, network.gate1):
        block.gate.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        network(x)
        levels = network.gates_and_sketch(x)
        sketch = network.aspp(network.backbone(x)[-1])
    assert [tuple(gate.shape) for gate, _ in levels] == [(1, 48, 5, 7), (1, 32, 9, 13), (1, 24, 17, 25)]
    for (gate, resized), expected in zip(levels, seen[:3], strict=True):
        assert torch.equal(gate, expected)
        assert gate.min() >= 0
        assert gate.max() <= 1
        size = gate.shape[-2:]
        assert torch.equal(resized, F.interpolate(sketch, size, mode="bilinear", align_corners=False))


def test_cfa_block_fills_the_hidden_state():
    block = CFABlock(2).eval()
    skip, hidden = torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 6)
    with torch.no_grad():
        assert torch.equal(block(torch.zeros_like(skip), hidden), hidden)
        change = block(skip, hidden) - hidden
    assert (change.abs() <= skip.abs()).all()
