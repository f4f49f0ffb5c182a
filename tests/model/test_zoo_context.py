"""Networks of context under the keys of Tramac's repository, of MMSegmentation and of torchvision."""

import pytest
import torch
import torchvision
from torch.nn import functional as F

from model import build_model
from model.ann import CellRow, PooledAttention
from model.backbone import build_backbone
from model.backbone.densenet import TorchvisionDenseNet
from model.danet import ChannelAttention, PositionAttention
from model.dunet import DUpsampling
from model.encnet import Encoding
from model.layer.attention import attend
from model.layer.context import ASPP, JPU
from model.ocnet import ObjectAttention
from model.psanet import PointwiseAttention
from model.published import load_backbone_weights, load_published, recognise_family
from model.published.recognise import build_on_meta
from tests.published_keys import key_list, meta
from tests.published_logits import eval_norms, published_case

V1S, V1C, TV = "resnet50_v1s", "resnet50_v1c", "torchvision/resnet50"
CORNERS, NO_CORNERS = {"align_corners": True}, {"align_corners": False}

# Key list -> network, classes, backbone, and options of which the recognised ones must be a part.
NETWORKS = {
    "fcn32s_vgg16": ("fcn32s", 19, "vgg16", {"auxiliary": True}),
    "fcn16s_vgg16": ("fcn16s", 19, "vgg16", {"auxiliary": True}),
    "fcn8s_vgg16": ("fcn8s", 19, "vgg16", {"auxiliary": True}),
    "fcn_resnet50": ("fcn", 19, V1S, CORNERS),
    "pspnet_resnet50": ("pspnet", 19, V1S, {"jpu": False, **CORNERS}),
    "pspnet_resnet50_jpu": ("pspnet", 19, V1S, {"jpu": True, **CORNERS}),
    "deeplabv3_resnet50": ("deeplabv3", 19, V1S, {"project_kernel": 1, **CORNERS}),
    "deeplabv3_plus_xception": ("deeplabv3plus", 19, "xception65", {"low_kernel": 3, **CORNERS}),
    "denseaspp_densenet121": ("denseaspp", 19, "densenet121", {"auxiliary": True}),
    "encnet_resnet50": ("encnet", 19, V1S, {"squared_scale": True, "semantic_encoding": True, **CORNERS}),
    "encnet_resnet50_codes": ("encnet", 19, V1S, {"squared_scale": True}),
    "danet_resnet50": ("danet", 19, V1S, {"auxiliary": True, "deep_supervision": False, **CORNERS}),
    "ocnet_base_resnet50": ("ocnet", 19, V1S, {"context": "base"}),
    "ocnet_pyramid_resnet50": ("ocnet", 19, V1S, {"context": "pyramid"}),
    "ocnet_asp_resnet50": ("ocnet", 19, V1S, {"context": "asp"}),
    "dunet_resnet50": ("dunet", 19, V1S, {"auxiliary": True}),
    "psanet_resnet50": ("psanet", 19, V1S, {"cells": 3600}),
    "mmseg_fcn_r50-d8": ("fcn", 19, V1C, {"concat_input": True, **NO_CORNERS}),
    "mmseg_pspnet_r50-d8": ("pspnet", 19, V1C, {"jpu": False, **NO_CORNERS}),
    "mmseg_pspnet_r50-d8_769": ("pspnet", 19, V1C, {"jpu": False, **NO_CORNERS}),
    "mmseg_deeplabv3_r50-d8": ("deeplabv3", 19, V1C, {"width": 512, "project_kernel": 3, **NO_CORNERS}),
    "mmseg_deeplabv3plus_r50-d8": ("deeplabv3plus", 19, V1C, {"separable": True, "low_kernel": 1, **NO_CORNERS}),
    "mmseg_upernet_r50": ("upernet", 19, V1C, {"width": 512, "aux_width": 256, **NO_CORNERS}),
    "mmseg_encnet_r50-d8": ("encnet", 19, V1C, {"squared_scale": False, "semantic_encoding": True, **NO_CORNERS}),
    "mmseg_danet_r50-d8": ("danet", 19, V1C, {"auxiliary": True, "deep_supervision": True, **NO_CORNERS}),
    "mmseg_ann_r50-d8": ("ann", 19, V1C, {"key_width": 256, **NO_CORNERS}),
    "torchvision_fcn_resnet50": ("fcn", 21, TV, {"concat_input": False, **NO_CORNERS}),
    "torchvision_deeplabv3_resnet50": ("deeplabv3", 21, TV, {"aux_level": -2, "output_stride": 8, **NO_CORNERS}),
    "torchvision_deeplabv3_mobilenet_v3_large": (
        "deeplabv3",
        21,
        "mobilenet_v3_large",
        {"aux_level": -3, "output_stride": 16, **NO_CORNERS},
    ),
    "torchvision_lraspp_mobilenet_v3_large": ("lraspp", 21, "mobilenet_v3_large", {}),
}
# What a network must be built with that its published name does not say (parity/README.md).
BY_HAND = {
    "encnet_resnet50": {"squared_scale": True},
    "ocnet_pyramid_resnet50": {"context": "pyramid"},
    "ocnet_asp_resnet50": {"context": "asp"},
    "pspnet_resnet50_jpu": {"jpu": True},
}


