"""Transformers, and the HRNet they are compared with, under the keys of their publishers."""

import re

import pytest
import timm
import torch
from torch.nn import functional as F

from model.backbone import build_backbone
from model.backbone.hrnet import Fusion
from model.backbone.mit import ReducedAttention
from model.backbone.swin import Block
from model.hrnet import ObjectContext
from model.published import load_backbone_weights, load_published, recognise_family
from model.published.recognise import build_on_meta
from tests.published_keys import key_list, meta
from tests.published_logits import published_case

# Key list -> how the network is built for it.
NETWORKS = {
    "nvlabs_segformer_b0": ("segformer", 19, "mit_b0", {"project_norm": False, "norm_eps": [1e-5, 1e-6]}),
    "nvlabs_segformer_b2": ("segformer", 19, "mit_b2", {"project_norm": False, "norm_eps": [1e-5, 1e-6]}),
    "mmseg_segformer_mit-b0": ("segformer", 19, "mit_b0", {"project_norm": True, "norm_eps": [1e-6, 1e-6]}),
    "hf_segformer_b0": ("segformer", 19, "mit_b0", {"project_norm": False, "norm_eps": [1e-5, 1e-5]}),
    "hrnet_w18_small_v2": ("hrnet", 19, "hrnet_w18_small_v2", {"align_corners": False}),
    "hrnet_w48": ("hrnet", 19, "hrnet_w48", {"align_corners": False}),
    "hrnet_ocr_w48": ("hrnet_ocr", 19, "hrnet_w48", {"align_corners": True}),
    "hf_upernet_convnext": ("upernet", 150, "convnext_tiny", {"width": 512, "auxiliary": True, "align_corners": False}),
    "hf_upernet_swin": ("upernet", 150, "swin_tiny", {"width": 512, "auxiliary": True, "align_corners": False}),
    "hf_segformer_b0_hub": ("segformer", 19, "mit_b0", {"project_norm": False, "norm_eps": [1e-5, 1e-5]}),
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
    assert report.missing == ()
    lacking = golden["params"] - sum(p.numel() for p in network.parameters())
    assert lacking == sum(torch.Size(golden["keys"][key]).numel() for key in report.dropped)


@pytest.mark.parametrize("file", ["nvlabs_segformer_b0", "mmseg_segformer_mit-b0"])
def test_imagenet_weights_have_the_names_of_the_encoder(file):
    encoder = {key.removeprefix("backbone."): v for key, v in meta(key_list(file)).items() if "decode_head" not in key}
    found = recognise_family(encoder)
    assert (found.model, found.backbone) == (None, "mit_b0")


@pytest.mark.parametrize("file", ["nvlabs_segformer_b0", "mmseg_segformer_mit-b0"])
def test_logits_are_those_of_the_published_code(file):
    fill, golden, network, x = published_case(file)
    with torch.no_grad():
        fill.compare(golden, "main_lowres", network.decode(network.forward_features(x))["out"])
        fill.compare(golden, "logits", network(x)["out"])


def test_reduced_attention_is_attention_to_the_reduced_map():
    torch.manual_seed(0)
    attention = ReducedAttention(8, heads=2, reduction=2, eps=1e-5)
    x = torch.randn(1, 5, 6, 8)
    small = attention.norm(
        F.conv2d(x.permute(0, 3, 1, 2), attention.sr.weight, attention.sr.bias, 2).permute(0, 2, 3, 1)
    )
    tokens, query = small.reshape(6, 8), attention.q(x).reshape(30, 8)
    key, value = attention.kv(tokens).split(8, 1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = torch.softmax(query[:, head] @ key[:, head].T / 2, 1)
        heads.append(weights @ value[:, head])
    expected = attention.proj(torch.cat(heads, 1)).reshape(1, 5, 6, 8)
    torch.testing.assert_close(attention(x), expected)


def test_mix_transformer_takes_pictures_smaller_than_its_reductions():
    features = build_backbone("mit_b0").eval()(torch.randn(1, 3, 5, 9))
    assert [tuple(feature.shape[2:]) for feature in features] == [(2, 3), (1, 2), (1, 1), (1, 1)]


def test_fusion_gives_every_branch_the_sum_of_all():
    torch.manual_seed(0)
    fusion = Fusion([4, 8], align_corners=False).eval()
    fine, coarse = torch.randn(1, 4, 6, 7), torch.randn(1, 8, 3, 4)
    enlarged = F.interpolate(fusion.fuse_layers[0][1](coarse), size=(6, 7), mode="bilinear")
    reduced = fusion.fuse_layers[1][0](fine)
    assert reduced.shape == coarse.shape
    torch.testing.assert_close(fusion([fine, coarse]), [(fine + enlarged).relu(), (coarse + reduced).relu()])


def test_pixels_attend_to_the_regions_of_the_classes():
    torch.manual_seed(0)
    module = ObjectContext(6, 4, dropout=0.0).eval()
    x, logits = torch.randn(1, 6, 3, 5), torch.randn(1, 2, 3, 5)
    pixels = x[0].flatten(1).T  # 15 pixels of 6 channels
    regions = torch.stack([torch.softmax(logits[0, place].flatten(), 0) @ pixels for place in range(2)])
    column = regions.T[None, :, :, None]
    query, key, value = (y[0].flatten(1).T for y in (module.query(x), module.key(column), module.value(column)))
    context = torch.softmax(query @ key.T / 4**0.5, 1) @ value
    expected = module.project(torch.cat([module.expand(context.T.reshape(1, 4, 3, 5)), x], 1))
    torch.testing.assert_close(module(x, logits), expected)


@pytest.mark.parametrize(
    ("name", "theirs", "size", "levels"),
    [
        ("convnext_tiny", "convnext_tiny", (64, 96), 4),
        # timm does not shift the windows of a map of one window, which the last level is here
        ("swin_tiny", "swin_tiny_patch4_window7_224", (224, 224), 3),
    ],
)
def test_imagenet_weights_of_timm_give_the_features_of_timm(name, theirs, size, levels):
    whole = timm.create_model(theirs, features_only=True).eval()
    weights = timm.create_model(theirs).eval().state_dict()
    whole.load_state_dict(
        {key: weights[re.sub(r"^(stages|layers|stem)_(\d)", r"\1.\2", key)] for key in whole.state_dict()}
    )
    backbone = build_backbone(name).eval()
    report = load_backbone_weights(backbone, weights)
    assert {key.partition(".")[0] for key in report.missing} == {"norms"}
    assert recognise_family(weights).backbone == name
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected, found = whole(x), backbone(x)
    for level in range(levels):
        map_ = expected[level] if name == "convnext_tiny" else expected[level].permute(0, 3, 1, 2)
        normed = F.layer_norm(map_.permute(0, 2, 3, 1), map_.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(found[level], normed, rtol=1e-3, atol=1e-3)


def test_windows_attend_to_themselves_and_not_over_the_border():
    torch.manual_seed(0)
    block = Block(32, 1, shifted=True, drop_path=0.0).eval()
    x = torch.randn(1, 9, 11, 32)
    padded = torch.zeros(14, 14, 32)
    padded[:9, :11] = x[0]
    # Rows and columns of the padded map belong together where neither the cyclic window nor the border divides them.
    window, side = [(i - 3) % 14 // 7 for i in range(14)], [i < 3 for i in range(14)]
    places = [(row, column) for row in range(14) for column in range(14)]
    group = [(window[r], window[c], side[r], side[c]) for r, c in places]
    query, key, value = block.attn.qkv(padded.view(-1, 32)).chunk(3, 1)
    table = block.attn.relative_position_bias_table[:, 0]
    out = torch.zeros(14 * 14, 32)
    for one, (row, column) in enumerate(places):
        mates = [other for other in range(len(places)) if group[other] == group[one]]
        bias = torch.stack([table[(row - places[o][0] + 6) * 13 + column - places[o][1] + 6] for o in mates])
        chances = torch.softmax(query[one] @ key[mates].T / 32**0.5 + bias, 0)
        out[one] = block.attn.proj(chances @ value[mates])
    torch.testing.assert_close(block.attend(x)[0], out.view(14, 14, 32)[:9, :11])
