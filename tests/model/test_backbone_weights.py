"""ImageNet weights of the backbones, from the files of their publishers."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from model import build_model
from model.backbone import build_backbone
from model.published import load_backbone_weights, recognise_family
from tests.published_keys import assert_equal_states, key_list, numbered


def features_of(backbone: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(2)
    with torch.no_grad():
        return backbone.eval()(torch.randn(1, 3, 64, 96))


def test_imagenet_file_of_the_deep_stem():
    theirs = build_backbone("resnet18")
    names = {f"stem.{3 * i + j}.": f"{part}{i + 1}." for i in range(3) for j, part in enumerate(("conv", "bn"))}
    weights = {}
    for key, value in theirs.state_dict().items():
        ours = next((prefix for prefix in names if key.startswith(prefix)), None)
        weights[key if ours is None else names[ours] + key[len(ours) :]] = value
    weights |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    backbone = build_backbone("resnet18", output_stride=8)
    report = load_backbone_weights(backbone, weights)
    assert report.dropped == ("fc.weight", "fc.bias")
    assert_equal_states(backbone, theirs)
    with pytest.raises(ValueError, match=r"without a place in the model: layer5\.0\.weight"):
        load_backbone_weights(backbone, weights | {"layer5.0.weight": torch.zeros(1)})


def renamed(backbone: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The weights of a backbone with each of our prefixes replaced by the published one."""
    weights = {}
    for key, value in backbone.state_dict().items():
        ours = next((prefix for prefix in names if key.startswith(prefix)), "")
        weights[names.get(ours, "") + key[len(ours) :]] = value
    return weights


def test_imagenet_file_of_the_deep_stem_with_its_last_norm_outside():
    theirs = build_backbone("resnet18")
    weights = renamed(theirs, {"stem.7.": "bn1.", "stem.": "conv1."})
    assert "conv1.6.weight" in weights
    weights |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    backbone = build_backbone("resnet18", dilations=(1, 1, 2, 4))
    assert load_backbone_weights(backbone, weights).dropped == ("fc.weight", "fc.bias")
    assert_equal_states(backbone, theirs)
    assert recognise_family(weights).backbone == "resnet18"
    with pytest.raises(ValueError, match="conv1.weight"):
        load_backbone_weights(build_backbone("torchvision/resnet18"), weights)


@pytest.mark.parametrize(("name", "numbers"), [("dfnet_v1", "2 3 4 5"), ("dfnet_v2", "2_1 2_2 3_1 3_2 4_1 4_2")])
def test_imagenet_file_of_dfnet(name, numbers):
    theirs = build_backbone(name)
    names = {f"stages.{i}.": f"stage{number}." for i, number in enumerate(numbers.split())}
    weights = renamed(theirs, {"stem.": "stage1.", **names})
    weights |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    backbone = build_backbone(name)
    assert load_backbone_weights(backbone, weights).dropped == ("fc.weight", "fc.bias")
    assert_equal_states(backbone, theirs)
    assert recognise_family(weights).backbone == name


@pytest.mark.parametrize("name", ["stdc1", "stdc2"])
def test_imagenet_file_of_stdc(name):
    golden = key_list(f"sfnet_lite_{name}")
    whole = {key.removeprefix("backbone."): v for key, v in numbered(golden).items() if key.startswith("backbone.")}
    once = {key: value for key, value in whole.items() if not key.startswith("x")}
    backbones = [build_backbone(name) for _ in range(2)]
    for backbone, weights in zip(backbones, (whole, once), strict=True):
        report = load_backbone_weights(backbone, {"state_dict": weights, "epoch": 300})
        assert {key.split(".")[0] for key in report.dropped} == {"conv_last", "fc", "bn", "linear"}
        assert report.missing == ()
        assert recognise_family(weights)[1:] == (None, None, name, {})
    assert_equal_states(*backbones)


def test_imagenet_file_of_torchvision():
    theirs = torchvision.models.resnet18()
    backbone = build_backbone("torchvision/resnet18")
    assert load_backbone_weights(backbone, theirs.state_dict()).dropped == ("fc.weight", "fc.bias")
    whole = torchvision.models.feature_extraction.create_feature_extractor(theirs, ["layer1", "layer4"])
    expected = list(features_of(whole).values())
    first, *_, last = features_of(backbone)
    assert torch.equal(first, expected[0])
    assert torch.equal(last, expected[1])


@pytest.mark.parametrize("flat", [False, True], ids=["torchvision", "flat"])
def test_imagenet_file_of_mobilenet(flat):
    # With zero biases and means the border is zero after the expansion too, so torchvision's padding is ours.
    theirs = torchvision.models.mobilenet_v2()
    weights = theirs.state_dict()
    if flat:
        by_order = [name for name in weights if name.startswith("features.") and ".18." not in name]
        ours = list(build_backbone("mobilenet_v2").state_dict())
        weights = dict(zip(ours, (weights[name] for name in by_order), strict=True))
        weights["classifier.weight"] = torch.zeros(1000, 1280)
    backbone = build_backbone("mobilenet_v2")
    report = load_backbone_weights(backbone, weights)
    assert all(key.startswith(("features.18.", "classifier.")) for key in report.dropped)
    expected = features_of(theirs.features[:18])
    torch.testing.assert_close(features_of(backbone)[-1], expected)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "test_vit"])
def test_weights_of_timm(name):
    theirs = timm.create_model(name)
    backbone = build_backbone(f"timm/{name}")
    report = load_backbone_weights(backbone, theirs.state_dict())
    assert all(key.startswith("pyramid.") for key in report.missing)  # ours, on a backbone of one stride
    assert report.dropped
    state = backbone.state_dict()
    assert all(torch.equal(state[ours], theirs.state_dict()[key]) for key, ours in report.mapped.items())


def test_weights_of_another_network_are_refused():
    weights = torchvision.models.resnet18().state_dict()
    with pytest.raises(ValueError, match="conv3.weight"):
        load_backbone_weights(build_backbone("resnet18"), weights)
    with pytest.raises(ValueError, match="pass model.backbone"):
        load_backbone_weights(build_model("fcn", 5, "resnet18"), weights)