@pytest.mark.parametrize("file", NETWORKS)
def test_keys_are_recognised_and_load_strictly(file):
    golden = key_list(file)
    found = recognise_family({"state_dict": meta(golden)})
    name, num_classes, backbone, options = NETWORKS[file]
    assert found[1:4] == (name, num_classes, backbone)
    assert options.items() <= found.options.items()
    network = build_on_meta(found)
    report = load_published(network, meta(golden))
    assert (report.missing, report.zeroed) == ((), ())
    dropped = sum(torch.Size(golden["keys"][key]).numel() for key in report.dropped)
    assert sum(p.numel() for p in network.parameters()) == golden["params"] - dropped
    assert all(key.startswith(("pretrained.fc.", "pretrained.classifier.")) for key in report.dropped)


@pytest.mark.parametrize("file", ["encnet_resnet50", "ocnet_asp_resnet50", "pspnet_resnet50_jpu", "danet_resnet50"])
def test_a_network_built_by_hand_takes_the_published_file(file):
    name, num_classes, backbone, _ = NETWORKS[file]
    with torch.device("meta"):
        network = build_model(name, num_classes, backbone, **BY_HAND.get(file, {}))
    assert load_published(network, meta(key_list(file))).missing == ()


def test_a_network_built_otherwise_is_refused_with_the_option():
    with torch.device("meta"):
        network = build_model("encnet", 19, "resnet50_v1s")
    with pytest.raises(ValueError, match="squared_scale=True, not False: build the model with squared_scale=True"):
        load_published(network, meta(key_list("encnet_resnet50")))


def test_copies_of_one_layer_must_agree():
    golden = key_list("ocnet_base_resnet50")
    weights = {key: torch.zeros(shape) for key, shape in golden["keys"].items()}
    with torch.device("meta"):
        network = build_model("ocnet", 19, "resnet50_v1s")
    network.to_empty(device="cpu")
    load_published(network, weights)
    weights["head.context.3.stages.0.f_query.0.bias"] += 1
    with pytest.raises(ValueError, match="are one tensor"):
        load_published(network, weights)


GOLDEN = [
    "fcn8s_vgg16",
    "encnet_resnet50_codes",
    "mmseg_pspnet_r50-d8",
    "mmseg_deeplabv3plus_r50-d8",
    "torchvision_lraspp_mobilenet_v3_large",
    pytest.param("deeplabv3_resnet50", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("file", GOLDEN)
def test_logits_are_those_of_the_published_code(file):
    fill, golden, network, x = published_case(file)
    eval_norms(network.train())  # the outputs of training, but neither dropout nor statistics of the batch
    with torch.no_grad():
        raw = network.decode(network.forward_features(x))
        full = network(x)
    published = {"logits": full["out"], "main_lowres": raw["out"], "se": raw.get("se")}
    published["aux0"] = raw.get("aux") if "main_lowres" in golden else full.get("aux")
    for name in golden["outputs"]:
        fill.compare(golden, name, published[name])


def test_vgg_and_mobilenet_are_those_of_torchvision():
    for name, reference in (("vgg16", torchvision.models.vgg16), ("mobilenet_v3_large", None)):
        if reference is None:
            features = torchvision.models.mobilenet_v3_large(dilated=True).features.eval()
        else:
            with torch.device("meta"):
                features = reference().features.to_empty(device="cpu").apply(_small).eval()
        backbone = build_backbone(name, 32 if name == "vgg16" else 16).eval()
        backbone.features.load_state_dict(features.state_dict())
        x = torch.randn(1, 3, 65, 97)
        with torch.no_grad():
            assert torch.equal(backbone(x)[-1], features(x))


def _small(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Conv2d):
        torch.nn.init.normal_(module.weight, std=0.05)
        torch.nn.init.zeros_(module.bias)


def test_dilated_densenet_sees_as_far_as_the_strided_one():
    """Every other pixel of a stage whose stride is dilation is what the strided stage gives without its pooling."""
    strided = TorchvisionDenseNet(4, (1, 1, 2, 1), 8).eval()
    dilated = TorchvisionDenseNet(4, (1, 1, 2, 1), 8, output_stride=8).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        second, third, _ = dilated(x)[1:]
        reduce = strided.features.transition2
        before = reduce.conv(reduce.relu(reduce.norm(second)))
        block = strided.features.denseblock3(before[..., ::2, ::2])
    assert dilated.strides == [4, 8, 8, 8]
    assert second.shape[-1] == third.shape[-1] == 8
    torch.testing.assert_close(third[..., ::2, ::2], block)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("vgg16", torchvision.models.vgg16),
        ("densenet121", torchvision.models.densenet121),
        ("mobilenet_v3_large", torchvision.models.mobilenet_v3_large),
    ],
)
def test_imagenet_weights_of_torchvision_load_into_the_backbone(name, weights):
    with torch.device("meta"):
        checkpoint = weights().state_dict()
        assert recognise_family(checkpoint)[1:4] == (None, None, name)
        assert load_backbone_weights(build_backbone(name), checkpoint).missing == ()


def test_old_densenet_files_have_dots_in_the_names_of_layers():
    with torch.device("meta"):
        new = torchvision.models.densenet121().state_dict()
        old = {}
        for key, value in new.items():
            for part in ("norm1", "norm2", "conv1", "conv2"):
                if "denselayer" in key:
                    key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
            old[key] = value
        assert "features.denseblock1.denselayer1.norm.1.weight" in old
        assert load_backbone_weights(build_backbone("densenet121"), old).missing == ()


def test_attention_is_a_weighted_mean_of_the_values():
    query, key, value = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2, 3), torch.randn(2, 7, 2, 3)
    expected = torch.empty(2, 7, 4, 5)
    for n in range(2):
        for row in range(4):
            for column in range(5):
                products = [0.5 * float(query[n, :, row, column] @ key[n, :, i, j]) for i in range(2) for j in range(3)]
                weights = torch.tensor(products).softmax(0)
                expected[n, :, row, column] = sum(
                    w * value[n, :, place // 3, place % 3] for place, w in enumerate(weights)
                )
    torch.testing.assert_close(attend(query, key, value, 0.5), expected)


@pytest.mark.parametrize("squared", [False, True])
def test_encoding_sums_the_residuals_of_each_codeword(squared):
    encoding, x = Encoding(3, 2, squared), torch.randn(1, 3, 2, 2)
    expected = torch.zeros(2, 3)
    scale = encoding.scale**2 if squared else encoding.scale
    for row in range(2):
        for column in range(2):
            residuals = x[0, :, row, column] - encoding.codewords
            shares = (scale * residuals.square().sum(1)).softmax(0)
            expected += shares[:, None] * residuals
    torch.testing.assert_close(encoding(x)[0], expected)


def test_attentions_of_danet_begin_as_the_identity():
    x = torch.randn(2, 16, 5, 6)
    position, channel = PositionAttention(16), ChannelAttention()
    assert torch.equal(position(x), x)
    assert torch.equal(channel(x), x)
    channel.weight.data.fill_(2)
    rows = x[0].flatten(1)
    weights = (-(rows @ rows.T)).softmax(1)  # a constant in each row changes nothing
    torch.testing.assert_close(channel(x)[0], 2 * (weights @ rows).view(16, 5, 6) + x[0])


def test_attention_in_tiles_stays_in_its_tile():
    attention = ObjectAttention(4, 2, 4, tiles=2).eval()
    torch.nn.init.eye_(attention.project.weight.data[..., 0, 0])
    x = torch.randn(1, 4, 5, 7)
    changed = x.clone()
    changed[..., 2:, 3:] += 1
    with torch.no_grad():
        same = attention(changed) == attention(x)
    assert same[..., :2, :].all() and same[..., :3].all()
    assert not same[..., 2:, 3:].any()
    tiny = ObjectAttention(4, 2, 4, tiles=6).eval()
    assert tiny(torch.randn(1, 4, 3, 2)).shape == (1, 4, 3, 2)


def test_pooled_keys_are_the_110_means():
    x = torch.randn(1, 2, 9, 11)
    pooled = CellRow()(x)
    assert pooled.shape == (1, 2, 1, 1 + 9 + 36 + 64)
    torch.testing.assert_close(pooled[0, :, 0, 0], x[0].mean((1, 2)))
    torch.testing.assert_close(pooled[0, :, 0, 1], x[0, :, :3, :4].mean((1, 2)))
    attention = PooledAttention(2, 4, query_channels=3).eval()
    assert not attention(torch.randn(1, 3, 9, 11), x).any()


def test_dupsampling_unfolds_each_pixel():
    upsample = DUpsampling(3, 2, 4)
    x = torch.randn(1, 3, 2, 2)
    y = upsample(x)
    weight = upsample[0].weight[..., 0, 0]
    for row, column, offset, shift, kind in ((0, 1, 3, 2, 1), (1, 0, 0, 1, 0)):
        expected = weight[kind * 16 + offset * 4 + shift] @ x[0, :, row, column]
        assert y[0, kind, row * 4 + offset, column * 4 + shift].item() == pytest.approx(expected.item(), abs=1e-6)


def test_dunet_cuts_what_exceeds_the_picture():
    network = build_model("dunet", 5, "resnet18").eval()
    x = torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        whole = network.decode(network.backbone(F.pad(x, (0, 0, 0, 0))))["out"]
        assert torch.equal(network(x)["out"], whole)
        cut = network(x[..., :29, :35])["out"]
    assert cut.shape == (1, 5, 29, 35)
    assert not network.gives_coarse


def test_pointwise_attention_mixes_the_pixels_with_its_own_weights():
    attention = PointwiseAttention(3, 4, cells=6).eval()
    x = torch.randn(1, 3, 2, 3)
    with torch.no_grad():
        reduced = attention.reduce(x).flatten(2)[0]
        shares = attention.attention(attention.reduce(x)).flatten(2)[0].softmax(0)
        torch.testing.assert_close(attention(x).flatten(2)[0], reduced @ shares)
    network = build_model("psanet", 5, "resnet18", cells=30).eval()
    with pytest.raises(ValueError, match="30 cells, not 9x13.*cells=117"):
        network(torch.randn(1, 3, 65, 97))


def test_jpu_joins_three_levels_at_the_finest():
    jpu = JPU((2, 3, 4), 5).eval()
    features = [torch.randn(1, 2, 8, 12), torch.randn(1, 3, 4, 6), torch.randn(1, 4, 2, 3)]
    assert jpu(features).shape == (1, 20, 8, 12)
    assert [branch[0][0].dilation[0] for branch in jpu.branches] == [1, 2, 4, 8]


def test_separable_aspp_has_depthwise_branches():
    aspp = ASPP(6, 4, (2, 4, 6), project_kernel=3, separable=True).eval()
    assert [branch[0][0].groups for branch in aspp.branches[1:]] == [6, 6, 6]
    assert aspp.branches[0][0].groups == 1
    assert aspp(torch.randn(1, 6, 9, 9)).shape == (1, 4, 9, 9)
